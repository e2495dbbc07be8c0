"""Outer loops: each yields one OuterStep an outer step and can be resumed from any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from types import SimpleNamespace
from typing import NamedTuple

from hgcore.arrays import require_arguments, require_count, require_instance
from hgcore.checks.causes import examined_steps
from hgcore.checks.connected import require_connected
from hgcore.fixed_point import ReversalError
from hgcore.hypergradient import Forward, Implicit, Reverse
from hgcore.optimizers import Optimizer
from hgcore.problem import Diverged, Problem
from hgcore.trajectory import train


class OuterStep(NamedTuple):
    """Outer step k: the hypergradient `grad` and outer loss `value` at `hyper`."""

    k: int
    hyper: object
    value: object
    grad: object
    state: object  # after training, flat
    nbytes: int  # what the solver kept
    updated: object  # the next hyper
    carry: tuple  # what a resumed loop needs besides
    loop: str = ""  # which loop, with which optimizers and precision: it resumes no other


def progress(items: Iterable, what: str, total: int | None = None) -> Iterator:
    """Yield the items, with a bar on stderr for a person at a terminal if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(items)
    return iter(tqdm(items, desc=what, total=total, disable=None, leave=False))


def descend(
    solver, problem, hyper, *, optimizer, steps, project=None, resume=None
) -> Iterator[OuterStep]:
    """Train afresh for each of `steps` outer steps.

    problem: a Problem, or k -> Problem (new seeds, new batches). optimizer: as for training, with
    hyper for the weights and k for t. project: hyper -> the nearest allowed one. resume: an earlier
    OuterStep of the same loop, to go on from; it counts in `steps`. Raises Diverged naming the
    outer and the inner step.
    """
    require_instance("solver", solver, Callable, "hg.Reverse(hg.Reversible())")
    step = lambda now, k, hyper: (solver(now, hyper), ())  # noqa: E731
    return _loop("descend", step, problem, hyper, optimizer, steps, project, resume)


def realtime(
    problem, hyper, *, optimizer, steps, every=1, project=None, solver=None, resume=None
) -> Iterator[OuterStep]:
    """Train once and update hyper every `every` inner steps along the tangents so far.

    `steps` outer steps, so steps * every inner ones (problem.steps is not used). Tangents and
    weights are never reset, so the hypergradient mixes earlier values of hyper: it is biased, but
    needs no new run. Other arguments as in `descend`. Implements: Franceschi et al. 2017, RTHO.
    """
    solver = solver or Forward()
    require_instance("solver", solver, "advance", "hg.Forward()")
    require_count("every", every, least=1, what="inner steps")
    loop = f"realtime(every={every})"

    def step(now: Problem, k: int, hyper, *carry) -> tuple:
        state, tangents = carry or (now.initial_state(hyper), now.jvp_initial(hyper))
        steps = range(k * every, (k + 1) * every)
        with examined_steps(now, hyper, state, steps):
            carry = solver.advance(now, hyper, now.split_state(state), tangents, steps)
        result = solver.hypergradient(now, hyper, *carry)
        if k == 0:
            require_connected(now, hyper, result)
        return result, carry

    return _loop(loop, step, problem, hyper, optimizer, steps, project, resume)


def alternate(
    solver, problem, hyper, *, optimizer, steps, every=1, project=None, resume=None
) -> Iterator[OuterStep]:
    """Alternate `every` inner steps from the last weights on with one hypergradient.

    solver: Implicit; or Reverse, which unrolls these steps, such as Reverse(Truncated(3)) the last
    three of them, and takes the state before them for a constant.
    problem: a Problem, or k -> Problem for stochastic hypergradients: its inner loss at t = None
    and its outer loss then take the batches of outer step k. Inner step t = k * every + i is a
    batch by itself in any case. Other arguments as in `descend`.
    Implements: Lorraine et al. 2020, Algorithm 1.
    """
    require_instance("solver", solver, (Implicit, Reverse), "hg.Implicit(hg.Neumann(20, 0.1))")
    require_count("every", every, least=1, what="inner steps")
    loop = f"alternate(every={every})"

    def step(now: Problem, k: int, hyper, state: tuple | None = None) -> tuple:
        if isinstance(solver, Implicit):
            steps = range(k * every, (k + 1) * every)
            with examined_steps(now, hyper, state, steps):
                state = train(now, hyper, state, steps)
            result = solver(now, hyper, state)
            if k == 0:
                require_connected(now, hyper, result, solver.inner_batches)
            return result, (state,)
        state = now.initial_state(hyper) if state is None else now.split_state(state)
        try:
            result = solver(_Part.of(now, state, k * every, every), hyper)
        except (Diverged, ReversalError) as error:
            raise type(error)(f"counted from inner step {k * every}: {error}") from error
        state = now.split_state(result.state, len(state[0]))
        return result, (tuple(1 * vector for vector in state),)

    return _loop(loop, step, problem, hyper, optimizer, steps, project, resume)


@dataclass(frozen=True)
class _Part(Problem):
    """Steps `first`, `first` + 1, ... of a problem, numbered from 0, from a constant state on."""

    whole: Problem
    state: tuple
    first: int

    @classmethod
    def of(cls, whole: Problem, state: tuple, first: int, steps: int) -> _Part:
        """Return the problem of these steps of `whole`."""
        part = {
            "inner_loss": lambda weights, hyper, t: whole.inner_loss(weights, hyper, first + t),
            "initial": state[0],
            "steps": steps,
        }
        return cls(**vars(whole) | part, whole=whole, state=state, first=first)

    def objective(self, hyper):
        whole = self.whole.objective(hyper)  # it may know its derivatives

        def moved(derivative: Callable) -> Callable:
            return lambda weights, t: derivative(weights, self.first + t)

        gradient, linearize = map(moved, (whole.gradient, whole.linearize))
        one_routine = getattr(whole, "one_routine", False)
        return SimpleNamespace(gradient=gradient, linearize=linearize, one_routine=one_routine)

    def initial_state(self, hyper) -> tuple:
        return self.state

    def vjp_initial(self, hyper, adjoint: tuple):
        return 0 * hyper

    def coefficients(self, weights, hyper, t: int):
        return super().coefficients(weights, hyper, self.first + t)

    def smallest_decays(self, hyper, state: tuple, steps: range) -> list[dict]:
        moved = range(self.first + steps.start, self.first + steps.stop)
        return super().smallest_decays(hyper, state, moved)


def _require_outer(optimizer: Optimizer) -> None:
    """Raise unless it can be used on hyperparameters; its decays are not rounded."""
    require_instance("optimizer", optimizer, Optimizer, "hg.Adam(0.1)")
    kind = type(optimizer).__name__
    for decay in optimizer.decays:
        value = getattr(optimizer, decay)
        if isinstance(value, Real) and not 0 <= value <= optimizer.largest_decay:
            raise ValueError(f"{kind}: {decay} must lie in [0, 1], Adam's below 1, got {value}")
    if getattr(optimizer, "velocity", None) is not None:
        raise ValueError(f"{kind}: an outer velocity starts at zero; leave velocity out")


def _require_same(resume: OuterStep, loop: str, carry: list, problem: Problem, hyper) -> None:
    """Raise ValueError unless `resume` is a step of this loop."""
    if resume.loop != loop:
        whose = f"resume is a step of {resume.loop or 'no loop'}"
        raise ValueError(f"{whose}, this is {loop}; go on with the same")
    pairs = {"hyperparameters": (len(resume.updated), len(hyper))}
    if carry:
        pairs["weights"] = len(carry[0][0]), len(problem.initial_state(resume.updated)[0])
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise ValueError(f"resume has {found} {what}, the problem {expected}")


def _loop(name, step, problem, hyper, optimizer, steps, project, resume) -> Iterator[OuterStep]:
    """Yield outer steps. step: (problem, k, hyper, *carry) -> (result, new carry)."""
    _require_outer(optimizer)
    require_count("steps", steps)
    if callable(problem):
        require_arguments("problem", problem, "k")

    def at(k: int) -> Problem:
        now = problem(k) if callable(problem) else problem
        require_instance("problem", now, "as_hyper", "hg.Problem(...)")
        return now

    first, given, carry = 0, hyper, ()
    if resume is None:
        hyper = at(0).as_hyper(hyper)
        slots = tuple(0 * hyper for _ in optimizer.slots)
    else:
        require_instance("resume", resume, OuterStep, "hg.load(path, backend)")
        first, hyper, (*carry, slots) = resume.k + 1, resume.updated, resume.carry
    for k in progress(range(first, steps), "outer step"):
        now = at(k)
        inner, kind = type(getattr(now, "optimizer", None)).__name__, type(optimizer).__name__
        loop = f"{name} over {inner} with {kind} in {now.backend.dtype}"
        if k == first and resume is not None:
            _require_same(resume, loop, carry, now, given)
        try:
            result, carry = step(now, k, hyper, *carry)
        except Diverged as error:
            raise type(error)(f"outer step {k}: {error}") from error
        c = optimizer.coefficients(now.backend, hyper, hyper, k)
        updated, *slots = now.backend.evaluate(optimizer.step, (hyper, *slots), result.grad, c)
        updated = updated if project is None else _projected(now.backend, project, updated)
        # a copy: the caller may change it
        yield OuterStep(k, hyper, *result, 1 * updated, (*carry, tuple(slots)), loop)
        hyper = updated


def _projected(backend, project: Callable, hyper):
    allowed, shape = backend.array(project(hyper)), tuple(hyper.shape)
    if tuple(allowed.shape) != shape:
        found = tuple(allowed.shape)
        raise ValueError(f"project must return a vector of shape {shape}, got {found}")
    return allowed
