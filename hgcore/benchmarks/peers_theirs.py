"""The task of the race by plain torch and by other libraries, which are imported where they are
used.

An entrant is a function of a `Task` that prepares, compiles if it must, and returns a call: () ->
hypergradient (m,).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from types import SimpleNamespace

from hgcore.benchmarks.peers_task import (
    DECAY,
    Task,
    leaves,
    loss,
    module,
    moved,
    penalised,
    setting,
    taught,
)
from hgcore.nets import cross_entropy

# ---- plain torch


def training(task: Task) -> Callable:
    """No hypergradient: the training run alone, the unit of time."""
    torch, known = task.backend.xp, setting(task, task.backend.array)
    rates, penalties = taught(torch, known.hyper, len(known.start))

    def call():
        w, v = leaves(known.start), [torch.zeros_like(block) for block in known.start]
        for t in range(task.steps):
            gradient = torch.autograd.grad(penalised(torch, w, penalties, *known.rows(t)), w)
            w, v = moved([block.detach() for block in w], v, gradient, rates[t])
            w = leaves(w)

    return call


def loop(task: Task) -> Callable:
    """Lists of tensors, the whole run in one graph: what one writes without a library."""
    torch, known = task.backend.xp, setting(task, task.backend.array)

    def call():
        (hyper,), w, v = (
            leaves([known.hyper]),
            leaves(known.start),
            [torch.zeros_like(block) for block in known.start],
        )
        rates, penalties = taught(torch, hyper, len(w))
        for t in range(task.steps):
            gradient = torch.autograd.grad(
                penalised(torch, w, penalties, *known.rows(t)), w, create_graph=True
            )
            w, v = moved(w, v, gradient, rates[t])
        return torch.autograd.grad(loss(torch, w, *known.judged()), hyper)[0]

    return call


def stored_reverse(task: Task) -> Callable:
    """Every state is kept, without a graph, and each step is taken once more, with one, on the way
    back: `reverse` of hypertorch.
    """
    torch, known = task.backend.xp, setting(task, task.backend.array)
    blocks = len(known.start)

    def step(state, hyper, t, graph):
        rates, penalties = taught(torch, hyper, blocks)
        w, v = state[:blocks], state[blocks:]
        gradient = torch.autograd.grad(
            penalised(torch, w, penalties, *known.rows(t)), w, create_graph=graph
        )
        return sum(moved(w, v, gradient, rates[t]), [])

    def call():
        (hyper,), states = (
            leaves([known.hyper]),
            [leaves([*known.start, *(0 * block for block in known.start)])],
        )
        for t in range(task.steps):
            states.append(leaves(step(states[-1], hyper, t, False)))
        final = states.pop()[:blocks]
        adjoint, total = (
            [
                *torch.autograd.grad(loss(torch, final, *known.judged()), final),
                *map(torch.zeros_like, final),
            ],
            0,
        )
        for t in reversed(range(task.steps)):
            before = states.pop()
            *adjoint, part = torch.autograd.grad(
                step(before, hyper, t, True), [*before, hyper], adjoint
            )
            total = total + part
        return total

    return call


# ---- libraries


def higher_loop(task: Task) -> Callable:
    """higher's way: a module and an optimiser of torch, one parameter group per block, whose rates
    each step overrides.
    """
    import higher

    torch, known = task.backend.xp, setting(task, task.backend.array, transposed=True)
    model = module(task)
    for parameter, block in zip(model.parameters(), known.start, strict=True):
        parameter.data = block
    optimiser = torch.optim.SGD(
        [{"params": [p]} for p in model.parameters()], lr=1.0, momentum=DECAY, dampening=DECAY
    )
    optimiser.state.update(
        {p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()}
    )  # else the first step is not damped

    def call():
        (hyper,) = leaves([known.hyper])
        rates, penalties = taught(torch, hyper, len(known.start))
        with higher.innerloop_ctx(model, optimiser) as (net, steps):
            for t in range(task.steps):
                x, y = known.rows(t)
                squares = sum(
                    p * (w * w).sum() for p, w in zip(penalties, net.parameters(), strict=True)
                )
                steps.step(
                    cross_entropy(torch.log_softmax(net(x), -1), y) + squares,
                    override={"lr": list(rates[t])},
                )
            x, y = known.judged()
            return torch.autograd.grad(cross_entropy(torch.log_softmax(net(x), -1), y), hyper)[0]

    return call


def torchopt_loop(task: Task) -> Callable:
    """TorchOpt's `FuncOptimizer`, with a gradient transformation of one's own: those it has know
    one rate for all blocks.
    """
    import torchopt

    torch, known = task.backend.xp, setting(task, task.backend.array)

    def call():
        (hyper,), w = leaves([known.hyper]), tuple(leaves(known.start))
        rates, penalties = taught(torch, hyper, len(w))

        def update(gradient, state, *, params=None, inplace=True):
            t, velocity = state
            steps, velocity = moved([0] * len(velocity), velocity, gradient, rates[t])
            return tuple(steps), (t + 1, velocity)

        rule = torchopt.base.GradientTransformation(
            lambda params: (0, [torch.zeros_like(p) for p in params]), update
        )
        optimiser = torchopt.FuncOptimizer(rule)
        for t in range(task.steps):
            w = optimiser.step(penalised(torch, list(w), penalties, *known.rows(t)), w)
        return torch.autograd.grad(loss(torch, list(w), *known.judged()), hyper)[0]

    return call


def with_jax() -> SimpleNamespace:
    """jax on one core, in double precision where asked for; `lib` has its functions by the names
    that torch has.
    """
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    return SimpleNamespace(
        jax=jax,
        lib=SimpleNamespace(exp=jax.numpy.exp, tanh=jax.numpy.tanh, log_softmax=jax.nn.log_softmax),
    )


def ahead(jax, f: Callable, *args) -> Callable:
    """A call of f(*args), compiled now."""
    compiled = jax.jit(f).lower(*args).compile()
    return lambda: compiled(*args).block_until_ready()


def scan(task: Task, stretch: Callable | None = None) -> Callable:
    """jax.grad of a lax.scan, compiled; `stretch`: T -> of how many steps, a divisor of T,
    jax.checkpoint keeps no more than the start.
    """
    use = with_jax()
    jax, lib, known = use.jax, use.lib, setting(task, use.jax.numpy.asarray)

    def judged(hyper, known):
        rates, penalties = taught(lib, hyper, len(known.start))

        def step(state, t):
            gradient = jax.grad(lambda w: penalised(lib, w, penalties, *known.rows(t)))(state[0])
            return moved(*state, gradient, rates[t]), None

        steps, body, state = (
            jax.numpy.arange(task.steps),
            step,
            (known.start, [0 * block for block in known.start]),
        )
        if stretch:
            steps = steps.reshape((-1, stretch(task.steps)))
            body = jax.checkpoint(
                lambda state, some: jax.lax.scan(step, state, some), prevent_cse=False
            )
        (w, _), _ = jax.lax.scan(body, state, steps)
        return loss(lib, w, *known.judged())

    return ahead(jax, jax.grad(judged), known.hyper, known)


def root(steps: int) -> int:
    """The largest divisor of `steps` up to its square root."""
    return max(s for s in range(1, math.isqrt(steps) + 1) if steps % s == 0)
