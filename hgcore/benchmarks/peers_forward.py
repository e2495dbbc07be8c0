"""Forward mode on the task of `peers`, by plain torch, by jax and by hgcore.

Its H hyperparameters are dealt in turn to the blocks as logs of penalties, to steps and blocks as
logs of rates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hgcore.benchmarks.peers import posed
from hgcore.benchmarks.peers_task import Setting, Task, leaves, loss, moved, penalised, setting
from hgcore.benchmarks.peers_theirs import ahead, with_jax
from hgcore.hypergradient import Forward, Reverse

RATE, PENALTY = 0.05, np.exp(-6.0)


def shares(task: Task, count: int, array: Callable) -> tuple:
    """(places in hyper (count,) of the rates (T, blocks), of the penalties (blocks,), hyper)"""
    blocks = len(task.net.layout)
    places = np.arange(task.steps * blocks).reshape(task.steps, blocks) % count
    return places, np.arange(blocks) % count, array(np.zeros(count, task.dtype))


def pushing(way, lib, known: Setting, places, penalties) -> Callable:
    """(((weights, velocity), their tangents (H, ...)), t) -> the same after step t, by vmap of jvp;
    `way` is torch.func or jax.
    """

    def step(w, v, hyper, t):
        gradient = way.grad(
            lambda w: penalised(lib, w, PENALTY * lib.exp(hyper[penalties]), *known.rows(t))
        )(w)
        return moved(w, v, gradient, RATE * lib.exp(hyper[places[t]]))

    def push(state, units, t):
        (w, v), tangents = state

        def along(dw, dv, unit):
            return way.jvp(lambda *x: step(*x, t), (w, v, known.hyper), (dw, dv, unit))

        return way.vmap(along, 0, (None, 0))(*tangents, units)

    return push


def through(adjoint: list, tangents: list):
    """Tangents (H, ...) of the weights along the outer gradient: (H,)."""
    return sum(
        (a * d).reshape((len(d), -1)).sum(-1) for a, d in zip(adjoint, tangents, strict=True)
    )


def pushed(task: Task, count: int) -> Callable:
    """Plain torch: vmap of jvp, a step at a time."""
    torch, array = task.backend.xp, task.backend.array
    places, penalties, hyper = shares(task, count, array)
    known, (places, penalties) = (
        setting(task, array)._replace(hyper=hyper),
        map(torch.as_tensor, (places, penalties)),
    )
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
        push, none = (
            pushing(jax, lib, known, places, penalties),
            [0 * block for block in known.start],
        )
        state = (
            (known.start, none),
            ([xp.zeros((count, *block.shape), block.dtype) for block in none],) * 2,
        )
        (((w, _), (tangents, _)), _) = jax.lax.scan(
            lambda state, t: (push(state, units, t), None), state, xp.arange(task.steps)
        )
        return through(jax.grad(lambda w: loss(lib, w, *known.judged()))(w), tangents)

    return ahead(jax, grad, setting(task, xp.asarray)._replace(hyper=hyper))


def pushed_by_us(task: Task, count: int, form: str, solver: Callable | None = None) -> Callable:
    """`Forward()`, or another solver, on a "closure" over hg.nets or on CrossEntropy ("known")."""
    torch, solver = task.backend.xp, solver or Forward()
    *indices, hyper = shares(task, count, task.backend.array)
    places, penalties = map(torch.as_tensor, indices)
    task = posed(
        task,
        form,
        hyper,
        lambda h, t: RATE * torch.exp(h[places[t]]),
        lambda h: PENALTY * torch.exp(h[penalties]),
    )
    return lambda: solver(*task).grad


def forward(count: int) -> dict[str, Callable]:
    """Entrants: all who can push so many tangents, and reverse mode, which is to give the same."""
    return {
        "torch, vmap of jvp": lambda task: pushed(task, count),
        "jax, vmap of jvp": lambda task: pushed_by_jax(task, count),
        "Forward, closure": lambda task: pushed_by_us(task, count, "closure"),
        "Forward, CrossEntropy": lambda task: pushed_by_us(task, count, "known"),
        "reverse mode": lambda task: pushed_by_us(task, count, "known", Reverse()),
    }
