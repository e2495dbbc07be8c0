"""What Franceschi, Donini, Frasconi and Pontil (2017) train: with hyperparameters tuned while
training runs, and to count costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.layout import Layout
from hgcore.nets import DenseNet
from hgcore.optimizers import HeavyBall
from hgcore.papers.drmad2016 import slices
from hgcore.papers.maclaurin2015 import loss
from hgcore.problem import Problem
from hgcore.projections import box
from hgcore.suite import make_backend

# of a penalty: with it all hyperparameters are numbers of about one, which one outer step size can
# move
UNIT = 0.0001


def tuned(groups: int = 1) -> Layout:
    """The hyperparameters of `running`, as they are, not their logarithms: one penalty for each of
    `groups` stretches of weights.
    """
    return Layout({"rate": (), "momentum": (), "penalties": (groups,)})


def allowed(groups: int = 1, most: float = 0.99) -> Callable:
    """Projection onto rate >= 0, penalties >= 0 and 2**-16 <= momentum <= `most`; the paper's is 0
    <= momentum <= 1.

    A solver here multiplies by no decay below 2**-16. A momentum of one never lets training settle.
    """
    layout = tuned(groups)
    return box(
        layout.join(
            {"rate": np.zeros(()), "momentum": np.array(2.0**-16), "penalties": np.zeros(groups)}
        ),
        layout.join(
            {
                "rate": np.array(np.inf),
                "momentum": np.array(most),
                "penalties": np.full(groups, np.inf),
            }
        ),
    )


def running(
    backend,
    net: DenseNet,
    train: data.Split,
    judged: data.Split,
    *,
    address: tuple,
    batch: int,
    steps: int = 0,
    groups: int = 1,
) -> Problem:
    """Training by gradient descent with momentum, v' = momentum v + g, w' = w - rate v' (Franceschi
    et al. 2017, sections 3, 5.3).

    `tuned(groups)` names the hyperparameters. Inner objective: cross-entropy of a minibatch drawn
    at (*address, t), plus UNIT * penalty * |w|**2 of each of `groups` consecutive, equal stretches
    of the weights; outer: cross-entropy on all of `judged`. Weights start normal with variance 1 /
    inputs of the unit, biases at zero.
    """
    layout, xp, start = (
        tuned(groups),
        backend.xp,
        backend.array(net.initial_weights(data.authors_rng(*address, "start").randn)),
    )
    stretch = backend.array(np.ones((1, -(-net.layout.size // groups))))

    def inner(weights, hyper, t):
        penalties = (layout.split(hyper)["penalties"][:, None] * stretch).reshape((-1,))[
            : net.layout.size
        ]
        rows = slice(None) if t is None else data.batch(address, t, batch, len(train.labels))
        return loss(net, weights, train, rows) + UNIT * xp.sum(penalties * weights * weights)

    return Problem(
        backend=backend,
        inner_loss=inner,
        outer_loss=lambda weights, hyper: loss(net, weights, judged),
        optimizer=HeavyBall(
            rate=lambda hyper, t: layout.split(hyper)["rate"],
            decay=lambda hyper, t: layout.split(hyper)["momentum"],
        ),
        initial=lambda hyper: start,
        steps=steps,
    )


def study(
    backend,
    source: str,
    examples: Sequence[int],
    hidden: Sequence[int],
    *,
    hypers: int,
    steps: int,
    batch: int,
) -> tuple:
    """(`running` with `hypers` >= 3 hyperparameters, ordinary values of them): what the costs of
    the methods are counted on.
    """
    if hypers < 3:
        raise ValueError(
            "hypers counts rate, momentum and at least one penalty, so it is 3 or more; "
            f"got {hypers}"
        )
    train, judged = (split.on(backend) for split in slices(source, *examples))
    problem = running(
        backend,
        DenseNet((784, *hidden, 10)),
        train,
        judged,
        address=(0, 1),
        batch=batch,
        steps=steps,
        groups=hypers - 2,
    )
    names = tuned(hypers - 2)
    return problem, problem.as_hyper(
        names.join(
            {"rate": np.array(0.05), "momentum": np.array(0.9), "penalties": np.ones(hypers - 2)}
        )
    )


def studied(solver: Callable, backend: str, device: str, dtype: str, *where, **size) -> None:
    """One hypergradient of `study`, in a process that has nothing: for `meter.fresh`."""
    solver(*study(make_backend(backend, device, dtype), *where, **size))


class Trial(NamedTuple):
    """One training run stopped early: the weights of the best score, that score, its cost."""

    weights: object
    score: float
    cost: float


def trial(
    problem: Problem,
    hyper,
    score: Callable,
    *,
    every: int,
    patience: int,
    look: float,
    budget: float,
) -> Trial:
    """Plain training, with a look at score(weights) every `every` steps, until it has not risen in
    `patience` looks.

    Costs are in gradient steps: a look costs `look` of them; the run ends before it costs more than
    `budget`.
    """
    hyper = problem.as_hyper(hyper)
    state, best, cost, waited, done = (
        problem.initial_state(hyper),
        Trial(None, -np.inf, 0.0),
        0.0,
        0,
        0,
    )
    gradient = problem.objective(hyper).gradient
    while waited < patience and cost + every + look <= budget:
        for t in range(done, done + every):
            state = problem.step(state, gradient(state[0], t), hyper, t)
        done, cost, waited, seen = done + every, cost + every + look, waited + 1, score(state[0])
        if seen > best.score:
            best, waited = Trial(state[0], seen, cost), 0
    return best._replace(cost=cost)


def random_search(
    problem: Problem, draws: Iterable, score: Callable, *, budget: float, every: int, **settings
) -> list[Trial]:
    """Trials of one draw of hyperparameters after the other, until `budget` gradient steps are
    spent; the last may be cut short.
    """
    trials = []
    for hyper in draws:
        left = budget - sum(one.cost for one in trials)
        if left < every + settings["look"]:
            return trials
        trials.append(trial(problem, hyper, score, every=every, budget=left, **settings))
    return trials
