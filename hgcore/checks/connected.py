"""Does a derivative arrive?  Functions that a hyperparameter moves and that pass none on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np

from hgcore.arrays import like
from hgcore.problem import Problem, quiet


@quiet
def require_connected(problem: Problem, hyper, result, inner_batches=None, whole=True) -> None:
    """Raise ValueError if a function changes with a hyperparameter but passes no derivative on.

    Losses are looked at where the Hypergradient `result` is zero, at its weights and also by them.
    inner_batches: those of Implicit, which does not differentiate training: a warning if something
    else than the losses depends on hyper. whole: False to look at a hypergradient of zeros only.
    """
    grad, (weights, *slots) = result.grad, problem.split_state(result.state)
    if whole:
        _require_functions(problem, hyper, None if inner_batches is None else grad)
    t = inner_batches[0] if inner_batches else 0
    inner_loss = lambda w: problem.inner_loss(w, hyper, t)  # noqa: E731
    if not bool((grad == 0).any() if whole else (grad == 0).all()):
        if slots and problem.steps and not any(slot.any() for slot in slots):
            require_graph(problem, "inner_loss", inner_loss, weights)  # it never moved the slots
        return
    value, outer, by_hyper = problem.outer_gradients(weights, hyper)
    if not outer.any():
        require_graph(problem, "outer_loss", problem.outer_loss, weights, hyper)
    if not problem.steps:
        return
    inner, _, _, mixed = problem.objective(hyper).linearize(weights, t)
    require = functools.partial(_require_derivative, problem)
    require("inner_loss", inner_loss, weights, abs(inner).sum())
    require("outer_loss", lambda w: problem.outer_loss(w, hyper), weights, abs(outer).sum(), value)
    slope = abs(grad) + abs(mixed(random_like(weights)))
    require("inner_loss", lambda h: problem.objective(h).gradient(weights, t), hyper, slope, inner)
    slope = abs(grad) + abs(by_hyper)
    require("outer_loss", lambda h: problem.outer_loss(weights, h), hyper, slope, value)
    if not inner.any():
        require_graph(problem, "inner_loss", inner_loss, weights)


@quiet
def require_transposes(problem: Problem, hyper, state: tuple) -> None:
    """Raise ValueError unless forward mode has all terms of reverse mode, by hyper at step 0.

    For g = J'u, u random, <u, J g> is <g, g>. torch leaves out of J what an operation computes in
    its backward without a graph. Beside `state`, where some terms are zero.
    """
    backend, objective = problem.backend, problem.objective(hyper)
    weights, *slots = (x + 1e-3 * abs(random_like(x)) for x in state)
    linearized = objective.linearize(weights, 0)
    gradient, push_gradient = objective.pushforward(weights, 0)
    at, step, still = (gradient, weights, *slots), problem._step_at(0), 0 * weights
    pairs = {  # what: its value, u -> J'u, g -> J g
        "inner_loss": ((gradient,), linearized.mixed, lambda g: (push_gradient(still, g),)),
        "a coefficient": (
            state,
            lambda *u: backend.vjp(step, hyper, *at)[1](u)[0],
            lambda g: backend.jvp(step, hyper, *at)[1](g, *[still] * len(at)),
        ),
        "initial": (
            state,
            lambda *u: problem.vjp_initial(hyper, u),
            lambda g: backend.jvp(problem._initial, hyper)[1](g),
        ),
    }
    eps = np.finfo(backend.dtype).eps
    for name, (value, pull, push) in pairs.items():
        u = tuple(map(random_like, value))
        g = pull(*u)
        along = sum(a @ b for a, b in zip(u, push(g), strict=True))
        size = sum(x @ x for x in u) * (1 + sum(x @ x for x in value))
        if g @ g > eps * size and not abs(along - g @ g) <= eps**0.25 * (g @ g):
            raise ValueError(
                f"forward mode of torch gives another derivative of {name} than reverse mode: an"
                " operation in it computes its gradient by NumPy or without a graph, or that is"
                " not finite; write it with operations of torch, or use Reverse"
            )


def _require_functions(problem: Problem, hyper, implicit) -> None:
    """Raise ValueError if a coefficient or an initial vector passes no derivative on.

    implicit: a hypergradient by Implicit, to warn where it leaves them out; None of another solver.
    """
    for name, f in problem.functions_of_hyper().items():
        (value,), pull = problem.backend.vjp(lambda h, f=f: (f(h),), hyper)
        slope = pull((random_like(value),))[0]
        _require_derivative(problem, name, f, hyper, slope, value)
        if implicit is not None and (left := (slope != 0) & (implicit == 0)).any():
            entries = np.flatnonzero(problem.backend.numpy(left)).tolist()
            words = f"hyper{entries[:5]} the derivative 0: an optimum does not depend on {name}"
            warnings.warn(f"Implicit gives {words}; use Reverse or Forward for it", stacklevel=5)


def require_graph(problem: Problem, name: str, loss: Callable, *args) -> None:
    """Raise ValueError if the loss(*args) is computed without a graph, as an accuracy is."""
    connected, others = problem.backend.sources(loss, *args)
    if others:
        raise ValueError(
            f"{name} has no derivative by the weights: it calls a module itself, whose parameters"
            " stay as they are; use the weights and function of hg.nets.functional (a net that is"
            " not trained here: requires_grad_(False))"
        )
    if not connected:
        raise ValueError(
            f"{name} has no derivative: it is piecewise constant, as an accuracy is, or float(),"
            " .detach() or NumPy cuts it off; use a loss such as hg.nets.cross_entropy, made with"
            " backend.xp"
        )


def _require_derivative(problem: Problem, name: str, f: Callable, x, slope, here=None) -> None:
    """Raise ValueError if f(x) changes where its `slope` is zero, in a straight line.

    A tenth of the step has then a tenth of the effect, and the other side the opposite one; the
    sides of a kink have nothing to do with each other. here: f(x) if it is known.
    """
    if not bool((slope == 0).any()):
        return
    backend, unit = problem.backend, (1 + abs(x)) * random_like(x) * (slope == 0)

    def value(place):
        return backend.array(backend.evaluate(f, place))

    here = value(x) if here is None else here
    noise = 100 * np.finfo(backend.dtype).eps * abs(here).max()  # not all kernels repeat their bits

    def sides(step: float) -> tuple:
        return value(x + step * unit) - here, here - value(x - step * unit)

    step = np.finfo(backend.dtype).eps ** (1 / 3)  # short: few kinks lie so near
    up, down = sides(step)
    if not bool((moved := abs(up + down) > noise).any()):
        return
    tenth_up, tenth_down = sides(step / 10)
    lines = (up, down), (tenth_up, tenth_down), (up, 10 * tenth_up), (down, 10 * tenth_down)
    if all(bool((moved * abs(a - b)).sum() < 0.1 * abs(moved * (a + b)).sum()) for a, b in lines):
        raise ValueError(
            f"{name} changes with its arguments but a derivative is cut off: float(), .item(),"
            " .detach() or a NumPy function cut the graph; compute with backend.xp (hg.check says"
            " where)"
        )


def random_like(vector):
    """Return standard normal numbers, always the same ones, like `vector`."""
    return like(np.random.default_rng(0).standard_normal(tuple(vector.shape)), vector)
