"""Arithmetic that can be undone to the last bit.

Implements: Maclaurin et al. 2015, section 2.3 and Algorithm 3.

Values are int64 multiples of a power of two, by default 2**-52, so |value| < 2**11. Sums are
exact. A multiplication by a decay below one loses log2(1/decay) bits, which `ReversalBuffer`
keeps. Second moments of gradients have two integers a value and the unit 2**-80, because their
square root stands beside a small epsilon: with 2**-52 and epsilon 1e-8 the hypergradient of an
MNIST net is off by 4e-4, with 2**-70 by 1e-9.

This file has the plain arithmetic, for NumPy and torch; fast/ has the same bits faster.
"""

from __future__ import annotations

import functools
import operator
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from hgcore.arrays import namespace

UNIT = 2.0**-52
BITS = 16
DENOMINATOR = 2**BITS
LOW = DENOMINATOR - 1
LIMIT = 2**52  # of a buffer's integers: exact in a double, with room for what rounding adds
LOW_BITS = 45  # of a wide value: the most for which its division stays within int64
WIDE_UNIT = 2.0**-80
HIGH_UNIT = WIDE_UNIT * 2**LOW_BITS


class ReversalError(ArithmeticError):
    """The way back did not meet what the way forth did, bit for bit."""


# ---- plain arithmetic: new arrays out, nothing in place


def _as(array, kind: str):
    xp = namespace(array)
    return xp.asarray(array, dtype=getattr(xp, kind))


def _double(number):
    return float(number) if isinstance(number, (int, float)) else _as(number, "float64")


def to_bits(values, unit: float = UNIT):
    """Return round(values / unit), ties to even, as int64."""
    return _as(namespace(values).round(_double(values) * (1 / unit)), "int64")


def to_floats(bits, unit: float = UNIT, dtype=None):
    """Return bits * unit rounded to nearest, in float64 or in `dtype`."""
    values = _as(bits, "float64") * unit
    return values if dtype is None else namespace(bits).asarray(values, dtype=dtype)


def add(bits, amount, unit: float, dtype) -> tuple:
    """Return (bits + round(amount / unit), the sum as floats, the largest magnitude met)."""
    amount = _double(amount)
    reach = namespace(bits).amax(abs(to_floats(bits, unit)) + abs(amount))
    bits = bits + to_bits(amount, unit)
    return bits, to_floats(bits, unit, dtype), reach


def subtract(bits, amount, unit: float, dtype) -> tuple:
    """Undo `add`: return (bits, the difference as floats)."""
    bits = bits - to_bits(amount, unit)
    return bits, to_floats(bits, unit, dtype)


def multiply(bits, state, numerator) -> tuple:
    """Return (bits * numerator / 2**16, state with what rounding loses): see ReversalBuffer."""
    share = state // numerator
    carry = (bits & LOW) * numerator + (state - share * numerator)
    return (bits >> BITS) * numerator + (carry >> BITS), (share << BITS) + (carry & LOW)


def divide(bits, state, numerator) -> tuple:
    """Undo `multiply`."""
    high = bits // numerator
    rest = ((bits - high * numerator) << BITS) + (state & LOW)
    low = rest // numerator
    return (high << BITS) + low, (state >> BITS) * numerator + (rest - low * numerator)


def decay_add(bits, state, numerator, amount, unit: float, dtype) -> tuple:
    """Return (bits, state, values as floats, largest magnitude) of `multiply`, then `add`."""
    bits, state = multiply(bits, state, numerator)
    bits, values, reach = add(bits, amount, unit, dtype)
    return bits, state, values, reach


def undo_decay_add(bits, state, numerator, amount, unit: float, dtype) -> tuple:
    """Undo `decay_add`: return (bits, state, values as floats)."""
    bits, state = divide(bits - to_bits(amount, unit), state, numerator)
    return bits, state, to_floats(bits, unit, dtype)


def _wide_bits(values) -> tuple:
    """Return values / 2**-80, rounded, as (high, low) with 0 <= low <= 2**45."""
    values = _double(values)
    high = namespace(values).floor(values / HIGH_UNIT)
    return _as(high, "int64"), to_bits(values - high * HIGH_UNIT, WIDE_UNIT)


def _carried(high, low) -> tuple:
    """Return the same wide number with 0 <= low < 2**45."""
    return high + (low >> LOW_BITS), low & (2**LOW_BITS - 1)


def wide_floats(high, low, dtype=None):
    """Return the values of wide numbers, rounded to nearest."""
    values = to_floats(high, HIGH_UNIT) + to_floats(low, WIDE_UNIT)
    return values if dtype is None else namespace(values).asarray(values, dtype=dtype)


def decay_add_wide(high, low, state, numerator, amount, dtype) -> tuple:
    """Return (high, low, state, values, largest magnitude): `decay_add` of high 2**45 + low."""
    share, product, more = state // numerator, high * numerator, _wide_bits(amount)
    carry = low * numerator + (state - share * numerator)
    low = ((product & LOW) << (LOW_BITS - BITS)) + (carry >> BITS)
    high, low = _carried((product >> BITS) + more[0], low + more[1])
    reach = namespace(high).amax(abs(wide_floats(high, low)) + abs(_double(amount)))
    return high, low, (share << BITS) + (carry & LOW), wide_floats(high, low, dtype), reach


def undo_decay_add_wide(high, low, state, numerator, amount, dtype) -> tuple:
    """Undo `decay_add_wide`: return (high, low, state, values)."""
    more = _wide_bits(amount)
    high, low = _carried(high - more[0], low - more[1])
    quotient = (high << BITS) // numerator
    rest = (high << BITS) - quotient * numerator
    rest = (rest << LOW_BITS) + (low << BITS) + (state & LOW)
    part = rest // numerator
    high, low = _carried(quotient, part)
    state = (state >> BITS) * numerator + (rest - part * numerator)
    return high, low, state, wide_floats(high, low, dtype)


class Arithmetic(NamedTuple):
    """Implementations of the functions above, with the same bits; they may work in place."""

    add: Callable = add
    subtract: Callable = subtract
    multiply: Callable = multiply
    divide: Callable = divide
    decay_add: Callable = decay_add
    undo_decay_add: Callable = undo_decay_add
    decay_add_wide: Callable = decay_add_wide
    undo_decay_add_wide: Callable = undo_decay_add_wide


PLAIN = Arithmetic()


@functools.cache
def _fast() -> Callable:
    try:
        from hgcore.fast.arithmetic import fitting
    except ImportError:  # no numba, or fast/ is not there
        return lambda bits, plain: plain
    return fitting


def arithmetic(bits) -> Arithmetic:
    """Return the fastest implementation for vectors like `bits`."""
    return _fast()(bits, PLAIN)


# ---- values


class _Integers:
    """Values (n,) kept as vectors of int64, `parts`, which can be packed into fewer bytes."""

    parts: list

    def pack(self) -> None:
        """Keep the integers in as few bytes as hold them, until `unpack`."""
        self.parts = [pack(part) for part in self.parts]

    def unpack(self) -> None:
        """Undo `pack`."""
        self.parts = [unpack(part) for part in self.parts]

    def mismatches(self, other: _Integers) -> int:
        """Return in how many numbers this differs from `other`."""
        unlike = [a != b for a, b in zip(self.parts, other.parts, strict=True)]
        return int(functools.reduce(operator.or_, unlike).sum())

    @property
    def nbytes(self) -> int:
        """The bytes of the integers."""
        return sum(part.nbytes for part in self.parts)


class FixedPoint(_Integers):
    """A vector (n,) whose additions `subtract` undoes exactly.

    bits: int64 in multiples of `unit`, a power of two. Beyond |value| < 2**63 * unit they wrap
    around: look at what `add` returns.
    """

    def __init__(self, values, unit: float = UNIT):
        self.parts, self.unit = [to_bits(values, unit)], unit

    @property
    def bits(self):
        """The integers (n,)."""
        return self.parts[0]

    @bits.setter
    def bits(self, bits) -> None:
        self.parts = [bits]

    def floats(self, dtype=None):
        """Return the values (n,), rounded to nearest."""
        return to_floats(self.bits, self.unit, dtype)

    def add(self, amount):
        """Add `amount` (n,), rounded to the unit; return a bound on the magnitudes met.

        The sum is right if the bound (0 if none can be large) lies below 2**63 * unit, and not if
        it is larger, or NaN.
        """
        self.bits, _, reach = arithmetic(self.bits).add(self.bits, amount, self.unit, None)
        return reach

    def subtract(self, amount) -> None:
        """Undo `add(amount)`."""
        self.bits, _ = arithmetic(self.bits).subtract(self.bits, amount, self.unit, None)

    def decay_add(self, buffer: ReversalBuffer, decay: Decay, amount, dtype) -> tuple:
        """Multiply by `decay` and add `amount`; return (values as floats, magnitudes met)."""
        state, verbs = buffer.before_multiply(self.bits, decay), arithmetic(self.bits)
        found = verbs.decay_add(self.bits, state, decay.numerator, amount, self.unit, dtype)
        self.bits, buffer.state, values, reach = found
        return values, reach

    def undo_decay_add(self, buffer: ReversalBuffer, decay: Decay, amount, dtype):
        """Undo `decay_add`; return the values as floats."""
        state, verbs = buffer.before_divide(self.bits, decay), arithmetic(self.bits)
        found = verbs.undo_decay_add(self.bits, state, decay.numerator, amount, self.unit, dtype)
        self.bits, buffer.state, values = found
        return values


class WideFixedPoint(_Integers):
    """A vector (n,) of values high * 2**-35 + low * 2**-80, |value| < 2**11, 0 <= low < 2**45."""

    def __init__(self, values):
        self.parts = list(_carried(*_wide_bits(values)))

    def floats(self, dtype=None):
        """Return the values (n,), rounded to nearest."""
        return wide_floats(*self.parts, dtype)

    def decay_add(self, buffer: ReversalBuffer, decay: Decay, amount, dtype) -> tuple:
        """As FixedPoint.decay_add."""
        state, verbs = buffer.before_multiply(self.parts[0], decay), arithmetic(self.parts[0])
        found = verbs.decay_add_wide(*self.parts, state, decay.numerator, amount, dtype)
        *self.parts, buffer.state, values, reach = found
        return values, reach

    def undo_decay_add(self, buffer: ReversalBuffer, decay: Decay, amount, dtype):
        """As FixedPoint.undo_decay_add."""
        state, verbs = buffer.before_divide(self.parts[0], decay), arithmetic(self.parts[0])
        found = verbs.undo_decay_add_wide(*self.parts, state, decay.numerator, amount, dtype)
        *self.parts, buffer.state, values = found
        return values


def pack(bits):
    """Return int64 `bits` (n,) as bytes (n, k), with the smallest k that holds them all."""
    xp = namespace(bits)
    largest = int(xp.amax(xp.maximum(bits, ~bits)))  # ~x = -x - 1 has no overflow
    width = (largest.bit_length() + 8) // 8 if largest else int(bool((bits != 0).any()))
    return xp.asarray(bits.view(xp.uint8).reshape((len(bits), 8))[:, :width], copy=True)


def unpack(packed):
    """Undo `pack`."""
    xp, (n, width) = namespace(packed), packed.shape
    whole, shift = xp.zeros((n, 8), dtype=xp.uint8, device=packed.device), 64 - 8 * width
    whole[:, :width] = packed
    bits = whole.view(xp.int64).reshape((n,))
    return (bits << shift) >> shift if width else bits


# ---- decays, and what multiplications by them lose


class Decay(NamedTuple):
    """A decay numerator / 2**16: one integer, or one per coordinate (n,); least: the smallest."""

    numerator: object
    least: int


def round_decay(decay):
    """Return round(decay * 2**16) / 2**16, a float or an array of either backend."""
    return namespace(decay).round(decay * DENOMINATOR) / DENOMINATOR


def as_decay(decay, least: float | None = None) -> Decay:
    """Return `decay`, a number or (n,), as a Decay.

    least: its smallest value, if it is known and in the range; saves a look at the array.
    """
    if getattr(decay, "ndim", 0) == 0:
        decay = require_decay("decay", float(decay))
        return Decay(round(decay * DENOMINATOR), round(decay * DENOMINATOR))
    if least is None:
        xp = namespace(decay)
        require_decay("decay", float(xp.amax(decay)))
        least = require_decay("decay", float(xp.amin(decay)))
    return Decay(to_bits(decay, 1 / DENOMINATOR), round(least * DENOMINATOR))


def require_decay(name: str, value: float, largest: float = 1.0, where: str = "") -> float:
    """Return `value`; raise ValueError unless, rounded, it lies in [2**-16, largest]."""
    if 1 / DENOMINATOR <= value <= 1 and round_decay(value) <= largest:
        return value
    end = "1" if largest == 1 else "1 - 2**-16"
    way_out = "use GradientDescent for none" if name == "decay" else "decays are rounded to 2**-16"
    raise ValueError(f"{name} must lie in [2**-16, {end}], got {value:.7g}{where}; {way_out}")


@dataclass
class ReversalBuffer:
    """What multiplications by decays lose: `divide` undoes `multiply`, last first, bit for bit.

    Per coordinate an integer x, 0 <= x <= bound <= LIMIT. One multiplication of v = v1 d + v0 by
    n/d, d = 2**16:

        x = s n + q;   v0 n + q = c d + r;   v' = v1 n + c;   x' = s d + r

    so v' is v n/d to within one unit and x grows by log2(d/n) bits. (Algorithm 3 as printed
    replaces all of v0 by a digit of the buffer: the same bijection of v alone, off by up to 2**16
    units.) When the bound could pass LIMIT, the low 16 bits of all x move to a list of words; when
    that happens depends on the decays alone, so nothing branches or waits for a device. A vector
    costs log2(1/decay) bits a step for its smallest decay, and about 24 bits in all once `pack`
    was called. Vectors of one length may share a buffer.

    >>> buffer, value = ReversalBuffer(), FixedPoint(np.array([0.3, -2.0]))
    >>> less = buffer.multiply(value.bits, 0.9)
    >>> bool((buffer.divide(less, 0.9) == value.bits).all()), buffer.empty()
    (True, True)
    """

    state: object = None  # (n,) int64, or packed
    words: list = field(default_factory=list)
    spills: array = field(default_factory=lambda: array("q"))  # the count before which each moved
    count: int = 0  # multiplications not undone
    bound: int = 0  # of the state
    checksum: int = 0  # of the decays not undone

    def multiply(self, bits, decay):
        """Return bits * decay as new int64 (n,). decay: a number, (n,), or a `Decay`."""
        decay = decay if isinstance(decay, Decay) else as_decay(decay)
        state = self.before_multiply(bits, decay)
        bits, self.state = arithmetic(bits).multiply(bits, state, decay.numerator)
        return bits

    def divide(self, bits, decay):
        """Undo the latest `multiply`, which must have had this decay."""
        decay = decay if isinstance(decay, Decay) else as_decay(decay)
        state = self.before_divide(bits, decay)
        bits, self.state = arithmetic(bits).divide(bits, state, decay.numerator)
        return bits

    def before_multiply(self, bits, decay: Decay):
        """Do the bookkeeping of `multiply`; return the state for its arithmetic."""
        state = self._unpacked(bits)
        if _next_bound(self.bound, decay.least) > LIMIT:  # words are signed: torch has no other
            self.words.append(_as((state & LOW) - DENOMINATOR // 2, "int16"))
            self.spills.append(self.count)
            state, self.bound = state >> BITS, self.bound >> BITS
        self.bound = _next_bound(self.bound, decay.least)
        self.count += 1
        self.checksum += self.count * decay.least
        return state

    def before_divide(self, bits, decay: Decay):
        """Do the bookkeeping of `divide`; return the state for its arithmetic."""
        if not self.count:
            raise ReversalError("there is no multiplication left to undo")
        state = self._unpacked(bits)
        if self.spills and self.spills[-1] == self.count:
            self.spills.pop()
            state = (state << BITS) + (_as(self.words.pop(), "int64") + DENOMINATOR // 2)
        self.checksum -= self.count * decay.least
        self.count -= 1
        self.bound = LIMIT if self.count else 0  # not known on the way back: the safe side
        return state

    def _unpacked(self, bits):
        if self.state is None:
            return bits * 0
        return unpack(self.state) if self.state.ndim == 2 else self.state

    def pack(self) -> None:
        """Keep the state in as few bytes as hold it, until the next product or quotient."""
        if self.state is not None:
            self.state = pack(self._unpacked(None))

    def empty(self) -> bool:
        """Return whether every multiplication was undone, by its own decay, with nothing left."""
        left = self.state is not None and bool((self.state != 0).any())
        return not (self.count or self.checksum or left)

    @property
    def nbytes(self) -> int:
        """The bytes of the state, the words and their schedule."""
        held = [*self.words, *([] if self.state is None else [self.state])]
        return sum(part.nbytes for part in held) + self.spills.itemsize * len(self.spills)


def _next_bound(bound: int, numerator: int) -> int:
    return bound // numerator * DENOMINATOR + LOW
