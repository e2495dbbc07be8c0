"""Outer loops: what to do with a hypergradient. Each yields one `OuterStep` per outer step and can be resumed from any.

`descend`: a fresh training run per outer step; `realtime`: updates while training (forward mode); `alternate`: a warm start
and a hypergradient every few steps (implicit differentiation). Rules and projections are plain functions of vectors.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from hgcore.backend import namespace
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


@dataclass(frozen=True)
class Descent:
    """velocity' = momentum velocity - (1 - momentum) grad;  hyper' = hyper + rate velocity'."""

    rate: float
    momentum: float = 0.0

    def start(self, hyper) -> tuple:
        return (0 * hyper,)

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        velocity = self.momentum * memory[0] - (1 - self.momentum) * grad
        return hyper + self.rate * velocity, (velocity,)


@dataclass(frozen=True)
class RMSProp:
    """square' = decay square + (1 - decay) grad**2;  hyper' = hyper - rate grad / (sqrt(square') + epsilon)."""

    rate: float = 0.01
    decay: float = 0.99
    epsilon: float = 1e-8

    def start(self, hyper) -> tuple:
        return (0 * hyper,)

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        square = self.decay * memory[0] + (1 - self.decay) * grad**2
        return hyper - self.rate * grad / (square**0.5 + self.epsilon), (square,)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2014).  first, second: decays of the two moments.

    fade: the decay of the first moment is first * fade**k at outer step k, as in the first version of that paper; 1 for none.
    Maclaurin's code has Adam(rate, 0.9, 0.99, epsilon=1e-4, fade=1e-4): no memory of the first moment but the full bias
    correction, so that its early steps are up to five times larger.
    """

    rate: float = 0.001
    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    fade: float = 1.0

    def start(self, hyper) -> tuple:
        return 0 * hyper, 0 * hyper, 0

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        mean, square, k = memory
        keep = self.first * self.fade**k
        mean = keep * mean + (1 - keep) * grad
        square = self.second * square + (1 - self.second) * grad**2
        step = mean / (1 - self.first ** (k + 1)) / ((square / (1 - self.second ** (k + 1))) ** 0.5 + self.epsilon)
        return hyper - self.rate * step, (mean, square, k + 1)


def box(low, high) -> Callable:
    """Projection onto low <= hyper <= high (numbers or vectors)."""

    def project(hyper):
        xp = namespace(hyper)
        least, most = (xp.asarray(bound, dtype=hyper.dtype, device=hyper.device) for bound in (low, high))
        return xp.minimum(xp.maximum(hyper, least), most)

    return project


def simplex(total: float = 1.0) -> Callable:
    """Euclidean projection onto {hyper >= 0, sum = total > 0}: Michelot 1986, exact in finitely many passes."""
    if not total > 0:
        raise ValueError(f"the sum must be positive, got {total}")

    def project(hyper):
        hyper = hyper - hyper.max()  # moves no projection, and keeps the largest above the shift whatever is rounded
        shift, active, count = (hyper.sum() - total) / len(hyper), hyper == hyper, len(hyper)
        while True:
            active = hyper > shift
            if int(active.sum()) == count:
                return (hyper - shift) * active
            count = int(active.sum())
            shift = ((hyper * active).sum() - total) / count

    return project


def l1_ball(radius: float = 1.0) -> Callable:
    """Euclidean projection onto {sum |hyper_i| <= radius} (Duchi et al. 2008)."""

    def project(hyper):
        if float(abs(hyper).sum()) <= radius:
            return hyper
        return namespace(hyper).sign(hyper) * simplex(radius)(abs(hyper))

    return project


def box_l1(low, high, radius: float) -> Callable:
    """Euclidean projection onto {low <= hyper <= high, sum of hyper <= radius}, for 0 <= low: a box cut off by an L1 ball.

    It is clip(hyper - m, low, high) with the least m >= 0 that brings the sum down to the radius. As m grows, the sum falls in straight
    lines between the 2n places where a coordinate leaves `high` or comes to `low`: these are sorted and bisected, O(n log n).
    """
    if not radius >= 0:
        raise ValueError(f"the radius must be a number >= 0, got {radius}")
    inside, lowest, highest = box(low, high), box(low, low), box(high, high)

    def project(hyper):
        more, less, most = inside(hyper), lowest(hyper), highest(hyper)  # more, less: sums on either side of the radius
        _require_points(less, most, radius)
        if float(more.sum()) <= radius:
            return more
        xp = namespace(hyper)
        places = xp.maximum(xp.concatenate([hyper - most, hyper - less]), 0 * xp.concatenate([hyper, hyper]))
        places = places[xp.argsort(places)]
        first, last = -1, len(places) - 1
        while last - first > 1:
            middle = (first + last) // 2
            point = inside(hyper - places[middle])
            if float(point.sum()) > radius:
                first, more = middle, point
            else:
                last, less = middle, point
        share = (more.sum() - radius) / (more.sum() - less.sum())
        return inside(more + share * (less - more))

    return project


def _require_points(least, most, radius: float) -> None:
    """Raise ValueError if no vector lies between the bounds and has a sum up to the radius."""
    if bool((least < 0).any()):
        raise ValueError(f"low must be >= 0, got {float(least.min()):.6g}; for points of either sign see box or l1_ball")
    if bool((least > most).any()):
        raise ValueError(f"low must be <= high, but exceeds it by {float((least - most).max()):.6g}")
    if float(least.sum()) > radius:
        raise ValueError(f"nothing lies in the set: low alone adds up to {float(least.sum()):.6g}, more than the radius {radius:.6g}")


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
    return (hyper if project is None else project(hyper)), memory


def _named(k: int, problem: Diverged) -> Diverged:
    return type(problem)(f"outer step {k}: {problem}")


def descend(solver: Callable, problem, hyper, *, rule, steps: int, project: Callable | None = None,
            resume: OuterStep | None = None) -> Iterator[OuterStep]:
    """`steps` outer steps, each a fresh training run.  problem: a Problem, or k -> Problem (new seeds, new batches).

    rule: Descent, RMSProp, Adam or your own; project: onto the allowed set; resume: an earlier OuterStep to go on from.
    Raises `Diverged` naming the outer and the inner step.
    """
    at = problem if callable(problem) else lambda k: problem
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


def realtime(problem, hyper, *, rule, steps: int, every: int = 1, project: Callable | None = None,
             solver: Forward | None = None, resume: OuterStep | None = None) -> Iterator[OuterStep]:
    """Train once, and update hyper every `every` inner steps along the tangents so far (Franceschi et al. 2017, RTHO).

    problem: a Problem, or k -> Problem (what is asked for changes, or the data: its outer objective may take a batch of outer
    step k). `steps` outer steps, so steps * every inner ones (problem.steps does not count). Tangents and weights are never
    reset, so the hypergradient mixes earlier hypers: biased, and available at once. With a rule that moves nothing it is plain
    training.
    """
    solver, at = solver or Forward(), _at(problem)
    hyper = at(0).hyper(hyper) if resume is None else resume.updated
    if resume is None:
        first, state, tangents, memory = 0, at(0).start(hyper), at(0).push_start(hyper), rule.start(hyper)
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


def alternate(solver: Implicit, problem, hyper, *, rule, steps: int, every: int = 1,
              project: Callable | None = None, resume: OuterStep | None = None) -> Iterator[OuterStep]:
    """`every` inner steps from where the last ones ended, then one implicit hypergradient (Lorraine et al. 2020, Algorithm 1).

    problem: a Problem, or k -> Problem for stochastic hypergradients: its inner objective at t = None and its outer one then
    take the batches of outer step k. Inner step t = k * every + i is a batch by itself in any case.
    """
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


def _at(problem) -> Callable:
    """A Problem, or k -> Problem, as the latter."""
    return problem if callable(problem) else lambda k: problem
