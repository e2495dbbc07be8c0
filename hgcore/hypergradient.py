"""Hypergradients: d outer_loss(weights after training, hyper) / d hyper.  The file to read first.

`Reverse` pulls an adjoint back through the steps of training, `Forward` pushes tangents along with
them, `Implicit` looks at the last weights only and solves one linear system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from hgcore.arrays import require_instance
from hgcore.problem import Diverged, DivergenceMonitor, Problem, quiet
from hgcore.trajectory import Stored, state_nbytes, train


class Hypergradient(NamedTuple):
    """What a solver returns.

    value: the outer loss, a scalar; grad (m,); state: that after training, flat, weights first;
    nbytes: what was kept.
    """

    value: object
    grad: object
    state: object
    nbytes: int


@dataclass(frozen=True)
class Reverse:
    """Reverse mode: exact, about three gradients a step for any number of hyperparameters.

    trajectory: Stored (default), Checkpointed or Reversible; Shortcut and Truncated approximate.
    Raises Diverged if training does, ReversalError if the way back meets another run.
    Implements: Maclaurin et al. 2015, Algorithm 2 (corrected); Franceschi et al. 2017, Reverse-HG.
    """

    trajectory: object = field(default_factory=Stored)

    def __post_init__(self):
        if isinstance(self.trajectory, type) or not hasattr(self.trajectory, "train"):
            raise TypeError(
                f"trajectory must be an object such as hg.Reversible(), got {self.trajectory!r}"
            )

    @quiet
    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        hyper = problem.as_hyper(hyper)
        with problem.backend.fixed_threads() as restore_threads:
            run = self.trajectory.train(problem, hyper)
            final, nbytes = run.final, run.nbytes
            value, adjoint, grad = problem.outer_gradients(final[0], hyper)
            adjoint = (adjoint, *(0 * slot for slot in final[1:]))
            restore_threads()
            for t in reversed(run.steps):
                before, linearized = run.undo(t)
                adjoint, part = problem.vjp_step(before, linearized, hyper, t, adjoint)
                grad = grad + part
            run.close()
        if run.whole:
            grad = grad + problem.vjp_initial(hyper, adjoint)
        return _finite(problem, value, grad, final, nbytes)


@dataclass(frozen=True)
class Forward:
    """Forward mode: exact, no trajectory; time and memory grow with m.

    The m tangents share one gradient a step; each costs a product with the Hessian.
    Implements: Franceschi et al. 2017, Forward-HG.
    """

    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        hyper = problem.as_hyper(hyper)
        state, tangents = problem.initial_state(hyper), problem.jvp_initial(hyper)
        problem.smallest_decays(hyper, state)
        state, tangents = self.advance(problem, hyper, state, tangents, range(problem.steps))
        value, grad = self.outer_jvp(problem, hyper, state, tangents)
        return _finite(problem, value, grad, state, self.nbytes(state, tangents))

    @staticmethod
    def nbytes(state: tuple, tangents: tuple) -> int:
        """Return the bytes kept from step to step."""
        return sum(map(state_nbytes, (state, *tangents)))

    @quiet
    def advance(
        self, problem: Problem, hyper, state: tuple, tangents: tuple, steps: range
    ) -> tuple:
        """Return (state, its tangents, one for each hyperparameter) after `steps`."""
        objective, monitor = problem.objective(hyper), DivergenceMonitor(problem.backend)
        for t in steps:
            gradient, push_gradient = objective.pushforward(state[0], t)
            state, push = problem.jvp_step(state, gradient, hyper, t)
            pairs = zip(problem.basis(hyper), tangents, strict=True)
            pushed = (push(unit, push_gradient(dz[0], unit), *dz) for unit, dz in pairs)
            tangents = tuple(pushed)
            monitor.weights(t, state[0])
        monitor.flush()
        return state, tangents

    @quiet
    def outer_jvp(self, problem: Problem, hyper, state: tuple, tangents: tuple) -> tuple:
        """Return (value, hypergradient (m,)) of the outer loss at this state."""
        value, adjoint, grad = problem.outer_gradients(state[0], hyper)
        through = [tangent[0] @ adjoint for tangent in tangents]
        return value, grad + problem.backend.xp.stack(through) if through else grad


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the last weights: exact only at an optimum and if `solve` is.

    grad = d outer/dhyper - B' A^-1 d outer/dw, where A = d2L/dw2 and B = d2L/dw dhyper belong to
    the inner loss on all examples (t = None). solve: Neumann, ConjugateGradient, Nystrom, Identity
    or DenseSolve. Not for hyperparameters of the optimizer, whose derivative is zero here.
    Implements: Lorraine et al. 2020, Algorithm 2 (corrected: hyper and weights are exchanged).
    """

    solve: Callable

    def __post_init__(self):
        require_instance("solve", self.solve, Callable, "hg.ConjugateGradient()")

    @quiet
    def __call__(self, problem: Problem, hyper, state=None) -> Hypergradient:
        """Return the hypergradient at `state` (flat or a tuple), by default after training."""
        hyper = problem.as_hyper(hyper)
        if state is None:
            state = train(problem, hyper)
        else:
            state = problem.split_state(state, len(problem.initial_state(hyper)[0]))
        value, adjoint, direct = problem.outer_gradients(state[0], hyper)
        linearized = _linearized_on_all(problem, hyper, state[0])
        grad = direct - linearized.mixed(self.solve(linearized.hvp, adjoint))
        return _finite(problem, value, grad, state, state[0].nbytes)


def _linearized_on_all(problem: Problem, hyper, weights):
    try:
        return problem.objective(hyper).linearize(weights, None)
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        raise TypeError(
            "Implicit differentiates inner_loss(weights, hyper, t=None), the loss on all training"
            f" examples; this inner_loss does not take t=None ({type(error).__name__}: {error})"
        ) from error


def _finite(problem: Problem, value, grad, state: tuple, nbytes: int) -> Hypergradient:
    require_finite(problem, value, grad)
    return Hypergradient(value, grad, problem.backend.xp.concatenate(state), nbytes)


def require_finite(problem: Problem, value, grad) -> None:
    """Raise Diverged unless value and hypergradient are finite; looks at the device once."""
    xp = problem.backend.xp
    if not bool(xp.isfinite(grad).all() & xp.isfinite(value)):
        raise Diverged(
            "the outer loss or the hypergradient is not finite although training was; look at the"
            " outer loss at the last weights, shorten the run or lower the rate"
        )
