"""Optimizers of one form, used inside (training) and outside (hyperparameters).

A state is (weights, *slots), vectors (n,). One step is elementwise:

    slot'    = decay * slot + kick(gradient, the slots' before it)        for each slot in turn
    weights' = shrink * weights + drift(slots')

A step is undone from its end: drift needs only slots', and then the gradient is that at the
recovered weights. A coefficient is a number, a vector (n,), or a function (hyper (m,), t) that
returns either; outside, t is the outer step k. Solvers round decays to multiples of 2**-16 and
differentiate them as if they were not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

from hgcore.arrays import namespace, root

Coefficient = float | Sequence[float] | Callable


class Slot(NamedTuple):
    """One vector of optimizer state. c: the coefficients of a step, as attributes, and its t."""

    name: str
    decay: Callable  # c -> decay
    kick: Callable  # (c, gradient, *slots' before this one) -> (n,)
    square: bool = False  # holds squares of gradients, which need a finer unit in fixed point


SQUARE = Slot("square", lambda c: c.beta2, lambda c, g, *before: (1 - c.beta2) * g * g, square=True)


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share. clip: the largest norm of the gradient, None for no limit."""

    rate: Coefficient
    clip: Coefficient | None = field(default=None, kw_only=True)
    slots: ClassVar[tuple[Slot, ...]] = ()
    decays: ClassVar[tuple[str, ...]] = ()  # the coefficients that are rounded to 2**-16
    shrinking: ClassVar[tuple[str, ...]] = ()  # those that `shrink` depends on
    largest_decay: ClassVar[float] = 1.0
    reversible: ClassVar[bool] = True

    def __post_init__(self):
        for name in self._names():
            value, what = getattr(self, name), f"{type(self).__name__}: {name}"
            fits = isinstance(value, (Real, list, tuple)) or hasattr(value, "ndim")
            if not (fits or callable(value)) or isinstance(value, (bool, type)):
                kind = repr(value) if isinstance(value, (str, bool)) else type(value).__name__
                rule = "must be a number, a vector or a function (hyper, t)"
                raise TypeError(f"{what} {rule}, got {kind}")

    def _names(self) -> list[str]:
        without = ("velocity", "fade") if self.clip is not None else ("velocity", "fade", "clip")
        return [f.name for f in fields(self) if f.name not in without]

    def coefficients(self, backend, hyper, t: int, names=None) -> SimpleNamespace:
        """Return the coefficients of step t, or those named: with their graph, not rounded."""
        c = SimpleNamespace(t=t)
        for name in self._names() if names is None else names:
            value = getattr(self, name)
            setattr(c, name, backend.traced(value(hyper, t) if callable(value) else value))
        return c

    def shrink(self, c):
        """Return the factor of the weights, None for 1."""
        return None

    def drift(self, c, gradient, *slots):
        """Return what a step adds to the weights (n,); reversible if `gradient` is not used."""
        raise NotImplementedError

    def clipped(self, c, gradient):
        """Return the gradient (n,) scaled to norm at most c.clip, if there is a limit."""
        if self.clip is None:
            return gradient
        xp, norm = namespace(gradient), root(gradient @ gradient)
        return gradient * xp.where(norm > c.clip, c.clip / xp.where(norm > c.clip, norm, 1), 1)

    def step(self, state: tuple, gradient, c) -> tuple:
        """Return the state after a step, from the state before it and the gradient (n,) there."""
        (weights, *before), after, gradient = state, [], self.clipped(c, gradient)
        for slot, value in zip(self.slots, before, strict=True):
            after.append(slot.decay(c) * value + slot.kick(c, gradient, *after))
        kept = weights if (shrink := self.shrink(c)) is None else shrink * weights
        return kept + self.drift(c, gradient, *after), *after

    def steady_slots(self, c, stride, slots) -> tuple:
        """Return the slots of a walk with this stride (n,) a step, `slots` if none are known."""
        return slots


@dataclass(frozen=True)
class GradientDescent(Optimizer):
    """w' = w - rate g.  It loses what it overwrites: Reversible cannot undo it."""

    reversible: ClassVar[bool] = False

    def drift(self, c, gradient):
        return -c.rate * gradient


@dataclass(frozen=True)
class Momentum(Optimizer):
    """v' = decay v - (1 - decay) g;  w' = w + rate v'.

    decay in [2**-16, 1]. velocity: the first v, (n,) or hyper (m,) -> (n,), None for zero.
    Implements: Maclaurin et al. 2015, Algorithm 1 (as their code runs it: v' moves w).
    """

    decay: Coefficient
    velocity: Callable | Sequence[float] | None = None
    slots: ClassVar = (Slot("velocity", lambda c: c.decay, lambda c, g: (c.decay - 1) * g),)
    decays: ClassVar = ("decay",)

    def drift(self, c, gradient, velocity):
        return c.rate * velocity

    def steady_slots(self, c, stride, slots) -> tuple:
        rate = self.drift(c, None, 1.0)  # with its sign
        return (stride / namespace(stride).where(rate != 0, rate, float("inf")),)


@dataclass(frozen=True)
class HeavyBall(Momentum):
    """v' = decay v + g;  w' = w - rate v'.  Fields as in Momentum; torch.optim.SGD(momentum=).

    Implements: Franceschi et al. 2017, section 3 (gradient descent with momentum).
    """

    slots: ClassVar = (Slot("velocity", lambda c: c.decay, lambda c, g: g),)

    def drift(self, c, gradient, velocity):
        return -c.rate * velocity


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """s' = beta2 s + (1 - beta2) g^2;  v' = decay v + g / (sqrt(s') + epsilon);  w' = w - rate v'.

    As torch.optim.RMSprop(alpha=beta2, momentum=decay). Reversible unless decay is the number 0.
    """

    beta2: Coefficient = 0.99
    epsilon: Coefficient = 1e-8
    decay: Coefficient = 0.0
    slots: ClassVar = (
        SQUARE,
        Slot("velocity", lambda c: c.decay, lambda c, g, square: g / (root(square) + c.epsilon)),
    )

    @property
    def reversible(self) -> bool:
        return not (isinstance(self.decay, Real) and self.decay == 0)

    @property
    def decays(self) -> tuple[str, ...]:
        return ("beta2", "decay") if self.reversible else ("beta2",)

    def drift(self, c, gradient, square, velocity):
        return -c.rate * velocity


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2014), as torch.optim.Adam: epsilon outside of the root.

    fade: at step t the first moment decays by beta1 * fade**t, as in the first version of that
    paper (not reversible). Maclaurin's outer loops use Adam(rate, 0.9, 0.99, 1e-4, fade=1e-4):
    no memory of the first moment but its full bias correction, so larger early steps.
    """

    beta1: Coefficient = 0.9
    beta2: Coefficient = 0.999
    epsilon: Coefficient = 1e-8
    fade: float = field(default=1.0, kw_only=True)
    decays: ClassVar = ("beta1", "beta2")
    largest_decay: ClassVar = 1 - 2.0**-16  # one would divide by 1 - beta**t = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        def keep(c):
            return c.beta1 if self.reversible else c.beta1 * self.fade**c.t

        return Slot("mean", keep, lambda c, g: (1 - keep(c)) * g), SQUARE

    @property
    def reversible(self) -> bool:
        return self.fade == 1

    def drift(self, c, gradient, mean, square):
        xp = namespace(mean)
        # 1 - beta**(t + 1), accurate also for beta near 1 in single precision
        first, second = (-xp.expm1((c.t + 1) * xp.log(beta)) for beta in (c.beta1, c.beta2))
        return -c.rate * (mean / first) / (root(square / second) + c.epsilon)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW."""

    weight_decay: Coefficient = 0.01
    shrinking: ClassVar = ("rate", "weight_decay")

    def shrink(self, c):
        return 1 - c.rate * c.weight_decay
