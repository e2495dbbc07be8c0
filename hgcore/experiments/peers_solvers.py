"""Sums of Neumann, conjugate gradients and forward mode on the task of `peers`, by plain torch, by jax and by hgcore; and the reversal buffer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np

from hgcore import reversal
from hgcore.dynamics import GradientDescent
from hgcore.experiments.drmad2016 import BigIntegers
from hgcore.experiments.peers import network, posed
from hgcore.experiments.peers_task import Setting, Task, leaves, loss, moved, penalised, setting
from hgcore.experiments.peers_theirs import ahead, with_jax
from hgcore.linear import ConjugateGradient, Neumann
from hgcore.nets import cross_entropy
from hgcore.problem import Problem
from hgcore.solvers import Forward, Implicit, Reverse

RATE, PENALTY, SERIES = 0.05, np.exp(-6.0), 0.1  # the last: the rate of the Neumann series
LOG_DECAY = -1.0  # log penalty of every weight, where there is one for each: so high that the Hessian is positive definite


# ---- implicit differentiation: a penalty for every weight, the first minibatch


def weighed(task: Task, array: Callable, transposed: bool = False) -> Setting:
    """`setting` with a log penalty for every weight as hyper (n,)."""
    return setting(task, array, transposed)._replace(hyper=array(np.full(task.net.layout.size, LOG_DECAY, task.dtype)))


def decayed(lib, w: list, penalties: list, x, y):
    """`penalised` with a penalty for each weight."""
    return loss(lib, w, x, y) + sum((p * block * block).sum() for p, block in zip(penalties, w, strict=True))


def series(apply: Callable, b: list, terms: int) -> list:
    """A Neumann sum on a list of blocks."""
    term = total = b
    for _ in range(terms):
        term = [a - SERIES * c for a, c in zip(term, apply(term), strict=True)]
        total = [a + c for a, c in zip(total, term, strict=True)]
    return [SERIES * a for a in total]


def conjugate(apply: Callable, b: list, iterations: int) -> list:
    """Conjugate gradients on a list of blocks."""
    def dot(a, c):
        return sum((p * q).sum() for p, q in zip(a, c, strict=True))

    x, residual, direction, square = [0 * a for a in b], b, b, dot(b, b)
    for _ in range(iterations):
        image = apply(direction)
        length = square / dot(direction, image)
        x = [a + length * c for a, c in zip(x, direction, strict=True)]
        residual = [a - length * c for a, c in zip(residual, image, strict=True)]
        square, previous = dot(residual, residual), square
        direction = [a + (square / previous) * c for a, c in zip(residual, direction, strict=True)]
    return x


def at_the_end(torch, known: Setting) -> tuple:
    """(blocks, hyper, gradient with its graph, that of the outer objective)"""
    w, (hyper,) = leaves(known.start), leaves([known.hyper])
    blocks = [part.reshape(block.shape) for part, block in zip(hyper.exp().split([block.numel() for block in w]), w, strict=True)]
    gradient = torch.autograd.grad(decayed(torch, w, blocks, *known.rows(0)), w, create_graph=True)
    return w, hyper, gradient, torch.autograd.grad(loss(torch, w, *known.judged()), w)


def by_hand(task: Task, solve: Callable) -> Callable:
    """Plain torch with one graph of the gradient, retained; the system solved on lists of tensors by solve(apply, b)."""
    torch, known = task.backend.xp, weighed(task, task.backend.array)

    def call():
        w, hyper, gradient, b = at_the_end(torch, known)
        x = solve(lambda p: torch.autograd.grad(gradient, w, p, retain_graph=True), b)
        return -torch.autograd.grad(gradient, hyper, x)[0]

    return call


def fixed_point(task: Task, terms: int) -> Callable:
    """`fixed_point` of hypertorch: the adjoint of one step of gradient descent, iterated; it starts where hypertorch is after one product."""
    torch, known = task.backend.xp, weighed(task, task.backend.array)

    def call():
        w, hyper, gradient, b = at_the_end(torch, known)
        step = [a - SERIES * c for a, c in zip(w, gradient, strict=True)]
        v = b
        for _ in range(terms):
            v = [a + c for a, c in zip(torch.autograd.grad(step, w, v, retain_graph=True), b, strict=True)]
        return torch.autograd.grad(step, hyper, v)[0]

    return call


def linearized(task: Task, solve: Callable) -> Callable:
    """jax.linearize of the gradient, compiled with the solution."""
    use = with_jax()
    jax, lib, known = use.jax, use.lib, weighed(task, use.jax.numpy.asarray)
    cuts = np.cumsum([block.size for block in known.start])[:-1]

    def grad(known):
        def gradient(w, hyper):
            blocks = [part.reshape(block.shape) for part, block in zip(jax.numpy.split(lib.exp(hyper), cuts), w, strict=True)]
            return jax.grad(lambda w: decayed(lib, w, blocks, *known.rows(0)))(w)

        w, hyper = known.start, known.hyper
        x = solve(jax.linearize(lambda w: gradient(w, hyper), w)[1], jax.grad(lambda w: loss(lib, w, *known.judged()))(w))
        return -jax.vjp(lambda hyper: gradient(w, hyper), hyper)[1](x)[0]

    return ahead(jax, grad, known)


def implicit(task: Task, form: str, solve: Callable) -> Callable:
    """`Implicit(solve)` on a "closure" over hg.nets or on any "module"; its hypergradient in the order of the former's weights."""
    backend, (net, layout), transposed = task.backend, network(task, form), form == "module"
    xp, known = backend.xp, weighed(task, backend.array, transposed)
    start = layout.join(dict(zip(layout.shapes, known.start, strict=True)))

    def inner(w, hyper, t):
        x, y = known.rows(0)
        return cross_entropy(net(w, x), y) + xp.sum(xp.exp(hyper) * w * w)

    def outer(w, hyper):
        x, y = known.judged()
        return cross_entropy(net(w, x), y)

    problem, solver = Problem(backend, inner, outer, GradientDescent(rate=lambda hyper, t: SERIES), lambda hyper: start, 0), Implicit(solve)

    def call():
        grad = solver(problem, known.hyper, (start,)).grad
        return xp.cat([(block.T if block.ndim == 2 else block).reshape(-1) for block in layout.split(grad).values()]) if transposed else grad

    return call


def neumann(terms: int) -> dict[str, Callable]:
    """Entrants: all who can take so many terms."""
    def solve(apply, b):
        return series(apply, b, terms)

    own = Neumann(terms, SERIES, power=0)
    return {"plain torch loop": lambda task: by_hand(task, solve), "fixed point, as hypertorch": lambda task: fixed_point(task, terms),
            "jax, linearize": lambda task: linearized(task, solve), "Implicit, hg.nets": lambda task: implicit(task, "closure", own),
            "Implicit, any module": lambda task: implicit(task, "module", own)}


def conjugates(iterations: int) -> dict[str, Callable]:
    """Entrants: all who can take so many conjugate gradients."""
    def solve(apply, b):
        return conjugate(apply, b, iterations)

    own = ConjugateGradient(iterations, tolerance=0.0)
    return {"plain torch loop": lambda task: by_hand(task, solve), "jax, linearize": lambda task: linearized(task, solve),
            "Implicit, hg.nets": lambda task: implicit(task, "closure", own), "Implicit, any module": lambda task: implicit(task, "module", own)}


# ---- forward mode: H hyperparameters, dealt in turn to the blocks as logs of penalties, to steps and blocks as logs of rates


def shares(task: Task, count: int, array: Callable) -> tuple:
    """(places in hyper (count,) of the rates (T, blocks), of the penalties (blocks,), hyper)"""
    blocks = len(task.net.layout)
    places = np.arange(task.steps * blocks).reshape(task.steps, blocks) % count
    return places, np.arange(blocks) % count, array(np.zeros(count, task.dtype))


def pushing(way, lib, known: Setting, places, penalties) -> Callable:
    """(((weights, velocity), their tangents (H, ...)), t) -> the same after step t, by vmap of jvp; `way` is torch.func or jax."""
    def step(w, v, hyper, t):
        gradient = way.grad(lambda w: penalised(lib, w, PENALTY * lib.exp(hyper[penalties]), *known.rows(t)))(w)
        return moved(w, v, gradient, RATE * lib.exp(hyper[places[t]]))

    def push(state, units, t):
        (w, v), tangents = state
        along = lambda dw, dv, unit: way.jvp(lambda *x: step(*x, t), (w, v, known.hyper), (dw, dv, unit))  # noqa: E731
        return way.vmap(along, 0, (None, 0))(*tangents, units)

    return push


def through(adjoint: list, tangents: list):
    """Tangents (H, ...) of the weights along the outer gradient: (H,)."""
    return sum((a * d).reshape((len(d), -1)).sum(-1) for a, d in zip(adjoint, tangents, strict=True))


def pushed(task: Task, count: int) -> Callable:
    """Plain torch: vmap of jvp, a step at a time."""
    torch, array = task.backend.xp, task.backend.array
    places, penalties, hyper = shares(task, count, array)
    known, (places, penalties) = setting(task, array)._replace(hyper=hyper), map(torch.as_tensor, (places, penalties))
    push, units = pushing(torch.func, torch, known, places, penalties), torch.diag(0 * hyper + 1)

    def call():
        none = [torch.zeros_like(block) for block in known.start]
        state = (known.start, none), ([block.expand(count, *block.shape) for block in none],) * 2
        for t in range(task.steps):
            state = push(state, units, t)
        (w, _), (tangents, _) = state
        w = leaves(w)
        return through(torch.autograd.grad(loss(torch, w, *known.judged()), w), tangents)

    return call


def pushed_by_jax(task: Task, count: int) -> Callable:
    """jax: vmap of jvp in a lax.scan, compiled."""
    use = with_jax()
    jax, lib, xp = use.jax, use.lib, use.jax.numpy
    places, penalties, hyper = shares(task, count, xp.asarray)
    places, units = xp.asarray(places), xp.eye(count, dtype=task.dtype)

    def grad(known):
        push, none = pushing(jax, lib, known, places, penalties), [0 * block for block in known.start]
        state = (known.start, none), ([xp.zeros((count, *block.shape), block.dtype) for block in none],) * 2
        (((w, _), (tangents, _)), _) = jax.lax.scan(lambda state, t: (push(state, units, t), None), state, xp.arange(task.steps))
        return through(jax.grad(lambda w: loss(lib, w, *known.judged()))(w), tangents)

    return ahead(jax, grad, setting(task, xp.asarray)._replace(hyper=hyper))


def pushed_by_us(task: Task, count: int, form: str, solver: Callable | None = None) -> Callable:
    """`Forward()`, or another solver, on a "closure" over hg.nets or on CrossEntropy ("known")."""
    torch, solver = task.backend.xp, solver or Forward()
    *indices, hyper = shares(task, count, task.backend.array)
    places, penalties = map(torch.as_tensor, indices)
    task = posed(task, form, hyper, lambda h, t: RATE * torch.exp(h[places[t]]), lambda h: PENALTY * torch.exp(h[penalties]))
    return lambda: solver(*task).grad


def forward(count: int) -> dict[str, Callable]:
    """Entrants: all who can push so many tangents, and reverse mode, which is to give the same."""
    return {"torch, vmap of jvp": lambda task: pushed(task, count), "jax, vmap of jvp": lambda task: pushed_by_jax(task, count),
            "Forward, closure": lambda task: pushed_by_us(task, count, "closure"),
            "Forward, CrossEntropy": lambda task: pushed_by_us(task, count, "known"),
            "reverse mode": lambda task: pushed_by_us(task, count, "known", Reverse())}


# ---- the buffer


class Undone(NamedTuple):
    """CPU nanoseconds a coordinate and step; whether every number came back."""

    multiply: float
    divide: float
    exact: bool


def _machine_words(values) -> SimpleNamespace:
    buffer, held, decay = reversal.ReversalBuffer(), [values], reversal.ratio(0.9)
    return SimpleNamespace(held=held, multiply=lambda: held.append(buffer.multiply(held.pop(), decay)),
                           divide=lambda: held.append(buffer.divide(held.pop(), decay)))


def _python_integers(values) -> SimpleNamespace:
    kept, (n, _) = BigIntegers(np.zeros(len(values)), values * reversal.UNIT), reversal.ratio(0.9)
    return SimpleNamespace(held=[kept.velocity], multiply=lambda: kept._multiply(n, reversal.DENOMINATOR),
                           divide=lambda: kept._multiply(reversal.DENOMINATOR, n))


BUFFERS = {"numba": (_machine_words, nullcontext), "NumPy": (_machine_words, lambda: mock.patch.object(reversal, "fused", lambda: None)),
           "Python integers, as in 2015": (_python_integers, nullcontext)}


def undone(name: str, n: int, steps: int) -> Undone:
    """Multiply n numbers by 0.9, `steps` times, and divide them back, by one of BUFFERS."""
    begin, within = BUFFERS[name]
    start = np.random.default_rng(0).integers(-(2**52), 2**52, size=n)
    buffer, spent = begin(start.copy()), []
    with within():
        for act in (buffer.multiply, buffer.divide):
            before = time.process_time()
            for _ in range(steps):
                act()
            spent.append(1e9 * (time.process_time() - before) / n / steps)
    return Undone(*spent, bool((getattr(buffer.held[0], "bits", buffer.held[0]) == start).all()))
