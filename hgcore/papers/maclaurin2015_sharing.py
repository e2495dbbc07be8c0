"""Letters of many alphabets, and nets that learn what to share between them (Maclaurin et al. 2015,
section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.arrays import pieces
from hgcore.layout import Layout
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import Momentum
from hgcore.problem import Problem


class Letters(NamedTuple):
    """One task: to tell the characters of an alphabet apart.

    images (characters, drawings, pixels), labels (characters, classes).
    """

    images: np.ndarray
    labels: np.ndarray


def turned(alphabet: np.ndarray) -> np.ndarray:
    """An alphabet (characters, drawings, side * side) with every picture turned by 90 degrees,
    counter-clockwise.
    """
    side = round(alphabet.shape[-1] ** 0.5)
    return np.rot90(alphabet.reshape(*alphabet.shape[:2], side, side), axes=(2, 3)).reshape(
        alphabet.shape
    )


def alphabets_and_turned(alphabets: Sequence[np.ndarray], classes: int, rng) -> list[Letters]:
    """Maclaurin et al. 2015, section 3.5: a task per alphabet, then a task per turned alphabet,
    minus the mean picture of all.

    Labels are drawn at random among `classes` outputs; the turned copy of a character keeps its
    label.
    """
    labels = [np.eye(classes)[rng.permutation(classes)[: len(alphabet)]] for alphabet in alphabets]
    images = [*alphabets, *map(turned, alphabets)]
    mean = np.concatenate([task.reshape(-1, task.shape[-1]) for task in images]).mean(axis=0)
    return [
        Letters(task - mean, names) for task, names in zip(images, labels + labels, strict=True)
    ]


def deal(tasks: Sequence[Letters], sizes: Sequence[int], rng) -> list[list[Letters]]:
    """The tasks once for each of `sizes`, so many drawings of every character in each: dealt at
    random, task by task.
    """
    orders = [rng.rand(*task.images.shape[:2]).argsort(axis=1)[..., None] for task in tasks]
    dealt = [
        np.split(np.take_along_axis(task.images, order, 1), np.cumsum(sizes), axis=1)
        for task, order in zip(tasks, orders, strict=True)
    ]
    return [
        [Letters(parts[i], task.labels) for task, parts in zip(tasks, dealt, strict=True)]
        for i in range(len(sizes))
    ]


def sharings(tasks: int) -> Layout:
    """The hyperparameters of `sharing`: for each of the net's three layers a matrix that mixes the
    tasks.
    """
    return Layout({layer: (tasks, tasks) for layer in ("input", "middle", "output")})


def evenly(tasks: int, shares: Sequence[float]) -> np.ndarray:
    """Hyperparameters of `sharing`, T = (1 - share) I + share 11'/tasks in each layer: 0 for
    separate weights, 1 for one set for all.
    """
    layout = sharings(tasks)
    blocks = [(1 - share) * np.eye(tasks) + share / tasks for share in shares]
    return layout.join(dict(zip(layout.shapes, blocks, strict=True)))


def shared(hyper: np.ndarray, tasks: int) -> dict[str, np.ndarray]:
    """How much each pair of tasks shares in each layer: the covariance T T' as correlations, ones
    on the diagonal.
    """
    covariances = {
        layer: matrix @ matrix.T for layer, matrix in sharings(tasks).split(hyper).items()
    }
    return {
        layer: c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for layer, c in covariances.items()
    }


def sharing(
    backend,
    net: DenseNet,
    train: Sequence[Letters],
    judged: Sequence[Letters],
    rng,
    *,
    steps: int,
    rate: float,
    decay: float,
    penalty: float,
    log_scale: float,
) -> Problem:
    """One net of three layers per task, whose weights are mixed layer by layer (Maclaurin et al.
    2015, section 3.5).

    Training moves free weights z, all tasks' together: n = tasks * net.layout.size. In layer l the
    net of task i has the weights sum_j T_l[i, j] z_j, where hyper holds the T_l as
    `sharings(tasks)` names them. Together with the penalty on |z|**2 this is a quadratic penalty on
    pairs of tasks, with covariance T_l T_l'. Inner: the sum of the tasks' mean cross-entropies, and
    the penalty; full batch. Outer: the mean over tasks on `judged`. z starts with standard
    deviation exp(log_scale).
    """
    train, judged = ([_examples(backend, task) for task in tasks] for tasks in (train, judged))
    start = backend.array(rng.randn(len(train) * net.layout.size) * np.exp(log_scale))
    return Problem(
        backend=backend,
        inner_loss=lambda free, hyper, t: (
            sum(_losses(net, free, hyper, train)) + penalty * (free @ free)
        ),
        outer_loss=lambda free, hyper: sum(_losses(net, free, hyper, judged)) / len(judged),
        optimizer=Momentum(
            rate=lambda hyper, t: backend.array(rate), decay=lambda hyper, t: backend.array(decay)
        ),
        initial=lambda hyper: start,
        steps=steps,
    )


def _examples(backend, task: Letters) -> data.Split:
    """All drawings of all characters, a row each."""
    pixels, drawings = task.images.shape[-1], task.images.shape[1]
    return data.Split(
        backend.array(task.images.reshape(-1, pixels)),
        backend.array(task.labels.repeat(drawings, axis=0)),
    )


def _losses(net: DenseNet, free, hyper, tasks: Sequence[data.Split]) -> list:
    """The mean cross-entropy of each task's net."""
    nets = mixed(net, free, hyper, len(tasks))
    return [
        cross_entropy(net.through(blocks, task.images), task.labels)
        for blocks, task in zip(nets, tasks, strict=True)
    ]


def losses_by_task(backend, net: DenseNet, free, hyper, tasks: Sequence[Letters]) -> np.ndarray:
    """What `sharing` judges by, of every task on its own: (tasks,)."""
    return np.array(
        [
            float(loss)
            for loss in _losses(net, free, hyper, [_examples(backend, task) for task in tasks])
        ]
    )


def mixed(net: DenseNet, free, hyper, tasks: int):
    """For each task the weights and biases of its net: per block of the net (tasks, size), matrix
    of its layer @ free weights.
    """
    matrices = list(sharings(tasks).split(hyper).values())
    blocks = Layout(
        {
            name: (tasks, size)
            for name, size in zip(net.layout.shapes, net.layout.sizes, strict=True)
        }
    ).split(free)
    mixtures = [
        (matrices[i // 2] @ block).reshape((-1,)) for i, block in enumerate(blocks.values())
    ]
    rows = [
        pieces(mixture, tasks * [size])
        for mixture, size in zip(mixtures, net.layout.sizes, strict=True)
    ]
    return [
        [
            block.reshape(shape)
            for block, shape in zip(task, net.layout.shapes.values(), strict=True)
        ]
        for task in zip(*rows, strict=True)
    ]
