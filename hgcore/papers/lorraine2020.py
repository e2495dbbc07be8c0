"""What Lorraine, Vicol and Duvenaud (2020) train by alternation; their distilled data sets are
`maclaurin2015.learned_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hgcore import data
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import HeavyBall
from hgcore.problem import Problem


def weight_decays(
    backend,
    net: Callable,
    start,
    train: data.Split,
    judged: data.Split,
    *,
    rate: float = 0.1,
    decay: float = 0.9,
    steps: int = 0,
) -> Problem:
    """Any net under an L2 penalty for each of its weights, the biases among them (Lorraine et al.
    2020, Figures 5, 8 and 9).

    net: (weights (n,), inputs) -> log-probabilities, a `DenseNet` or what `functional` makes of a
    torch module; start: its first weights. hyper: the logarithms of the penalties (n,), or of one
    for all weights (1,). Inner objective: cross-entropy on all of `train` plus sum(exp(hyper) *
    weights**2). Outer: cross-entropy on all of `judged`. Heavy ball bears a penalty while
    exp(hyper) < (1 + decay) / rate, less half the curvature: keep hyper below by a projection.
    """
    xp, start = backend.xp, backend.array(start)
    return Problem(
        backend=backend,
        inner_loss=lambda weights, hyper, t: (
            cross_entropy(net(weights, train.images), train.labels)
            + xp.sum(xp.exp(hyper) * weights**2)
        ),
        outer_loss=lambda weights, hyper: cross_entropy(net(weights, judged.images), judged.labels),
        optimizer=HeavyBall(rate=rate, decay=decay),
        initial=lambda hyper: start,
        steps=steps,
    )


def first_weights(net: DenseNet, address: Sequence[int]) -> np.ndarray:
    """Weights (n,) to begin with: normal with variance 1 / inputs in each layer, drawn at that
    address; no biases.
    """
    rng = np.random.default_rng(address)
    return net.initial_weights(lambda *shape: rng.standard_normal(shape))


def joined(*splits: data.Split) -> data.Split:
    """The examples of these splits, one after the other, as NumPy arrays."""
    return data.Split(*map(np.concatenate, zip(*splits, strict=True)))
