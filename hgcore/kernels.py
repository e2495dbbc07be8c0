"""The inner loops of exact reversal, fused by numba; the NumPy code in reversal.py gives the same bits.

A state below 2**53 is an exact double, so its quotient by an integer may be taken in floating point: the correctly rounded
quotient cannot reach the next integer. `numerator`, `gain` and `rate` are one number or one per coordinate.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import overload

LOW = np.int64(2**16 - 1)
UNIT = 2.0**-52


def _jit(function):
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)


def _at(value, i):
    """value[i] of a vector, or the number itself."""


@overload(_at)
def _at_of_type(value, i):
    if isinstance(value, numba.types.Array):
        return lambda value, i: value[i]
    return lambda value, i: value


@_jit
def _multiply(value, x, numerator):
    """(value, x) after one multiplication."""
    share = np.int64(np.float64(x) / np.float64(numerator))
    carry = (value & LOW) * numerator + (x - share * numerator)
    return (value >> 16) * numerator + (carry >> 16), (share << 16) + (carry & LOW)


@_jit
def _divide(value, x, numerator):
    """(value, x) before one multiplication."""
    high = _floor(value, numerator)
    rest = ((value - high * numerator) << 16) + (x & LOW)
    low = np.int64(np.float64(rest) / np.float64(numerator))
    return (high << 16) + low, (x >> 16) * numerator + (rest - low * numerator)


@_jit
def _floor(value, numerator):
    """floor(value / numerator) for any int64, by two rounded quotients: the first leaves a rest below 2**12 + numerator."""
    first = np.int64(np.floor(np.float64(value) / np.float64(numerator)))
    return first + np.int64(np.floor((np.float64(value - first * numerator) + 0.5) / np.float64(numerator)))


@_jit
def _fits(bits, step):
    """Whether adding `step` units cannot leave the range of int64; not so for NaN."""
    return abs(step) + abs(np.float64(bits)) < 2.0**63


@_jit
def add(bits, amount, scale):
    """bits += round(amount * scale), in place; False if a sum may have left the range."""
    wrong = 0
    for i in range(bits.size):
        step = _at(amount, i) * scale
        wrong |= not _fits(bits[i], step)
        bits[i] += np.int64(np.rint(step))
    return wrong == 0


@_jit
def multiply(values, state, numerator):
    """values * numerator / 2**16 as new int64; what rounding loses goes into `state`, in place."""
    out = np.empty_like(values)
    for i in range(values.size):
        out[i], state[i] = _multiply(values[i], state[i], _at(numerator, i))
    return out


@_jit
def divide(values, state, numerator):
    """The exact inverse of `multiply`."""
    out = np.empty_like(values)
    for i in range(values.size):
        out[i], state[i] = _divide(values[i], state[i], _at(numerator, i))
    return out


@_jit
def forth(position, velocity, state, gradient, numerator, gain, rate):
    """One exact step of momentum, in place: (weights, velocity) as floats, and False if a number may have left the range."""
    weights, speed, wrong = np.empty(position.size), np.empty(position.size), 0
    for i in range(position.size):
        v, state[i] = _multiply(velocity[i], state[i], _at(numerator, i))
        kick = _at(gain, i) * gradient[i] * (1 / UNIT)
        wrong |= not _fits(v, kick)
        v += np.int64(np.rint(kick))
        velocity[i], speed[i] = v, v * UNIT
        drift = _at(rate, i) * speed[i] * (1 / UNIT)
        wrong |= not _fits(position[i], drift)
        position[i] += np.int64(np.rint(drift))
        weights[i] = position[i] * UNIT
    return weights, speed, wrong == 0


@_jit
def back_position(position, speed, rate):
    """Undo the drift of `forth`, in place: weights as floats."""
    weights = np.empty(position.size)
    for i in range(position.size):
        position[i] -= np.int64(np.rint(_at(rate, i) * speed[i] * (1 / UNIT)))
        weights[i] = position[i] * UNIT
    return weights


@_jit
def back_velocity(velocity, state, gradient, numerator, gain):
    """Undo the kick and the decay of `forth`, in place: velocity as floats."""
    speed = np.empty(velocity.size)
    for i in range(velocity.size):
        v = velocity[i] - np.int64(np.rint(_at(gain, i) * gradient[i] * (1 / UNIT)))
        velocity[i], state[i] = _divide(v, state[i], _at(numerator, i))
        speed[i] = velocity[i] * UNIT
    return speed
