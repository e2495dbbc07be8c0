"""Exact hypergradients of one task by plain torch, by other libraries and by hgcore: whose is faster, whose keeps less.

An entrant is a function of a `Task` that prepares, compiles if it must, and returns a call: () -> hypergradient (m,). The mathematics is
written once, for torch and for jax (`lib`), on lists of the net's blocks. Libraries other than torch are imported where they are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import threadpoolctl

from hgcore import meter
from hgcore.backend import Torch, make
from hgcore.content import installed
from hgcore.dynamics import Momentum
from hgcore.layout import Layout
from hgcore.nets import Dense, cross_entropy, functional
from hgcore.objectives import Compiled, CrossEntropy
from hgcore.problem import Problem
from hgcore.reversal import ExactMomentum, ratio, round_decay
from hgcore.solvers import Reverse
from hgcore.trajectory import checkpointed, reversible, stored

DECAY, BATCHES = float(round_decay(0.9)), 8


@dataclass(frozen=True)
class Task:
    """Training a dense tanh net with momentum for T = `steps`; its hyperparameters: a log rate per step and block, a log penalty per block."""

    sizes: tuple[int, ...]
    batch: int
    steps: int
    dtype: str = "float64"

    @property
    def backend(self) -> Torch:
        return make("torch", "cpu", self.dtype)

    @property
    def net(self) -> Dense:
        return Dense(self.sizes)

    @property
    def hypers(self) -> Layout:
        blocks = len(self.net.layout)
        return Layout({"rate": (self.steps, blocks), "penalty": (blocks,)})

    @property
    def state(self) -> int:
        """Bytes of weights and velocity."""
        return 2 * self.net.layout.size * np.dtype(self.dtype).itemsize


class Setting(NamedTuple):
    """What a task is about, as a library's arrays: `inputs` (batches, batch, features), `labels`, blocks to start from, hyper (m,)."""

    inputs: object
    labels: object
    start: list
    hyper: object

    def rows(self, t):
        """The minibatch of step t."""
        return self.inputs[t % BATCHES], self.labels[t % BATCHES]

    def judged(self):
        """What the outer objective looks at: half of all examples."""
        return tuple(part[: BATCHES // 2].reshape((-1, part.shape[-1])) for part in (self.inputs, self.labels))


def setting(task: Task, array: Callable, transposed: bool = False) -> Setting:
    """Noise, which costs what real numbers do, by `array` from NumPy's; `transposed`: matrices (outputs, inputs), as torch's modules have them."""
    rng, layout = np.random.default_rng(0), task.net.layout
    inputs = rng.standard_normal((BATCHES, task.batch, task.sizes[0]))
    labels = np.eye(task.sizes[-1])[rng.integers(task.sizes[-1], size=(BATCHES, task.batch))]
    start = layout.split(0.05 * rng.standard_normal(layout.size)).values()
    rates, penalties = np.full(task.hypers.shapes["rate"], math.log(0.05)), np.full(len(layout), -6.0)
    hyper = task.hypers.join({"rate": rates, "penalty": penalties})
    blocks = [block.T.copy() if transposed else block for block in start]
    inputs, labels, hyper, *blocks = (array(part.astype(task.dtype)) for part in (inputs, labels, hyper, *blocks))
    return Setting(inputs, labels, blocks, hyper)


# ---- the mathematics, of torch and of jax alike


def loss(lib, w: list, x, y):
    """Mean cross-entropy of the net."""
    for matrix, bias in zip(w[:-2:2], w[1:-2:2], strict=True):
        x = lib.tanh(x @ matrix + bias)
    return -(lib.log_softmax(x @ w[-2] + w[-1], -1) * y).sum() / len(y)


def penalised(lib, w: list, penalties, x, y):
    """`loss` and a penalty on the squares of each block."""
    return loss(lib, w, x, y) + sum(p * (block * block).sum() for p, block in zip(penalties, w, strict=True))


def taught(lib, hyper, blocks: int) -> tuple:
    """(rates (T, blocks), penalties (blocks,))"""
    return lib.exp(hyper[:-blocks]).reshape((-1, blocks)), lib.exp(hyper[-blocks:])


def moved(w: list, v: list, gradient, rates) -> tuple[list, list]:
    """(weights, velocity) after a step."""
    v = [DECAY * a - (1 - DECAY) * b for a, b in zip(v, gradient, strict=True)]
    return [a + rate * b for a, rate, b in zip(w, rates, v, strict=True)], v


def leaves(blocks) -> list:
    """Tensors cut off from their past, to be differentiated by."""
    return [block.detach().requires_grad_() for block in blocks]


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
        (hyper,), w, v = leaves([known.hyper]), leaves(known.start), [torch.zeros_like(block) for block in known.start]
        rates, penalties = taught(torch, hyper, len(w))
        for t in range(task.steps):
            gradient = torch.autograd.grad(penalised(torch, w, penalties, *known.rows(t)), w, create_graph=True)
            w, v = moved(w, v, gradient, rates[t])
        return torch.autograd.grad(loss(torch, w, *known.judged()), hyper)[0]

    return call


def stored_reverse(task: Task) -> Callable:
    """Every state is kept, without a graph, and each step is taken once more, with one, on the way back: `reverse` of hypertorch."""
    torch, known = task.backend.xp, setting(task, task.backend.array)
    blocks = len(known.start)

    def step(state, hyper, t, graph):
        rates, penalties = taught(torch, hyper, blocks)
        w, v = state[:blocks], state[blocks:]
        gradient = torch.autograd.grad(penalised(torch, w, penalties, *known.rows(t)), w, create_graph=graph)
        return sum(moved(w, v, gradient, rates[t]), [])

    def call():
        (hyper,), states = leaves([known.hyper]), [leaves([*known.start, *(0 * block for block in known.start)])]
        for t in range(task.steps):
            states.append(leaves(step(states[-1], hyper, t, False)))
        final = states.pop()[:blocks]
        adjoint, total = [*torch.autograd.grad(loss(torch, final, *known.judged()), final), *map(torch.zeros_like, final)], 0
        for t in reversed(range(task.steps)):
            before = states.pop()
            *adjoint, part = torch.autograd.grad(step(before, hyper, t, True), [*before, hyper], adjoint)
            total = total + part
        return total

    return call


# ---- libraries


def higher_loop(task: Task) -> Callable:
    """higher's way: a module and an optimiser of torch, one parameter group per block, whose rates each step overrides."""
    import higher

    torch, known = task.backend.xp, setting(task, task.backend.array, transposed=True)
    model = module(task)
    for parameter, block in zip(model.parameters(), known.start, strict=True):
        parameter.data = block
    optimiser = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1.0, momentum=DECAY, dampening=DECAY)
    optimiser.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in model.parameters()})  # else the first step is not damped

    def call():
        (hyper,) = leaves([known.hyper])
        rates, penalties = taught(torch, hyper, len(known.start))
        with higher.innerloop_ctx(model, optimiser) as (net, steps):
            for t in range(task.steps):
                x, y = known.rows(t)
                squares = sum(p * (w * w).sum() for p, w in zip(penalties, net.parameters(), strict=True))
                steps.step(cross_entropy(torch.log_softmax(net(x), -1), y) + squares, override={"lr": list(rates[t])})
            x, y = known.judged()
            return torch.autograd.grad(cross_entropy(torch.log_softmax(net(x), -1), y), hyper)[0]

    return call


def torchopt_loop(task: Task) -> Callable:
    """TorchOpt's `FuncOptimizer`, with a gradient transformation of one's own: those it has know one rate for all blocks."""
    import torchopt

    torch, known = task.backend.xp, setting(task, task.backend.array)

    def call():
        (hyper,), w = leaves([known.hyper]), tuple(leaves(known.start))
        rates, penalties = taught(torch, hyper, len(w))

        def update(gradient, state, *, params=None, inplace=True):
            t, velocity = state
            steps, velocity = moved([0] * len(velocity), velocity, gradient, rates[t])
            return tuple(steps), (t + 1, velocity)

        rule = torchopt.base.GradientTransformation(lambda params: (0, [torch.zeros_like(p) for p in params]), update)
        optimiser = torchopt.FuncOptimizer(rule)
        for t in range(task.steps):
            w = optimiser.step(penalised(torch, list(w), penalties, *known.rows(t)), w)
        return torch.autograd.grad(loss(torch, list(w), *known.judged()), hyper)[0]

    return call


def with_jax() -> SimpleNamespace:
    """jax on one core, in double precision where asked for; `lib` has its functions by the names that torch has."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    return SimpleNamespace(jax=jax, lib=SimpleNamespace(exp=jax.numpy.exp, tanh=jax.numpy.tanh, log_softmax=jax.nn.log_softmax))


def ahead(jax, f: Callable, *args) -> Callable:
    """A call of f(*args), compiled now."""
    compiled = jax.jit(f).lower(*args).compile()
    return lambda: compiled(*args).block_until_ready()


def scan(task: Task, stretch: Callable | None = None) -> Callable:
    """jax.grad of a lax.scan, compiled; `stretch`: T -> of how many steps, a divisor of T, jax.checkpoint keeps no more than the start."""
    use = with_jax()
    jax, lib, known = use.jax, use.lib, setting(task, use.jax.numpy.asarray)

    def judged(hyper, known):
        rates, penalties = taught(lib, hyper, len(known.start))

        def step(state, t):
            gradient = jax.grad(lambda w: penalised(lib, w, penalties, *known.rows(t)))(state[0])
            return moved(*state, gradient, rates[t]), None

        steps, body, state = jax.numpy.arange(task.steps), step, (known.start, [0 * block for block in known.start])
        if stretch:
            steps = steps.reshape((-1, stretch(task.steps)))
            body = jax.checkpoint(lambda state, some: jax.lax.scan(step, state, some), prevent_cse=False)
        (w, _), _ = jax.lax.scan(body, state, steps)
        return loss(lib, w, *known.judged())

    return ahead(jax, jax.grad(judged), known.hyper, known)


def root(steps: int) -> int:
    """The largest divisor of `steps` up to its square root."""
    return max(s for s in range(1, math.isqrt(steps) + 1) if steps % s == 0)


# ---- hgcore


def module(task: Task):
    """The net as a torch.nn.Module."""
    nn = task.backend.xp.nn
    layers = [layer for a, b in zip(task.sizes[:-1], task.sizes[1:], strict=True) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).to(getattr(task.backend.xp, task.dtype))


def network(task: Task, form: str) -> tuple[Callable, Layout]:
    """(net: weights (n,), inputs -> log-probabilities; names of its blocks): of hg.nets, or any module if `form` is "module" or "compiled"."""
    if form in ("closure", "known"):
        return task.net, task.net.layout
    xp, any_module = task.backend.xp, module(task)
    function, layout = functional(any_module)[1], Layout({name: tuple(p.shape) for name, p in any_module.named_parameters()})
    return lambda w, x: xp.log_softmax(function(w, x), -1), layout


def posed(task: Task, form: str, hyper=None, rate: Callable | None = None, strength: Callable | None = None) -> tuple[Problem, object]:
    """(the task as a problem, hyper). `form`: "closure" over hg.nets, "known" as CrossEntropy, any "module", and that "compiled".

    rate: (hyper, t), and strength: hyper -> one number a block, where they are not what the task says.
    """
    backend, (net, layout) = task.backend, network(task, form)
    xp, split, known = backend.xp, task.hypers.split, setting(task, backend.array, transposed=form in ("module", "compiled"))
    rate = rate or (lambda hyper, t: xp.exp(split(hyper)["rate"][t]))
    strength = strength or (lambda hyper: xp.exp(split(hyper)["penalty"]))
    start = layout.join(dict(zip(layout.shapes, known.start, strict=True)))

    def inner(w, hyper, t):
        x, y = known.rows(t)
        return cross_entropy(net(w, x), y) + strength(hyper) @ layout.sums(w * w)

    def outer(w, hyper):
        x, y = known.judged()
        return cross_entropy(net(w, x), y)

    wrapped = {"known": lambda _: CrossEntropy(net, known.rows, strength), "compiled": Compiled}.get(form, lambda f: f)
    dynamics = Momentum(rate=lambda hyper, t: layout.expand(rate(hyper, t)), decay=lambda hyper, t: DECAY)
    return Problem(backend, wrapped(inner), outer, dynamics, lambda hyper: start, task.steps), known.hyper if hyper is None else hyper


def ours(task: Task, form: str = "known", remember: Callable = reversible, graphs: float = 0) -> Callable:
    """`Reverse(remember)`, which may keep the graphs of so many steps."""
    problem, hyper = posed(task, form)
    solver = Reverse(functools.partial(remember, graphs=min(graphs, task.steps)) if graphs else remember)
    solver(replace(problem, steps=min(2, task.steps)), hyper)  # compiles what is compiled
    return lambda: solver(problem, hyper).grad


# ---- parts of a reversible run


def products(task: Task) -> Callable:
    """The matrix products of an exact reversal and nothing else, by NumPy: of each layer 12 a step, of the first, whose inputs stay, 6."""
    rng = np.random.default_rng(0)
    shapes = [(task.batch, a, b) for a, b in zip(task.sizes[:-1], task.sizes[1:], strict=True)]
    layers = [[rng.standard_normal(shape).astype(task.dtype) for shape in ((rows, a), (a, b), (rows, b))] for rows, a, b in shapes]
    into = [[np.empty_like(part) for part in layer] for layer in layers]

    def call():
        for _ in range(task.steps):
            for i, ((h, w, felt), (to_h, to_w, to_felt)) in enumerate(zip(layers, into, strict=True)):
                for _ in range(4 if i else 3):
                    np.matmul(h, w, out=to_felt)
                    np.matmul(h.T, felt, out=to_w)
                    if i:
                        np.matmul(felt, w.T, out=to_h)

    return call


def arithmetic(task: Task) -> Callable:
    """The exact steps of a reversible run, forth and back, and nothing else."""
    backend, n = task.backend, task.net.layout.size
    start, gradient, rate = backend.array(np.full(n, 0.1)), backend.array(np.full(n, 1e-3)), backend.array(np.full(n, 0.05))
    decay, gain = ratio(DECAY), -(1 - DECAY)

    def call():
        exact = ExactMomentum(backend.exact(start), backend.exact(0 * start))
        for _ in range(task.steps):
            exact.forth(backend.exact(gradient), decay, gain, backend.exact(rate))
            backend.array(exact.weights)
        for _ in range(task.steps):
            exact.back_position(backend.exact(rate))
            backend.array(exact.weights)
            exact.back_velocity(backend.exact(gradient), decay, gain)
            backend.array(exact.speed)

    return call


# ---- the race


PEERS = {
    "plain torch loop": loop,
    "every state stored, as hypertorch": stored_reverse,
    "higher": higher_loop,
    "TorchOpt": torchopt_loop,
    "jax, scan": scan,
    "jax, checkpoint every step": functools.partial(scan, stretch=lambda steps: 1),
    "jax, checkpoint every root of T": functools.partial(scan, stretch=root),
}
OURS = {
    "Reverse(stored)": functools.partial(ours, remember=stored),
    "Reverse(stored), graphs kept": functools.partial(ours, remember=stored, graphs=math.inf),
    "Reverse(checkpointed)": functools.partial(ours, remember=checkpointed),
    "Reverse(reversible)": ours,
    "Reverse(reversible), 30 graphs kept": functools.partial(ours, graphs=30),
    "Reverse(reversible), closure": functools.partial(ours, form="closure"),
    "Reverse(reversible), any module": functools.partial(ours, form="module"),
    "Reverse(reversible), module compiled": functools.partial(ours, form="compiled"),
}
PARTS = {"plain training": training, "matrix products alone": products, "exact arithmetic alone": arithmetic}
LIBRARIES = {"higher": "higher", "TorchOpt": "torchopt", "jax": "jax"}


def versions() -> dict[str, str]:
    """{peer: version, or "absent"}"""
    return {name: installed(library) for name, library in LIBRARIES.items()}


def titled(name: str) -> str:
    """An entrant's name with the version of its library."""
    first, *rest = name.split(",")
    return ",".join([f"{first} {versions()[first]}" if first in LIBRARIES else first, *rest])


def present(entrants: Mapping[str, Callable], compiled: bool = True) -> dict[str, Callable]:
    """Those of `entrants` whose library, the first word of a name, is installed, or that need none; without what is compiled if asked to."""
    needed = {name: LIBRARIES.get(name.split(",")[0], "hgcore") for name in entrants}
    return {name: entrant for name, entrant in entrants.items() if importlib.util.find_spec(needed[name])
            and (compiled or needed[name] != "jax" and "compiled" not in name)}


class Raced(NamedTuple):
    """By entrant: CPU seconds of each round, the hypergradient (m,), seconds on the clock that it took to prepare."""

    seconds: dict[str, list[float]]
    grads: dict[str, np.ndarray]
    prepared: dict[str, float]


def one_thread() -> None:
    """From here on, for torch and for NumPy's products: several threads would race the schedulers of the libraries."""
    Torch().xp.set_num_threads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")


def only_torch(backend) -> None:
    """Raise ValueError unless the race can be held."""
    if (backend.name, backend.device) != ("torch", "cpu"):
        raise ValueError(f"the entrants are functions of torch and of jax on one core: backend must be 'torch' on 'cpu', got {backend.name!r}"
                         f" on {backend.device!r}")


def raced(entrants: Mapping[str, Callable], task: Task, rounds: int) -> Raced:
    """All in turn, in this process and on one core, as often as `rounds`."""
    one_thread()
    grads, prepared, calls = {}, {}, {}
    for name, entrant in entrants.items():
        start = time.perf_counter()
        call = entrant(task)
        prepared[name] = time.perf_counter() - start
        calls[name] = lambda name=name, call=call: grads.update({name: call()})
    seconds = meter.race(calls, rounds)
    return Raced(seconds, {name: np.asarray(grad, float) for name, grad in grads.items() if grad is not None}, prepared)


def apart(grads: Mapping[str, np.ndarray], true) -> float:
    """The largest difference from `true` (m,), over its largest entry."""
    return max(float(np.abs(grad - true).max() / np.abs(true).max()) for grad in grads.values())


@functools.cache
def _prepared(name: str, task: Task) -> Callable:
    return (PEERS | OURS)[name](task)


def ready(name: str, task: Task) -> None:
    """Load and compile all that `alone` of the same needs, and give back what that left free: the `first` of `meter.fresh`."""
    one_thread()
    for entrant in (loop, stored_reverse):  # torch loads parts of itself at first use
        entrant(replace(task, steps=2))()
    _prepared(name, task)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def alone(name: str, task: Task) -> None:
    """One hypergradient, in a process that has nothing else: the `call` of `meter.fresh`."""
    _prepared(name, task)()
