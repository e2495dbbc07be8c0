"""Hyper-cleaning (Franceschi et al. 2017, section 5.1): a learned weight for each example."""

from collections.abc import Callable, Sequence

import numpy as np

from hgcore.arrays import namespace
from hgcore.data import Split
from hgcore.nets import log_softmax
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem


def corrupt_labels(examples: Split, share: float, rng) -> tuple[Split, np.ndarray]:
    """Return the examples with `share` of them labeled as another class; which, (N,) bool."""
    count, classes = examples.labels.shape
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(share * count)]] = True
    shifts = np.where(wrong, rng.integers(1, classes, size=count), 0)
    labels = np.eye(classes)[(examples.labels.argmax(1) + shifts) % classes]
    return Split(examples.images, labels), wrong


def regressions(weights, images, classes: int):
    """Return the log-probabilities (runs, N, classes) of independent softmax regressions.

    weights: a matrix (inputs, runs * classes), then biases (runs * classes,), flat. images:
    (N, inputs). One product serves all runs; it takes far less time than one for each.
    """
    joined = weights.reshape((images.shape[1] + 1, -1))
    scores = (images @ joined[:-1] + joined[-1]).reshape((len(images), -1, classes))
    return namespace(scores).swapaxes(log_softmax(scores), 0, 1)


def weighted_examples(backend, train: Split, valid: Split, *, steps, rates) -> Problem:
    """Return runs side by side of gradient descent from zero on (1/N) sum_i hyper_i NLL_i.

    train: images (N, inputs), labels (runs, N, classes). valid: images (M, inputs), labels
    (M, classes). rates: of each run. hyper (runs * N,). The outer loss is the sum over runs of the
    mean NLL of `valid`, so that no run depends on another. For the weights see `regressions`.
    """
    xp, (runs, count, classes) = backend.xp, train.labels.shape
    shape = train.images.shape[1] + 1, runs, classes
    each = backend.array(np.tile(np.repeat(rates, classes), shape[0]))

    def inner(weights, hyper, t):
        likelihoods = xp.sum(regressions(weights, train.images, classes) * train.labels, -1)
        return -xp.sum(hyper.reshape((runs, count)) * likelihoods) / count

    def outer(weights, hyper):
        likelihoods = regressions(weights, valid.images, classes) * valid.labels
        return -xp.sum(likelihoods) / len(valid.images)

    return Problem(backend, inner, outer, GradientDescent(each), np.zeros(np.prod(shape)), steps)


def row_by_row(projections: Sequence[Callable]) -> Callable:
    """Return the projection of a flat vector of rows, one for each of `projections`."""

    def project(hyper):
        rows = zip(projections, hyper.reshape((len(projections), -1)), strict=True)
        return namespace(hyper).concatenate([onto(row) for onto, row in rows])

    return project


def f1_score(found: np.ndarray, wrong: np.ndarray) -> float:
    """Return the F1 of `found` (N,) bool as a guess of `wrong` (N,) bool; 0 if nothing is found."""
    return 2 * np.sum(found & wrong) / max(1, np.sum(found) + np.sum(wrong))
