"""Hypergradients: d outer(weights after training, hyper) / d hyper, by three families of methods.

`Reverse` pulls an adjoint back through the steps (its `remember` decides what memory and error cost), `Forward` pushes
tangents along with them, `Implicit` looks only at the last weights and solves one linear system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hgcore.dynamics import Step
from hgcore.problem import Diverged, Problem, Watch, quiet
from hgcore.trajectory import stored, train


class Hypergradient(NamedTuple):
    """value: outer objective (a scalar); grad: (m,); state: after training, weights first, flat; nbytes: what was kept."""

    value: object
    grad: object
    state: object
    nbytes: int


def _result(problem: Problem, value, grad, state: tuple, nbytes: int) -> Hypergradient:
    require_finite(problem, value, grad)
    return Hypergradient(value, grad, problem.backend.xp.concatenate(state), nbytes)


def require_finite(problem: Problem, value, grad) -> None:
    """Raise `Diverged` unless value and hypergradient are finite, in one look at the device."""
    xp = problem.backend.xp
    if not bool(xp.isfinite(grad).all() & xp.isfinite(value)):
        raise Diverged(
            "the outer objective or the hypergradient is not finite although training was; look at the outer objective at"
            " the last weights, shorten the run or lower the rate"
        )


@dataclass(frozen=True)
class Reverse:
    """Reverse mode: exact, time of some three gradients a step for any number of hyperparameters.

    remember: `stored` (default), `checkpointed`, `reversible`, the approximate `shortcut` and `truncated`, or your own
    `Trajectory`. Franceschi et al. 2017, section 3.1; Maclaurin et al. 2015, Algorithm 2; Fu et al. 2016.
    """

    remember: Callable = stored

    @quiet
    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        hyper = problem.hyper(hyper)
        with problem.backend.pinned() as pin:
            trajectory = self.remember(problem, hyper)
            final, nbytes = trajectory.final, trajectory.nbytes
            value, weights_adjoint, grad = problem.judge(final[0], hyper)
            adjoint = (weights_adjoint, *(0 * vector for vector in final[1:]))
            pin()
            adjoint, grad = _pull_back(problem, hyper, trajectory, adjoint, grad)
            trajectory.close()
        if trajectory.whole:
            grad = grad + problem.pull_start(hyper, adjoint)
        return _result(problem, value, grad, final, nbytes)


def _pull_back(problem: Problem, hyper, trajectory, adjoint: tuple, grad) -> tuple:
    """(adjoint of the first replayed state, hypergradient of the steps added to `grad`)."""
    dynamics, after, graphs = problem.dynamics, trajectory.final, getattr(trajectory, "graphs", {})
    for t in reversed(trajectory.replayed):
        coefficients, pull = problem.pull_coefficients(hyper, t)
        weights = trajectory.weights(t, coefficients)
        adjoint, direction = dynamics.arrive(adjoint, coefficients)
        if t in graphs:
            gradient, product = graphs.pop(t)
            curvature, mixed = product(direction)
        else:
            gradient, curvature, mixed = problem.joint(weights, hyper, t, direction)
        before = trajectory.state(t, gradient)
        adjoint, cotangents = dynamics.pullback(
            adjoint, Step(before, after, gradient, coefficients)
        )
        adjoint = (adjoint[0] + curvature, *adjoint[1:])
        grad = grad + mixed + pull(cotangents)
        after = before
    return adjoint, grad


@dataclass(frozen=True)
class Forward:
    """Forward mode: exact, no trajectory, time and memory grow with m. Franceschi et al. 2017, section 3.2.

    The m tangents share the graph of one gradient a step; each costs a product with the Hessian.
    """

    @quiet
    def __call__(self, problem: Problem, hyper) -> Hypergradient:
        hyper = problem.hyper(hyper)
        state = problem.start(hyper)
        problem.check(hyper, state)
        tangents = problem.push_start(hyper)
        watch = Watch(problem.backend)
        for t in range(problem.steps):
            state, tangents = self.step(problem, hyper, state, tangents, t)
            watch.weights(t, state[0])
        watch.look()
        value, grad = self.along(problem, hyper, state, tangents)
        return _result(problem, value, grad, state, self.nbytes(state, tangents))

    @staticmethod
    def nbytes(state: tuple, tangents: tuple) -> int:
        """What is kept from step to step."""
        return sum(vector.nbytes for vectors in (state, *tangents) for vector in vectors)

    @quiet
    def step(
        self, problem: Problem, hyper, state: tuple, tangents: tuple, t: int
    ) -> tuple[tuple, tuple]:
        """(state, its tangents, one for each hyperparameter) after step t."""
        gradient, along = problem.gradient_along(state[0], hyper, t)
        coefficients, push = problem.push_coefficients(state[0], hyper, t)
        step = Step(
            state, problem.dynamics.step(state, gradient, coefficients), gradient, coefficients
        )
        return step.after, tuple(
            problem.dynamics.pushforward(tangent, step, along(tangent[0], unit), push(unit))
            for tangent, unit in zip(tangents, problem.basis(hyper), strict=True)
        )

    @quiet
    def along(self, problem: Problem, hyper, state: tuple, tangents: tuple) -> tuple:
        """(value, hypergradient (m,)) of the outer objective at this state."""
        value, weights_adjoint, grad = problem.judge(state[0], hyper)
        through = [tangent[0] @ weights_adjoint for tangent in tangents]
        return value, grad + problem.backend.xp.stack(through) if through else grad


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation at the last weights: grad = d outer/dhyper - (B' A^-1) d outer/dw.

    A, B are d2L/dw2 and d2L/dhyper dw of the full inner objective (t = None). Exact only where dL/dw = 0 and `solve` is.
    solve: Neumann, ConjugateGradient, Nystrom, Identity or Dense. Lorraine et al. 2020, Algorithm 2 (corrected).
    """

    solve: Callable

    @quiet
    def __call__(self, problem: Problem, hyper, state: tuple | None = None) -> Hypergradient:
        hyper = problem.hyper(hyper)
        state = (
            train(problem, hyper)
            if state is None
            else problem.parts(state, len(problem.start(hyper)[0]))
        )
        value, weights_adjoint, direct = problem.judge(state[0], hyper)
        _, product = problem.second_order(state[0], hyper, None)
        inverse = self.solve(lambda q: product(q, mixed=False)[0], weights_adjoint)
        grad = direct - product(inverse, curvature=False)[0]
        return _result(problem, value, grad, state, state[0].nbytes)
