"""A bilevel problem: minimize outer_loss(weights after training, hyper)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

    gradient: dL/dw (n,); linearize: that and its second-order products; pushforward: (dL/dw (n,),
    push: tangents of weights and hyper -> that of dL/dw). May have `one_routine = True`: gradient
    and linearize then give the same bits.
    """

    def gradient(self, weights, t): ...
    def linearize(self, weights, t) -> Linearized: ...
    def pushforward(self, weights, t) -> tuple: ...


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
    objective(backend, hyper) -> Objective, such as fast.CrossEntropy. outer_loss: (weights (n,),
    hyper (m,)) -> scalar. initial: (n,), or hyper (m,) -> (n,). steps: T.

    Functions use `backend.xp` and must give the same bits each time: what is random needs a seed
    made from t. A gradient that is not that of the loss (hooks, detached parts) is not noticed.
    """

    backend: Backend
    inner_loss: Callable
    outer_loss: Callable
    optimizer: Optimizer
    initial: Callable
    steps: int

    def __post_init__(self):
        for name in ("inner_loss", "outer_loss"):
            if not callable(loss := getattr(self, name)) or isinstance(loss, type):
                raise TypeError(f"{name} must be a function, got {type(loss).__name__}")
        if isinstance(self.backend, type) or not hasattr(self.backend, "linearize"):
            raise TypeError(f"backend must be hg.Torch() or hg.Autograd(), got {self.backend!r}")
        require_instance("optimizer", self.optimizer, Optimizer, "hg.Momentum(0.1, 0.9)")
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise ValueError(f"steps must be a whole number >= 0, got {self.steps!r}")

    def objective(self, hyper) -> Objective:
        """Return the inner loss and its derivatives at `hyper`."""
        if hasattr(self.inner_loss, "objective"):
            return self.inner_loss.objective(self.backend, hyper)
        return Differentiated(self.backend, self.inner_loss, hyper)

    def as_hyper(self, hyper):
        """Return `hyper` as a vector (m,) of the backend; raise unless it is flat and finite."""
        flat = "hyper must be a flat vector (m,), got {}; use Layout.join"
        if isinstance(hyper, dict):
            raise TypeError(flat.format("dict"))
        hyper = self.backend.array(hyper)
        if hyper.ndim != 1:
            raise ValueError(flat.format(f"shape {tuple(hyper.shape)}"))
        if not bool(self.backend.xp.isfinite(hyper).all()):
            raise Diverged("hyper holds a value that is not finite")
        self._require_connected(hyper)
        return hyper

    @quiet
    def _require_connected(self, hyper) -> None:
        """Raise ValueError if a function of hyper changes with it but passes no derivative on."""
        given = vars(self.optimizer).items() if self.steps else ()
        functions = {name: lambda h, f=f: f(h, 0) for name, f in given if callable(f)}
        moved, backend = hyper + 1e-3 * (1 + abs(hyper)), self.backend
        for name, f in (functions | self._initials).items():
            (value,), pull = backend.vjp(lambda h, f=f: (f(h),), hyper)
            change = backend.array(backend.evaluate(f, moved)) - value
            if bool((change != 0).any()) and not bool((pull((change,))[0] != 0).any()):
                raise ValueError(
                    f"{name} changes with hyper but its derivative is cut off: float(), .item(),"
                    " .detach() or a NumPy function lost the graph; compute it with backend.xp"
                )

    @property
    def _initials(self) -> dict[str, Callable]:
        """The functions of hyper that give the weights and, if it is given, the velocity."""
        given = {"initial": self.initial}
        if getattr(self.optimizer, "velocity", None) is not None:
            given["velocity"] = self.optimizer.velocity
        return {k: x if callable(x) else lambda hyper, x=x: x for k, x in given.items()}

    def _given(self, hyper) -> tuple:
        return tuple(f(hyper) for f in self._initials.values())

    def _with_zero_slots(self, given) -> tuple:
        missing = 1 + len(self.optimizer.slots) - len(given)
        return *given, *(0 * given[0] for _ in range(missing))

    @quiet
    def initial_state(self, hyper) -> tuple:
        """Return (weights, *slots) before the first step, each (n,)."""
        given = tuple(map(self.backend.array, self.backend.evaluate(self._given, hyper)))
        shapes = [tuple(x.shape) for x in given]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
            raise ValueError(f"initial, velocity must have one shape (n,), n >= 1, got {shapes}")
        return self._with_zero_slots(given)

    def vjp_initial(self, hyper, adjoint: tuple):
        """Return what the initial state adds to the hypergradient (m,)."""
        given, pull = self.backend.vjp(self._given, hyper)
        return pull(adjoint[: len(given)])[0]

    def jvp_initial(self, hyper) -> tuple:
        """Return the tangents of the initial state: a state for each hyperparameter."""
        push = self.backend.jvp(self._given, hyper)[1]
        return tuple(self._with_zero_slots(push(unit)) for unit in self.basis(hyper))

    def basis(self, hyper):
        """Return the unit vectors of hyper as rows (m, m)."""
        return self.backend.xp.diag(0 * hyper + 1)

    def split_state(self, state, size: int | None = None) -> tuple:
        """Return the vectors, of `size` numbers, of a flat state such as Hypergradient.state."""
        if isinstance(state, tuple):
            return tuple(map(self.backend.array, state))
        count = 1 + len(self.optimizer.slots)
        size = len(state) // count if size is None else size
        if len(state) != size * count:
            raise ValueError(f"a flat state has {count} * {size} numbers, got {len(state)}")
        return tuple(pieces(self.backend.array(state), [size] * count))

    def coefficients(self, weights, hyper, t: int) -> SimpleNamespace:
        """Return the coefficients of step t with their graph, scalars or like `weights` (n,).

        Decays are rounded to multiples of 2**-16 and differentiated as if they were not.
        """
        c = self.optimizer.coefficients(self.backend, hyper, t)
        for name, value in vars(c).items():
            if name != "t":
                _require_shape(name, value, weights, t)
            if name in self.optimizer.decays:
                plain = self.backend.array(value)
                setattr(c, name, value + (round_decay(plain) - plain))
        return c

    @quiet
    def step(self, state: tuple, gradient, hyper, t: int) -> tuple:
        """Return the state after step t, given the gradient (n,) before it."""
        return self.backend.evaluate(self._step_at(t), hyper, gradient, *state)

    def vjp_step(self, before: tuple, linearized: Linearized, hyper, t: int, adjoint: tuple):
        """Return (adjoint of the state before step t, its part of the hypergradient (m,)).

        linearized: the inner loss at that state; adjoint: that of the state after the step.
        """
        _, pull = self.backend.vjp(self._step_at(t), hyper, linearized.gradient, *before)
        part, direction, weights_adjoint, *slots_adjoint = pull(adjoint)
        curvature, mixed = linearized.product(direction)
        return (weights_adjoint + curvature, *slots_adjoint), part + mixed

    def jvp_step(self, before: tuple, gradient, hyper, t: int) -> tuple:
        """Return (state after step t, push: tangents of hyper, gradient and state -> its own)."""
        return self.backend.jvp(self._step_at(t), hyper, gradient, *before)

    def _step_at(self, t: int) -> Callable:
        return lambda h, g, *state: self.optimizer.step(state, g, self.coefficients(g, h, t))

    def outer_gradients(self, weights, hyper) -> tuple:
        """Return (value, d outer/d weights (n,), d outer/d hyper (m,)) of the outer loss."""
        return self.backend.gradients(self.outer_loss, weights, hyper)

    def smallest_decays(self, hyper, state: tuple, steps: range | None = None) -> list[dict]:
        """Return the smallest value of each decay, and of shrink, in each of `steps`.

        Raises ValueError for a coefficient of the wrong shape or a decay out of its range, naming
        the step. Looks at the device once. steps: all by default.
        """
        optimizer, xp = self.optimizer, self.backend.xp
        steps = range(self.steps) if steps is None else steps
        names = (*optimizer.decays, *optimizer.shrinking)
        constant = not any(callable(getattr(optimizer, name)) for name in names)
        found = {t: self._decays_at(hyper, t, names) for t in (steps[:1] if constant else steps)}
        decays = [(t, *decay) for t, row in found.items() for decay in row.items()]
        for t, name, value in decays:
            _require_shape(name, value, state[0], t)
        ends = [end(value) for _, _, value in decays for end in (xp.amin, xp.amax)]
        ends = self.backend.floats(ends)
        for (t, name, _), low, high in zip(decays, ends[::2], ends[1::2], strict=True):
            largest = optimizer.largest_decay if name in optimizer.decays else 1.0
            for end in (low, high):
                require_decay(name, end, largest, f" at step {t}")
            found[t][name] = low
        return list(found.values()) * (len(steps) if constant else 1)

    def _decays_at(self, hyper, t: int, names: tuple[str, ...]) -> dict:
        c = self.backend.evaluate(self.optimizer.coefficients, self.backend, hyper, t, names)
        decays = {name: getattr(c, name) for name in self.optimizer.decays}
        return decays | ({SHRINK: self.optimizer.shrink(c)} if self.optimizer.shrinking else {})


def _require_shape(name: str, value, weights, t: int) -> None:
    if tuple(value.shape) not in ((), shape := tuple(weights.shape)):
        rule = f"must be a scalar or have shape {shape}"
        raise ValueError(f"{name} {rule}, got {tuple(value.shape)} at step {t}")


class DivergenceMonitor:
    """Looks at one number a step and raises Diverged naming the first that reaches `limit`.

    It looks every `backend.sync_every` steps and at `flush`. what: the message if it is finite.
    """

    def __init__(self, backend: Backend, limit: float = float("inf"), what: str = ""):
        self.backend, self.limit, self.what, self.seen = backend, limit, what, []

    def __call__(self, t: int, number) -> None:
        self.seen.append((t, number))
        if len(self.seen) >= self.backend.sync_every:
            self.flush()

    def flush(self) -> None:
        """Look at all numbers not looked at yet."""
        seen, self.seen = self.seen, []
        numbers = self.backend.floats([number for _, number in seen])
        for (t, _), number in zip(seen, numbers, strict=True):
            if not number < self.limit:
                where = f"at step {t}" if t >= 0 else "before step 0"
                what = self.what if number < float("inf") else _NOT_FINITE
                raise Diverged(what.format(number=number, where=where, limit=self.limit))


_NOT_FINITE = "training diverged {where}: a weight or slot is not finite; lower the rate"
