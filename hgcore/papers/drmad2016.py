"""What Fu et al. (2016, DrMAD) train, and the exact method of 2015 that they compare with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise

import numpy as np

from hgcore import data, trajectory
from hgcore.arrays import namespace
from hgcore.dynamics import Momentum
from hgcore.layout import Layout
from hgcore.nets import Dense, error_rate
from hgcore.papers.maclaurin2015 import loss
from hgcore.problem import Problem
from hgcore.reversal import DENOMINATOR, ExactMomentum
from hgcore.trajectory import reversible, shortcut


class BigIntegers(ExactMomentum):
    """`ExactMomentum` with the buffer of 2015, Algorithm 3 as printed: per weight one Python
    integer, of any size.
    """

    def __init__(self, weights, speed):
        super().__init__(weights, speed)
        self.digits = np.zeros(len(weights), dtype=object)

    def forth(self, gradient, decay, gain, rate):
        self._multiply(decay.numerator, DENOMINATOR)
        kicked = self.velocity.add(np.multiply(gain, gradient, dtype=float))
        drifted = self.position.add(rate * self.velocity.floats())
        self.weights, self.speed = (
            part.floats().astype(self.dtype) for part in (self.position, self.velocity)
        )
        return np.maximum(kicked, drifted)

    def back_velocity(self, gradient, decay, gain) -> None:
        self.velocity.subtract(np.multiply(gain, gradient, dtype=float))
        self._multiply(DENOMINATOR, decay.numerator)
        self.speed = self.velocity.floats().astype(self.dtype)

    def _multiply(self, n: int, d: int) -> None:
        """velocity * n / d; undone by the same with n and d exchanged."""
        bits = self.velocity.bits
        self.digits = self.digits * d + bits % d
        self.velocity.bits = bits // d * n + (self.digits % n).astype(np.int64)
        self.digits = self.digits // n

    def misses(self, other: ExactMomentum) -> int:
        return super().misses(other) + bool((self.digits != 0).any())

    @property
    def nbytes(self) -> int:
        """With the pointers and the heads of the integer objects."""
        return (
            self.position.nbytes
            + self.velocity.nbytes
            + self.digits.nbytes
            + sum(map(sys.getsizeof, self.digits))
        )


as_released = partial(
    shortcut, share=0.1, minibatches="first", ends=0.001
)  # DrMAD by the authors' code


class as_in_2015(reversible):
    """The trajectory of Maclaurin et al. 2015 as they released it: slow and large, for comparison.

    CPU only.
    """

    def __init__(self, problem: Problem, hyper, **options):
        if problem.backend.device != "cpu":
            raise ValueError(
                "the buffer of 2015 holds Python integers, device must be 'cpu', "
                f"got {problem.backend.device!r}"
            )
        super().__init__(problem, hyper, **options)

    def _begin(self, start: tuple) -> BigIntegers:
        return BigIntegers(*(self.backend.exact(vector) for vector in start))


def units(net: Dense) -> Layout:
    """The hyperparameters of `unit_penalties`: a number for every unit that weights go out from,
    inputs first.
    """
    return Layout({f"units {layer}": (size,) for layer, size in enumerate(net.sizes[:-1])})


def scaled(net: Dense, free, hyper, biases: float = 0.2):
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
    net: Dense,
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
        inner=lambda free, hyper, t: (
            loss(net, scaled(net, free, hyper), train, slice(None) if t is None else batches[t])
            + penalty * (free @ free)
        ),
        outer=lambda free, hyper: loss(net, scaled(net, free, hyper), judged),
        dynamics=Momentum(rate=lambda hyper, t: rate, decay=lambda hyper, t: decay),
        initial=lambda hyper: start,
        steps=steps,
    )


def retrained_error(problem: Problem, net: Dense, hyper, judged: data.Split) -> float:
    """Train `unit_penalties` once more with these hyperparameters: the percentage of `judged` that
    the net then gets wrong.
    """
    hyper = problem.hyper(hyper)
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
