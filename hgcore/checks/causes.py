"""Why is a hypergradient not finite?  The run once more, with a look at every number."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from hgcore.arrays import require_instance
from hgcore.backend import Linearized
from hgcore.checks.connected import random_like, require_connected
from hgcore.problem import Diverged, OutOfRange, Problem, quiet
from hgcore.trajectory import Checkpointed

_DATA = (
    "at other weights too: look for values that are not finite in the data of this batch, or for a"
    " logarithm or root of a hyperparameter"
)
_HYPER = "with a hyperparameter beyond 1e6: lower the outer rate, or use project="
_DOMAIN = "a logarithm or root of a negative number, or a division by zero"
_KINK = "a root, norm or power at zero has no finite derivative; add a small constant inside"
_RATE = "lower the rate"


def examined(cause: Callable) -> Callable:
    """Return a decorator of solve(self, problem, hyper): it says more when something is wrong.

    A Diverged names what cause(self, problem, hyper) finds, by a second run. ValueError for a
    hyperparameter that acts but has no derivative: see `require_connected`.
    """

    def decorator(solve: Callable) -> Callable:
        @functools.wraps(solve)
        def method(self, problem: Problem, hyper, *args, **kwargs):
            require_instance("problem", problem, Problem, "hg.Problem(...)")
            hyper = problem.as_hyper(hyper)
            with named(lambda: cause(self, problem, hyper, *args, **kwargs)):
                result = solve(self, problem, hyper, *args, **kwargs)
            if not getattr(problem, "first", 0):  # later parts of a run have the same functions
                batches = getattr(self, "inner_batches", None)
                require_connected(problem, hyper, result, batches, not (args or kwargs))
            return result

        return method

    return decorator


def examined_steps(problem: Problem, hyper, state: tuple | None, steps: range):
    """Return a context: a Diverged in these steps names its cause, by a second run of them."""
    return named(lambda: _training(problem, hyper, state, steps)[0])


@contextlib.contextmanager
def named(cause: Callable) -> Iterator[None]:
    """Give a Diverged in the block the words of cause(), if there are any."""
    try:
        yield
    except OutOfRange:
        raise
    except Diverged as error:
        raise type(error)(cause() or str(error)) from error


@quiet
def of_run(solver, problem: Problem, hyper) -> str | None:
    """Return what first is not finite in Reverse or Forward at hyper (m,), and what to do."""
    found, weights = _training(problem, hyper)
    return found or _outer(problem, hyper, weights) or _backward(problem, hyper)


@quiet
def of_optimum(solver, problem: Problem, hyper, state=None) -> str | None:
    """Return what is not finite in Implicit at `state`, by default after training."""
    if state is None:
        found, weights = _training(problem, hyper)
    else:
        found, weights = None, problem.split_state(state)[0]
    if found := found or _outer(problem, hyper, weights):
        return found
    for t in solver.inner_batches:
        linearized, place = problem.objective(hyper).linearize(weights, t), "at the trained weights"
        if found := _loss(problem, hyper, t, weights, weights, linearized.gradient):
            return f"{place} {found}"
        if found := _products(problem, linearized, random_like(weights), place):
            return found
    return None


def _products(problem: Problem, linearized: Linearized, q, place: str) -> str | None:
    """Return what is not finite in products of q (n,) with second derivatives."""
    if where := _not_finite(problem, linearized.hvp(q)):
        return f"second derivatives of the inner loss {place} are not finite in {where}: {_KINK}"
    if where := _not_finite(problem, linearized.mixed(q), "hyper"):
        return f"the derivative of the inner loss by {where} is not finite {place}: {_KINK}"
    return None


@quiet
def _training(problem: Problem, hyper, state=None, steps: range | None = None) -> tuple:
    """Return (what is not finite in training or None, the trained weights)."""
    start = state = problem.initial_state(hyper) if state is None else state
    for name, vector in zip(("weights", "velocity"), state, strict=False):
        if where := _not_finite(problem, vector):
            return f"the initial {name} are not finite in {where}", None
    for t in range(problem.steps) if steps is None else steps:
        gradient = problem.objective(hyper).gradient(state[0], t)
        after = problem.step(state, gradient, hyper, t)
        if any(_not_finite(problem, x) for x in (gradient, *after)):
            found = _loss(problem, hyper, t, start[0], state[0], gradient)
            found = found or _step(problem, hyper, t, state[0], gradient)
            return f"training diverged at step {t}: {found}", None
        state = after
    return None, state[0]


def _loss(problem: Problem, hyper, t, start, weights, gradient) -> str | None:
    """Return what is not finite in the inner loss or its gradient at `weights`."""

    def loss(weights) -> float:
        return float(problem.backend.evaluate(problem.inner_loss, weights, hyper, t))

    value, magnitude = loss(weights), float(abs(weights).max())
    if not math.isfinite(value):
        found, size = f"the inner loss is {value:.3g}", float(abs(start).max())
        places = start, 0.9 * start + 0.01, start / max(1.0, size)
        if not any(math.isfinite(loss(place)) for place in places):
            return f"{found}, {_HYPER if bool((abs(hyper) > 1e6).any()) else _DATA}"
        if magnitude > 100 * min(size, 1e4):
            return f"{found}, at weights up to {magnitude:.3g}: {_RATE}"
        return f"{found}: {_DOMAIN}"
    if where := _not_finite(problem, gradient):
        return f"the inner loss is {value:.4g}, its gradient not finite in {where}: {_KINK}"
    return None


def _step(problem: Problem, hyper, t: int, weights, gradient) -> str:
    """Return what is not finite in step t, which has a finite gradient."""
    for name, value in vars(problem.coefficients(gradient, hyper, t)).items():
        if name != "t" and _not_finite(problem, value):
            return f"the coefficient {name} is not finite"
        if name == "epsilon" and not bool((value > 0).all()):
            return "a second moment is zero and epsilon is not positive: use a larger epsilon"
    size = float(abs(weights).max())
    return f"a weight or slot is not finite after weights up to {size:.3g}: {_RATE}"


def _outer(problem: Problem, hyper, weights) -> str | None:
    """Return what is not finite in the outer loss at the trained weights."""
    value, by_weights, by_hyper = problem.outer_gradients(weights, hyper)
    if _not_finite(problem, value):
        return (
            f"the outer loss is {float(value):.3g} although training was finite: look for values"
            f" that are not finite in its data, or for {_DOMAIN}"
        )
    for name, slope in (("weights", by_weights), ("hyper", by_hyper)):
        if where := _not_finite(problem, slope, name):
            return f"the gradient of the outer loss is not finite in {where}: {_KINK}"
    return None


def _backward(problem: Problem, hyper) -> str | None:
    """Return what is not finite in the backward pass."""
    run = Checkpointed().train(problem, hyper)
    _, adjoint, _ = problem.outer_gradients(run.final[0], hyper)
    adjoint = (adjoint, *(0 * slot for slot in run.final[1:]))
    for t in reversed(run.steps):
        before, linearized = run.undo(t)
        size = float(abs(adjoint[0]).max()) or 1.0
        if found := _products(problem, linearized, adjoint[0] / size, f"at step {t}"):
            return found
        adjoint, part = problem.vjp_step(before, linearized, hyper, t, adjoint)
        if any(_not_finite(problem, x) for x in (*adjoint, part)):
            return f"adjoints grew to {size:.3g} at step {t}: shorten the run or {_RATE}"
    return None


def _not_finite(problem: Problem, x, name: str = "weights") -> str:
    """Return the blocks, or else the entries, in which a vector or scalar is not finite, or ""."""
    if bool(problem.backend.xp.isfinite(x).all()):
        return ""
    wrong = ~np.isfinite(problem.backend.numpy(x))
    layout = getattr(problem.inner_loss, "layout", None)
    if name == "weights" and layout is not None and (layout.size,) == wrong.shape:
        return ", ".join(repr(key) for key, block in layout.split(wrong).items() if block.any())
    entries = np.flatnonzero(wrong)
    shown = ", ".join(map(str, entries[:5])) + (", ..." if len(entries) > 5 else "")
    return f"{name}[{shown}], {len(entries)} of {wrong.size}"
