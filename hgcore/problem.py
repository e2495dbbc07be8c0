"""A bilevel problem: minimize outer_loss(weights after training, hyper)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from types import SimpleNamespace
from typing import Protocol

import numpy as np

from hgcore.arrays import pieces, require_instance
from hgcore.backend import Backend, Linearized
from hgcore.fixed_point import require_decay, round_decay
from hgcore.optimizers import Optimizer

SHRINK = "1 - rate * weight_decay"  # what messages call the factor of decoupled weight decay
quiet = np.errstate(over="ignore", invalid="ignore")  # what is not finite is reported as Diverged


class Diverged(ArithmeticError):
    """A number stopped being finite, or left the range of the fixed-point representation."""


class Objective(Protocol):
    """An inner loss at one hyper, with its derivatives. t: a step, None for all examples.

    May have `one_routine = True`: the gradients of the first two verbs then have the same bits.
    """

    def gradient(self, weights, t):
        """Return dL/dw (n,)."""

    def linearize(self, weights, t) -> Linearized:
        """Return dL/dw (n,) and its second-order products."""

    def pushforward(self, weights, t) -> tuple:
        """Return (dL/dw (n,), push: tangents of weights and hyper -> tangent of dL/dw)."""


@dataclass(frozen=True)
class Differentiated:
    """The Objective of a plain function: its derivatives are left to the backend."""

    backend: Backend
    loss: Callable
    hyper: object

    def gradient(self, weights, t):
        return self.backend.gradient(self._at(t), weights, self.hyper)

    def linearize(self, weights, t) -> Linearized:
        return self.backend.linearize(self._at(t), weights, self.hyper)

    def pushforward(self, weights, t) -> tuple:
        return self.backend.pushforward(self._at(t), weights, self.hyper)

    def _at(self, t) -> Callable:
        return lambda weights, hyper: self.loss(weights, hyper, t)


@dataclass(frozen=True)
class Problem:
    """What is trained, how, and what is asked of the result: n weights, m hyperparameters.

    inner_loss: (weights (n,), hyper (m,), t) -> scalar; t = 0..T-1 names the minibatch of a step,
    t = None the full training set (Implicit asks for it). May be an object with the method
    objective(backend, hyper) -> Objective, such as fast.CrossEntropy.
    outer_loss: (weights (n,), hyper (m,)) -> scalar. optimizer: see optimizers.py.
    initial: (n,), or hyper (m,) -> (n,). steps: T.

    Functions use `backend.xp` and must give the same bits each time: what is random needs a seed
    made from t. A gradient that is not that of the loss (hooks, detached parts) is not noticed.
    """

    backend: Backend
    inner_loss: Callable
    outer_loss: Callable
    optimizer: Optimizer
    initial: Callable
    steps: int
    _objective: Callable = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in ("inner_loss", "outer_loss"):
            if not callable(getattr(self, name)) or isinstance(getattr(self, name), type):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be a function, got {kind}")
        if isinstance(self.backend, type) or not hasattr(self.backend, "linearize"):
            raise TypeError(f"backend must be hg.Torch() or hg.Autograd(), got {self.backend!r}")
        require_instance("optimizer", self.optimizer, Optimizer, "hg.Momentum(0.1, 0.9)")
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise ValueError(f"steps must be a whole number >= 0, got {self.steps!r}")
        object.__setattr__(self, "_objective", getattr(self.inner_loss, "objective", None))

    def objective(self, hyper) -> Objective:
        """Return the inner loss and its derivatives at `hyper`."""
        if self._objective is None:
            return Differentiated(self.backend, self.inner_loss, hyper)
        return self._objective(self.backend, hyper)

    def as_hyper(self, hyper):
        """Return `hyper` as a vector (m,) of the backend; raise unless it is flat and finite."""
        if isinstance(hyper, dict):
            raise TypeError("hyper must be a flat vector (m,), got dict; use Layout.join")
        hyper = self.backend.array(hyper)
        if hyper.ndim != 1:
            shape = tuple(hyper.shape)
            raise ValueError(
                f"hyper must be a flat vector (m,), got shape {shape}; use Layout.join"
            )
        if not bool(self.backend.xp.isfinite(hyper).all()):
            raise Diverged("hyper holds a value that is not finite")
        self._require_connected(hyper)
        return hyper

    @quiet
    def _require_connected(self, hyper) -> None:
        """Raise ValueError if a function of hyper changes with it but passes no derivative on."""
        functions = dict(zip(("initial", "velocity"), self._initials, strict=False))
        if self.steps:
            given = {k: f for k, f in vars(self.optimizer).items() if k not in functions}
            functions |= {k: lambda h, f=f: f(h, 0) for k, f in given.items() if callable(f)}
        moved, backend = hyper + 1e-3 * (1 + abs(hyper)), self.backend
        for name, f in functions.items():
            (value,), pull = backend.vjp(lambda h, f=f: (f(h),), hyper)
            change = backend.array(backend.evaluate(f, moved)) - value
            if bool((change != 0).any()) and not bool((pull((change,))[0] != 0).any()):
                raise ValueError(
                    f"{name} changes with hyper but its derivative is cut off: float(), .item(),"
                    " .detach() or a NumPy function lost the graph; compute it with backend.xp"
                )

    # ---- the initial state

    @property
    def _initials(self) -> tuple[Callable, ...]:
        """The functions of hyper that give weights and, if they are given, first slots."""
        velocity = getattr(self.optimizer, "velocity", None)
        return (self._constant_or_function(self.initial),) + (
            () if velocity is None else (self._constant_or_function(velocity),)
        )

    def _constant_or_function(self, value) -> Callable:
        return value if callable(value) else lambda hyper: value

    @quiet
    def initial_state(self, hyper) -> tuple:
        """Return (weights, *slots) before the first step, each (n,)."""
        backend = self.backend
        given = [backend.array(backend.evaluate(f, hyper)) for f in self._initials]
        if any(x.ndim != 1 or x.shape != given[0].shape or not len(x) for x in given):
            shapes = [tuple(x.shape) for x in given]
            raise ValueError(
                f"initial weights and velocity must have one shape (n,) with n >= 1, got {shapes}"
            )
        return self._with_zero_slots(given)

    def _with_zero_slots(self, vectors) -> tuple:
        missing = 1 + len(self.optimizer.slots) - len(vectors)
        return *vectors, *(0 * vectors[0] for _ in range(missing))

    def vjp_initial(self, hyper, adjoint: tuple):
        """Return what the initial state adds to the hypergradient (m,)."""
        initials = self._initials
        pull = self.backend.vjp(lambda h: tuple(f(h) for f in initials), hyper)[1]
        return pull(adjoint[: len(initials)])[0]

    def jvp_initial(self, hyper) -> tuple:
        """Return the tangents of the initial state: a state for each hyperparameter."""
        initials = self._initials
        push = self.backend.jvp(lambda h: tuple(f(h) for f in initials), hyper)[1]
        return tuple(self._with_zero_slots(push(unit)) for unit in self.basis(hyper))

    def basis(self, hyper):
        """Return the unit vectors of hyper as rows (m, m)."""
        return self.backend.xp.diag(0 * hyper + 1)

    def split_state(self, state, size: int | None = None) -> tuple:
        """Return a flat state (as in Hypergradient.state) as its vectors of `size` numbers."""
        if isinstance(state, tuple):
            return state
        count = 1 + len(self.optimizer.slots)
        size = len(state) // count if size is None else size
        if len(state) != size * count:
            raise ValueError(
                f"a flat state holds {count} vectors of {size} numbers here, weights first,"
                f" got {len(state)} numbers"
            )
        return tuple(pieces(self.backend.array(state), [size] * count))

    # ---- one step of training

    def coefficients(self, weights, hyper, t: int) -> SimpleNamespace:
        """Return the coefficients of step t with their graph, scalars or like `weights` (n,).

        Decays are rounded to multiples of 2**-16 and differentiated as if they were not.
        """
        c = self.optimizer.coefficients(self.backend, hyper, t)
        for name, value in vars(c).items():
            if name != "t":
                _require_shape(name, value, weights, t)
        for name in self.optimizer.decays:
            value = getattr(c, name)
            plain = self.backend.constant(value)
            rounded = round_decay(plain)
            varies = callable(getattr(self.optimizer, name))
            setattr(c, name, value + (rounded - plain) if varies else rounded)
        return c

    @quiet
    def step(self, state: tuple, gradient, hyper, t: int) -> tuple:
        """Return the state after step t, given the gradient (n,) before it."""

        return self.backend.evaluate(self._step_at(t), hyper, gradient, *state)

    def vjp_step(self, before: tuple, linearized: Linearized, hyper, t: int, adjoint: tuple):
        """Return (adjoint before step t, its part of the hypergradient (m,)).

        before: the state before the step; linearized: the inner loss there; adjoint: that of the
        state after the step.
        """
        _, pull = self.backend.vjp(self._step_at(t), hyper, linearized.gradient, *before)
        part, direction, weights_adjoint, *slots_adjoint = pull(adjoint)
        curvature, mixed = linearized.product(direction)
        return (weights_adjoint + curvature, *slots_adjoint), part + mixed

    def jvp_step(self, before: tuple, gradient, hyper, t: int) -> tuple:
        """Return (state after step t, push: tangents of hyper, gradient and state -> its own)."""
        return self.backend.jvp(self._step_at(t), hyper, gradient, *before)

    def _step_at(self, t: int) -> Callable:
        def step(hyper, gradient, *state):
            return self.optimizer.step(state, gradient, self.coefficients(gradient, hyper, t))

        return step

    def outer_gradients(self, weights, hyper) -> tuple:
        """Return (value, d outer/d weights (n,), d outer/d hyper (m,)) of the outer loss."""
        return self.backend.gradients(self.outer_loss, weights, hyper)

    # ---- checks, before a run starts

    def smallest_decays(self, hyper, state: tuple, steps: range | None = None) -> list[dict]:
        """Return the smallest value of each decay, and of shrink, in each of `steps`.

        Raises ValueError for a coefficient of the wrong shape or a decay out of its range, naming
        the step. Looks at the device once. steps: all by default.
        """
        optimizer, xp = self.optimizer, self.backend.xp
        steps = range(self.steps) if steps is None else steps
        names = (*optimizer.decays, *optimizer.shrinking)
        constant = not any(callable(getattr(optimizer, name)) for name in names)
        rows = [self._decays_at(hyper, t, names) for t in (steps[:1] if constant else steps)]
        for t, row in zip(steps, rows, strict=False):
            for name, value in row.items():
                _require_shape(name, value, state[0], t)
        ends = [end(value) for row in rows for value in row.values() for end in (xp.amin, xp.amax)]
        extremes = iter(self.backend.floats(ends))
        found = [self._in_range(row, extremes, t) for t, row in zip(steps, rows, strict=False)]
        return found * len(steps) if constant else found

    def _decays_at(self, hyper, t: int, names: tuple[str, ...]) -> dict:
        optimizer = self.optimizer
        c = self.backend.evaluate(optimizer.coefficients, self.backend, hyper, t, names)
        row = {name: getattr(c, name) for name in optimizer.decays}
        return row | (
            {"1 - rate * weight_decay": optimizer.shrink(c)} if optimizer.shrinking else {}
        )

    def _in_range(self, row: dict, extremes, t: int) -> dict:
        smallest = {}
        for name in row:
            low, high = next(extremes), next(extremes)
            largest = self.optimizer.largest_decay if name in self.optimizer.decays else 1.0
            for value in (low, high):
                require_decay(name, value, largest, f" at step {t}")
            smallest[name] = low
        return smallest


def _require_shape(name: str, value, weights, t: int) -> None:
    """Raise ValueError unless a coefficient is a scalar or like the weights (n,)."""
    if tuple(value.shape) not in ((), tuple(weights.shape)):
        raise ValueError(
            f"{name} must be a scalar or have shape {tuple(weights.shape)},"
            f" got {tuple(value.shape)} at step {t}"
        )


class DivergenceMonitor:
    """Looks at one number a step and raises Diverged naming the first that reaches `limit`.

    It looks every `backend.sync_every` steps, and when `flush` is called.
    """

    def __init__(self, backend: Backend, limit: float = float("inf"), what: str = ""):
        self.backend, self.limit, self.what, self.seen = backend, limit, what, []

    def __call__(self, t: int, number) -> None:
        self.seen.append((t, number))
        if len(self.seen) >= self.backend.sync_every:
            self.flush()

    @quiet
    def weights(self, t: int, weights) -> None:
        """Look at the weights (n,) after step t."""
        self(t, weights @ weights)

    def flush(self) -> None:
        """Look at all numbers not looked at yet."""
        seen, self.seen = self.seen, []
        numbers = self.backend.floats([number for _, number in seen])
        for (t, _), number in zip(seen, numbers, strict=True):
            if not number < self.limit:
                raise Diverged(self._message(t, number))

    def _message(self, t: int, number: float) -> str:
        where = f"at step {t}" if t >= 0 else "before step 0"
        if number < float("inf"):
            return self.what.format(number=number, where=where, limit=self.limit)
        return f"training diverged {where}: a weight or slot is not finite; lower the rate"
