"""Hyper-cleaning (Franceschi et al. 2017, section 5.1): a learned weight for each example."""

from __future__ import annotations

import numpy as np

from hgcore import data
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem


def corrupt_labels(
    examples: data.Split, share: float, rng: np.random.Generator
) -> tuple[data.Split, np.ndarray]:
    """Return the examples with `share` of them labeled as another class, and which (N,) bool."""
    count, classes = examples.labels.shape
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(share * count)]] = True
    shifts = np.where(wrong, rng.integers(1, classes, size=count), 0)
    labels = np.eye(classes)[(examples.labels.argmax(1) + shifts) % classes]
    return data.Split(examples.images, labels), wrong


def weighted_examples(
    backend, net: DenseNet, train: data.Split, valid: data.Split, *, steps: int, rate: float
) -> Problem:
    """Return full-batch gradient descent from zero on (1/N) sum_i hyper_i NLL_i; hyper (N,).

    The outer loss is the mean NLL of `valid`.
    """
    xp, count, rate = backend.xp, len(train.labels), backend.array(rate)
    start = backend.array(np.zeros(net.layout.size))
    return Problem(
        backend=backend,
        inner_loss=lambda weights, hyper, t: (
            -xp.sum(hyper * xp.sum(net(weights, train.images) * train.labels, axis=1)) / count
        ),
        outer_loss=lambda weights, hyper: cross_entropy(net(weights, valid.images), valid.labels),
        optimizer=GradientDescent(rate=rate),
        initial=lambda hyper: start,
        steps=steps,
    )


def f1_score(found: np.ndarray, wrong: np.ndarray) -> float:
    """Return the F1 of `found` (N,) bool as a guess of `wrong` (N,) bool; 0 if nothing is found."""
    return 2 * np.sum(found & wrong) / max(1, np.sum(found) + np.sum(wrong))
