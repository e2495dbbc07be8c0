"""The arithmetic of exact reversal on NumPy's arrays, every verb one loop by numba. vectors.py has the same verbs, with the same bits.

bits, values, position, velocity, state: int64 (n,), changed in place where they are returned, but for `values`. amount, numerator, gain,
rate: a number or (n,). Floats may be of either precision: they are multiplied in double. `dtype`: of the floats that are returned.
Quotients are taken in floating point, by the inverse, and put right: many times faster than the division of integers, with its result.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba.extending import overload

from hgcore.vectors import UNIT

LOW = np.int64(2**16 - 1)


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
    share = _floor(x, numerator, 1 / np.float64(numerator))
    carry = (value & LOW) * numerator + (x - share * numerator)
    return (value >> 16) * numerator + (carry >> 16), (share << 16) + (carry & LOW)


@_jit
def _divide(value, x, numerator):
    """(value, x) before one multiplication."""
    inverse = 1 / np.float64(numerator)
    high = _floor(value, numerator, inverse)
    rest = ((value - high * numerator) << 16) + (x & LOW)
    low = _part(rest, inverse)
    return (high << 16) + low, (x >> 16) * numerator + (rest - low * numerator)


@_jit
def _part(value, inverse):
    """floor(value * inverse) where that is below 2**32: half a unit more is nowhere near an integer, which rounding could pass."""
    return np.int64(np.floor((np.float64(value) + 0.5) * inverse))


@_jit
def _floor(value, numerator, inverse):
    """floor(value / numerator) for any int64, in two parts: the first leaves a rest below 2**13 + numerator in size."""
    first = np.int64(np.floor(np.float64(value) * inverse))
    return first + _part(value - first * numerator, inverse)


@_jit
def _fits(bits, step):
    """Whether adding `step` units cannot leave the range of int64; not so for NaN."""
    return abs(step) + abs(np.float64(bits)) < 2.0**63


@_jit
def _units(factor, number):
    """factor * number in units of 2**-52, as a double."""
    return np.float64(factor) * np.float64(number) * (1 / UNIT)


@_jit
def _add(bits, amount, sign):
    wrong = 0
    for i in range(bits.size):
        step = _units(sign, _at(amount, i))
        wrong |= not _fits(bits[i], step)
        bits[i] += np.int64(np.rint(step))
    return wrong == 0


def add(bits, amount) -> tuple:
    """(bits + amount, 0.0 or, if a sum may have left the range, the magnitude met, at least 2**11)"""
    fits = _add(bits, amount, 1.0)
    return bits, 0.0 if fits else _reach(amount)


def subtract(bits, amount):
    """Undo `add`."""
    _add(bits, amount, -1.0)
    return bits


def _reach(*amounts) -> float:
    """The largest magnitude of these, NaN if there is one; at least 2**11."""
    return functools.reduce(np.maximum, (np.max(np.abs(amount)) for amount in amounts), 2.0**11)


@_jit
def multiply(values, state, numerator):
    """(values * numerator / 2**16, state with what rounding loses)"""
    out = np.empty_like(values)
    for i in range(values.size):
        out[i], state[i] = _multiply(values[i], state[i], _at(numerator, i))
    return out, state


@_jit
def divide(values, state, numerator):
    """Undo `multiply`."""
    out = np.empty_like(values)
    for i in range(values.size):
        out[i], state[i] = _divide(values[i], state[i], _at(numerator, i))
    return out, state


@_jit
def _forth(position, velocity, state, gradient, numerator, gain, rate, weights, speed):
    wrong = 0
    for i in range(position.size):
        v, state[i] = _multiply(velocity[i], state[i], _at(numerator, i))
        kick = _units(_at(gain, i), gradient[i])
        wrong |= not _fits(v, kick)
        v += np.int64(np.rint(kick))
        velocity[i], speed[i] = v, v * UNIT
        drift = _units(_at(rate, i), v * UNIT)
        wrong |= not _fits(position[i], drift)
        position[i] += np.int64(np.rint(drift))
        weights[i] = position[i] * UNIT
    return wrong == 0


def forth(position, velocity, state, gradient, numerator, gain, rate, dtype) -> tuple:
    """One step of momentum: (position, velocity, state, weights, speed, magnitude met as `add` has it)"""
    weights, speed = np.empty(position.shape, dtype), np.empty(position.shape, dtype)
    fits = _forth(position, velocity, state, gradient, numerator, gain, rate, weights, speed)
    return (
        position,
        velocity,
        state,
        weights,
        speed,
        0.0 if fits else _reach(gain * gradient, rate * speed),
    )


@_jit
def _back_position(position, velocity, rate, weights):
    for i in range(position.size):
        position[i] -= np.int64(np.rint(_units(_at(rate, i), velocity[i] * UNIT)))
        weights[i] = position[i] * UNIT


def back_position(position, velocity, rate, dtype) -> tuple:
    """Undo what `forth` did to the position: (position, weights)"""
    weights = np.empty(position.shape, dtype)
    _back_position(position, velocity, rate, weights)
    return position, weights


@_jit
def _back_velocity(velocity, state, gradient, numerator, gain, speed):
    for i in range(velocity.size):
        v = velocity[i] - np.int64(np.rint(_units(_at(gain, i), gradient[i])))
        velocity[i], state[i] = _divide(v, state[i], _at(numerator, i))
        speed[i] = velocity[i] * UNIT


def back_velocity(velocity, state, gradient, numerator, gain, dtype) -> tuple:
    """Undo what `forth` did to the velocity: (velocity, state, speed)"""
    speed = np.empty(velocity.shape, dtype)
    _back_velocity(velocity, state, gradient, numerator, gain, speed)
    return velocity, state, speed
