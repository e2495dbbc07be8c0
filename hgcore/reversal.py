"""Arithmetic that can be undone to the last bit (Maclaurin et al. 2015, section 2.3 and Algorithm 3).

Values are int64 in units of 2**-52, so |value| < 2**11. Additions are exact by nature; multiplication by a decay below one
loses log2(1/decay) bits a step, which `ReversalBuffer` keeps. The arithmetic itself is in kernels.py (NumPy's arrays, by numba) and in
vectors.py (NumPy without numba, torch's integers on a GPU), with the same bits.
"""

from __future__ import annotations

import functools
import itertools
from array import array
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import numpy as np

from hgcore import vectors
from hgcore.arrays import namespace
from hgcore.vectors import BITS, LOW, integers

RANGE = 2.0**11
DENOMINATOR = 2**BITS
WORD_BITS = 16
LIMIT = 2**53 - 1  # what a double holds exactly, and room for the shift and sum of a multiplication


class ReversalError(ArithmeticError):
    """Running backwards did not arrive where the forward run started, bit for bit."""


class Ratio(NamedTuple):
    """A decay as the run really uses it: numerator / 2**16, one integer or one per coordinate; `least` bounds it below."""

    numerator: object
    least: int


def round_decay(decay):
    """The decay that every trajectory uses, round(decay * 2**16) / 2**16: a float, or an array of either backend."""
    return namespace(decay).round(decay * DENOMINATOR) / DENOMINATOR


def ratio(decay, least: float | None = None) -> Ratio:
    """Ratio of a decay in [2**-16, 1], a scalar or (n,). `least`, its smallest value if known, saves a look at the array."""
    if number := getattr(decay, "ndim", 0) == 0:
        least = decay = float(decay) if least is None else least
    lowest, highest = (
        (least, least)
        if least is not None
        else (float(end(decay)) for end in (namespace(decay).amin, namespace(decay).amax))
    )
    if not 1 / DENOMINATOR <= lowest <= highest <= 1:
        worst = lowest if not 1 / DENOMINATOR <= lowest else highest
        raise ValueError(
            f"decay must lie in [2**-16, 1], got {worst:.3g}; use GradientDescent for none"
        )
    numerator = round(decay * DENOMINATOR) if number else integers(decay, DENOMINATOR)
    return Ratio(numerator, round(lowest * DENOMINATOR))


@functools.cache
def loops() -> ModuleType | None:
    """The numba kernels, or None where numba is missing: NumPy then gives the same bits more slowly."""
    try:
        from hgcore import kernels
    except ImportError:
        return None
    return kernels


def _verbs(bits, *others):
    """Who does the arithmetic on vectors like `bits`: numba's loops, which do not look at shapes, where all `others` are numbers or (n,);
    one compiled kernel each for many numbers on a GPU; else whole vectors, which broadcast the rest or refuse it."""
    if isinstance(bits, np.ndarray):
        alike = all(getattr(other, "shape", ()) in ((), bits.shape) for other in others)
        return alike and loops() or vectors
    return (
        vectors.compiled(bits.device)
        if bits.device.type != "cpu" and len(bits) >= vectors.LARGE
        else vectors
    )


class FixedPoint:
    """A vector (n,) that can be added to and subtracted from with no rounding left behind.

    `bits` are int64 in units of 2**-52. Beyond |value| < 2**11 they wrap around: look at what `add` returns.
    """

    def __init__(self, values):
        self.bits = integers(values)

    def floats(self):
        """The values (n,) in float64, rounded to nearest."""
        return vectors.floats(self.bits)

    def add(self, amount):
        """Add `amount` (n,) rounded to the unit, for `subtract` of the same to undo.

        Returns a bound on the magnitudes met: the sum is right if it is below 2**11, and not if it is more, or NaN.
        """
        self.bits, reach = _verbs(self.bits, amount).add(self.bits, amount)
        return reach

    def subtract(self, amount) -> None:
        """Undo `add(amount)`."""
        self.bits = _verbs(self.bits, amount).subtract(self.bits, amount)

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes


class _Schedule:
    """When the buffer spills: the decays alone decide, through a bound on the largest integer that it could hold."""

    def __init__(self):
        self.bound = self.start = self.steps = (
            0  # now; right after the latest spill; multiplications since then
        )
        self.starts, self.lengths = (
            array("q"),
            array("I"),
        )  # start and steps of the stretches before
        self.numerators, self.counts = array("i"), array("I")  # the decays, as run lengths
        self.trail: array | None = None  # the bounds of this stretch, once it is walked back

    def advance(self, numerator: int) -> bool:
        """Take note of a multiplication; True if the low words must be spilled before it."""
        spill = _next_bound(self.bound, numerator) > LIMIT
        if spill:
            self.starts.append(self.start)
            self.lengths.append(self.steps)
            self.start = self.bound = self.bound >> WORD_BITS
            self.steps = 0
        self.bound, self.trail = _next_bound(self.bound, numerator), None
        self.steps += 1
        if self.numerators and self.numerators[-1] == numerator:
            self.counts[-1] += 1
        else:
            self.numerators.append(numerator)
            self.counts.append(1)
        return spill

    def retreat(self, numerator: int) -> bool:
        """Forget the latest multiplication; True if a word was spilled before it and must come back now."""
        if not self.numerators or self.numerators[-1] != numerator:
            raise ReversalError(
                "divide must undo the multiplications in reverse order, each with its own decay"
            )
        if self.trail is None:
            self.trail = self._walk()
        self.trail.pop()
        self.steps -= 1
        self.counts[-1] -= 1
        if not self.counts[-1]:
            self.numerators.pop()
            self.counts.pop()
        unspill = self.steps == 0 and len(self.starts) > 0
        if unspill:
            self.start, self.steps = self.starts.pop(), self.lengths.pop()
            self.trail = self._walk()
        self.bound = self.trail[-1]
        return unspill

    def _walk(self) -> array:
        """The bounds of this stretch, from its start to now."""
        latest, runs = [], zip(reversed(self.numerators), reversed(self.counts), strict=True)
        while len(latest) < self.steps:
            numerator, count = next(runs)
            latest += [numerator] * min(count, self.steps - len(latest))
        return array("q", itertools.accumulate(reversed(latest), _next_bound, initial=self.start))

    @property
    def nbytes(self) -> int:
        logs = (self.starts, self.lengths, self.numerators, self.counts, self.trail or ())
        return sum(log.itemsize * len(log) for log in logs if log)


def _next_bound(bound: int, numerator: int) -> int:
    return bound // numerator * DENOMINATOR + LOW


@dataclass
class ReversalBuffer:
    """What multiplications by decays would lose: `divide` undoes `multiply`, last first, bit for bit.

    Per coordinate an integer x, 0 <= x <= bound <= LIMIT. One multiplication by n/d, with v = v1 d + v0:

        x = s n + q;   v0 n + q = c d + r;   v' = v1 n + c;   x' = s d + r

    so v' is v n/d to within one unit and x grows by log2(d/n) bits. (Algorithm 3 as printed replaces all of v0 by a digit of
    the buffer: the same bijection of v alone, off by up to 2**16 units.) When the bound could pass LIMIT, the low 16 bits of
    ALL x move to a list of words: WHEN depends on the decays only, never on the data, so there are no masks, no branches and
    no device synchronisation. It costs log2(1/decay) bits a step for the smallest decay of the vector, and some 64 in all.
    """

    state: object = None
    words: list = field(default_factory=list)
    schedule: _Schedule = field(default_factory=_Schedule)

    def multiply(self, values, decay):
        """values * decay as new int64 (n,), keeping what rounding loses. `decay`: a number, (n,), or a `Ratio`."""
        numerator, least = decay if isinstance(decay, Ratio) else ratio(decay)
        self.before_multiply(values, least)
        values, self.state = _verbs(values, self.state, numerator).multiply(
            values, self.state, numerator
        )
        return values

    def divide(self, values, decay):
        """Undo the latest `multiply`, which must have had this decay."""
        numerator, least = decay if isinstance(decay, Ratio) else ratio(decay)
        unspill = self.schedule.retreat(least)
        values, self.state = _verbs(values, self.state, numerator).divide(
            values, self.state, numerator
        )
        self.after_divide(unspill)
        return values

    def before_multiply(self, values, least: int) -> None:
        """The bookkeeping of `multiply`, for callers that fuse its arithmetic into more."""
        if self.state is None:
            self.state = values * 0
        if self.schedule.advance(least):
            xp = namespace(self.state)
            # 16 bits, signed because torch has no arithmetic on unsigned ones
            self.words.append(
                xp.asarray((self.state & (2**WORD_BITS - 1)) - 2 ** (WORD_BITS - 1), dtype=xp.int16)
            )
            self.state >>= WORD_BITS

    def after_divide(self, unspill: bool) -> None:
        """The bookkeeping of `divide`, given what `schedule.retreat` said before it."""
        if unspill:
            xp = namespace(self.state)
            self.state <<= WORD_BITS
            self.state += xp.asarray(self.words.pop(), dtype=xp.int64) + 2 ** (WORD_BITS - 1)

    def empty(self) -> bool:
        """True when every multiplication has been undone and nothing is left over."""
        return not self.schedule.numerators and (
            self.state is None or not bool((self.state != 0).any())
        )

    @property
    def nbytes(self) -> int:
        """Bytes held: the states, the spilled words and the schedule."""
        held = [*self.words, self.schedule] + ([] if self.state is None else [self.state])
        return sum(part.nbytes for part in held)


class ExactMomentum:
    """A state that momentum moves and exactly moves back: v' = decay v + gain g, then w' = w + rate v' (all sums rounded once).

    `weights` and `speed` (n,) are the state as floats, of the type that they were given in. They, gradients (n,) and coefficients, numbers
    or (n,), live where integers do (`Backend.exact`), in either precision.
    """

    def __init__(self, weights, speed):
        self.position, self.velocity, self.buffer = (
            FixedPoint(weights),
            FixedPoint(speed),
            ReversalBuffer(),
        )
        self.dtype, xp = weights.dtype, namespace(weights)
        self.weights, self.speed = (
            vectors.floats(part.bits, self.dtype) for part in (self.position, self.velocity)
        )
        self.reach = xp.maximum(xp.amax(abs(weights)), xp.amax(abs(speed)))

    def forth(self, gradient, decay: Ratio, gain, rate):
        """One step; returns a bound on the magnitudes met, as `FixedPoint.add` does."""
        position, velocity, buffer = self.position, self.velocity, self.buffer
        buffer.before_multiply(velocity.bits, decay.least)
        verbs = _verbs(position.bits, gradient, decay.numerator, gain, rate)
        position.bits, velocity.bits, buffer.state, self.weights, self.speed, reach = verbs.forth(
            position.bits,
            velocity.bits,
            buffer.state,
            gradient,
            decay.numerator,
            gain,
            rate,
            self.dtype,
        )
        return reach

    def back_position(self, rate) -> None:
        """Undo the second half of `forth`: `weights` are those before the step, `speed` still that after it."""
        bits = self.position.bits
        self.position.bits, self.weights = _verbs(bits, rate).back_position(
            bits, self.velocity.bits, rate, self.dtype
        )

    def back_velocity(self, gradient, decay: Ratio, gain) -> None:
        """Undo the first half of `forth`, given the gradient at the weights before the step."""
        velocity, buffer = self.velocity, self.buffer
        unspill = buffer.schedule.retreat(decay.least)
        verbs = _verbs(velocity.bits, gradient, decay.numerator, gain)
        velocity.bits, buffer.state, self.speed = verbs.back_velocity(
            velocity.bits, buffer.state, gradient, decay.numerator, gain, self.dtype
        )
        buffer.after_divide(unspill)

    def misses(self, other: ExactMomentum) -> int:
        """How many numbers differ from those of `other`, plus one if the buffer still holds anything."""
        pairs = (self.position, other.position), (self.velocity, other.velocity)
        return sum(int((a.bits != b.bits).sum()) for a, b in pairs) + (not self.buffer.empty())

    @property
    def nbytes(self) -> int:
        return self.position.nbytes + self.velocity.nbytes + self.buffer.nbytes
