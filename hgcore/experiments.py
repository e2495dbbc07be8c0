"""Problems that more than one notebook trains."""

from __future__ import annotations

from hgcore import data
from hgcore.dynamics import Momentum
from hgcore.layout import Layout
from hgcore.nets import Dense, cross_entropy
from hgcore.problem import Problem


def schedules(net: Dense, steps: int) -> Layout:
    """The hyperparameters of `scheduled`: an initial scale per block of weights; a rate and a momentum per step and block."""
    blocks = len(net.layout)
    return Layout({"log scales": (blocks,), "log rates": (steps, blocks), "momentum logits": (steps, blocks)})


def scheduled(backend, net: Dense, train: data.Split, judged: data.Split, *, steps: int, batch: int, address: tuple) -> Problem:
    """Momentum training of `net` in which every rate, momentum and initial scale is free (Maclaurin et al. 2015, section 3.1).

    Start and minibatches, drawn with replacement, come from the random streams of the authors' code: address = (seed, k).
    The outer objective is the loss on all of `judged`. `schedules(net, steps)` names the hyperparameters.
    """
    xp, layout = backend.xp, schedules(net, steps)
    noise = backend.array(data.authors_rng(*address).randn(net.layout.size))
    batches = [data.authors_rng(*address, t).randint(len(train.labels), size=batch) for t in range(steps)]
    return Problem(
        backend=backend,
        inner=lambda weights, hyper, t: loss(net, weights, train, slice(None) if t is None else batches[t]),
        outer=lambda weights, hyper: loss(net, weights, judged),
        dynamics=Momentum(
            rate=lambda hyper, t: net.layout.expand(xp.exp(layout.split(hyper)["log rates"][t])),
            decay=lambda hyper, t: net.layout.expand(1 / (1 + xp.exp(-layout.split(hyper)["momentum logits"][t])))),
        initial=lambda hyper: net.layout.expand(xp.exp(layout.split(hyper)["log scales"])) * noise,
        steps=steps)


def loss(net: Dense, weights, split: data.Split, rows=slice(None)):
    """Mean cross-entropy of the net on those rows of a split."""
    return cross_entropy(net(weights, split.images[rows]), split.labels[rows])
