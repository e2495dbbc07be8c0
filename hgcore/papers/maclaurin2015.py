"""What Maclaurin, Duvenaud and Adams (2015) train; `maclaurin2015_sharing` has section 3.5."""

from dataclasses import replace
from functools import cache

import numpy as np

from hgcore import data
from hgcore.arrays import namespace
from hgcore.data import Split
from hgcore.layout import Layout
from hgcore.nets import DenseNet, cross_entropy, log_softmax
from hgcore.optimizers import Momentum
from hgcore.problem import Problem
from hgcore.trajectory import states


def rosenbrock_loss(first, second):
    """Return the loss of Figure 1: a Rosenbrock function, tilted, bounded by a logistic one."""
    unbounded = 100 * (second - first**2) ** 2 + (1 - first) ** 2 + 200 * first
    return 800 / (1 + namespace(first).exp(-unbounded / 500))


def rosenbrock_layout(steps: int) -> Layout:
    """Return the hyperparameters of `rosenbrock_problem`: log rates, and logits of the decays."""
    return Layout({"log rates": (steps,), "decay logits": (steps,)})


def rosenbrock_problem(backend, steps: int) -> Problem:
    """Return momentum training on `rosenbrock_loss` from (1.4, 3.9); the outer loss is the same."""
    xp, layout = backend.xp, rosenbrock_layout(steps)
    optimizer = Momentum(
        rate=lambda hyper, t: xp.exp(layout.split(hyper)["log rates"][t]),
        decay=lambda hyper, t: 1 / (1 + xp.exp(-layout.split(hyper)["decay logits"][t])),
    )

    def loss(weights, hyper, t=None):
        return rosenbrock_loss(weights[0], weights[1])

    return Problem(backend, loss, loss, optimizer, backend.array([1.4, 3.9]), steps)


def training_path(problem: Problem, hyper) -> list:
    """Return the weights (n,) before every step of training, and after the last: T + 1 of them."""
    hyper = problem.as_hyper(hyper)
    start, gradient = problem.initial_state(hyper), problem.objective(hyper).gradient
    run = states(problem, hyper, start, range(problem.steps), gradient)
    return [state[0] for state in run]


LOGISTIC = DenseNet((784, 10))


def schedule_layout(net: DenseNet, steps: int) -> Layout:
    """Return logs of a scale per block of `net` and of a rate, logits of a momentum, per step."""
    each = steps, len(net.layout)
    return Layout({"log scales": each[1:], "log rates": each, "momentum logits": each})


def constant_schedule(layout: Layout, log_rate, momentum_logit, log_scale) -> np.ndarray:
    """Return (layout.size,): the same rate, momentum and scale for all blocks and steps.

    layout: that of `schedule_layout`, or one with the same blocks in other shapes.
    """
    values = {"log rates": log_rate, "momentum logits": momentum_logit, "log scales": log_scale}
    return layout.join({name: np.full(layout.shapes[name], x) for name, x in values.items()})


def schedule_problem(
    backend, net: DenseNet, train: Split, outer_data: Split, *, steps, batch, address
) -> Problem:
    """Return momentum training of `net` with a learned schedule and learned scales (section 3.1).

    hyper: as in schedule_layout(net, steps). Inner loss: cross-entropy of a minibatch of `batch`
    examples. Initial weights and minibatches, drawn with replacement, come from the random streams
    of the authors' code: address = (seed, k). Outer loss: cross-entropy on all of `outer_data`.
    """
    xp, layout = backend.xp, schedule_layout(net, steps)
    noise = backend.array(data.authors_rng(*address).randn(net.layout.size))
    rngs = [data.authors_rng(*address, t) for t in range(steps)]
    batches = [rng.randint(len(train.labels), size=batch) for rng in rngs]

    def rate(hyper, t):
        return net.layout.expand(xp.exp(layout.split(hyper)["log rates"][t]))

    def decay(hyper, t):
        return net.layout.expand(1 / (1 + xp.exp(-layout.split(hyper)["momentum logits"][t])))

    return Problem(
        backend=backend,
        inner_loss=lambda weights, hyper, t: loss(net, weights, train, rows_of(batches, t)),
        outer_loss=lambda weights, hyper: loss(net, weights, outer_data),
        optimizer=Momentum(rate, decay),
        initial=lambda hyper: net.layout.expand(xp.exp(layout.split(hyper)["log scales"])) * noise,
        steps=steps,
    )


def tied_problem(problem: Problem, spread) -> Problem:
    """Return `problem` with fewer hyperparameters `few`; spread(few) gives those of `problem`."""

    def through(function):
        return (lambda few, *t: function(spread(few), *t)) if callable(function) else function

    optimizer = problem.optimizer
    coefficients = {name: through(value) for name, value in vars(optimizer).items()}
    return replace(
        problem,
        optimizer=type(optimizer)(**coefficients),
        initial=through(problem.initial),
        inner_loss=lambda weights, few, t: problem.inner_loss(weights, spread(few), t),
        outer_loss=lambda weights, few: problem.outer_loss(weights, spread(few)),
    )


def penalty_problem(
    backend, train: Split, valid: Split, *, steps, batch, meta_penalty=0.0, seed=0
) -> Problem:
    """Return softmax regression with an L2 penalty for each weight and bias (section 3.2).

    hyper: logs of the penalties, in the layout of `LOGISTIC` (7850,), or of one for all (1,). Inner
    loss: cross-entropy of the t-th consecutive batch, in cycles, plus sum(penalties * weights**2).
    Outer loss: cross-entropy on all of `valid`, plus meta_penalty * sum(penalties**2), a term of
    the authors' code (0.01) that the paper does not mention. Momentum 0.9 and rate 1 from normal
    weights of deviation exp(-4), the same in every training, from the authors' random stream.
    """
    xp = backend.xp
    slices = [slice(first, first + batch) for first in range(0, len(train.labels), batch)]

    def inner(weights, hyper, t):
        fit = loss(LOGISTIC, weights, train, rows_of(slices, t))
        return fit + xp.sum(xp.exp(hyper) * weights**2)

    def outer(weights, hyper):
        return loss(LOGISTIC, weights, valid) + meta_penalty * xp.sum(xp.exp(hyper) ** 2)

    start = _start(backend, LOGISTIC, seed)
    return Problem(backend, inner, outer, Momentum(1.0, 0.9), start, steps)


def _start(backend, net: DenseNet, seed: int):
    """Return the initial weights (n,) of the authors' code, which draws a velocity first."""
    return backend.array(np.exp(-4.0) * np.random.RandomState(seed).randn(2, net.layout.size)[1])


def learned_data(
    backend, net, learned: Layout, given: dict, outer_data: Split, *, steps, rate=1.0, seed=0
) -> Problem:
    """Return full-batch training of `net` on N examples that are hyperparameters (section 3.3).

    learned: the blocks of hyper, from "images" (N, features), "log penalty" () and "label logits"
    (N, classes), whose softmax gives soft labels. given: the blocks that are not learned, and
    "labels" (N, classes) if "label logits" are not learned. Inner loss: cross-entropy plus
    exp(log penalty) * |weights|**2. Outer loss: cross-entropy on all of `outer_data`. Momentum and
    initial weights: as in `penalty_problem`.
    """
    xp, given = backend.xp, {name: backend.array(block) for name, block in given.items()}

    def inner(weights, hyper, t):
        blocks = given | learned.split(hyper)
        labels = blocks.get("labels")
        if "label logits" in blocks:
            labels = xp.exp(log_softmax(blocks["label logits"]))
        penalty = xp.exp(blocks["log penalty"]) * (weights @ weights)
        return loss(net, weights, Split(blocks["images"], labels)) + penalty

    def outer(weights, hyper):
        return loss(net, weights, outer_data)

    return Problem(backend, inner, outer, Momentum(rate, 0.9), _start(backend, net, seed), steps)


@cache
def cached_splits(source: str, *sizes: int) -> list[Split]:
    """Return `data.splits(source, sizes)`, read once in each process."""
    return data.splits(source, sizes)


def loss(net: DenseNet, weights, split: Split, rows=slice(None)):
    """Return the mean cross-entropy of the net on these rows of a split."""
    return cross_entropy(net(weights, split.images[rows]), split.labels[rows])


def rows_of(batches: list, t: int | None):
    """Return the rows of the batch of step t, in cycles; all rows for t = None."""
    return slice(None) if t is None else batches[t % len(batches)]
