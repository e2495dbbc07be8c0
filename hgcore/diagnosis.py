"""Why is a hypergradient not finite?  The run once more, with a look at every number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from hgcore.arrays import like
from hgcore.problem import Diverged, Problem, quiet
from hgcore.trajectory import Checkpointed

_DATA = "at other weights too: look for values that are not finite in the data of this batch"
_DOMAIN = "a logarithm or root of a negative number, or a division by zero"
_KINK = "a root, norm or power at zero has no finite derivative; add a small constant inside"
_RATE = "lower the rate"


def examined(solve: Callable) -> Callable:
    """Return the method `solve`(self, problem, hyper), which says more when something is wrong.

    A Diverged names its cause, found by a second run. ValueError for a hyperparameter that acts but
    has no derivative, found by two evaluations where a derivative is zero.
    """

    @functools.wraps(solve)
    def method(self, problem: Problem, hyper, *args, **kwargs):
        hyper = problem.as_hyper(hyper)
        try:
            result = solve(self, problem, hyper, *args, **kwargs)
        except Diverged as error:
            found = cause(problem, hyper)
            if found is None:
                raise
            raise type(error)(found) from error
        require_connected(problem, hyper, result.grad)
        return result

    return method


@quiet
def require_connected(problem: Problem, hyper, grad) -> None:
    """Raise ValueError if a function changes with a hyperparameter but passes no derivative on.

    Losses are looked at where the hypergradient `grad` (m,) is zero.
    """
    for name, f in problem.functions_of_hyper().items():
        (value,), pull = problem.backend.vjp(lambda h, f=f: (f(h),), hyper)
        _require_derivative(name, f, hyper, pull((_random_like(value),))[0] == 0)
    if not bool((grad == 0).any()) or not problem.steps:
        return
    weights = problem.initial_state(hyper)[0]
    slopes = problem.objective(hyper).linearize(weights, 0).mixed(_random_like(weights))
    gradient = lambda h: problem.objective(h).gradient(weights, 0)  # noqa: E731
    _require_derivative("inner_loss", gradient, hyper, (grad == 0) & (slopes == 0))
    slopes = problem.outer_gradients(weights, hyper)[2]
    outer = lambda h: problem.backend.evaluate(problem.outer_loss, weights, h)  # noqa: E731
    _require_derivative("outer_loss", outer, hyper, (grad == 0) & (slopes == 0))


def _require_derivative(name: str, f: Callable, hyper, idle) -> None:
    """Raise ValueError if f changes along the entries of hyper in `idle`, on both sides alike."""
    if not bool(idle.any()):
        return
    step = 1e-3 * (1 + abs(hyper)) * idle
    up, here, down = f(hyper + step), f(hyper), f(hyper - step)
    forth, back = up - here, here - down
    if bool((abs(forth + back) > abs(forth - back)).any()):
        entries = np.flatnonzero(like(idle, np.zeros(1)))
        raise ValueError(
            f"{name} changes with hyper{entries[:5].tolist()} but its derivative is cut off:"
            " float(), .item(), .detach() or a NumPy function lost the graph; compute it with"
            " backend.xp"
        )


def _random_like(vector):
    return like(np.random.default_rng(0).standard_normal(tuple(vector.shape)), vector)


@quiet
def cause(problem: Problem, hyper) -> str | None:
    """Return what first is not finite in the run at hyper (m,), and what to do; None if nothing."""
    start = state = problem.initial_state(hyper)
    for name, vector in zip(("weights", "velocity"), state, strict=False):
        if not _finite(problem, vector):
            return f"the initial {name} are not finite in {_where(problem, vector)}"
    for t in range(problem.steps):
        gradient = problem.objective(hyper).gradient(state[0], t)
        after = problem.step(state, gradient, hyper, t)
        if not all(_finite(problem, x) for x in (gradient, *after)):
            found = _step(problem, hyper, t, start[0], state[0], gradient)
            return f"training diverged at step {t}: {found}"
        state = after
    return _outer(problem, hyper, state[0]) or _backward(problem, hyper)


def _step(problem: Problem, hyper, t: int, start, weights, gradient) -> str:
    """Return what is not finite in step t."""

    def loss(weights) -> float:
        return float(problem.backend.evaluate(problem.inner_loss, weights, hyper, t))

    value, magnitude = loss(weights), float(abs(weights).max())
    if not math.isfinite(value):
        found = f"the inner loss is {value:.3g}"
        if not any(math.isfinite(loss(place)) for place in (start, 0.9 * start + 0.01)):
            return f"{found}, {_DATA}"
        if magnitude > 100 * float(abs(start).max()):
            return f"{found}, at weights up to {magnitude:.3g}: {_RATE}"
        return f"{found}: {_DOMAIN}"
    if not _finite(problem, gradient):
        where = _where(problem, gradient)
        return f"the inner loss is {value:.4g}, its gradient not finite in {where}: {_KINK}"
    for name, value in vars(problem.coefficients(gradient, hyper, t)).items():
        if name != "t" and not _finite(problem, value):
            return f"the coefficient {name} is not finite"
    return f"a weight or slot is not finite after weights up to {magnitude:.3g}: {_RATE}"


def _outer(problem: Problem, hyper, weights) -> str | None:
    """Return what is not finite in the outer loss at the trained weights."""
    value, by_weights, by_hyper = problem.outer_gradients(weights, hyper)
    if not _finite(problem, value):
        return (
            f"the outer loss is {float(value):.3g} although training was finite: look for values"
            f" that are not finite in its data, or for {_DOMAIN}"
        )
    for name, slope in (("weights", by_weights), ("hyper", by_hyper)):
        if not _finite(problem, slope):
            where = _where(problem, slope, name)
            return f"the gradient of the outer loss is not finite in {where}: {_KINK}"
    return None


def _backward(problem: Problem, hyper) -> str | None:
    """Return what is not finite in the backward pass."""
    run = Checkpointed().train(problem, hyper)
    _, adjoint, _ = problem.outer_gradients(run.final[0], hyper)
    adjoint = (adjoint, *(0 * slot for slot in run.final[1:]))
    for t in reversed(run.steps):
        before, linearized = run.undo(t)
        curvature, mixed = linearized.product(adjoint[0])
        if _finite(problem, adjoint[0]) and not _finite(problem, curvature):
            where = _where(problem, curvature)
            what = f"second derivatives of the inner loss at step {t} are not finite"
            return f"{what} in {where}: {_KINK}"
        after, (adjoint, part) = adjoint, problem.vjp_step(before, linearized, hyper, t, adjoint)
        if not all(_finite(problem, x) for x in (*adjoint, part)):
            size = float(abs(after[0]).max())
            return f"adjoints grew to {size:.3g} at step {t}: shorten the run or {_RATE}"
    return None


def _finite(problem: Problem, x) -> bool:
    return bool(problem.backend.xp.isfinite(x).all())


def _where(problem: Problem, vector, name: str = "weights") -> str:
    """Return the blocks, or else the entries, in which a vector is not finite."""
    wrong = ~np.isfinite(problem.backend.numpy(vector))
    layout = getattr(problem.inner_loss, "layout", None)
    if name == "weights" and layout is not None and layout.size == len(wrong):
        return ", ".join(repr(key) for key, block in layout.split(wrong).items() if block.any())
    entries = np.flatnonzero(wrong)
    shown = ", ".join(map(str, entries[:5])) + (", ..." if len(entries) > 5 else "")
    return f"{name}[{shown}], {len(entries)} of {len(wrong)}"
