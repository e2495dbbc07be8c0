"""Task interactions (Franceschi et al. 2017, section 5.2): how strongly classes share weights.

K classes are K tasks. C (K, K), symmetric and not negative, pulls the weights of related classes
together; hyper holds its upper triangle, one number C_jk for a pair j < k, so C is symmetric.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.arrays import namespace
from hgcore.data import Split
from hgcore.layout import Layout
from hgcore.nets import cross_entropy, log_softmax
from hgcore.optimizers import HeavyBall
from hgcore.papers.lorraine2020 import concatenate
from hgcore.problem import Problem
from hgcore.projections import box, box_l1

CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
SQUARE = 1000.0  # mean square of the norm of the features, so that one rate fits all sets
ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}


class Tasks(NamedTuple):
    """Examples of K classes: features (N, d), labels (N,), whole numbers, K names.

    groups: the true group of each class, [] if that is unknown.
    """

    features: np.ndarray
    labels: np.ndarray
    names: list[str]
    groups: list[str]


def photographs(source: str, count: int, side: int) -> Tasks:
    """Return the first count / K photographs of each class of cifar10 or cifar100, training first.

    Features: those of `data.image_features`, in the paper the 2,048 of Inception-V3.
    """
    pixels, labels, _ = data.SOURCES[source]()
    rows = _first_of_each_class(labels, count)
    names, groups = list(map(str, range(100))), []
    if source == "cifar10":
        names, groups = CIFAR_10, ["animal" if x in ANIMALS else "vehicle" for x in CIFAR_10]
    return Tasks(data.image_features(pixels[rows], side), labels[rows], names, groups)


def news(count: int, features: int) -> Tasks:
    """Return the first count / 20 posts of each newsgroup as TF-IDF, reduced by truncated SVD.

    Both come from all posts, without labels. Groups: the first part of a name, such as comp.
    """
    texts, labels, names = data.newsgroups()
    rows = _first_of_each_class(labels, count)
    found = data.tfidf_svd(texts, features)[rows]
    return Tasks(found, labels[rows], names, [name.partition(".")[0] for name in names])


def generated(count: int) -> Tasks:
    """Return classes whose centers lie near that of their group: the true graph is known.

    A group's center has 40 standard normal coordinates, a class's is that plus 0.7 times such a
    vector, an example's that plus 3 times another.
    """
    rng, names = np.random.default_rng((0, 0, 1)), "A1 A2 A3 B1 B2 B3 C1 C2".split()
    groups = [name[0] for name in names]
    centers = rng.standard_normal((3, 40))[["ABC".index(group) for group in groups]]
    centers = centers + 0.7 * rng.standard_normal((len(names), 40))
    labels = np.arange(count) % len(names)
    return Tasks(centers[labels] + 3 * rng.standard_normal((count, 40)), labels, names, groups)


def _first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the first count / K examples of each of K classes, in their order."""
    classes = labels.max() + 1
    if count // classes > (least := np.bincount(labels).min()):
        what = f"{count:,} examples are {count // classes:,} a class, one has {least:,}"
        raise data.DataError(f"{what}; take fewer, or see data/README.md for the whole set")
    rows = [np.flatnonzero(labels == k)[: count // classes] for k in range(classes)]
    return np.sort(np.concatenate(rows))


def deal(tasks: Tasks, train: int, valid: int, seed: Sequence[int]) -> list[Split]:
    """Return random (train, valid, test): `train` and `valid` examples in all, the rest for test.

    In both, all classes have the same number of examples, or ValueError is raised. Features are
    shifted and scaled so that in training their mean is zero and their mean square norm SQUARE.
    """
    order, classes = np.random.default_rng(seed).permutation(len(tasks.labels)), len(tasks.names)
    if train % classes or valid % classes:
        raise ValueError(f"train, valid must be multiples of {classes}, got {train}, {valid}")
    one_hot = np.eye(classes)[tasks.labels]
    # how many examples of the same class have come, each itself included
    seen = one_hot[order].cumsum(axis=0)[range(len(order)), tasks.labels[order]]
    part = np.searchsorted([train // classes, (train + valid) // classes], seen)
    rows = [order[part == i] for i in range(3)]
    known = np.asarray(tasks.features[rows[0]], float)
    mean, unit = known.mean(axis=0), np.sqrt(known.var(axis=0).sum() / SQUARE)
    return [Split((tasks.features[r] - mean) / unit, one_hot[r]) for r in rows]


def tuning_and_final(backend, parts: Sequence[Split]) -> list[list[Split]]:
    """Return [train, valid] and [train and valid, test] of `deal`, each pair in the training span.

    That is: in an orthonormal basis of the span of the training features. Weights that start at
    zero never leave it, and norms and products in it stay the same: so do training, penalties and
    scores, with fewer weights if there are fewer examples than features.
    """
    train, valid, test = parts
    pairs = (train, valid), (concatenate(train, valid), test)
    return [[part.on(backend) for part in _in_span(*pair)] for pair in pairs]


def _in_span(train: Split, other: Split) -> tuple[Split, ...]:
    if len(train.images) >= train.images.shape[1]:
        return train, other
    basis = np.linalg.qr(train.images.T)[0]
    return tuple(Split(part.images @ basis, part.labels) for part in (train, other))


def chosen(rows: np.ndarray) -> np.ndarray:
    """Return the hyper of the row (accuracy, loss, *hyper) of best accuracy, then least loss."""
    return rows[np.lexsort((rows[:, 1], -rows[:, 0]))[0], 2:]


def edge_precision(pairs: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Return the average precision of C_jk as a score of "j and k are of one group", and chance.

    pairs: the upper triangle of C, row by row. Chance: the share of such pairs.
    """
    from sklearn.metrics import average_precision_score

    groups = np.array(groups)
    same = (groups[:, None] == groups)[np.triu_indices(len(groups), 1)]
    return float(average_precision_score(same, pairs)), float(same.mean())


def interaction_layout(classes: int, penalties: int = 1) -> Layout:
    """Return the hyperparameters: C_jk of each pair j < k, and one rho or one of each class."""
    return Layout({"C": (classes * (classes - 1) // 2,), "rho": (penalties,)})


def as_matrix(pairs: np.ndarray, classes: int) -> np.ndarray:
    """Return the symmetric C (K, K) with zero diagonal of its upper triangle, row by row."""
    matrix = np.zeros((classes, classes), np.asarray(pairs).dtype)
    matrix[np.triu_indices(classes, 1)] = pairs
    return matrix + matrix.T


def interaction_constraints(classes: int, total: float = np.inf) -> Callable:
    """Return the projection of hyper onto C >= 0, rho >= 0 and sum_jk C_jk <= total.

    The sum has each pair twice, as C_jk and C_kj, so the upper triangle adds up to total / 2.
    """
    layout = interaction_layout(classes)
    onto_block = {"C": box_l1(0.0, np.inf, total / 2), "rho": box(0.0, np.inf)}

    def project(hyper):
        blocks = layout.split(hyper)
        return layout.join({name: onto(blocks[name]) for name, onto in onto_block.items()})

    return project


def multinomial(scores, labels):
    """Return the mean cross-entropy of the softmax of scores (N, K)."""
    return cross_entropy(log_softmax(scores), labels)


def binary(scores, labels):
    """Return the mean cross-entropy of K logistic regressions, each class against the rest (K,)."""
    wrong = (1 - 2 * labels) * scores
    return namespace(scores).logaddexp(0 * wrong, wrong).mean(0)


def one_against_rest(scores, labels):
    """Return the sum of `binary`, so that K tasks train at once and independently."""
    return binary(scores, labels).sum()


def linear_scores(weights, features, classes: int):
    """Return scores (N, K) of weights ((d + 1) K,): the matrix (d, K), then the biases (K,)."""
    matrix = weights.reshape((-1, classes))
    return features @ matrix[:-1] + matrix[-1]


def interactions(
    backend, train: Split, valid: Split, *, steps, rate, decay, loss=multinomial, penalties=1
) -> Problem:
    """Return the training of a linear classifier from zero by heavy ball on all of `train`.

    Inner loss: `loss` + sum_jk C_jk |w_j - w_k|^2 + sum_k rho_k |w_k|^2, without biases; the first
    sum has each pair twice. Outer loss: `loss` of `valid`. hyper: as in interaction_layout(K,
    penalties).
    """
    xp, classes = backend.xp, train.labels.shape[1]
    layout, ones = interaction_layout(classes, penalties), backend.array(np.ones(classes))
    place = as_matrix(np.arange(layout.sizes[0]) + 1, classes) - 1  # of C_jk in hyper, or -1
    start = np.zeros((train.images.shape[1] + 1) * classes)

    def inner(weights, hyper, t):
        blocks, matrix = layout.split(hyper), weights.reshape((-1, classes))[:-1]
        shared = xp.concatenate([blocks["C"], 0 * blocks["rho"][:1]])[place]
        form = xp.diag(2 * shared.sum(1) + ones * blocks["rho"]) - 2 * shared
        scores = linear_scores(weights, train.images, classes)
        return loss(scores, train.labels) + xp.sum((matrix @ form) * matrix)

    def outer(weights, hyper):
        return loss(linear_scores(weights, valid.images, classes), valid.labels)

    return Problem(backend, inner, outer, HeavyBall(rate, decay), start, steps)
