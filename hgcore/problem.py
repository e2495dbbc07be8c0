"""A bilevel problem: minimise outer(weights after training, hyper), where training depends on hyper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from hgcore.arrays import cut
from hgcore.backend import Backend, SecondOrder, derived, own
from hgcore.dynamics import rounded
from hgcore.reversal import DENOMINATOR

quiet = np.errstate(
    over="ignore", invalid="ignore"
)  # what is not finite is reported once, as `Diverged`


class Diverged(ArithmeticError):
    """A number stopped being finite, or left the range of the fixed-point representation."""


@dataclass(frozen=True)
class Problem:
    """What is trained, how, and what is asked of the result. n weights, m hyperparameters, T = steps.

    inner: (weights (n,), hyper (m,), t) -> scalar; t = 0..T-1 names the minibatch, t = None the full training set.
    outer: (weights (n,), hyper (m,)) -> scalar.  dynamics: GradientDescent, Momentum or HeavyBall.
    initial: hyper -> (n,).  Functions are written with `backend.xp`; the same call must always give the same bits.
    """

    backend: Backend
    inner: Callable
    outer: Callable
    dynamics: object
    initial: Callable
    steps: int

    def __post_init__(self):
        for name in ("inner", "outer", "initial"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"{name} must be a function, got {type(getattr(self, name)).__name__}"
                )
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise ValueError(f"steps must be a whole number >= 0, got {self.steps!r}")

    def hyper(self, hyper):
        """`hyper` as a vector (m,) of the backend, checked."""
        hyper = self.backend.array(hyper)
        if hyper.ndim != 1:
            raise ValueError(
                f"hyper must be a flat vector (m,), got shape {tuple(hyper.shape)}; see Layout.join"
            )
        if not bool(self.backend.xp.isfinite(hyper).all()):
            raise Diverged("hyper holds a value that is not finite")
        return hyper

    def parts(self, state, size: int | None = None) -> tuple:
        """A flat state (as in `Hypergradient.state`) as the tuple of its vectors, of `size` numbers each if that is known; a tuple as it is."""
        if isinstance(state, tuple):
            return state
        size = len(state) // self.dynamics.vectors if size is None else size
        if len(state) != size * self.dynamics.vectors:
            raise ValueError(
                f"a flat state holds {self.dynamics.vectors} vectors of {size} numbers here, weights first, got {len(state)} numbers"
            )
        return tuple(cut(self.backend.array(state), [size] * self.dynamics.vectors))

    def basis(self, hyper):
        """The unit vectors of hyper, as rows (m, m)."""
        return self.backend.xp.diag(0 * hyper + 1)

    @quiet
    def start(self, hyper) -> tuple:
        """The state before the first step."""
        evaluate = self.backend.evaluate
        parts = [self.backend.array(evaluate(f, hyper)) for f in self._starts]
        for part in parts:
            if part.ndim != 1 or part.shape != parts[0].shape or not len(part):
                shapes = [tuple(p.shape) for p in parts]
                raise ValueError(
                    f"initial weights and velocity must have one shape (n,) with n >= 1, got {shapes}"
                )
        return *parts, *(0 * parts[0] for _ in range(self.dynamics.vectors - len(parts)))

    @property
    def _starts(self) -> tuple[Callable, ...]:
        return (self.initial, *self.dynamics.starts)

    def pull_start(self, hyper, adjoint: tuple):
        """What the initial state contributes to the hypergradient (m,)."""
        pull = self.backend.pullback(lambda h: tuple(f(h) for f in self._starts), hyper)[1]
        return pull([lambda vector=vector: vector for vector in adjoint[: len(self._starts)]])

    def push_start(self, hyper) -> tuple:
        """Tangents of the initial state: for each hyperparameter a tuple like the state."""
        starts, push = self.backend.pushforward(lambda h: tuple(f(h) for f in self._starts), hyper)
        none = [None] * (self.dynamics.vectors - len(starts))
        return tuple(
            tuple(0 * starts[0] if vector is None else vector for vector in (*push(unit), *none))
            for unit in self.basis(hyper)
        )

    def coefficients(self, weights, hyper, t: int) -> tuple:
        """(rate,) or (rate, decay) of step t as the run uses them, each a scalar or of the shape of `weights` (n,)."""
        return self._used(
            self._coefficient(name, weights, hyper, t) for name in self.dynamics.functions
        )

    def _coefficient(self, name: str, weights, hyper, t: int):
        return self._shaped(
            name,
            weights,
            self.backend.array(self.backend.evaluate(self.dynamics.functions[name], hyper, t)),
            t,
        )

    @staticmethod
    def _shaped(name: str, weights, value, t: int):
        if value.shape not in ((), weights.shape):
            raise ValueError(
                f"{name} must be a scalar or have shape {tuple(weights.shape)}, got {tuple(value.shape)} at step {t}"
            )
        return value

    def pull_coefficients(self, hyper, t: int) -> tuple:
        """(coefficients of step t; pull: their cotangents, each a function -> what they contribute to the hypergradient (m,))."""
        values, pull = self.backend.pullback(self._at(t), hyper)
        return self._used(values), pull

    def push_coefficients(self, weights, hyper, t: int) -> tuple:
        """(coefficients of step t; push: tangent of hyper (m,) -> those of the coefficients, a constant's may be None)."""
        values, push = self.backend.pushforward(self._at(t), hyper)
        return self._used(
            self._shaped(name, weights, value, t)
            for name, value in zip(self.dynamics.functions, values, strict=True)
        ), push

    def _at(self, t: int) -> Callable:
        """hyper -> the coefficients of step t as the user's functions give them."""
        functions = self.dynamics.functions.values()
        return lambda hyper: tuple(f(hyper, t) for f in functions)

    def _used(self, values) -> tuple:
        return tuple(
            rounded(name, value)
            for name, value in zip(self.dynamics.functions, values, strict=True)
        )

    def gradient(self, weights, hyper, t: int):
        """dL/dw (n,) of the inner objective at step t."""
        return derived("gradient", self.backend, self.inner, weights, hyper, t)

    def gradient_along(self, weights, hyper, t: int) -> tuple:
        """(dL/dw (n,) at step t; along: tangents of weights (n,) and hyper (m,) -> tangent of the gradient (n,))."""
        return derived("gradient_along", self.backend, self.inner, weights, hyper, t)

    def second_order(self, weights, hyper, t: int | None) -> SecondOrder:
        """dL/dw (n,) and the product q -> (d2L/dw2 q, d2L/dhyper dw q) of the inner objective at step t."""
        return derived("second_order", self.backend, self.inner, weights, hyper, t)

    def joint(self, weights, hyper, t: int, q) -> tuple:
        """(dL/dw (n,), d2L/dw2 q, d2L/dhyper dw q) of the inner objective at step t, in one go."""
        if joint := own(self.backend, self.inner, "joint"):
            return joint(self.backend, weights, hyper, t, q)
        gradient, product = self.second_order(weights, hyper, t)
        return gradient, *product(q)

    def joint_gradient(self, weights, hyper, t: int):
        """The gradient (n,) that `joint` finds."""
        if own(self.backend, self.inner, "joint"):
            return self.joint(weights, hyper, t, 0 * weights)[0]
        return self.second_order(weights, hyper, t).gradient

    @quiet
    def step(self, state: tuple, hyper, t: int, gradient=None) -> tuple:
        """The state after step t; `gradient` (n,) if it is known."""
        gradient = self.gradient(state[0], hyper, t) if gradient is None else gradient
        return self.dynamics.step(state, gradient, self.coefficients(state[0], hyper, t))

    def judge(self, weights, hyper) -> tuple:
        """(value, d outer/d weights (n,), d outer/d hyper (m,)) of the outer objective."""
        return self.backend.gradients(self.outer, weights, hyper)

    def check(self, hyper, state: tuple, steps: range | None = None) -> list[float]:
        """The least decay of each of `steps`: all decays are looked at before the run starts, in one transfer."""
        steps = range(self.steps) if steps is None else steps
        if not len(steps) or "decay" not in self.dynamics.functions:
            return []
        decays = (self._coefficient("decay", state[0], hyper, t) for t in steps)
        ends = [
            end(decay) if decay.ndim else decay
            for decay in decays
            for end in (self.backend.xp.amin, self.backend.xp.amax)
        ]
        extremes = self.backend.numpy(self.backend.xp.stack(ends)).reshape(-1, 2)
        for t, pair in zip(steps, extremes, strict=True):
            for value in pair:
                if not 1 / DENOMINATOR <= value <= 1:
                    raise ValueError(
                        f"decay must lie in [2**-16, 1], got {value:.6g} at step {t}; use GradientDescent for none"
                    )
        return [float(least) for least, _ in extremes]


class Watch:
    """Looks at one number of every step, `patience` steps at a time, and raises `Diverged` naming the first step above `limit`."""

    def __init__(self, backend: Backend, limit: float = float("inf")):
        self.backend, self.limit, self.seen = backend, limit, []

    def __call__(self, t: int, number) -> None:
        self.seen.append((t, number))
        if len(self.seen) >= self.backend.patience:
            self.look()

    @quiet
    def weights(self, t: int, weights) -> None:
        """Look at the weights (n,) after step t."""
        self(t, weights @ weights)

    def look(self) -> None:
        seen, self.seen = self.seen, []
        for t, number in zip(
            [t for t, _ in seen], self.backend.numbers([number for _, number in seen]), strict=True
        ):
            if not number < self.limit:
                raise Diverged(self._message(t, number))

    def _message(self, t: int, number: float) -> str:
        where = f"at step {t}" if t >= 0 else "before step 0"
        if number < float("inf"):
            return (
                f"a weight or velocity reached {number:.4g} {where}; fixed point holds magnitudes below"
                f" {self.limit:.0f}: scale the problem, or remember the run as `stored`"
            )
        return f"training diverged {where}: a weight or velocity is not finite; lower the rate"
