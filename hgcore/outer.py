"""Outer loops: what to do with a hypergradient. Each yields one `OuterStep` per outer step and can be resumed from any.

`descend`: a fresh training run per outer step; `realtime`: updates while training (forward mode); `alternate`: a warm start
and a hypergradient every few steps (implicit differentiation). Rules are in rules.py, projections in projections.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tqdm import tqdm

from hgcore.problem import Diverged, Watch
from hgcore.solvers import Forward, Implicit, require_finite


class OuterStep(NamedTuple):
    """Outer step k: the hypergradient `grad` and outer objective `value` at `hyper`, and `updated`, the next hyper.

    state: flat, after training; nbytes: what the solver kept; carry: what a resumed loop needs besides `updated`.
    """

    k: int
    hyper: object
    value: object
    grad: object
    state: object
    nbytes: int
    updated: object
    carry: tuple


def progress(items: Iterable, what: str, total: int | None = None) -> Iterator:
    """The items, with a bar on stderr for a person at a terminal, or lines for the suite's runner; otherwise silent."""
    total = len(items) if total is None else total
    if "HGCORE_PROGRESS" not in os.environ:
        yield from tqdm(items, desc=what, total=total, disable=None, leave=False)
        return
    shown = -1.0
    for k, item in enumerate(items):
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            print(f"@progress {k + 1}/{total} {what}", file=sys.stderr, flush=True)
        yield item


def _update(rule, project, hyper, grad, memory) -> tuple:
    hyper, memory = rule(hyper, grad, memory)
    allowed = hyper if project is None else project(hyper)
    if (kind := type(allowed)) is not type(hyper) or allowed.shape != hyper.shape:
        raise TypeError(
            f"project must return what it was given, a {type(hyper).__name__} of shape {tuple(hyper.shape)}, got a {kind.__name__}"
        )
    return allowed, memory


def _named(k: int, problem: Diverged) -> Diverged:
    return type(problem)(f"outer step {k}: {problem}")


def descend(
    solver: Callable,
    problem,
    hyper,
    *,
    rule,
    steps: int,
    project: Callable | None = None,
    resume: OuterStep | None = None,
) -> Iterator[OuterStep]:
    """`steps` outer steps, each a fresh training run.  problem: a Problem, or k -> Problem (new seeds, new batches).

    rule: Descent, RMSProp, Adam or your own; project: onto the allowed set; resume: an earlier OuterStep to go on from.
    Raises `Diverged` naming the outer and the inner step.
    """
    at = _at(problem)
    first, hyper = (0, at(0).hyper(hyper)) if resume is None else (resume.k + 1, resume.updated)
    memory = rule.start(hyper) if resume is None else resume.carry[0]
    for k in progress(range(first, steps), "outer step"):
        try:
            result = solver(at(k), hyper)
        except Diverged as error:
            raise _named(k, error) from error
        updated, memory = _update(rule, project, hyper, result.grad, memory)
        yield OuterStep(k, hyper, *result, updated, (memory,))
        hyper = updated


def realtime(
    problem,
    hyper,
    *,
    rule,
    steps: int,
    every: int = 1,
    project: Callable | None = None,
    solver: Forward | None = None,
    resume: OuterStep | None = None,
) -> Iterator[OuterStep]:
    """Train once, and update hyper every `every` inner steps along the tangents so far (Franceschi et al. 2017, RTHO).

    problem: a Problem, or k -> Problem (what is asked for changes, or the data: its outer objective may take a batch of outer
    step k). `steps` outer steps, so steps * every inner ones (problem.steps does not count). Tangents and weights are never
    reset, so the hypergradient mixes earlier hypers: biased, and available at once. With a rule that moves nothing it is plain
    training.
    """
    _require_steps(every)
    solver, at = solver or Forward(), _at(problem)
    hyper = at(0).hyper(hyper) if resume is None else resume.updated
    if resume is None:
        first, state, tangents, memory = (
            0,
            at(0).start(hyper),
            at(0).push_start(hyper),
            rule.start(hyper),
        )
    else:
        first, (state, tangents, memory) = resume.k + 1, resume.carry
    watch = Watch(at(0).backend)
    for k in progress(range(first, steps), "outer step"):
        now, span = at(k), range(k * every, (k + 1) * every)
        try:
            now.check(hyper, state, span)
            for t in span:
                state, tangents = solver.step(now, hyper, state, tangents, t)
                watch.weights(t, state[0])
            watch.look()
            value, grad = solver.along(now, hyper, state, tangents)
            require_finite(now, value, grad)
        except Diverged as error:
            raise _named(k, error) from error
        updated, memory = _update(rule, project, hyper, grad, memory)
        kept, flat = solver.nbytes(state, tangents), now.backend.xp.concatenate(state)
        yield OuterStep(k, hyper, value, grad, flat, kept, updated, (state, tangents, memory))
        hyper = updated


def alternate(
    solver: Implicit,
    problem,
    hyper,
    *,
    rule,
    steps: int,
    every: int = 1,
    project: Callable | None = None,
    resume: OuterStep | None = None,
) -> Iterator[OuterStep]:
    """`every` inner steps from where the last ones ended, then one implicit hypergradient (Lorraine et al. 2020, Algorithm 1).

    problem: a Problem, or k -> Problem for stochastic hypergradients: its inner objective at t = None and its outer one then
    take the batches of outer step k. Inner step t = k * every + i is a batch by itself in any case.
    """
    _require_steps(every)
    at = _at(problem)
    hyper = at(0).hyper(hyper) if resume is None else resume.updated
    first = 0 if resume is None else resume.k + 1
    state, memory = (at(0).start(hyper), rule.start(hyper)) if resume is None else resume.carry
    watch = Watch(at(0).backend)
    for k in progress(range(first, steps), "outer step"):
        now, span = at(k), range(k * every, (k + 1) * every)
        try:
            now.check(hyper, state, span)
            for t in span:
                state = now.step(state, hyper, t)
                watch.weights(t, state[0])
            watch.look()
            result = solver(now, hyper, state)
        except Diverged as error:
            raise _named(k, error) from error
        updated, memory = _update(rule, project, hyper, result.grad, memory)
        yield OuterStep(k, hyper, *result, updated, (state, memory))
        hyper = updated


def _require_steps(every: int) -> None:
    if every < 1:
        raise ValueError(f"every must be a number of inner steps >= 1, got {every}")


def _at(problem) -> Callable:
    """A Problem, or k -> Problem, as the latter."""
    return problem if callable(problem) else lambda k: problem
