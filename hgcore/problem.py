"""A bilevel problem: minimize outer_loss(weights after training, hyper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from hgcore.arrays import fast_module, pieces, require_arguments, require_count, require_instance
from hgcore.backend import Backend, Linearized
from hgcore.fixed_point import require_decay, round_decay
from hgcore.optimizers import Optimizer

SHRINK = "1 - rate * weight_decay"  # what messages call the factor of decoupled weight decay
quiet = np.errstate(over="ignore", invalid="ignore")  # what is not finite is reported as Diverged


class Diverged(ArithmeticError):
    """A number stopped being finite, or left the range of the fixed-point representation."""


class OutOfRange(Diverged):
    """A number is finite and has left that range."""


@dataclass(frozen=True)
class Objective:
    """An inner loss at one hyper, with its derivatives. t: a step, None for all examples.

    This one leaves them to the backend. one_routine: gradient and linearize give the same bits.
    """

    backend: Backend
    loss: Callable
    hyper: object
    one_routine: ClassVar[bool] = False

    def gradient(self, weights, t):
        """Return dL/dw (n,)."""
        return self.backend.gradient(self._at(t), weights, self.hyper)

    def linearize(self, weights, t) -> Linearized:
        """Return dL/dw and its products with second derivatives."""
        return self.backend.linearize(self._at(t), weights, self.hyper)

    def pushforward(self, weights, t) -> tuple:
        """Return (dL/dw (n,), push: tangents of weights and hyper -> that of dL/dw)."""
        return self.backend.pushforward(self._at(t), weights, self.hyper)

    def _at(self, t) -> Callable:
        return lambda weights, hyper: self.loss(weights, hyper, t)


def objective_of(loss: Callable, backend: Backend, hyper) -> Objective:
    """Return an inner loss and its derivatives at `hyper`."""
    if hasattr(loss, "objective"):
        return loss.objective(backend, hyper)
    return Objective(backend, loss, hyper)


@dataclass(frozen=True)
class Problem:
    """What is trained, how, and what is asked of the result: n weights, m hyperparameters.

    inner_loss: (weights (n,), hyper (m,), t) -> scalar; t = 0..T-1 names the minibatch of a step,
    t = None the full training set (Implicit asks for it). May be an object with the method
    objective(backend, hyper) -> Objective, such as fast.CrossEntropy. outer_loss: (weights (n,),
    hyper (m,)) -> scalar. initial: (n,), or hyper (m,) -> (n,). steps: T.

    Functions use `backend.xp` and must give the same bits each time: what is random needs a seed
    made from t. `hg.check` tells whether their derivatives are right.
    """

    backend: Backend
    inner_loss: Callable
    outer_loss: Callable
    optimizer: Optimizer
    initial: Callable | Sequence[float]
    steps: int

    def __post_init__(self):
        require_arguments("inner_loss", self.inner_loss, "weights", "hyper", "t")
        require_arguments("outer_loss", self.outer_loss, "weights", "hyper")
        require_instance("backend", self.backend, "linearize", "hg.Torch()")
        require_instance("optimizer", self.optimizer, Optimizer, "hg.Momentum(0.1, 0.9)")
        several = isinstance(self.initial, (list, tuple)) and any(map(np.ndim, self.initial))
        module = hasattr(self.initial, "parameters")
        if self.initial is None or several or module:
            found = "a module" if module else "several arrays" if several else "None"
            what = f"initial must be a vector (n,) or a function of hyper, got {found}"
            raise TypeError(f"{what}; hg.nets.functional gives the weights of a module")
        for name, function in self._initials.items():
            require_arguments(name, function, "hyper")
        require_count("steps", self.steps)

    def objective(self, hyper) -> Objective:
        """Return the inner loss and its derivatives at `hyper`."""
        return objective_of(self.inner_loss, self.backend, hyper)

    def as_hyper(self, hyper):
        """Return `hyper` as a vector (m,) of the backend; raise unless it is flat and finite."""
        flat = "hyper must be a flat vector (m,), got {}; use Layout.join, or [x] for one number"
        several = isinstance(hyper, (list, tuple)) and any(map(np.ndim, hyper))
        if hyper is None or several or callable(hyper) or isinstance(hyper, (dict, str)):
            raise TypeError(flat.format(type(hyper).__name__))
        hyper = self.backend.constant(hyper)
        if hyper.ndim != 1:
            raise ValueError(flat.format(f"shape {tuple(hyper.shape)}"))
        if not bool(self.backend.xp.isfinite(hyper).all()):
            raise Diverged("hyper holds a value that is not finite")
        return hyper

    def functions_of_hyper(self) -> dict[str, Callable]:
        """Return the coefficients of step 0 and the initial vectors that are functions of hyper."""
        given = vars(self.optimizer).items() if self.steps else ()
        functions = {name: lambda h, f=f: f(h, 0) for name, f in given if callable(f)}
        functions |= self._initials
        traced = self.backend.traced
        return {name: lambda h, f=f: traced(f(h)) for name, f in functions.items()}

    @property
    def _initials(self) -> dict[str, Callable]:
        """The functions of hyper that give the weights and, if it is given, the velocity."""
        given = {"initial": self.initial}
        if (velocity := getattr(self.optimizer, "velocity", None)) is not None:
            given["velocity"] = velocity
        return {k: x if callable(x) else lambda hyper, x=x: x for k, x in given.items()}

    def _initial(self, hyper) -> tuple:
        given = [self.backend.traced(f(hyper)) for f in self._initials.values()]
        shapes = [tuple(x.shape) for x in given]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
            raise ValueError(f"initial, velocity must have one shape (n,), n >= 1, got {shapes}")
        zeros = self.backend.xp.zeros_like(given[0])
        return *given, *[zeros] * (1 + len(self.optimizer.slots) - len(given))

    @quiet
    def initial_state(self, hyper) -> tuple:
        """Return (weights, *slots) before the first step, each (n,)."""
        return tuple(map(self.backend.array, self.backend.evaluate(self._initial, hyper)))

    def vjp_initial(self, hyper, adjoint: tuple):
        """Return what the initial state adds to the hypergradient (m,)."""
        return self.backend.vjp(self._initial, hyper)[1](adjoint)[0]

    def jvp_initial(self, hyper) -> tuple:
        """Return the tangents of the initial state: a state for each hyperparameter."""
        push = self.backend.jvp(self._initial, hyper)[1]
        return tuple(push(unit) for unit in self.basis(hyper))

    def basis(self, hyper):
        """Return the unit vectors of hyper as rows (m, m)."""
        return self.backend.xp.diag(0 * hyper + 1)

    def split_state(self, state, size: int | None = None) -> tuple:
        """Return the vectors, of `size` numbers, of a flat state such as Hypergradient.state."""
        count = 1 + len(self.optimizer.slots)
        if isinstance(state, tuple):
            if len(state) != count:
                kind = type(self.optimizer).__name__
                raise ValueError(f"a state of {kind} has {count} vectors, got {len(state)}")
            return tuple(map(self.backend.array, state))
        size = len(state) // count if size is None else size
        if len(state) != size * count:
            what = f"a flat state has {count} vectors of {size} numbers here, weights first"
            raise ValueError(f"{what}, got {len(state)} numbers")
        return tuple(pieces(self.backend.array(state), [size] * count))

    def coefficients(self, weights, hyper, t: int) -> SimpleNamespace:
        """Return the coefficients of step t with their graph, scalars or like `weights` (n,).

        Decays are rounded to multiples of 2**-16 and differentiated as if they were not.
        """
        c = self.optimizer.coefficients(self.backend, weights, hyper, t)
        for name in self.optimizer.decays:
            value = getattr(c, name)
            plain = self.backend.array(value)
            plain = plain if plain.ndim else self.backend.host_view(plain)
            rounded, varies = round_decay(plain), callable(getattr(self.optimizer, name))
            setattr(c, name, value + (rounded - plain) if varies else self.backend.array(rounded))
        return c

    @quiet
    def step(self, state: tuple, gradient, hyper, t: int) -> tuple:
        """Return the state after step t, given the gradient (n,) before it."""
        return self.backend.evaluate(self._step_at(t), hyper, gradient, *state)

    def vjp_step(self, before: tuple, linearized: Linearized, hyper, t: int, adjoint: tuple):
        """Return (adjoint of the state before step t, its part of the hypergradient (m,)).

        linearized: the inner loss at that state; adjoint: that of the state after the step.
        """
        fast, gradient = fast_module("steps"), linearized.gradient
        if fast and fast.fits(self.optimizer, self.backend):
            pulled = fast.pull_step(self, before, gradient, hyper, t, adjoint)
        else:
            pulled = self.backend.vjp(self._step_at(t), hyper, gradient, *before)[1](adjoint)
        part, direction, weights_adjoint, *slots_adjoint = pulled
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

    def smallest_decays(self, hyper, state: tuple, steps: range) -> list[dict]:
        """Return, for each of `steps`, the smallest values of decays and of shrink.

        Those of a clip and an epsilon that are functions stand beside them. Raises ValueError,
        naming the step, for one out of its range. Reads from the device once.
        """
        optimizer, backend, xp, rows = self.optimizer, self.backend, self.backend.xp, []
        limits = [x for x in ("clip", "epsilon") if callable(getattr(optimizer, x, None))]
        names = (*optimizer.decays, *optimizer.shrinking, *limits)
        changing = any(callable(getattr(optimizer, name)) for name in names)
        for t in steps if changing else steps[:1]:
            c = backend.evaluate(optimizer.coefficients, backend, state[0], hyper, t, names)
            rows.append({name: getattr(c, name) for name in (*optimizer.decays, *limits)})
            if optimizer.shrinking:
                rows[-1][SHRINK] = optimizer.shrink(c)
        values = [x for row in rows for x in row.values()]
        ends = iter(backend.floats([end(x) for x in values for end in (xp.amin, xp.amax)]))
        for t, row in zip(steps, rows, strict=False):
            for name in row:
                row[name], high, where = next(ends), next(ends), f" at step {t}"
                if name in limits:
                    optimizer.require_limit(name, row[name], where)
                    continue
                largest = 1.0 if name == SHRINK else optimizer.largest_decay
                for bound in (row[name], high):
                    require_decay(name, bound, largest, where)
        return rows if changing else rows * len(steps)


class DivergenceMonitor:
    """Raises Diverged for the first number, one a step, that reaches `limit`, naming the step.

    Looks every `backend.sync_every` steps and at `flush`. what: the message if it is finite.
    """

    def __init__(self, backend: Backend, limit: float = float("inf"), what: str = ""):
        self.backend, self.limit, self.what, self.seen = backend, limit, what, []

    def __call__(self, t: int, number) -> None:
        self.seen.append((t, number))
        if len(self.seen) >= self.backend.sync_every:
            self.flush()

    def flush(self) -> None:
        """Look at all numbers not looked at yet."""
        numbers = self.backend.floats([number for _, number in self.seen])
        for (t, _), number in zip(self.seen, numbers, strict=True):
            if not number < self.limit:
                where = f"at step {t}" if t >= 0 else "before step 0"
                if number < float("inf"):
                    raise OutOfRange(self.what.format(number=number, where=where, limit=self.limit))
                raise Diverged(
                    f"training diverged {where}: a weight or slot is not finite; lower the rate, or"
                    " look for what is not finite in the loss there"
                )
        self.seen.clear()
