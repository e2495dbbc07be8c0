"""The vector-Jacobian product of a step of Momentum, HeavyBall, Adam or AdamW on a CPU.

A graph of the formulas of optimizers.py passes 15 to 100 times over vectors as long as the weights;
here each optimizer is one loop by numba. A coefficient is a vector (n,) or a number.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import overload

from hgcore.backend import Backend
from hgcore.backend_torch import Torch
from hgcore.fast.numba_kernels import _at
from hgcore.optimizers import Adam, AdamW, HeavyBall, Momentum, Optimizer

_loop = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})


def _put(out, i, slope):
    """Write one number of a vector's cotangent and return 0, or return the part of a number's."""


@overload(_put, inline="always")
def _put_of_type(out, i, slope):
    if out is numba.types.none:
        return lambda out, i, slope: slope

    def put(out, i, slope):
        out[i] = slope
        return 0.0

    return put


# A loop writes the cotangents of gradient and slots to `out` and those of coefficients that are
# vectors to `slopes`; it returns those of numbers, for which `slopes` has None.
# given: gradient and slots before the step; adjoint: of weights and slots after it, all (n,).


@_loop
def _momentum(damped, coefficients, slopes, given, adjoint, out):
    (rate, decay), (by_rate, by_decay) = coefficients, slopes
    (gradient, velocity), (to_gradient, to_velocity) = given, out
    sign, rate_sum, decay_sum = 1.0 if damped else -1.0, 0.0, 0.0
    for i in range(gradient.size):
        g, v, d, a = gradient[i], velocity[i], _at(decay, i), sign * adjoint[0][i]
        gain = d - 1 if damped else 1.0
        after = d * v + gain * g  # weights' = weights + sign * rate * after
        by_after = adjoint[1][i] + _at(rate, i) * a
        to_gradient[i], to_velocity[i] = gain * by_after, d * by_after
        rate_sum += _put(by_rate, i, after * a)
        decay_sum += _put(by_decay, i, (v + g if damped else v) * by_after)
    return rate_sum, decay_sum


@_loop
def _adam(t, biases, coefficients, slopes, given, adjoint, out):
    (rate, beta1, beta2, epsilon), (bias1, bias2) = coefficients, biases
    by_rate, by_beta1, by_beta2, by_epsilon = slopes
    (gradient, mean, square), (to_gradient, to_mean, to_square) = given, out
    rate_sum = beta1_sum = beta2_sum = epsilon_sum = 0.0
    for i in range(gradient.size):
        g, m, s, a = gradient[i], mean[i], square[i], adjoint[0][i]
        b1, b2, c1, c2 = _at(beta1, i), _at(beta2, i), _at(bias1, i), _at(bias2, i)
        root = np.sqrt((b2 * s + (1 - b2) * g * g) / c2)
        below = root + _at(epsilon, i)
        ratio = (b1 * m + (1 - b1) * g) / c1 / below  # weights' = weights - rate * ratio
        by_ratio = -_at(rate, i) * a
        by_below = -by_ratio * ratio / below
        by_mean = adjoint[1][i] + by_ratio / (c1 * below)
        by_square = adjoint[2][i] + (0.5 * by_below / (c2 * root) if root > 0 else 0.0)
        to_gradient[i] = (1 - b1) * by_mean + 2 * (1 - b2) * g * by_square
        to_mean[i], to_square[i] = b1 * by_mean, b2 * by_square
        rate_sum += _put(by_rate, i, -a * ratio)
        epsilon_sum += _put(by_epsilon, i, by_below)
        by_c1, by_c2 = -by_ratio * ratio / c1, -0.5 * by_below * root / c2
        c1_by_b1, c2_by_b2 = (t + 1) * (c1 - 1) / b1, (t + 1) * (c2 - 1) / b2
        beta1_sum += _put(by_beta1, i, (m - g) * by_mean + c1_by_b1 * by_c1)
        beta2_sum += _put(by_beta2, i, (s - g * g) * by_square + c2_by_b2 * by_c2)
    return rate_sum, beta1_sum, beta2_sum, epsilon_sum


def _adam_at(t: int, coefficients: tuple, *vectors) -> tuple:
    biases = tuple(-np.expm1((t + 1) * np.log(beta)) for beta in coefficients[1:3])
    return _adam(t, biases, coefficients, *vectors)


MOMENTUM, ADAM = ("rate", "decay"), ("rate", "beta1", "beta2", "epsilon")
LOOPS = {
    Momentum: (MOMENTUM, lambda t, *given: _momentum(True, *given)),
    HeavyBall: (MOMENTUM, lambda t, *given: _momentum(False, *given)),
    Adam: (ADAM, _adam_at),
    AdamW: (ADAM, _adam_at),
}


def fits(optimizer: Optimizer, backend: Backend) -> bool:
    """Return whether `pull_step` takes these; not `Autograd`, which is the reference."""
    whole = optimizer.clip is None and getattr(optimizer, "fade", 1) == 1
    return type(optimizer) in LOOPS and whole and type(backend) is Torch and backend.device == "cpu"


def pull_step(problem, before: tuple, gradient, hyper, t: int, adjoint: tuple) -> tuple:
    """Return the cotangents of hyper (m,), gradient, weights and slots, each (n,).

    before: the state before step t; adjoint: that of the state after it.
    """
    backend, (names, loop), c = problem.backend, LOOPS[type(problem.optimizer)], None

    def factors(hyper) -> list:
        nonlocal c
        c = problem.coefficients(gradient, hyper, t)
        shrink = problem.optimizer.shrink(c)
        return [getattr(c, name) for name in names] + ([] if shrink is None else [shrink])

    factors, pull = backend.vjp(factors, hyper)
    coefficients = tuple(map(backend.host_view, factors[: len(names)]))
    slopes = tuple(np.empty_like(x) if np.ndim(x) else None for x in coefficients)
    given, after = (
        tuple(np.ascontiguousarray(backend.host_view(x)) for x in vectors)
        for vectors in ((gradient, *before[1:]), adjoint)
    )
    out = tuple(map(np.empty_like, given))
    numbers = loop(c.t, coefficients, slopes, given, after, out)
    cotangents = [y if x is None else x for x, y in zip(slopes, numbers, strict=True)]
    to_weights = adjoint[0]
    for shrink in factors[len(names) :]:
        slope, to_weights = adjoint[0] * before[0], shrink * adjoint[0]
        cotangents.append(slope if shrink.ndim else slope.sum())
    to_gradient, *to_slots = map(backend.array, out)
    return *pull(tuple(map(backend.array, cotangents))), to_gradient, to_weights, *to_slots
