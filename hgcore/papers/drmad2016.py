"""What Fu et al. (2016, DrMAD) train, and the exact method of 2015 that they compare with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from hgcore import data, trajectory
from hgcore.arrays import namespace
from hgcore.fixed_point import DENOMINATOR, FixedPoint
from hgcore.layout import Layout
from hgcore.nets import DenseNet, error_rate
from hgcore.optimizers import Momentum
from hgcore.papers.maclaurin2015 import loss
from hgcore.problem import Problem
from hgcore.reversible import Reversible
from hgcore.trajectory import Shortcut


class BigIntegers(FixedPoint):
    """A FixedPoint with the buffer of 2015: per weight one Python integer, of any size.

    Implements: Maclaurin et al. 2015, Algorithm 3 as printed.
    """

    def __init__(self, values):
        super().__init__(values)
        self.digits = np.zeros(len(values), dtype=object)

    def decay_add(self, buffer, decay, amount, dtype) -> tuple:
        self.multiply(decay.numerator, DENOMINATOR)
        return super().decay_add(None, None, amount, dtype)

    def undo_decay_add(self, buffer, decay, amount, dtype):
        super().undo_decay_add(None, None, amount)
        self.multiply(DENOMINATOR, decay.numerator)
        return self.floats(dtype)

    def multiply(self, n: int, d: int) -> None:
        """Multiply by n / d; undone by the same with n and d exchanged."""
        self.digits = self.digits * d + self.bits % d
        self.bits = self.bits // d * n + (self.digits % n).astype(np.int64)
        self.digits = self.digits // n

    def mismatches(self, other: FixedPoint) -> int:
        return super().mismatches(other) + bool((self.digits != 0).any())

    @property
    def nbytes(self) -> int:
        """With the pointers and the heads of the integer objects."""
        return super().nbytes + self.digits.nbytes + sum(map(sys.getsizeof, self.digits))


as_released = Shortcut(share=0.1, minibatches="first", ends=0.001)  # DrMAD by the authors' code


@dataclass(frozen=True)
class ReversibleOf2015(Reversible):
    """Reversible as Maclaurin et al. released it: slow and large, for comparison. CPU only."""

    def begin(self, problem: Problem, start: tuple):
        """Return the exact state at `start`."""
        if problem.backend.device != "cpu":
            device = problem.backend.device
            raise ValueError(f"the buffer of 2015 needs device 'cpu', got {device!r}")
        exact = super().begin(problem, start)
        exact.values[1:] = [BigIntegers(problem.backend.host_view(slot)) for slot in start[1:]]
        return exact


as_in_2015 = ReversibleOf2015()


def units(net: DenseNet) -> Layout:
    """The hyperparameters of `unit_penalties`: a number for every unit that weights go out from,
    inputs first.
    """
    return Layout({f"units {layer}": (size,) for layer, size in enumerate(net.sizes[:-1])})


def scaled(net: DenseNet, free, hyper, biases: float = 0.2):
    """The weights z exp(t) of free weights z (n,): t is hyper (m,) for what leaves a unit, and the
    number `biases` for a bias.

    Under one penalty on |z|**2 a larger t regularises less: the penalty on a weight is proportional
    to exp(-2 t).
    """
    xp, rest = namespace(free), np.exp(biases)
    scales = iter(units(net).split(xp.exp(hyper)).values())
    blocks = {
        name: xp.broadcast_to(next(scales)[:, None], block.shape)
        if block.ndim == 2
        else rest * xp.ones_like(block)
        for name, block in net.layout.split(free).items()
    }
    return free * net.layout.join(blocks)


def unit_penalties(
    backend,
    net: DenseNet,
    train: data.Split,
    judged: data.Split,
    *,
    address: tuple,
    steps: int,
    batch: int,
    rate: float,
    decay: float,
    log_penalty: float = -4.0,
    log_scale: float = -3.0,
) -> Problem:
    """Momentum training under an L2 penalty per unit: `scaled` weights, exp(log_penalty) |z|**2 (Fu
    et al. 2016).

    `units(net)` names the hyperparameters; the release takes the mean over a unit's weights where
    this is their sum, of equal sign. Streams of the release: the start comes from address = (seed,
    stage, k, "hyperloss"), as `dealt` with that address deals the examples of outer step k; the
    minibatch of step t, drawn with replacement, is the same for every k.
    """
    start = backend.array(data.authors_rng(*address).randn(net.layout.size) * np.exp(log_scale))
    batches = [
        data.authors_rng(address[0], t, "primal").randint(len(train.labels), size=batch)
        for t in range(steps)
    ]
    penalty, rate, decay = np.exp(log_penalty), backend.array(rate), backend.array(decay)
    return Problem(
        backend=backend,
        inner_loss=lambda free, hyper, t: (
            loss(net, scaled(net, free, hyper), train, slice(None) if t is None else batches[t])
            + penalty * (free @ free)
        ),
        outer_loss=lambda free, hyper: loss(net, scaled(net, free, hyper), judged),
        optimizer=Momentum(rate=rate, decay=decay),
        initial=lambda hyper: start,
        steps=steps,
    )


def retrained_error(problem: Problem, net: DenseNet, hyper, judged: data.Split) -> float:
    """Train `unit_penalties` once more with these hyperparameters: the percentage of `judged` that
    the net then gets wrong.
    """
    hyper = problem.as_hyper(hyper)
    return 100 * error_rate(
        net(scaled(net, trajectory.train(problem, hyper)[0], hyper), judged.images), judged.labels
    )


def dealt(examples: data.Split, sizes: Sequence[int], address: tuple) -> list[data.Split]:
    """So many examples for each of `sizes`, in the random order that the authors' stream at
    `address` gives.
    """
    order = data.authors_rng(*address).permutation(len(examples.labels))
    return [
        data.Split(examples.images[order[a:b]], examples.labels[order[a:b]])
        for a, b in pairwise(np.cumsum([0, *sizes]))
    ]


@cache
def slices(source: str, *sizes: int) -> list[data.Split]:
    """`data.splits`, read once by each process: what the tasks on a worker begin with."""
    return data.splits(source, sizes)
