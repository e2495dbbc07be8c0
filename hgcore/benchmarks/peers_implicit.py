"""Neumann sums and conjugate gradients on the net of `peers`, by plain torch, by jax and by hgcore:
a log penalty for every weight, one minibatch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hgcore.benchmarks.peers import network
from hgcore.benchmarks.peers_task import Setting, Task, leaves, loss, setting
from hgcore.benchmarks.peers_theirs import ahead, with_jax
from hgcore.hypergradient import Implicit
from hgcore.linear import ConjugateGradient, Neumann
from hgcore.nets import cross_entropy
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem

SERIES = 0.1  # the rate of the Neumann series
LOG_DECAY = -1.0  # log penalty of every weight: so high that the Hessian is positive definite


def weighed(task: Task, array: Callable, transposed: bool = False) -> Setting:
    """`setting` with a log penalty for every weight as hyper (n,)."""
    return setting(task, array, transposed)._replace(
        hyper=array(np.full(task.net.layout.size, LOG_DECAY, task.dtype))
    )


def decayed(lib, w: list, penalties: list, x, y):
    """`penalised` with a penalty for each weight."""
    return loss(lib, w, x, y) + sum(
        (p * block * block).sum() for p, block in zip(penalties, w, strict=True)
    )


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
    blocks = [
        part.reshape(block.shape)
        for part, block in zip(hyper.exp().split([block.numel() for block in w]), w, strict=True)
    ]
    gradient = torch.autograd.grad(decayed(torch, w, blocks, *known.rows(0)), w, create_graph=True)
    return w, hyper, gradient, torch.autograd.grad(loss(torch, w, *known.judged()), w)


def by_hand(task: Task, solve: Callable) -> Callable:
    """Plain torch with one graph of the gradient, retained; the system solved on lists of tensors
    by solve(apply, b).
    """
    torch, known = task.backend.xp, weighed(task, task.backend.array)

    def call():
        w, hyper, gradient, b = at_the_end(torch, known)
        x = solve(lambda p: torch.autograd.grad(gradient, w, p, retain_graph=True), b)
        return -torch.autograd.grad(gradient, hyper, x)[0]

    return call


def fixed_point(task: Task, terms: int) -> Callable:
    """`fixed_point` of hypertorch: the adjoint of one step of gradient descent, iterated; it starts
    where hypertorch is after one product.
    """
    torch, known = task.backend.xp, weighed(task, task.backend.array)

    def call():
        w, hyper, gradient, b = at_the_end(torch, known)
        step = [a - SERIES * c for a, c in zip(w, gradient, strict=True)]
        v = b
        for _ in range(terms):
            v = [
                a + c
                for a, c in zip(torch.autograd.grad(step, w, v, retain_graph=True), b, strict=True)
            ]
        return torch.autograd.grad(step, hyper, v)[0]

    return call


def linearized(task: Task, solve: Callable) -> Callable:
    """jax.linearize of the gradient, compiled with the solution."""
    use = with_jax()
    jax, lib, known = use.jax, use.lib, weighed(task, use.jax.numpy.asarray)
    cuts = np.cumsum([block.size for block in known.start])[:-1]

    def grad(known):
        def gradient(w, hyper):
            blocks = [
                part.reshape(block.shape)
                for part, block in zip(jax.numpy.split(lib.exp(hyper), cuts), w, strict=True)
            ]
            return jax.grad(lambda w: decayed(lib, w, blocks, *known.rows(0)))(w)

        w, hyper = known.start, known.hyper
        x = solve(
            jax.linearize(lambda w: gradient(w, hyper), w)[1],
            jax.grad(lambda w: loss(lib, w, *known.judged()))(w),
        )
        return -jax.vjp(lambda hyper: gradient(w, hyper), hyper)[1](x)[0]

    return ahead(jax, grad, known)


def implicit(task: Task, form: str, solve: Callable) -> Callable:
    """`Implicit(solve)` on a "closure" over hg.nets or on any "module"; its hypergradient in the
    order of the former's weights.
    """
    backend, (net, layout), transposed = task.backend, network(task, form), form == "module"
    xp, known = backend.xp, weighed(task, backend.array, transposed)
    start = layout.join(dict(zip(layout.shapes, known.start, strict=True)))

    def inner(w, hyper, t):
        x, y = known.rows(0)
        return cross_entropy(net(w, x), y) + xp.sum(xp.exp(hyper) * w * w)

    def outer(w, hyper):
        x, y = known.judged()
        return cross_entropy(net(w, x), y)

    problem, solver = (
        Problem(
            backend,
            inner,
            outer,
            GradientDescent(rate=SERIES),
            lambda hyper: start,
            0,
        ),
        Implicit(solve),
    )

    def call():
        grad = solver(problem, known.hyper, (start,)).grad
        return (
            xp.cat(
                [
                    (block.T if block.ndim == 2 else block).reshape(-1)
                    for block in layout.split(grad).values()
                ]
            )
            if transposed
            else grad
        )

    return call


def neumann(terms: int) -> dict[str, Callable]:
    """Entrants: all who can take so many terms."""

    def solve(apply, b):
        return series(apply, b, terms)

    own = Neumann(terms, SERIES)
    return {
        "plain torch loop": lambda task: by_hand(task, solve),
        "fixed point, as hypertorch": lambda task: fixed_point(task, terms),
        "jax, linearize": lambda task: linearized(task, solve),
        "Implicit, hg.nets": lambda task: implicit(task, "closure", own),
        "Implicit, any module": lambda task: implicit(task, "module", own),
    }


def conjugates(iterations: int) -> dict[str, Callable]:
    """Entrants: all who can take so many conjugate gradients."""

    def solve(apply, b):
        return conjugate(apply, b, iterations)

    own = ConjugateGradient(iterations, tolerance=0.0)
    return {
        "plain torch loop": lambda task: by_hand(task, solve),
        "jax, linearize": lambda task: linearized(task, solve),
        "Implicit, hg.nets": lambda task: implicit(task, "closure", own),
        "Implicit, any module": lambda task: implicit(task, "module", own),
    }
