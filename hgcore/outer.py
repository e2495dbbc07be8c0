"""Outer loops: each yields one OuterStep an outer step and can be resumed from any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from hgcore.arrays import require_instance
from hgcore.hypergradient import Forward, Implicit
from hgcore.optimizers import Optimizer
from hgcore.problem import Diverged, Problem
from hgcore.trajectory import advance


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
    OuterStep to go on from. Raises Diverged naming the outer and the inner step.
    """
    require_instance("solver", solver, Callable, "hg.Reverse()")

    def step(now: Problem, k: int, hyper) -> tuple:
        return solver(now, hyper), ()

    return _loop(problem, hyper, lambda *_: (), step, optimizer, steps, project, resume)


def realtime(
    problem, hyper, *, optimizer, steps, every=1, project=None, solver=None, resume=None
) -> Iterator[OuterStep]:
    """Train once and update hyper every `every` inner steps along the tangents so far.

    `steps` outer steps, so steps * every inner ones (problem.steps is not used). Tangents and
    weights are never reset: the hypergradient mixes earlier hypers, it is biased and available at
    once. Other arguments as in `descend`. Implements: Franceschi et al. 2017, RTHO.
    """
    solver, spans = solver or Forward(), _spans(every)

    def start(now: Problem, hyper) -> tuple:
        return now.initial_state(hyper), now.jvp_initial(hyper)

    def step(now: Problem, k: int, hyper, state: tuple, tangents: tuple) -> tuple:
        now.smallest_decays(hyper, state, spans(k))
        carry = solver.advance(now, hyper, state, tangents, spans(k))
        return solver.hypergradient(now, hyper, *carry), carry

    return _loop(problem, hyper, start, step, optimizer, steps, project, resume)


def alternate(
    solver, problem, hyper, *, optimizer, steps, every=1, project=None, resume=None
) -> Iterator[OuterStep]:
    """Alternate `every` inner steps from the last weights on with one implicit hypergradient.

    problem: a Problem, or k -> Problem for stochastic hypergradients: its inner loss at t = None
    and its outer loss then take the batches of outer step k. Inner step t = k * every + i is a
    batch by itself in any case. Other arguments as in `descend`.
    Implements: Lorraine et al. 2020, Algorithm 1.
    """
    require_instance("solver", solver, Implicit, "hg.Implicit(hg.Neumann(20, 0.1))")
    spans = _spans(every)

    def start(now: Problem, hyper) -> tuple:
        return (now.initial_state(hyper),)

    def step(now: Problem, k: int, hyper, state: tuple) -> tuple:
        now.smallest_decays(hyper, state, spans(k))
        state = advance(now, hyper, state, spans(k), now.objective(hyper).gradient)
        return solver(now, hyper, state), (state,)

    return _loop(problem, hyper, start, step, optimizer, steps, project, resume)


def _spans(every: int) -> Callable:
    """Return k -> the inner steps of outer step k."""
    if every < 1:
        raise ValueError(f"every must be a number of inner steps >= 1, got {every}")
    return lambda k: range(k * every, (k + 1) * every)


def _loop(problem, hyper, start, step, optimizer, steps, project, resume):
    """Yield outer steps. start: (problem, hyper) -> carry; step: (..., *carry) -> result, carry."""
    require_instance("optimizer", optimizer, Optimizer, "hg.Adam(0.1)")
    at = problem if callable(problem) else lambda k: problem
    if resume is None:
        first, hyper = 0, at(0).as_hyper(hyper)
        carry, slots = start(at(0), hyper), tuple(0 * hyper for _ in optimizer.slots)
    else:
        first, hyper, (*carry, slots) = resume.k + 1, resume.updated, resume.carry
    if len(slots) != len(optimizer.slots):
        name = type(optimizer).__name__
        raise ValueError(f"resume holds {len(slots)} slots, {name} has {len(optimizer.slots)}")
    for k in progress(range(first, steps), "outer step"):
        now = at(k)
        try:
            result, carry = step(now, k, hyper, *carry)
        except Diverged as error:
            raise type(error)(f"outer step {k}: {error}") from error
        c = optimizer.coefficients(now.backend, hyper, k)
        updated, *slots = now.backend.evaluate(optimizer.step, (hyper, *slots), result.grad, c)
        updated = updated if project is None else _projected(project, updated)
        yield OuterStep(k, hyper, *result, updated, (*carry, tuple(slots)))
        hyper = updated


def _projected(project: Callable, hyper):
    allowed = project(hyper)
    kind, like, shape = type(allowed).__name__, type(hyper).__name__, tuple(hyper.shape)
    if kind != like or allowed.shape != hyper.shape:
        raise TypeError(f"project must return a {like} of shape {shape} like its input, got {kind}")
    return allowed
