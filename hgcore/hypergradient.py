"""Hypergradients: d outer_loss(weights after training, hyper) / d hyper.  The file to read first.

`Reverse` pulls an adjoint back through the steps of training, `Forward` pushes tangents along with
them, `Implicit` uses the last weights only and solves one linear system.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hgcore.arrays import require_instance
from hgcore.backend import Linearized
from hgcore.checks.causes import examined, named, of_optimum, of_run
from hgcore.checks.connected import require_transposes
from hgcore.problem import Diverged, DivergenceMonitor, Problem, quiet
from hgcore.trajectory import Stored, train


class Hypergradient(NamedTuple):
    """What a solver returns."""

    value: object  # the outer loss, a scalar
    grad: object  # (m,)
    state: object  # after training, flat, weights first
    nbytes: int  # what was kept during training


@dataclass(frozen=True)
class Reverse:
    """Reverse mode: exact, about three gradients a step for any number of hyperparameters.

    trajectory: Stored (default), Checkpointed or Reversible; Shortcut and Truncated approximate.
    Raises Diverged if training does, ReversalError if the backward pass does not reproduce it.
    Implements: Maclaurin et al. 2015, Algorithm 2 (corrected); Franceschi et al. 2017, Reverse-HG.
    """

    trajectory: object = field(default_factory=Stored)

    def __post_init__(self):
        require_instance("trajectory", self.trajectory, "train", "hg.Reversible()")

    @examined(of_run)
    @quiet
    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        run = self.trajectory.train(problem, hyper)
        value, adjoint, grad = problem.outer_gradients(run.final[0], hyper)
        adjoint = (adjoint, *(0 * slot for slot in run.final[1:]))
        for t in reversed(run.steps):
            before, linearized = run.undo(t)
            adjoint, part = problem.vjp_step(before, linearized, hyper, t, adjoint)
            grad = grad + part
        run.close()
        if run.whole:
            grad = grad + problem.vjp_initial(hyper, adjoint)
        return _finite(problem, value, grad, run.final, run.nbytes)


@dataclass(frozen=True)
class Forward:
    """Forward mode: exact, no trajectory; time and memory grow with m.

    The m tangents share one gradient a step; each costs a product with the Hessian.
    Implements: Franceschi et al. 2017, Forward-HG.
    """

    @examined(of_run)
    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        carry = problem.initial_state(hyper), problem.jvp_initial(hyper)
        carry = self.advance(problem, hyper, *carry, range(problem.steps))
        return self.hypergradient(problem, hyper, *carry)

    @quiet
    def advance(self, problem: Problem, hyper, state: tuple, tangents, steps: range) -> tuple:
        """Return (state, its tangents, one for each hyperparameter) after `steps`."""
        problem.smallest_decays(hyper, state, steps)
        objective, monitor = problem.objective(hyper), DivergenceMonitor(problem.backend)
        if steps and steps[0] == 0:
            require_transposes(problem, hyper, state)
        for t in steps:
            gradient, push_gradient = objective.pushforward(state[0], t)
            state, push = problem.jvp_step(state, gradient, hyper, t)
            pairs = zip(problem.basis(hyper), tangents, strict=True)
            tangents = tuple(push(unit, push_gradient(dz[0], unit), *dz) for unit, dz in pairs)
            monitor(t, state[0] @ state[0])
        monitor.flush()
        return state, tangents

    @quiet
    def hypergradient(self, problem: Problem, hyper, state: tuple, tangents) -> Hypergradient:
        """Return the hypergradient at this state, which has these tangents."""
        value, adjoint, grad = problem.outer_gradients(state[0], hyper)
        if tangents:
            grad = grad + problem.backend.xp.stack([dz[0] @ adjoint for dz in tangents])
        nbytes = (1 + len(tangents)) * len(state) * state[0].nbytes
        return _finite(problem, value, grad, state, nbytes)


class Conditions(NamedTuple):
    """Both are 0 where `Implicit` is exact.

    slope: |dL/dw|, the length of the inner gradient. residual: |A x - b| / |b| of the linear solve.
    """

    slope: float
    residual: float


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the last weights: exact at an optimum, if `solve` is.

    grad = d outer/dhyper - B' A^-1 d outer/dw, where A = d2L/dw2 and B = d2L/dw dhyper belong to
    the mean of the inner loss over `inner_batches`, by default all examples (t = None). solve:
    Neumann, ConjugateGradient, Nystrom, Identity or DenseSolve. `conditions` measures how exact it
    is. Not for hyperparameters of the optimizer, whose derivative is zero here.
    Implements: Lorraine et al. 2020, Algorithm 2 (corrected: hyper and weights are exchanged).
    """

    solve: Callable
    inner_batches: Sequence[int | None] = (None,)

    def __post_init__(self):
        require_instance("solve", self.solve, Callable, "hg.ConjugateGradient()")
        if not isinstance(self.inner_batches, Sequence) or not self.inner_batches:
            found = f"got {self.inner_batches!r}"
            raise TypeError(f"inner_batches must be values of t such as range(8), {found}")

    @examined(of_optimum)
    @quiet
    def __call__(self, problem: Problem, hyper, state=None) -> Hypergradient:
        """Return the hypergradient at `state` (flat or a tuple), by default after training."""
        state = self._state(problem, hyper, state)
        value, adjoint, direct = problem.outer_gradients(state[0], hyper)
        parts = self._linearize(problem, hyper, state[0])
        solution = self.solve(_product(parts), adjoint)
        grad = direct - _mean([part.mixed(solution) for part in parts])
        return _finite(problem, value, grad, state, state[0].nbytes)

    @quiet
    def conditions(self, problem: Problem, hyper, state=None) -> Conditions:
        """Return how far from true both assumptions are at `state`; solves once more."""
        hyper = problem.as_hyper(hyper)
        with named(lambda: of_optimum(self, problem, hyper, state)):
            state = self._state(problem, hyper, state)
            _, b, _ = problem.outer_gradients(state[0], hyper)
            parts = self._linearize(problem, hyper, state[0])
            apply = _product(parts)
            vectors = _mean([part.gradient for part in parts]), apply(self.solve(apply, b)) - b, b
        # in double precision: squares of small numbers would underflow
        slope, missed, size = (
            np.linalg.norm(np.float64(problem.backend.numpy(x))) for x in vectors
        )
        return Conditions(float(slope), float(missed / (size or 1.0)))

    def _state(self, problem: Problem, hyper, state) -> tuple:
        """Return (weights, *slots) of `state` (flat or a tuple), by default after training."""
        if state is None:
            return train(problem, hyper)
        return problem.split_state(state, len(problem.initial_state(hyper)[0]))

    def _linearize(self, problem: Problem, hyper, weights) -> list[Linearized]:
        """Return the inner loss at each of `inner_batches`, linearized."""
        objective = problem.objective(hyper)
        try:
            return [objective.linearize(weights, t) for t in self.inner_batches]
        except (TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "NoneType" not in str(error):
                raise
            failed = f"t = {', '.join(map(str, self.inner_batches[:3]))}"
            raise TypeError(
                f"Implicit differentiates inner_loss(weights, hyper, t) at {failed}, which raises"
                f" {type(error).__name__}: {error}. None stands for all training examples; use"
                " inner_batches=range(8) for the mean over batches"
            ) from error


def _product(parts: list[Linearized]) -> Callable:
    return lambda q: _mean([part.hvp(q) for part in parts])


def _mean(vectors: list):
    return vectors[0] if len(vectors) == 1 else sum(vectors) / len(vectors)


def _finite(problem: Problem, value, grad, state: tuple, nbytes: int) -> Hypergradient:
    """Return the Hypergradient, or raise Diverged; looks at the device once."""
    xp = problem.backend.xp
    if not bool(xp.isfinite(grad).all() & xp.isfinite(value)):
        what = "the outer loss or the hypergradient is not finite although training was"
        raise Diverged(f"{what}; check the outer loss, shorten the run or lower the rate")
    return Hypergradient(value, grad, xp.concatenate(state), nbytes)
