"""The arithmetic of fixed_point.py on NumPy vectors: each function one loop by numba.

Without AVX-512 a CPU has vector instructions neither for int64 <-> double nor for quotients of
integers. Here they are additions and products of doubles, which every CPU does several at a time:
    2**52 + k, for integers 0 <= k < 2**52, is the double whose last 52 bits are those of k;
    1.5 * 2**52 + x, for |x| < 2**51, rounds x to an integer k, ties to even: its bits are those of
    1.5 * 2**52 plus k. The same holds for multiples of 2**j with 2**(52 + j).
Larger integers are two such parts. Quotients are products by the inverse, rounded to an integer
and put right by their remainder. All else is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba.extending import overload

from hgcore.fixed_point import LOW, LOW_BITS, PLAIN, Arithmetic

LARGE = 2**19  # numbers; fewer are not worth a second thread
VECTORS = tuple(map(np.dtype, (np.int64, np.float64, np.float32)))
NUMBERS = int, float, np.int64, np.float32
WORD, WIDTH = 2**32 - 1, 2**LOW_BITS
T52, T84 = 2.0**52, 2.0**84
M52, M84 = 1.5 * T52, 1.5 * T84
BITS_T52, BITS_T84, BITS_M52 = (int(np.float64(x).view(np.int64)) for x in (T52, T84, M52))

_loop = numba.njit(cache=True, nogil=True, error_model="numpy")
_inline = numba.njit(forceinline=True, nogil=True, error_model="numpy")


def _at(value, i):
    """Return value[i] of a vector, or the number itself."""


@overload(_at, inline="always")
def _at_of_type(value, i):
    if isinstance(value, numba.types.Array):
        return lambda value, i: value[i]
    return lambda value, i: value


# ---- one number; int64 is shifted to the right with zeros, as AVX2 knows no other way


_float = _inline(lambda bits: np.int64(bits).view(np.float64))
_bits = _inline(lambda number: np.float64(number).view(np.int64))
_lower = _inline(lambda bits: _float((bits & WORD) | BITS_T52) - T52)  # 32 bits as a double
_shifted = _inline(lambda bits, by: np.int64(np.uint64(bits) >> np.uint64(by)))


@_inline
def _double(bits):
    """Return any int64 as a double, rounded once."""
    high = _float(_shifted(bits, 32) ^ (BITS_T84 | 2**31)) - (T84 + 2.0**63 + T52)
    return high + _float((bits & WORD) | BITS_T52)


@_inline
def _integer(number):
    """Return round(number), ties to even, for |number| < 2**63."""
    high = number + M84
    return (_bits(high) << 32) + (_bits((number - (high - M84)) + M52) - BITS_M52)


@_inline
def _floor(value, numerator):
    """Return floor(value / numerator) for |value| < 2**62."""
    n = _lower(numerator)
    first = _integer(_double(value) * (1 / n))
    rest = _double(value - first * numerator)
    return first + (_bits((rest - (n - 1) / 2) * (1 / n) + M52) - BITS_M52)


# a value is the integer `value` if `low` is None, else value * 2**45 + part


@_inline
def _multiply(low, value, part, state, numerator):
    """Return (value, part, state) after; 0 <= state < 2**53 and state // numerator < 2**51."""
    if low is not None:
        share, product = _floor(state, numerator), value * numerator
        carry = part * numerator + (state - share * numerator)
        part = ((product & LOW) << (LOW_BITS - 16)) + (carry >> 16)
        value = (product >> 16) + (part >> LOW_BITS)
        return value, part & (WIDTH - 1), (share << 16) + (carry & LOW)
    n, x = _lower(numerator), _double(state)
    share = x * (1 / n) + M52  # state / n to the nearest: its floor, or one more
    rest = x - (share - M52) * n
    more = rest < 0
    rest += n if more else 0.0
    carry = _bits(_lower(value) * n + rest + M52)
    high = _float(_shifted(value, 32) ^ (BITS_T52 | 2**31)) - (T52 + 2.0**31)
    value = (_bits(high * n + M52) << 16) + (_shifted(carry, 16) - (BITS_M52 >> 16))
    return value, part, ((_bits(share) - np.int64(more)) << 16) | (carry & LOW)


@_inline
def _divide(low, value, part, state, numerator):
    """Return (value, part, state) before, state >= 0; a long division in two digits."""
    if low is not None:
        quotient = _floor(value << 16, numerator)
        rest = ((value << 16) - quotient * numerator) << LOW_BITS
        rest += (part << 16) + (state & LOW)
        part = _floor(rest, numerator)
        state = (state >> 16) * numerator + (rest - part * numerator)
        return quotient + (part >> LOW_BITS), part & (WIDTH - 1), state
    n = _lower(numerator)
    inverse = 1 / n
    high = _float(_shifted(value, 16) ^ (BITS_T84 | 2**47)) - (T84 + 2.0**79)
    first = high * inverse + M84  # high and first are multiples of 2**32
    rest = (high - (first - M84) * n) + _lower((value << 16) | (state & LOW))
    second = (rest - (n - 1) / 2) * inverse + M52  # floor(rest / n)
    rest = (rest - (second - M52) * n) + M52
    value = (_bits(first) << 32) + (_bits(second) - BITS_M52)
    return value, part, _shifted(state, 16) * numerator + (_bits(rest) - BITS_M52)


@_inline
def _add(low, value, part, sign, number):
    """Return (value, part) + sign * number, in units."""
    if low is None:
        return value + sign * _integer(number), part
    high = np.floor(number * (1 / WIDTH))
    part += sign * _integer(number - high * WIDTH)
    return value + sign * _integer(high) + (part >> LOW_BITS), part & (WIDTH - 1)


@_inline
def _number(low, value, part):
    """Return the value in units, as a double."""
    return _double(value) if low is None else _double(value) * WIDTH + _double(part)


@_loop
def _decay_add(undo, bits, low, state, numerator, amount, unit, out):
    """Return whether some |sum| + |amount| is half of the range or more, or NaN. undo: None, True.

    Changes `state`, `low` and, if there is an amount, `bits`. out: the floats, or without an amount
    the new integers.
    """
    scale, half, large = 1 / unit, 2.0**62 if low is None else 2.0**90, False
    for i in range(bits.size):
        value, part = bits[i], 0 if low is None else low[i]
        step = 0.0 if amount is None else np.float64(_at(amount, i)) * scale
        if undo is not None:
            if amount is not None:
                value, part = _add(low, value, part, -1, step)
            if numerator is not None:
                value, part, state[i] = _divide(low, value, part, state[i], _at(numerator, i))
        else:
            if numerator is not None:
                value, part, state[i] = _multiply(low, value, part, state[i], _at(numerator, i))
            if amount is not None:
                value, part = _add(low, value, part, 1, step)
        if amount is None:
            out[i] = value
        else:
            total, bits[i] = _number(low, value, part), value
            out[i] = total * unit
            if undo is None:
                large |= not abs(total) + abs(step) < half
        if low is not None:
            low[i] = part
    return large


def _run(undo, *arguments) -> bool:
    """Run the loop, on pieces of the vectors (n,) in threads if they are long."""
    size, count = arguments[0].size, 1
    if size >= LARGE:
        torch = sys.modules.get("torch")
        count = torch.get_num_threads() if torch else numba.config.NUMBA_NUM_THREADS
    if count == 1:
        return _decay_add(undo, *arguments)
    pieces = 4 * count  # more than threads, as a core may be busy
    cuts = [slice(size * i // pieces, size * (i + 1) // pieces) for i in range(pieces)]

    def piece(cut):
        cut_arguments = (x[cut] if isinstance(x, np.ndarray) else x for x in arguments)
        return _decay_add(undo, *cut_arguments)

    with ThreadPoolExecutor(count) as pool:
        return any(list(pool.map(piece, cuts)))


def _fits(bits, *others) -> bool:
    """Return whether the loops take these vectors and numbers."""
    return bits.flags.writeable and all(
        x.shape == bits.shape and x.dtype in VECTORS
        if isinstance(x, np.ndarray)
        else x is None or isinstance(x, NUMBERS)
        for x in others
    )


def _function(undo, plain: Callable) -> Callable:
    def call(bits, low, state, numerator, amount, unit, dtype) -> tuple:
        if not _fits(bits, low, state, numerator, amount):
            return plain(bits, low, state, numerator, amount, unit, dtype)
        out = np.empty_like(bits) if amount is None else np.empty(bits.shape, dtype)
        large = _run(undo, bits, low, state, numerator, amount, unit, out)
        if amount is None:
            return out, low, state, None, None
        reach = _reach(bits, low, amount, unit) if large else 0.0
        return bits, low, state, out, reach

    return call


def _reach(bits, low, amount, unit):
    """Return the largest |value before the sum| + |amount|."""
    parts = (None if part is None else part.copy() for part in (bits, low))
    *_, before, _ = KERNELS.undo_decay_add(*parts, None, None, amount, unit, None)
    return np.max(abs(before) + abs(np.asarray(amount, np.float64)))


KERNELS = Arithmetic(_function(None, PLAIN.decay_add), _function(True, PLAIN.undo_decay_add))
