"""Seconds and peak bytes of one call, and fair races between several."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """seconds: of this process's CPUs; peak: growth of its resident memory at the highest moment,
    in bytes.
    """

    seconds: float
    peak: int


def cost(call: Callable) -> Cost:
    """The cost of call().

    On Linux memory is that of the call; elsewhere only a fresh process tells it (see `fresh`).
    """
    before, start = _restart_peak(), time.process_time()
    call()
    return Cost(time.process_time() - start, max(0, _peak() - before))


def release() -> None:
    """Give back what earlier work left free: memory that is used again is no growth, and would not
    be seen. With glibc only.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def fresh(call: Callable, first: Callable | None = None) -> Cost:
    """`cost` in a new process, free of what this one did before.

    `call` must be importable (a function, a partial of one).

    first: called there before, unmeasured, so that libraries are loaded and kernels compiled;
        importable too. What it leaves free is given back.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        if first:
            pool.submit(_silent, first).result()
            pool.submit(release).result()
        return pool.submit(cost, call).result()


def _silent(call: Callable) -> None:
    call()


def race(calls: Mapping[str, Callable], rounds: int = 5) -> dict[str, list[float]]:
    """CPU seconds of each call in each of `rounds`, one after the other in turn, so that a noisy
    machine is noisy for all.

    Every call runs once before, unmeasured. Compare medians, or minima on a loaded machine.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return times


def _peak() -> int:
    """The highest resident memory since the process began or, on Linux, since `_restart_peak`, in
    bytes.
    """
    if Path("/proc/self/status").exists():
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _restart_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak()
