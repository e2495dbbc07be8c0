"""A race: exact hypergradients of one task by hgcore, plain torch and other libraries."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import threadpoolctl

from hgcore.backend_torch import Torch
from hgcore.benchmarks import baselines
from hgcore.benchmarks.baselines import DECAY, Task, split_hyper
from hgcore.hypergradient import Reverse
from hgcore.nets import DenseNet, cross_entropy, functional
from hgcore.optimizers import Momentum
from hgcore.problem import Problem
from hgcore.reversible import Reversible
from hgcore.suite import meter
from hgcore.trajectory import Checkpointed, Stored


def as_problem(task: Task, module: bool = False) -> tuple[Problem, object]:
    """Return (the task as a Problem, hyper).

    The inner loss is a fast.CrossEntropy over hg.nets; module: a plain function of a torch module.
    """
    from hgcore.fast import CrossEntropy

    backend, net = task.backend, DenseNet(task.sizes)
    xp, layout, arrays = backend.xp, net.layout, task.arrays(backend.array, transposed=module)
    if module:
        _, function = functional(baselines.torch_module(task))
        net, layout = (lambda w, x: xp.log_softmax(function(w, x), -1)), function.layout

    def rate(hyper, t):
        return layout.expand(xp.exp(split_hyper(hyper, len(layout))[0][t]))

    def penalties(hyper):
        return xp.exp(split_hyper(hyper, len(layout))[1])

    def plain(w, hyper, t):
        x, y = arrays.batch(t)
        return cross_entropy(net(w, x), y) + penalties(hyper) @ layout.sums(w * w)

    def outer(w, hyper):
        x, y = arrays.outer()
        return cross_entropy(net(w, x), y)

    inner = plain if module else CrossEntropy(net, arrays.batch, penalties)
    start = layout.join(dict(zip(layout.shapes, arrays.start, strict=True)))
    return Problem(backend, inner, outer, Momentum(rate, DECAY), start, task.steps), arrays.hyper


def ours(task: Task, trajectory, module: bool = False) -> Callable:
    """Return a call of Reverse(trajectory) on the task."""
    problem, hyper = as_problem(task, module)
    solver = Reverse(trajectory)
    solver(replace(problem, steps=min(2, task.steps)), hyper)  # loads and compiles
    return lambda: solver(problem, hyper).grad


THEIRS: dict[str, Callable] = {
    "plain torch loop": baselines.plain_loop,
    "higher": baselines.higher_loop,
    "TorchOpt": baselines.torchopt_loop,
    "JAX, checkpoint every step": partial(baselines.jax_scan, every=lambda steps: 1),
    "JAX, checkpoint every root of T": partial(baselines.jax_scan, every=baselines.root),
}
OURS: dict[str, Callable] = {
    "Stored": partial(ours, trajectory=Stored()),
    "Checkpointed": partial(ours, trajectory=Checkpointed()),
    "Reversible": partial(ours, trajectory=Reversible()),
    "Reversible, any module": partial(ours, trajectory=Reversible(), module=True),
}
LIBRARIES = {"higher": "higher", "TorchOpt": "torchopt", "JAX": "jax"}


def installed_entrants(compiled: bool = True) -> dict[str, Callable]:
    """Return the entrants whose library is installed; those of JAX only if `compiled`."""
    absent = [name for name, library in LIBRARIES.items() if not find_spec(library)]
    absent += [] if compiled else ["JAX"]
    return {
        name: entrant
        for name, entrant in (THEIRS | OURS).items()
        if name.split(",")[0] not in absent
    }


def blas_kernels() -> str:
    """Return for which processor the BLAS of NumPy has its kernels, such as Haswell, SkylakeX."""
    libraries = [x for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]
    numpys = min(libraries, key=lambda x: "numpy" not in x["filepath"], default={})
    return numpys.get("architecture") or "unknown"


def machine_kind() -> str:
    """Return "AVX-512" or "no AVX-512": by which kernels NumPy multiplies matrices."""
    wide = blas_kernels().lower() in ("skylakex", "cooperlake", "sapphirerapids")
    return "AVX-512" if wide else "no AVX-512"


class Race(NamedTuple):
    """By entrant: CPU seconds of each round, and the hypergradient (m,)."""

    seconds: dict[str, list[float]]
    grads: dict[str, np.ndarray]

    def times(self, unit: str) -> dict[str, float]:
        """Return {entrant: median seconds over those of `unit`}."""
        medians = {name: float(np.median(seconds)) for name, seconds in self.seconds.items()}
        return {name: median / medians[unit] for name, median in medians.items()}


def race(entrants: Mapping[str, Callable], task: Task, rounds: int) -> Race:
    """Return the race of all entrants in turn, in this process, on one core."""
    one_thread()
    calls = {name: entrant(task) for name, entrant in entrants.items()}
    grads = {name: np.asarray(call(), float) for name, call in calls.items()}
    return Race(meter.race(calls, rounds), grads)


def one_thread() -> None:
    """Hold torch and NumPy's products to one thread: otherwise their schedulers race."""
    Torch().xp.set_num_threads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")


def max_error(grads: Mapping[str, np.ndarray], true) -> float:
    """Return the largest difference from `true` (m,) over its largest entry."""
    return max(float(np.abs(grad - true).max() / np.abs(true).max()) for grad in grads.values())


def peak_states(name: str, task: Task) -> float:
    """Return by how many states a new process grows for one hypergradient."""
    call, first = (partial(f, name, task) for f in (run_once, prepared))
    return meter.fresh(call, first).peak / task.state_nbytes


@cache
def prepared(name: str, task: Task) -> Callable:
    """Return the call of an entrant, after all that it needs is loaded and compiled."""
    one_thread()
    baselines.plain_loop(replace(task, steps=2))()  # torch loads parts of itself at first use
    return (THEIRS | OURS)[name](task)


def run_once(name: str, task: Task) -> None:
    """Compute one hypergradient."""
    prepared(name, task)()
