"""Networks for several alphabets, and what they share (Maclaurin et al. 2015, section 3.5)."""

from collections.abc import Sequence

import numpy as np

from hgcore.arrays import pieces
from hgcore.data import Split
from hgcore.layout import Layout
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import Momentum
from hgcore.problem import Problem

FIGURE_8 = [  # numbers 6, 10, 23, 38 and 39 of the authors' file
    "Aurek-Besh",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)",
    "Hebrew",
    "N_Ko",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)",
]


def rotated(alphabet: np.ndarray) -> np.ndarray:
    """Return an alphabet (characters, drawings, side * side), rotated by 90 degrees to the left."""
    side = round(alphabet.shape[-1] ** 0.5)
    pictures = alphabet.reshape(*alphabet.shape[:2], side, side)
    return np.rot90(pictures, axes=(2, 3)).reshape(alphabet.shape)


def alphabet_tasks(alphabets: Sequence[np.ndarray], classes: int, rng) -> list[Split]:
    """Return a task per alphabet, then one per rotated alphabet, minus the mean image of all.

    A task: images (characters, drawings, pixels), labels (characters, classes). Each character has
    one of `classes` outputs, drawn at random; its rotated copy has the same.
    """
    labels = [np.eye(classes)[rng.permutation(classes)[: len(alphabet)]] for alphabet in alphabets]
    images = [*alphabets, *map(rotated, alphabets)]
    mean = np.concatenate([task.reshape(-1, task.shape[-1]) for task in images]).mean(axis=0)
    return [Split(task - mean, names) for task, names in zip(images, 2 * labels, strict=True)]


def split_drawings(tasks: Sequence[Split], sizes: Sequence[int], rng) -> list[list[Split]]:
    """Return the tasks once per size, with that many random drawings of every character."""
    parts = []
    for images, labels in tasks:
        order = rng.rand(*images.shape[:2]).argsort(axis=1)[..., None]
        shuffled = np.take_along_axis(images, order, 1)
        split = np.split(shuffled, np.cumsum(sizes), axis=1)[: len(sizes)]
        parts.append([Split(part, labels) for part in split])
    return list(map(list, zip(*parts, strict=True)))


def mixing_layout(tasks: int) -> Layout:
    """Return the hyperparameters of `sharing_problem`: a matrix T (tasks, tasks) per layer."""
    return Layout({layer: (tasks, tasks) for layer in ("input", "middle", "output")})


def uniform_mixing(tasks: int, shares: Sequence[float]) -> np.ndarray:
    """Return hyper with T = (1 - share) I + share 11'/tasks in each layer.

    share 0: separate weights; 1: one set of weights for all tasks.
    """
    layout = mixing_layout(tasks)
    blocks = [(1 - share) * np.eye(tasks) + share / tasks for share in shares]
    return layout.join(dict(zip(layout.shapes, blocks, strict=True)))


def weight_correlations(hyper: np.ndarray, tasks: int) -> dict[str, np.ndarray]:
    """Return per layer the correlations (tasks, tasks) of the covariance T T'."""
    blocks = mixing_layout(tasks).split(hyper)
    rows = {layer: t / np.linalg.norm(t, axis=1, keepdims=True) for layer, t in blocks.items()}
    return {layer: t @ t.T for layer, t in rows.items()}


def sharing_problem(
    backend, net: DenseNet, train, valid, rng, *, steps, rate, decay, penalty, log_scale
) -> Problem:
    """Return the training of one net of three layers per task, with weights mixed layer by layer.

    train, valid: tasks as in `alphabet_tasks`. State: free weights z of all tasks, n = tasks *
    net.layout.size, which start with standard deviation exp(log_scale). In layer l task i has the
    weights sum_j T_l[i, j] z_j; hyper holds the T_l by `mixing_layout(tasks)`. Inner: the sum of
    the tasks' mean cross-entropies plus penalty * |z|**2, full batch. Outer: the mean over tasks of
    the cross-entropy on `valid`.
    """
    train, valid = ([_examples(backend, task) for task in tasks] for tasks in (train, valid))
    start = backend.array(rng.randn(len(train) * net.layout.size) * np.exp(log_scale))

    def inner(free, hyper, t):
        return sum(_losses(net, free, hyper, train)) + penalty * (free @ free)

    def outer(free, hyper):
        return sum(_losses(net, free, hyper, valid)) / len(valid)

    return Problem(backend, inner, outer, Momentum(rate, decay), start, steps)


def losses_by_task(backend, net: DenseNet, free, hyper, tasks: Sequence[Split]) -> np.ndarray:
    """Return the mean cross-entropy of each task's net, (tasks,)."""
    losses = _losses(net, free, hyper, [_examples(backend, task) for task in tasks])
    return np.array([float(loss) for loss in losses])


def _examples(backend, task: Split) -> Split:
    drawings, pixels = task.images.shape[1:]
    images, labels = task.images.reshape(-1, pixels), task.labels.repeat(drawings, axis=0)
    return Split(images, labels).on(backend)


def _losses(net: DenseNet, free, hyper, tasks: Sequence[Split]) -> list:
    weights = mixed_weights(net, free, hyper, len(tasks))
    return [
        cross_entropy(net.through(blocks, task.images), task.labels)
        for blocks, task in zip(weights, tasks, strict=True)
    ]


def mixed_weights(net: DenseNet, free, hyper, tasks: int) -> list[list]:
    """Return the weights and biases of each task's net: matrix of the layer @ free weights."""
    matrices = list(mixing_layout(tasks).split(hyper).values())
    blocks = pieces(free, [tasks * size for size in net.layout.sizes])
    mixed = [matrices[i // 2] @ block.reshape((tasks, -1)) for i, block in enumerate(blocks)]
    return [
        [row.reshape(shape) for row, shape in zip(rows, net.layout.shapes.values(), strict=True)]
        for rows in zip(*mixed, strict=True)
    ]
