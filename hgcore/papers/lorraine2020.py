"""Problems of Lorraine, Vicol and Duvenaud (2020): a log penalty for each weight of a network.

Their distilled data sets are `maclaurin2015.learned_data`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hgcore.data import Split
from hgcore.nets import DenseNet, cross_entropy
from hgcore.outer import OuterStep
from hgcore.problem import Problem
from hgcore.trajectory import train


def weight_decays(
    backend, net: Callable, start, train: Split, valid: Split, *, optimizer, steps=0
) -> Problem:
    """Return the problem of Figures 5, 8 and 9: tune an L2 penalty for each weight of any net.

    net: (weights (n,), inputs) -> log-probabilities; start: its initial weights (n,). hyper: the
    log penalties (n,), or one for all weights (1,). Inner loss: cross-entropy on all of `train`
    plus sum(exp(hyper) * weights**2). Outer loss: cross-entropy on all of `valid`.
    """
    xp = backend.xp

    def inner(weights, hyper, t):
        fit = cross_entropy(net(weights, train.images), train.labels)
        return fit + xp.sum(xp.exp(hyper) * weights**2)

    def outer(weights, hyper):
        return cross_entropy(net(weights, valid.images), valid.labels)

    return Problem(backend, inner, outer, optimizer, backend.array(start), steps)


def initial_weights(net: DenseNet, seed_path: Sequence[int]) -> np.ndarray:
    """Return normal weights (n,) of variance 1 / inputs in each layer; biases are zero."""
    rng = np.random.default_rng(seed_path)
    return net.initial_weights(lambda *shape: rng.standard_normal(shape))


def concatenate(*splits: Split) -> Split:
    """Return the examples of these splits as one split of NumPy arrays."""
    return Split(*map(np.concatenate, zip(*splits, strict=True)))


def train_in_parts(
    problem: Callable, hyper, *, steps: int, every: int, resume: OuterStep | None = None
) -> Iterator[OuterStep]:
    """Yield one OuterStep without a hypergradient after each `every` inner steps.

    For runs that only train, in the form of `hg.alternate`: hyper stays as it is. problem: k ->
    Problem.
    """
    hyper, state = problem(0).as_hyper(hyper), resume and resume.carry[0]
    for k in range(resume.k + 1 if resume else 0, steps):
        state = train(problem(k), hyper, state, range(k * every, (k + 1) * every))
        flat = problem(k).backend.xp.concatenate(state)
        yield OuterStep(k, hyper, None, None, flat, flat.nbytes, hyper, (state,))
