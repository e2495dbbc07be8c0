"""Exact hypergradients of one task by plain torch, by other libraries and by hgcore: whose is
faster, whose keeps less.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import threadpoolctl

from hgcore.backend_torch import Torch
from hgcore.benchmarks.peers_task import DECAY, Task, module, setting
from hgcore.benchmarks.peers_theirs import (
    higher_loop,
    loop,
    root,
    scan,
    stored_reverse,
    torchopt_loop,
    training,
)
from hgcore.hypergradient import Reverse
from hgcore.layout import Layout
from hgcore.nets import cross_entropy, functional
from hgcore.optimizers import Momentum
from hgcore.problem import Problem
from hgcore.reversible import ExactState, Reversible
from hgcore.suite import meter
from hgcore.suite.session import installed
from hgcore.trajectory import Checkpointed, Stored

# ---- hgcore


OF_A_MODULE = ("module", "penalised module", "compiled")


def network(task: Task, form: str) -> tuple[Callable, Layout]:
    """(net: weights (n,), inputs -> log-probabilities; names of its blocks): of hg.nets, or any
    module if `form` says so.
    """
    if form not in OF_A_MODULE:
        return task.net, task.net.layout
    xp, (_, function) = task.backend.xp, functional(module(task))
    return lambda w, x: xp.log_softmax(function(w, x), -1), function.layout


def posed(
    task: Task,
    form: str,
    hyper=None,
    rate: Callable | None = None,
    strength: Callable | None = None,
) -> tuple[Problem, object]:
    """(the task as a problem, hyper).

    `form`: as CrossEntropy ("known"), or a function of one's own over hg.nets, with the penalty in
    it ("closure") or Penalised ("penalised"), or over any module, likewise ("module", "penalised
    module"), or the former "compiled".

    rate: (hyper, t), and strength: hyper -> one number a block, where they are not what the task
        says.
    """
    from hgcore.fast import Compiled, CrossEntropy, Penalized

    backend, (net, layout) = task.backend, network(task, form)
    xp, split, known = (
        backend.xp,
        task.hypers.split,
        setting(task, backend.array, transposed=form in OF_A_MODULE),
    )
    rate = rate or (lambda hyper, t: xp.exp(split(hyper)["rate"][t]))
    strength = strength or (lambda hyper: xp.exp(split(hyper)["penalty"]))
    start = layout.join(dict(zip(layout.shapes, known.start, strict=True)))

    def plain(w, hyper, t):
        x, y = known.rows(t)
        return cross_entropy(net(w, x), y)

    def whole(w, hyper, t):
        return plain(w, hyper, t) + strength(hyper) @ layout.sums(w * w)

    def outer(w, hyper):
        x, y = known.judged()
        return cross_entropy(net(w, x), y)

    inner = {"known": CrossEntropy(net, known.rows, strength), "compiled": Compiled(whole)}.get(
        form
    )
    inner = inner or (Penalized(plain, layout, strength) if "penalised" in form else whole)
    dynamics = Momentum(rate=lambda hyper, t: layout.expand(rate(hyper, t)), decay=DECAY)
    return Problem(
        backend, inner, outer, dynamics, lambda hyper: start, task.steps
    ), known.hyper if hyper is None else hyper


def ours(
    task: Task, form: str = "known", strategy: type = Reversible, graphs: float = 0
) -> Callable:
    """Reverse on a trajectory that may keep the graphs of so many steps."""
    problem, hyper = posed(task, form)
    solver = Reverse(strategy(graphs=min(graphs, task.steps)) if graphs else strategy())
    solver(replace(problem, steps=min(2, task.steps)), hyper)  # compiles what is compiled
    return lambda: solver(problem, hyper).grad


# ---- parts of a reversible run


def products(task: Task) -> Callable:
    """The matrix products of an exact reversal and nothing else, by NumPy: of each layer 12 a step,
    of the first, whose inputs stay, 6.
    """
    rng = np.random.default_rng(0)
    shapes = [(task.batch, a, b) for a, b in zip(task.sizes[:-1], task.sizes[1:], strict=True)]
    layers = [
        [rng.standard_normal(shape).astype(task.dtype) for shape in ((rows, a), (a, b), (rows, b))]
        for rows, a, b in shapes
    ]
    into = [[np.empty_like(part) for part in layer] for layer in layers]

    def call():
        for _ in range(task.steps):
            for i, ((h, w, felt), (to_h, to_w, to_felt)) in enumerate(
                zip(layers, into, strict=True)
            ):
                for _ in range(4 if i else 3):
                    np.matmul(h, w, out=to_felt)
                    np.matmul(h.T, felt, out=to_w)
                    if i:
                        np.matmul(felt, w.T, out=to_h)

    return call


def arithmetic(task: Task) -> Callable:
    """The exact steps of a reversible run, forth and back, and nothing else."""
    backend, n = task.backend, task.net.layout.size
    view, optimizer = backend.host_view, Momentum(0.05, DECAY)
    start, gradient = view(backend.array(np.full(n, 0.1))), view(backend.array(np.full(n, 1e-3)))
    c, smallest = SimpleNamespace(t=0, rate=0.05, decay=DECAY), {"decay": DECAY}

    def call():
        exact = ExactState(optimizer, (start, 0 * start))
        for _ in range(task.steps):
            exact.step(gradient, c, smallest)
        for _ in range(task.steps):
            exact.undo_weights(c)
            exact.undo_slots(gradient, c, smallest)

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
    "Reverse(Stored())": functools.partial(ours, strategy=Stored),
    "Reverse(Stored()), graphs kept": functools.partial(ours, strategy=Stored, graphs=math.inf),
    "Reverse(Checkpointed())": functools.partial(ours, strategy=Checkpointed),
    "Reverse(Reversible())": ours,
    "Reverse(Reversible()), 30 graphs kept": functools.partial(ours, graphs=30),
    "Reverse(Reversible()), closure": functools.partial(ours, form="closure"),
    "Reverse(Reversible()), closure, Penalised": functools.partial(ours, form="penalised"),
    "Reverse(Reversible()), any module": functools.partial(ours, form="module"),
    "Reverse(Reversible()), any module, Penalised": functools.partial(
        ours, form="penalised module"
    ),
    "Reverse(Reversible()), module compiled": functools.partial(ours, form="compiled"),
}
PARTS = {
    "plain training": training,
    "matrix products alone": products,
    "exact arithmetic alone": arithmetic,
}
LIBRARIES = {"higher": "higher", "TorchOpt": "torchopt", "jax": "jax"}


def versions() -> dict[str, str]:
    """{peer: version, or "absent"}"""
    return {name: installed(library) for name, library in LIBRARIES.items()}


def kernels() -> str:
    """Whose matrix products NumPy has, and for which processor.

    OpenBLAS takes the best for this one unless OPENBLAS_CORETYPE names another.
    """
    libraries = [
        library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"
    ]
    numpys = min(libraries, key=lambda library: "numpy" not in library["filepath"], default={})
    return (
        " ".join(
            str(numpys[part])
            for part in ("internal_api", "version", "architecture")
            if numpys.get(part)
        )
        or "unknown"
    )


def titled(name: str) -> str:
    """An entrant's name with the version of its library."""
    first, *rest = name.split(",")
    return ",".join([f"{first} {versions()[first]}" if first in LIBRARIES else first, *rest])


def present(entrants: Mapping[str, Callable], compiled: bool = True) -> dict[str, Callable]:
    """Those of `entrants` whose library, the first word of a name, is installed, or that need none;
    without what is compiled if asked to.
    """
    needed = {name: LIBRARIES.get(name.split(",")[0], "hgcore") for name in entrants}
    return {
        name: entrant
        for name, entrant in entrants.items()
        if importlib.util.find_spec(needed[name])
        and (compiled or needed[name] != "jax" and "compiled" not in name)
    }


class Raced(NamedTuple):
    """By entrant: CPU seconds of each round, the hypergradient (m,), seconds on the clock that it
    took to prepare.
    """

    seconds: dict[str, list[float]]
    grads: dict[str, np.ndarray]
    prepared: dict[str, float]


def one_thread() -> None:
    """From here on, for torch and for NumPy's products: several threads would race the schedulers
    of the libraries.
    """
    Torch().xp.set_num_threads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")


def only_torch(backend) -> None:
    """Raise ValueError unless the race can be held."""
    if (backend.name, backend.device) != ("torch", "cpu"):
        raise ValueError(
            "the entrants are functions of torch and of jax on one core: "
            f"backend must be 'torch' on 'cpu', got {backend.name!r}"
            f" on {backend.device!r}"
        )


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
    return Raced(
        seconds,
        {name: np.asarray(grad, float) for name, grad in grads.items() if grad is not None},
        prepared,
    )


class Held(NamedTuple):
    """A race and the `kernels` that NumPy multiplied by in it."""

    kernels: str
    race: Raced


def held(processor: str, names: Sequence[str], task: Task, rounds: int) -> Held:
    """`raced`, in a process whose OpenBLAS is held to its kernels for `processor`, whatever this
    one is: "Haswell" has AVX2, no AVX-512.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=os.putenv,
        initargs=("OPENBLAS_CORETYPE", processor),
    ) as pool:
        return pool.submit(_held, tuple(names), task, rounds).result()


def _held(names: tuple, task: Task, rounds: int) -> Held:
    race = raced({name: (PEERS | OURS)[name] for name in names}, task, rounds)
    return Held(kernels(), race)


def apart(grads: Mapping[str, np.ndarray], true) -> float:
    """The largest difference from `true` (m,), over its largest entry."""
    return max(float(np.abs(grad - true).max() / np.abs(true).max()) for grad in grads.values())


@functools.cache
def _prepared(name: str, task: Task) -> Callable:
    return (PEERS | OURS)[name](task)


def ready(name: str, task: Task) -> None:
    """Load and compile all that `alone` of the same needs: the `first` of `meter.fresh`."""
    one_thread()
    for entrant in (loop, stored_reverse):  # torch loads parts of itself at first use
        entrant(replace(task, steps=2))()
    _prepared(name, task)


def alone(name: str, task: Task) -> None:
    """One hypergradient, in a process that has nothing else: the `call` of `meter.fresh`."""
    _prepared(name, task)()
