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

import numpy as np

from hgcore.arrays import namespace, require_arguments, root

Coefficient = float | Sequence[float] | Callable


class Slot(NamedTuple):
    """One vector of optimizer state. c: the coefficients of a step, as attributes, and its t."""

    decay: Callable  # c -> decay
    kick: Callable  # (c, gradient, *slots' before this one) -> (n,)
    square: bool = False  # holds squares of gradients, which need a finer unit in fixed point


SQUARE = Slot(lambda c: c.beta2, lambda c, g, *before: (1 - c.beta2) * g * g, square=True)


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share. clip: the largest norm of the gradient, None for no limit."""

    rate: Coefficient
    clip: Coefficient | None = field(default=None, kw_only=True)
    slots: ClassVar[tuple[Slot, ...]] = ()
    decays: ClassVar[tuple[str, ...]] = ()  # the coefficients that are rounded to 2**-16
    shrinking: ClassVar[tuple[str, ...]] = ()  # those that `shrink` depends on
    largest_decay: ClassVar[float] = 1.0
    fade: ClassVar = 1.0

    def __post_init__(self):
        for name in self._coefficients:
            value, whose = getattr(self, name), f"{type(self).__name__}: {name}"
            fits = isinstance(value, (Real, list, tuple, Callable)) or hasattr(value, "ndim")
            if not fits or isinstance(value, (bool, type)):
                what = f"{whose} must be a number, a vector or a function (hyper, t)"
                raise TypeError(f"{what}, got {value!r:.60}")
            if getattr(value, "requires_grad", False):
                what = f"{whose} is a tensor that requires a gradient: make it a function of hyper"
                raise TypeError(f"{what}, such as lambda h, t: h[0]")
            if callable(value):
                require_arguments(whose, value, "hyper", "t")
            elif name in ("clip", "epsilon"):
                least = min(map(float, value)) if np.ndim(value) else float(value)
                self.require_limit(name, least)

    def require_limit(self, name: str, least: float, where: str = "") -> None:
        """Raise ValueError unless the least value of clip is positive, that of epsilon >= 0."""
        if not least >= 0 or name == "clip" and least == 0:
            rule = "positive" if name == "clip" else ">= 0"
            kind = type(self).__name__
            raise ValueError(f"{kind}: {name} must be {rule}, got {least:.3g}{where}")

    @property
    def _coefficients(self) -> list[str]:
        others = ("velocity", "fade", *(["clip"] if self.clip is None else []))
        return [f.name for f in fields(self) if f.name not in others]

    @property
    def reversible(self) -> bool:
        """Whether a step can be undone: its drift needs only slots, and their decays are not 0."""
        ours = type(self).step is Optimizer.step
        return ours and 0 < len(self.slots) == len(self.decays) and self.fade == 1

    def coefficients(self, backend, weights, hyper, t: int, names=None) -> SimpleNamespace:
        """Return the coefficients of step t, or those in `names`, with their graph, not rounded.

        Raises ValueError unless each is a scalar or has the shape of `weights`.
        """
        c, shape = SimpleNamespace(t=t), tuple(weights.shape)
        for name in self._coefficients if names is None else names:
            value = getattr(self, name)
            value = value(hyper, t) if callable(value) else value
            value = None if value is None else backend.traced(value)
            found = None if value is None else tuple(value.shape)
            if found not in ((), shape):
                what = f"{type(self).__name__}: {name} must be a scalar or have shape {shape}"
                raise ValueError(f"{what}, got {found} at step {t}")
            setattr(c, name, value)
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


@dataclass(frozen=True)
class GradientDescent(Optimizer):
    """w' = w - rate g.  It loses what it overwrites: Reversible cannot undo it."""

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
    slots: ClassVar = (Slot(lambda c: c.decay, lambda c, g: (c.decay - 1) * g),)
    decays: ClassVar = ("decay",)

    def drift(self, c, gradient, velocity):
        return c.rate * velocity


@dataclass(frozen=True)
class HeavyBall(Momentum):
    """v' = decay v + g;  w' = w - rate v'.  Fields as in Momentum; torch.optim.SGD(momentum=).

    Implements: Franceschi et al. 2017, section 3 (gradient descent with momentum).
    """

    slots: ClassVar = (Slot(lambda c: c.decay, lambda c, g: g),)

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
    slots: ClassVar = SQUARE, Slot(lambda c: c.decay, lambda c, g, s: g / (root(s) + c.epsilon))

    @property
    def decays(self) -> tuple[str, ...]:
        zero = isinstance(self.decay, Real) and self.decay == 0
        return ("beta2",) if zero else ("beta2", "decay")

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
            return c.beta1 if self.fade == 1 else c.beta1 * self.fade**c.t

        return Slot(keep, lambda c, g: (1 - keep(c)) * g), SQUARE

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
