"""The update maps of the inner optimiser, with everything that solvers need to know of them.

A state is a tuple of vectors: (weights,) or (weights, velocity), each (n,). Step sizes and decays are functions
(hyper, t) -> scalar or (n,), so that schedules, per-layer and per-weight values are all the same thing.
Every solver uses a decay as `round_decay` gives it, a multiple of 2**-16, and differentiates it as if it were not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hgcore.reversal import round_decay


class Step(NamedTuple):
    """One step of training: the states around it, the gradient (n,) between, the coefficients used."""

    before: tuple
    after: tuple
    gradient: object
    coefficients: tuple


def _weighted(adjoint, slope, coefficient):
    """The cotangent of a coefficient that multiplies `slope`: one number if the coefficient is one."""
    return adjoint @ slope if coefficient.ndim == 0 else adjoint * slope


@dataclass(frozen=True)
class GradientDescent:
    """w' = w - rate g.  rate: (hyper, t) -> scalar or (n,). It loses what it overwrites, so `reversible` cannot undo it."""

    rate: Callable

    reversible, vectors = False, 1

    @property
    def functions(self) -> dict[str, Callable]:
        return {"rate": self.rate}

    @property
    def starts(self) -> tuple[Callable, ...]:
        return ()

    def step(self, state, gradient, coefficients) -> tuple:
        return (state[0] - coefficients[0] * gradient,)

    def arrive(self, adjoint, coefficients) -> tuple:
        """(adjoint as it enters the step from behind, adjoint of the gradient (n,))."""
        return adjoint, -coefficients[0] * adjoint[0]

    def pullback(self, adjoint, step: Step) -> tuple[tuple, tuple]:
        """(adjoint before the step, cotangents of the coefficients, each a function), but for what flows through the gradient."""
        return adjoint, (lambda: -_weighted(adjoint[0], step.gradient, step.coefficients[0]),)

    def pushforward(self, tangent, step: Step, curvature, slopes) -> tuple:
        """Tangent of the state after the step, from those of the state before, of the gradient (n,) and of the coefficients (None: constant)."""
        weights = tangent[0] - step.coefficients[0] * curvature
        if slopes[0] is not None:
            weights -= slopes[0] * step.gradient
        return (weights,)


@dataclass(frozen=True)
class _KickDrift:
    """v' = decay v + gain(decay) g;  w' = w + sign rate v'."""

    rate: Callable
    decay: Callable
    velocity: Callable | None = None

    reversible, vectors = True, 2

    @property
    def functions(self) -> dict[str, Callable]:
        return {"rate": self.rate, "decay": self.decay}

    @property
    def starts(self) -> tuple[Callable, ...]:
        return (self.velocity,) if self.velocity else ()

    def kick(self, gradient, coefficients):
        """What the gradient adds to the decayed velocity."""
        return self.gain(coefficients[1]) * gradient

    def drift(self, velocity, coefficients):
        """What the new velocity adds to the weights."""
        return (coefficients[0] if self.sign > 0 else -coefficients[0]) * velocity

    def step(self, state, gradient, coefficients) -> tuple:
        velocity = coefficients[1] * state[1] + self.kick(gradient, coefficients)
        return state[0] + self.drift(velocity, coefficients), velocity

    def arrive(self, adjoint, coefficients) -> tuple:
        """(adjoint as it enters the step from behind, adjoint of the gradient (n,))."""
        velocity = self.drift(adjoint[0], coefficients)
        velocity += adjoint[1]
        return (adjoint[0], velocity), self.kick(velocity, coefficients)

    def pullback(self, adjoint, step: Step) -> tuple[tuple, tuple]:
        """(adjoint before the step, cotangents of the coefficients, each a function), but for what flows through the gradient.

        Maclaurin et al. 2015, Algorithm 2 with its three misprints put right.
        """
        rate, decay = step.coefficients

        def by_rate():
            cotangent = _weighted(adjoint[0], step.after[1], rate)
            return cotangent if self.sign > 0 else -cotangent

        def by_decay():
            return _weighted(adjoint[1], self.decayed(step.before[1], step.gradient), decay)

        return (adjoint[0], decay * adjoint[1]), (by_rate, by_decay)

    def pushforward(self, tangent, step: Step, curvature, slopes) -> tuple:
        """Tangent of the state after the step, from those of the state before, of the gradient (n,) and of the coefficients (None: constant)."""
        velocity = step.coefficients[1] * tangent[1]
        velocity += self.kick(curvature, step.coefficients)
        if slopes[1] is not None:
            velocity += slopes[1] * self.decayed(step.before[1], step.gradient)
        weights = self.drift(velocity, step.coefficients)
        weights += tangent[0]
        if slopes[0] is not None:
            weights += self.drift(step.after[1], slopes)
        return weights, velocity


class Momentum(_KickDrift):
    """v' = decay v - (1 - decay) g;  w' = w + rate v'.  Maclaurin et al. 2015, Algorithm 1 as their code runs it.

    rate, decay: (hyper, t) -> scalar or (n,), decay in [2**-16, 1]; velocity: hyper -> (n,) at the start, None for rest.
    """

    sign = 1

    def gain(self, decay):
        """How much of the gradient the velocity takes."""
        return decay - 1

    def decayed(self, velocity, gradient):
        """d v' / d decay."""
        return velocity + gradient


class HeavyBall(_KickDrift):
    """v' = decay v + g;  w' = w - rate v'.  Franceschi et al. 2017, section 3 (their gradient descent with momentum).

    rate, decay: (hyper, t) -> scalar or (n,), decay in [2**-16, 1]; velocity: hyper -> (n,) at the start, None for rest.
    """

    sign = -1

    def gain(self, decay):
        """How much of the gradient the velocity takes."""
        return 1.0

    def decayed(self, velocity, gradient):
        """d v' / d decay."""
        return velocity


def rounded(name: str, value):
    """The coefficient of that name as a run uses it: decays are multiples of 2**-16, everything else is what it is."""
    return round_decay(value) if name == "decay" else value
