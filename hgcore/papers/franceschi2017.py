"""Problems of Franceschi et al. (2017): training with tuned rate, momentum and penalties."""

from collections.abc import Callable

import numpy as np

from hgcore import data
from hgcore.data import Split
from hgcore.layout import Layout
from hgcore.nets import DenseNet
from hgcore.optimizers import Adam, HeavyBall
from hgcore.papers.maclaurin2015 import cached_splits, loss
from hgcore.problem import Problem
from hgcore.suite import make_backend

UNIT = 0.0001  # of a penalty


def tuned_layout(groups: int = 1) -> Layout:
    """Return the layout of the hyperparameters of `tuned_problem`; none is a logarithm."""
    return Layout({"rate": (), "momentum": (), "penalties": (groups,)})


def tuned_problem(
    backend, net, train: Split, valid: Split, *, seed_path, batch, steps, groups, adam=False
) -> Problem:
    """Return training by heavy ball, v' = momentum v + g, w' = w - rate v' (section 3).

    adam: train by Adam instead, whose beta1 is the momentum. hyper: as in tuned_layout(groups).
    Inner loss: cross-entropy of a minibatch drawn at (*seed_path, t) plus UNIT * penalty * |w|**2
    of each of `groups` equal stretches of the weights. Outer loss: cross-entropy on all of `valid`.
    Initial weights: normal with variance 1 / inputs.
    """
    layout, xp = tuned_layout(groups), backend.xp
    start = backend.array(net.initial_weights(data.authors_rng(*seed_path, "start").randn))
    stretch = backend.array(np.ones((1, -(-net.layout.size // groups))))

    def inner(weights, hyper, t):
        penalties = (layout.split(hyper)["penalties"][:, None] * stretch).reshape((-1,))
        rows = slice(None) if t is None else data.batch(seed_path, t, batch, len(train.labels))
        penalty = UNIT * xp.sum(penalties[: net.layout.size] * weights * weights)
        return loss(net, weights, train, rows) + penalty

    def tuned(name):
        return lambda hyper, t: layout.split(hyper)[name]

    def outer(weights, hyper):
        return loss(net, weights, valid)

    optimizer = (Adam if adam else HeavyBall)(tuned("rate"), tuned("momentum"))
    return Problem(backend, inner, outer, optimizer, start, steps)


def cost_problem(
    backend, source: str, examples, hidden, *, hypers: int, steps: int, batch: int, adam=False
) -> tuple:
    """Return (`tuned_problem`, hyper) with `hypers` >= 3 hyperparameters, to measure costs on.

    examples: how many for training and for validation. hidden: units of each hidden layer.
    """
    if hypers < 3:
        raise ValueError(f"hypers counts rate, momentum and penalties: 3 or more, got {hypers}")
    # cached, so that the peak memory of a second call excludes reading
    train, valid = (split.on(backend) for split in cached_splits(source, *examples))
    net, groups = DenseNet((784, *hidden, 10)), hypers - 2
    settings = dict(seed_path=(0, 1), batch=batch, steps=steps, groups=groups, adam=adam)
    problem = tuned_problem(backend, net, train, valid, **settings)
    values = {"rate": 0.001 if adam else 0.05, "momentum": 0.9, "penalties": np.ones(groups)}
    return problem, problem.as_hyper(tuned_layout(groups).join(values))


def run_cost_problem(solver: Callable, backend: str, device: str, *where, **size) -> None:
    """Compute one hypergradient of `cost_problem`; importable, for `meter.fresh`."""
    solver(*cost_problem(make_backend(backend, device), *where, **size))
