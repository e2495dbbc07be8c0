"""What the race cannot ask of a CPU: the buffer against a GPU's memory, a large net undone against
stored, a run that could not be stored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from hgcore.backend_torch import Torch
from hgcore.benchmarks.peers import posed
from hgcore.benchmarks.peers_task import DECAY, Task
from hgcore.fixed_point import ReversalBuffer, ReversalError, as_decay
from hgcore.hypergradient import Reverse
from hgcore.reversible import Reversible
from hgcore.suite.claims import Undecided


class OnCard(NamedTuple):
    """Numbers, or why there are none.

    share: of the bandwidth of a copy, that multiplying with the buffer uses. slower: seconds of a
        reversible hypergradient over those of a stored one. larger: bytes of the longest trajectory
        that was undone, had it been stored, over those of the card.
    """

    share: object
    slower: object
    larger: object


def on_card(task: Task, count: int = 10_000_000) -> OnCard:
    """Measured on the device of `task`, whose steps are for `slower`; `count` coordinates for the
    buffer.
    """
    cuda = Torch().xp.cuda
    if not cuda.is_available():
        return OnCard(*[Undecided("torch sees no GPU")] * 3)
    free, total = cuda.mem_get_info()
    fits = task.state * (task.steps + 1) < 0.8 * free
    return OnCard(
        share(task.backend, count),
        slower(task)
        if fits
        else Undecided(
            f"{task.steps + 1} states of {task.state:.3g} bytes are more than the card has free"
        ),
        undone(replace(task, steps=total // task.state + 1)) / total,
    )


def share(backend: Torch, count: int, times: int = 20) -> float:
    """The bytes a second of multiplying `count` numbers by 0.9, over those of copying them."""
    xp = backend.xp
    values, there = (
        xp.arange(count, device=backend.device),
        xp.empty(count, device=backend.device, dtype=xp.int64),
    )
    buffer, decay = ReversalBuffer(), as_decay(DECAY)
    copying = seconds(backend, lambda: there.copy_(values), times)
    multiplying = seconds(backend, lambda: buffer.multiply(values, decay), times)
    return (
        2 * copying / multiplying
    )  # values and buffer, read and written, where a copy reads and writes values only


def slower(task: Task, times: int = 3) -> float:
    """Seconds of a reversible hypergradient over those of a stored one, in turn."""
    problem, hyper = posed(task, "known")
    spent = {solver: [] for solver in (Reverse(), Reverse(Reversible()))}
    for solver in spent:
        solver(replace(problem, steps=min(2, task.steps)), hyper)  # loads and compiles
    for _ in range(times):
        for solver, each in spent.items():
            each.append(seconds(task.backend, lambda solver=solver: solver(problem, hyper), 1))
    plain, exact = map(statistics.median, spent.values())
    return exact / plain


def undone(task: Task) -> int:
    """Bytes of the trajectory of `task`, all of whose steps were undone, to the last bit, without
    storing it; 0 if they could not be.
    """
    try:
        Reverse(Reversible())(*posed(task, "known"))
    except (ReversalError, task.backend.xp.OutOfMemoryError):
        return 0
    return task.state * (task.steps + 1)


def seconds(backend: Torch, call: Callable, times: int) -> float:
    """On the clock, of one of `times` calls in a row after a first, with all that they started on a
    device.
    """
    wait = backend.xp.cuda.synchronize if backend.device != "cpu" else lambda: None
    if times > 1:
        call()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times
