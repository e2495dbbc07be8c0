"""Arithmetic that can be undone to the last bit.

Implements: Maclaurin et al. 2015, section 2.3 and Algorithm 3.

Values are int64 multiples of a power of two, by default 2**-52, so |value| < 2**11. Sums are
exact. A multiplication by a decay below one loses log2(1/decay) bits, which `ReversalBuffer`
keeps. Second moments of gradients have two integers a value and the unit 2**-80, because their
square root stands beside a small epsilon: with 2**-52 and epsilon 1e-8 the hypergradient of an
MNIST net is off by 4e-4, with 2**-70 by 1e-9.

This file has the plain arithmetic, for NumPy and torch, which changes nothing in place; fast/
computes the same bits faster.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from hgcore.arrays import fast_module, namespace

UNIT = 2.0**-52
BITS = 16
DENOMINATOR = 2**BITS
LOW = DENOMINATOR - 1
LIMIT = 2**52  # of a buffer's integers: exact in a double, with room for what rounding adds
WIDE_UNIT = 2.0**-80
LOW_BITS = 45  # of a wide value: the most for which its division stays within int64


class ReversalError(ArithmeticError):
    """The backward pass did not reproduce the forward pass bit for bit."""


def _as(array, kind: str):
    xp = namespace(array)
    return xp.asarray(array, dtype=getattr(xp, kind))


def _double(number):
    return float(number) if isinstance(number, (int, float)) else _as(number, "float64")


def to_bits(values, unit: float = UNIT):
    """Return round(values / unit), ties to even, as int64."""
    return _as(namespace(values).round(_double(values) * (1 / unit)), "int64")


def to_floats(bits, low, unit: float, dtype=None):
    """Return bits * unit, or (bits * 2**45 + low) * unit, to nearest; dtype None: float64."""
    values = _as(bits, "float64") * unit
    if low is not None:
        values = values * 2.0**LOW_BITS + _as(low, "float64") * unit
    return values if dtype is None else namespace(bits).asarray(values, dtype=dtype)


def _carried(high, low) -> tuple:
    """Return the same wide integers with 0 <= low < 2**45."""
    return high + (low >> LOW_BITS), low & (2**LOW_BITS - 1)


def _plus(sign: Callable, bits, low, amount, unit: float) -> tuple:
    """Return (bits, low) after the sum, or the difference if `sign` is operator.sub."""
    if low is None:
        return sign(bits, to_bits(amount, unit)), None
    high = namespace(amount).floor(amount * (1 / (unit * 2.0**LOW_BITS)))
    rest = to_bits(amount - high * (unit * 2.0**LOW_BITS), unit)
    return _carried(sign(bits, _as(high, "int64")), sign(low, rest))


def _multiply(bits, low, state, numerator) -> tuple:
    """Return (bits, low, state) after the product: see ReversalBuffer."""
    high, digit = (bits >> BITS, bits & LOW) if low is None else (bits, low)
    product, share = high * numerator, state // numerator
    carry = digit * numerator + (state - share * numerator)
    state = (share << BITS) + (carry & LOW)
    if low is None:
        return product + (carry >> BITS), None, state
    low = ((product & LOW) << (LOW_BITS - BITS)) + (carry >> BITS)
    return *_carried(product >> BITS, low), state


def _divide(bits, low, state, numerator) -> tuple:
    """Undo `_multiply`: a long division by the numerator, in two digits."""
    whole, digit, width = (bits, 0, BITS) if low is None else (bits << BITS, low << BITS, LOW_BITS)
    high = whole // numerator
    rest = ((whole - high * numerator) << width) + digit + (state & LOW)
    digit = rest // numerator
    state = (state >> BITS) * numerator + (rest - digit * numerator)
    return *(((high << BITS) + digit, None) if low is None else _carried(high, digit)), state


def decay_add(bits, low, state, numerator, amount, unit: float, dtype) -> tuple:
    """Return (bits, low, state, floats, reach) of value * numerator / 2**16 + amount.

    low: None unless the value is wide. state: that of the ReversalBuffer. numerator None: no
    product. amount None: no sum, and no floats. reach: the bound of FixedPoint's sums, or None.
    """
    if numerator is not None:
        bits, low, state = _multiply(bits, low, state, numerator)
    if amount is None:
        return bits, low, state, None, None
    amount = _double(amount)
    reach = namespace(bits).amax(abs(to_floats(bits, low, unit)) + abs(amount))
    bits, low = _plus(operator.add, bits, low, amount, unit)
    return bits, low, state, to_floats(bits, low, unit, dtype), reach


def undo_decay_add(bits, low, state, numerator, amount, unit: float, dtype) -> tuple:
    """Undo `decay_add`: return (bits, low, state, floats, None or 0)."""
    if amount is not None:
        bits, low = _plus(operator.sub, bits, low, _double(amount), unit)
    if numerator is not None:
        bits, low, state = _divide(bits, low, state, numerator)
    floats = None if amount is None else to_floats(bits, low, unit, dtype)
    return bits, low, state, floats, None


class Arithmetic(NamedTuple):
    """Implementations of the functions above, with the same bits.

    They may change `bits`, `low` and `state` in place, except `bits` if `amount` is None.
    """

    decay_add: Callable = decay_add
    undo_decay_add: Callable = undo_decay_add


PLAIN = Arithmetic()


def arithmetic(bits) -> Arithmetic:
    """Return the fastest implementation for vectors like `bits`."""
    fast = fast_module("arithmetic")
    return fast.fitting(bits, PLAIN) if fast else PLAIN


class FixedPoint:
    """A vector (n,) whose additions `subtract` undoes exactly.

    bits: int64 in multiples of `unit`, a power of two. wide: keep two integers a value, (bits *
    2**45 + low) * unit with 0 <= low < 2**45. Sums return a bound on the magnitudes met, 0 if none
    can be large. They are right if it lies below 2**63 * unit, 2**91 * unit if wide; they wrap
    around, and are wrong, if it is larger, or NaN.
    """

    def __init__(self, values, unit: float = UNIT, wide: bool = False):
        self.unit, zero = unit, 0 if wide else None
        self.bits, self.low = _plus(operator.add, 0, zero, _double(values), unit)

    def floats(self, dtype=None):
        """Return the values (n,), rounded to nearest."""
        return to_floats(self.bits, self.low, self.unit, dtype)

    def add(self, amount):
        """Add `amount` (n,), rounded to the unit; return the bound."""
        return self.decay_add(None, None, amount)[1]

    def subtract(self, amount) -> None:
        """Undo `add(amount)`."""
        self.undo_decay_add(None, None, amount)

    def decay_add(self, buffer, decay: Decay | None, amount, dtype=None) -> tuple:
        """Multiply by `decay`, then add `amount` (n,); return (floats (n,), bound).

        buffer: the ReversalBuffer for what the decay loses. decay None: do not multiply.
        """
        bits, low = self.parts
        state, n = buffer.before_multiply(bits, decay) if decay else (None, None)
        found = arithmetic(bits).decay_add(bits, low, state, n, amount, self.unit, dtype)
        self.bits, self.low, state, floats, reach = found
        if decay:
            buffer.state = state
        return floats, reach

    def undo_decay_add(self, buffer, decay: Decay | None, amount, dtype=None):
        """Undo `decay_add`; return the floats (n,)."""
        bits, low = self.parts
        state, n = buffer.before_divide(bits, decay) if decay else (None, None)
        found = arithmetic(bits).undo_decay_add(bits, low, state, n, amount, self.unit, dtype)
        self.bits, self.low, state, floats, _ = found
        if decay:
            buffer.state = state
        return floats

    @property
    def parts(self) -> tuple:
        """The integers (bits, low), unpacked; low is None unless the value is wide."""
        return unpack(self.bits), unpack(self.low)

    def pack(self) -> None:
        """Keep the integers in as few bytes as hold them, until the next change."""
        self.bits, self.low = map(pack, self.parts)

    def mismatches(self, other: FixedPoint) -> int:
        """Return in how many numbers this differs from `other`."""
        (bits, low), (others, rest) = self.parts, other.parts
        return int(((bits != others) | (low != rest)).sum())

    @property
    def nbytes(self) -> int:
        """The bytes of the integers."""
        return sum(part.nbytes for part in (self.bits, self.low) if part is not None)


def pack(bits):
    """Return int64 `bits` (n,) as bytes (n, k), with the smallest k that holds them all."""
    if bits is None or bits.ndim == 2:
        return bits
    xp = namespace(bits)
    largest = int(xp.amax(xp.maximum(bits, ~bits)))  # ~x = -x - 1 has no overflow
    width = (largest.bit_length() + 8) // 8 if largest else int(bool((bits != 0).any()))
    return xp.asarray(bits.view(xp.uint8).reshape((len(bits), 8))[:, :width], copy=True)


def unpack(packed):
    """Undo `pack`; int64 (n,) and None stay what they are."""
    if packed is None or packed.ndim != 2:
        return packed
    xp, (n, width) = namespace(packed), packed.shape
    whole, shift = xp.zeros((n, 8), dtype=xp.uint8, device=packed.device), 64 - 8 * width
    whole[:, :width] = packed
    bits = whole.view(xp.int64).reshape((n,))
    return (bits << shift) >> shift if width else bits


class Decay(NamedTuple):
    """A decay numerator / 2**16: one integer, or one per coordinate (n,); least: the smallest."""

    numerator: object
    least: int


def round_decay(decay):
    """Return `decay`, a float or an array of either backend, rounded to multiples of 2**-16."""
    rounded = round if isinstance(decay, float) else namespace(decay).round
    return rounded(decay * DENOMINATOR) / DENOMINATOR


def as_decay(decay, least: float | None = None) -> Decay:
    """Return `decay`, a number, (n,) or a Decay, as a Decay.

    least: its smallest value, if it is known and in the range; saves a look at an array.
    """
    if isinstance(decay, Decay):
        return decay
    if getattr(decay, "ndim", 0) == 0:
        numerator = round(require_decay("decay", float(decay)) * DENOMINATOR)
        return Decay(numerator, numerator)
    if least is None:
        for least in float(decay.max()), float(decay.min()):
            require_decay("decay", least)
    return Decay(to_bits(decay, 1 / DENOMINATOR), round(least * DENOMINATOR))


def require_decay(name: str, value: float, largest: float = 1.0, where: str = "") -> float:
    """Return `value`; raise ValueError unless, rounded, it lies in [2**-16, largest]."""
    if 1 / DENOMINATOR <= value <= 1 and round(value * DENOMINATOR) <= largest * DENOMINATOR:
        return value
    end = "1" if largest == 1 else "1 - 2**-16"
    way_out = "decays are rounded to 2**-16"
    if "weight_decay" in name:
        way_out = "take 0 <= rate * weight_decay < 1"
    elif name == "decay" and value < 1:
        way_out = "for no momentum use GradientDescent, or RMSProp without decay"
    raise ValueError(f"{name} must lie in [2**-16, {end}], got {value:.7g}{where}; {way_out}")


@dataclass
class ReversalBuffer:
    """What multiplications by decays lose: `divide` undoes `multiply`, last first, bit for bit.

    Per coordinate an integer x, 0 <= x <= bound <= LIMIT. One multiplication of v = v1 d + v0 by
    n/d, d = 2**16:

        x = s n + q;   v0 n + q = c d + r;   v' = v1 n + c;   x' = s d + r

    so v' is v n/d to within one unit and x grows by log2(d/n) bits. (Algorithm 3 as printed
    replaces all of v0 by a digit of the buffer: the same bijection of v alone, off by up to 2**16
    units.) When the bound could pass LIMIT, the low 16 bits of all x move to a list of words. When
    that happens depends on the decays alone, so nothing waits for a device. A vector costs
    log2(1/decay) bits a step for its smallest decay, and about 24 bits in all once `pack` was
    called. Vectors of one length may share a buffer.

    >>> buffer, value = ReversalBuffer(), FixedPoint(np.array([0.3, -2.0]))
    >>> less = buffer.multiply(value.bits, 0.9)
    >>> bool((buffer.divide(less, 0.9) == value.bits).all()), buffer.empty()
    (True, True)
    """

    state: object = None  # all x: (n,) int64, or packed
    words: list = field(default_factory=list)  # (count, int16 (n,)): when they moved, the low bits
    count: int = 0  # multiplications not undone
    bound: int = 0  # of the state
    checksum: int = 0  # of the decays not undone

    def multiply(self, bits, decay):
        """Return bits * decay as new int64 (n,). decay: a number, (n,), or a `Decay`."""
        state, n = self.before_multiply(bits, as_decay(decay))
        found = arithmetic(bits).decay_add(bits, None, state, n, None, UNIT, None)
        product, _, self.state, *_ = found
        return product

    def divide(self, bits, decay):
        """Undo the latest `multiply`, which must have had this decay."""
        state, n = self.before_divide(bits, as_decay(decay))
        found = arithmetic(bits).undo_decay_add(bits, None, state, n, None, UNIT, None)
        quotient, _, self.state, *_ = found
        return quotient

    def before_multiply(self, bits, decay: Decay) -> tuple:
        """Count a `multiply`; return (state, numerator) for its arithmetic."""
        state, bound = self._unpacked(bits), _next_bound(self.bound, decay)
        if bound > LIMIT:  # words are signed: torch has no other
            self.words.append((self.count, _as((state & LOW) - DENOMINATOR // 2, "int16")))
            state, bound = state >> BITS, _next_bound(self.bound >> BITS, decay)
        self.bound = bound
        self.count += 1
        self.checksum += self.count * decay.least
        return state, decay.numerator

    def before_divide(self, bits, decay: Decay) -> tuple:
        """Count a `divide`; return (state, numerator) for its arithmetic."""
        if not self.count:
            raise ReversalError("there is no multiplication left to undo")
        state = self._unpacked(bits)
        if self.words and self.words[-1][0] == self.count:
            _, word = self.words.pop()
            state = (state << BITS) + (_as(word, "int64") + DENOMINATOR // 2)
        self.checksum -= self.count * decay.least
        self.count -= 1
        self.bound = LIMIT if self.count else 0  # not known on the way back: the safe side
        return state, decay.numerator

    def _unpacked(self, bits):
        return bits * 0 if self.state is None else unpack(self.state)

    def pack(self) -> None:
        """Keep the state in as few bytes as hold it, until the next product or quotient."""
        self.state = pack(self.state)

    def empty(self) -> bool:
        """Return whether every multiplication was undone, by its own decay, with nothing left."""
        left = self.state is not None and bool((self.state != 0).any())
        return not (self.count or self.checksum or left)

    @property
    def nbytes(self) -> int:
        """The bytes of the state, the words and their counts."""
        return getattr(self.state, "nbytes", 0) + sum(word.nbytes + 8 for _, word in self.words)


def _next_bound(bound: int, decay: Decay) -> int:
    return bound // decay.least * DENOMINATOR + LOW
