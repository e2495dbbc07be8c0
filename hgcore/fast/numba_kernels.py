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

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba.extending import overload

from hgcore.fixed_point import (
    HIGH_UNIT,
    LOW,
    LOW_BITS,
    PLAIN,
    WIDE_UNIT,
    Arithmetic,
    to_floats,
    wide_floats,
)

LARGE = 2**19  # numbers; fewer are not worth a second thread
FLOATS = np.dtype(np.float64), np.dtype(np.float32)
VECTORS, NUMBERS = (np.dtype(np.int64), *FLOATS), (int, float, np.int64, np.float32)
WORD = 2**32 - 1
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
def _multiply_one(value, state, numerator):
    """Return (value, state) after; 0 <= state < 2**53 and state // numerator < 2**51."""
    n, x = _lower(numerator), _double(state)
    share = x * (1 / n) + M52  # state / n to the nearest: its floor, or one more
    rest = x - (share - M52) * n
    more = rest < 0
    rest += n if more else 0.0
    low = _bits(_lower(value) * n + rest + M52)
    high = _float(_shifted(value, 32) ^ (BITS_T52 | 2**31)) - (T52 + 2.0**31)
    value = (_bits(high * n + M52) << 16) + (_shifted(low, 16) - (BITS_M52 >> 16))
    return value, ((_bits(share) - np.int64(more)) << 16) | (low & LOW)


@_inline
def _divide_one(value, state, numerator):
    """Return (value, state) before, state >= 0: value * 2**16 + state % 2**16, in two digits."""
    n = _lower(numerator)
    inverse = 1 / n
    high = _float(_shifted(value, 16) ^ (BITS_T84 | 2**47)) - (T84 + 2.0**79)
    first = high * inverse + M84  # high and first are multiples of 2**32
    rest = (high - (first - M84) * n) + _lower((value << 16) | (state & LOW))
    second = (rest - (n - 1) / 2) * inverse + M52  # floor(rest / n)
    rest = (rest - (second - M52) * n) + M52
    value = (_bits(first) << 32) + (_bits(second) - BITS_M52)
    return value, _shifted(state, 16) * numerator + (_bits(rest) - BITS_M52)


@_inline
def _floor(value, numerator):
    """Return floor(value / numerator) for |value| < 2**62."""
    n = _lower(numerator)
    first = _integer(_double(value) * (1 / n))
    rest = _double(value - first * numerator)
    return first + (_bits((rest - (n - 1) / 2) * (1 / n) + M52) - BITS_M52)


@_inline
def _wide(number):
    """Return (high, low) of a wide value, rounded."""
    high = np.floor(number * (1 / HIGH_UNIT))
    return _integer(high), _integer((number - high * HIGH_UNIT) * (1 / WIDE_UNIT))


# ---- loops; `state` and the vectors after the numbers that go in are written, and so may `bits`


@_loop
def _multiply_all(bits, state, numerator, products):
    for i in range(bits.size):
        products[i], state[i] = _multiply_one(bits[i], state[i], _at(numerator, i))


@_loop
def _divide_all(bits, state, numerator, quotients):
    for i in range(bits.size):
        quotients[i], state[i] = _divide_one(bits[i], state[i], _at(numerator, i))


@_loop
def _add_all(bits, state, numerator, amount, unit, values):
    """Return whether some |sum| + |amount| is 2**62 units or more, or NaN. state: or None."""
    scale, large = 1 / unit, False
    for i in range(bits.size):
        value, step = bits[i], np.float64(_at(amount, i)) * scale
        if state is not None:
            value, state[i] = _multiply_one(value, state[i], _at(numerator, i))
        bits[i] = value + _integer(step)
        total = _double(bits[i])
        values[i] = total * unit
        large |= not abs(total) + abs(step) < 2.0**62
    return large


@_loop
def _subtract_all(bits, state, numerator, amount, unit, values):
    scale = 1 / unit
    for i in range(bits.size):
        value = bits[i] - _integer(np.float64(_at(amount, i)) * scale)
        if state is not None:
            value, state[i] = _divide_one(value, state[i], _at(numerator, i))
        bits[i] = value
        values[i] = _double(value) * unit


@_loop
def _add_wide(high, low, state, numerator, amount, values):
    """Return whether some |value| + |amount| is 2**10 or more, or NaN."""
    large = False
    for i in range(high.size):
        n, number = _at(numerator, i), np.float64(_at(amount, i))
        share, product, more = _floor(state[i], n), high[i] * n, _wide(number)
        carry = low[i] * n + (state[i] - share * n)
        part = ((product & LOW) << (LOW_BITS - 16)) + (carry >> 16) + more[1]
        high[i] = (product >> 16) + more[0] + (part >> LOW_BITS)
        low[i], state[i] = part & (2**LOW_BITS - 1), (share << 16) + (carry & LOW)
        value = _double(high[i]) * HIGH_UNIT + _double(low[i]) * WIDE_UNIT
        values[i] = value
        large |= not abs(value) + abs(number) < 2.0**10
    return large


@_loop
def _subtract_wide(high, low, state, numerator, amount, values):
    for i in range(high.size):
        n, more = _at(numerator, i), _wide(np.float64(_at(amount, i)))
        part = low[i] - more[1]
        whole = (high[i] - more[0] + (part >> LOW_BITS)) << 16
        quotient = _floor(whole, n)
        rest = (whole - quotient * n) << LOW_BITS
        rest += ((part & (2**LOW_BITS - 1)) << 16) + (state[i] & LOW)
        part = _floor(rest, n)
        high[i], low[i] = quotient + (part >> LOW_BITS), part & (2**LOW_BITS - 1)
        state[i] = (state[i] >> 16) * n + (rest - part * n)
        values[i] = _double(high[i]) * HIGH_UNIT + _double(low[i]) * WIDE_UNIT


def _run(loop: Callable, *arguments) -> bool:
    """Run `loop`, on pieces of the vectors (n,) in threads if they are long."""
    size, count = arguments[0].size, 1
    if size >= LARGE:
        torch = sys.modules.get("torch")
        count = torch.get_num_threads() if torch else numba.config.NUMBA_NUM_THREADS
    if count == 1:
        return loop(*arguments)
    pieces = 4 * count  # more than threads, as a core may be busy
    cuts = [slice(size * i // pieces, size * (i + 1) // pieces) for i in range(pieces)]

    def piece(cut):
        return loop(*(x[cut] if isinstance(x, np.ndarray) else x for x in arguments))

    with ThreadPoolExecutor(count) as pool:
        return any(list(pool.map(piece, cuts)))


# ---- the functions of fixed_point.py


def _or_plain(function: Callable) -> Callable:
    """Return `function`, but the plain one for arguments that the loops do not take."""
    plain = getattr(PLAIN, function.__name__.lstrip("_"))

    def taken(x, shape: tuple) -> bool:
        if isinstance(x, np.ndarray):
            return x.shape == shape and x.dtype in VECTORS
        return isinstance(x, NUMBERS) or x is None or x in FLOATS

    @functools.wraps(plain)
    def chosen(bits, *arguments):
        fits = bits.flags.writeable and all([taken(x, bits.shape) for x in arguments])
        return function(bits, *arguments) if fits else plain(bits, *arguments)

    return chosen


@_or_plain
def add(bits, amount, unit, dtype) -> tuple:
    bits, _, values, reach = _decay_add(bits, None, None, amount, unit, dtype)
    return bits, values, reach


@_or_plain
def subtract(bits, amount, unit, dtype) -> tuple:
    bits, _, values = _undo_decay_add(bits, None, None, amount, unit, dtype)
    return bits, values


@_or_plain
def multiply(bits, state, numerator) -> tuple:
    products = np.empty_like(bits)
    _run(_multiply_all, bits, state, numerator, products)
    return products, state


@_or_plain
def divide(bits, state, numerator) -> tuple:
    quotients = np.empty_like(bits)
    _run(_divide_all, bits, state, numerator, quotients)
    return quotients, state


def _decay_add(bits, state, numerator, amount, unit, dtype) -> tuple:
    values, reach = np.empty(bits.shape, dtype), 0.0
    if _run(_add_all, bits, state, numerator, amount, unit, values):
        before, _, _ = _undo_decay_add(bits.copy(), None, None, amount, unit, dtype)
        reach = np.max(abs(to_floats(before, unit)) + abs(np.asarray(amount, np.float64)))
    return bits, state, values, reach


def _undo_decay_add(bits, state, numerator, amount, unit, dtype) -> tuple:
    values = np.empty(bits.shape, dtype)
    _run(_subtract_all, bits, state, numerator, amount, unit, values)
    return bits, state, values


@_or_plain
def decay_add_wide(high, low, state, numerator, amount, dtype) -> tuple:
    values, reach = np.empty(high.shape, dtype), 0.0
    if _run(_add_wide, high, low, state, numerator, amount, values):
        reach = np.max(abs(wide_floats(high, low)) + abs(np.asarray(amount, np.float64)))
    return high, low, state, values, reach


@_or_plain
def undo_decay_add_wide(high, low, state, numerator, amount, dtype) -> tuple:
    values = np.empty(high.shape, dtype)
    _run(_subtract_wide, high, low, state, numerator, amount, values)
    return high, low, state, values


decay_add, undo_decay_add = _or_plain(_decay_add), _or_plain(_undo_decay_add)
WIDE = decay_add_wide, undo_decay_add_wide
KERNELS = Arithmetic(add, subtract, multiply, divide, decay_add, undo_decay_add, *WIDE)
