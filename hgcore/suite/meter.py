"""Seconds and peak bytes of one call, and fair races between several."""

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
    """seconds: of this process's CPUs; peak: growth of its resident memory, in bytes."""

    seconds: float
    peak: int


def cost(call: Callable) -> Cost:
    """Return the cost of call(). Linux tells its own peak; elsewhere use `fresh`."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _peak(), time.process_time()
    call()
    return Cost(time.process_time() - start, max(0, _peak() - before))


def fresh(call: Callable, first: Callable | None = None) -> Cost:
    """Return `cost` in a new process. call, first: importable; `first` runs before, unmeasured."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(release, first).result()
        return pool.submit(cost, call).result()


def release(call: Callable | None = None) -> None:
    """Run `call`, then give freed memory back: used again, it would not count as growth."""
    if call:
        call()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def race(calls: Mapping[str, Callable], rounds: int = 5) -> dict[str, list[float]]:
    """Return the CPU seconds of each call in each of `rounds`, taken in turn.

    Every call runs once before, unmeasured. Compare medians, or minima on a loaded machine.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in [*calls.items()] * (rounds + 1):
        start = time.process_time()
        call()
        times[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
