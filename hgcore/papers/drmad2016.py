"""MNIST of Fu et al. 2016 (DrMAD); Algorithm 3 of Maclaurin et al. 2015 with Python integers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hgcore import data
from hgcore.arrays import namespace
from hgcore.data import Split
from hgcore.fixed_point import DENOMINATOR, FixedPoint
from hgcore.layout import Layout
from hgcore.nets import DenseNet, error_rate
from hgcore.optimizers import Momentum
from hgcore.papers.maclaurin2015 import loss, rows_of
from hgcore.problem import Problem
from hgcore.reversible import Reversible
from hgcore.trajectory import Shortcut, train


class BigIntegers(FixedPoint):
    """A FixedPoint whose buffer is a Python integer for each weight: Algorithm 3 as printed."""

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
        """Multiply by n / d; the inverse is multiply(d, n)."""
        self.digits = self.digits * d + self.bits % d
        self.bits = self.bits // d * n + (self.digits % n).astype(np.int64)
        self.digits = self.digits // n

    def mismatches(self, other: FixedPoint) -> int:
        return super().mismatches(other) + bool((self.digits != 0).any())

    @property
    def nbytes(self) -> int:
        """Return the bytes, those of the integer objects and their pointers included."""
        return super().nbytes + self.digits.nbytes + sum(map(sys.getsizeof, self.digits))


as_released = Shortcut(share=0.1, minibatches="first", ends=0.001)  # the authors' code


@dataclass(frozen=True)
class ReversibleOf2015(Reversible):
    """Reversible with the buffer of Maclaurin et al. 2015, for comparison. CPU only."""

    def begin(self, problem: Problem, start: tuple):
        """Return the exact state at `start`."""
        if (device := problem.backend.device) != "cpu":
            raise ValueError(f"the buffer of 2015 needs device 'cpu', got {device!r}")
        exact = super().begin(problem, start)
        exact.values[1:] = [BigIntegers(problem.backend.host_view(slot)) for slot in start[1:]]
        return exact


as_in_2015 = ReversibleOf2015()


def unit_layout(net: DenseNet) -> Layout:
    """Return the layout of `unit_penalties`: one number per unit with outgoing weights."""
    return Layout({f"units {layer}": (size,) for layer, size in enumerate(net.sizes[:-1])})


def scaled(net: DenseNet, free, hyper):
    """Return the weights z exp(t), (n,), of z = free (n,).

    t is hyper (m,) for the weights that leave a unit, and 0.2 for a bias. Under one penalty on
    |z|**2 the penalty on a weight is proportional to exp(-2 t).
    """
    xp, shapes, blocks = namespace(free), net.layout.shapes, {}
    scales = unit_layout(net).split(xp.exp(hyper)).values()
    for layer, of_units in enumerate(scales, start=1):
        weights, biases = f"weights {layer}", f"biases {layer}"
        blocks[weights] = xp.broadcast_to(of_units[:, None], shapes[weights])
        blocks[biases] = np.full(shapes[biases], np.exp(0.2))
    return free * net.layout.join(blocks)


def unit_penalties(
    backend, net, train: Split, valid: Split, *, address, steps, batch, rate, decay, log_scale=-3.0
) -> Problem:
    """Return momentum training of `scaled` weights under the penalty exp(-4) |z|**2.

    The layout of hyper is unit_layout(net). Inner loss: cross-entropy of the minibatch plus the
    penalty; outer loss: that of all of `valid`. First z: normal, deviation exp(log_scale). A
    hypergradient is the sum over the weights of a unit; the release takes the mean, of equal sign.
    Random streams of the release: the initial weights come from address = (seed, stage, k,
    "hyperloss"); the minibatch of step t, drawn with replacement, is the same for every outer step
    k. Source: Fu et al. 2016, experiment on MNIST.
    """
    start = backend.array(data.authors_rng(*address).randn(net.layout.size) * np.exp(log_scale))
    rngs = [data.authors_rng(address[0], t, "primal") for t in range(steps)]
    batches = [rng.randint(len(train.labels), size=batch) for rng in rngs]

    def inner(free, hyper, t):
        rows = rows_of(batches, t)
        return loss(net, scaled(net, free, hyper), train, rows) + np.exp(-4.0) * (free @ free)

    def outer(free, hyper):
        return loss(net, scaled(net, free, hyper), valid)

    momentum = Momentum(backend.array(rate), backend.array(decay))
    return Problem(backend, inner, outer, momentum, start, steps)


def retrained_error(problem: Problem, net: DenseNet, hyper, test: Split) -> float:
    """Train `unit_penalties` with these hyperparameters; return the error on `test` in percent."""
    hyper = problem.as_hyper(hyper)
    weights = scaled(net, train(problem, hyper)[0], hyper)
    return 100 * error_rate(net(weights, test.images), test.labels)


def shuffled_splits(examples: Split, sizes: Sequence[int], address: tuple) -> list[Split]:
    """Return parts of these sizes, in the order of the authors' random stream at `address`."""
    order = data.authors_rng(*address).permutation(len(examples.labels))
    parts = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return [Split(examples.images[rows], examples.labels[rows]) for rows in parts]
