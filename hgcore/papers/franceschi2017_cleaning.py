"""Which examples to train on: a weight for each of them, learned (Franceschi et al. 2017, section
5.1).
"""

from __future__ import annotations

import numpy as np

from hgcore import data
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem


def corrupted(
    examples: data.Split, share: float, rng: np.random.Generator
) -> tuple[data.Split, np.ndarray]:
    """(the examples, but `share` of them labelled as another class, drawn evenly; which ones: (N,)
    bool).
    """
    count, classes = examples.labels.shape
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(share * count)]] = True
    shifts = np.where(wrong, rng.integers(1, classes, size=count), 0)
    return data.Split(
        examples.images, np.eye(classes)[(examples.labels.argmax(1) + shifts) % classes]
    ), wrong


def weighted_examples(
    backend, net: DenseNet, train: data.Split, judged: data.Split, *, steps: int, rate: float
) -> Problem:
    """Full-batch gradient descent from zero on (1/N) sum_i hyper_i NLL_i: hyper (N,) holds a weight
    for each of the N examples.

    The outer objective is the mean NLL of `judged`.
    """
    xp, count, rate, start = (
        backend.xp,
        len(train.labels),
        backend.array(rate),
        backend.array(np.zeros(net.layout.size)),
    )
    return Problem(
        backend=backend,
        inner_loss=lambda weights, hyper, t: (
            -xp.sum(hyper * xp.sum(net(weights, train.images) * train.labels, axis=1)) / count
        ),
        outer_loss=lambda weights, hyper: cross_entropy(net(weights, judged.images), judged.labels),
        optimizer=GradientDescent(rate=rate),
        initial=lambda hyper: start,
        steps=steps,
    )


def f1(found: np.ndarray, wrong: np.ndarray) -> float:
    """Harmonic mean of precision and recall of `found` (N,) bool as a guess of `wrong` (N,) bool; 0
    if nothing is found.
    """
    return 2 * np.sum(found & wrong) / max(1, np.sum(found) + np.sum(wrong))
