"""The meter finds what a call really takes."""

import functools
import multiprocessing
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from hgcore.suite import meter


def test_peak_memory_of_a_call_is_found_in_a_fresh_process():
    found = meter.fresh(functools.partial(np.ones, 20_000_000))
    assert 155e6 < found.peak < 260e6  # 160 MB of ones, and some for NumPy


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_an_earlier_peak_does_not_count():
    np.ones(20_000_000)
    assert meter.cost(lambda: np.ones(1_000_000)).peak < 80e6


def growth(released):
    """Of filling again, with as much, what was freed below a block that stays."""
    blocks = [bytearray(2000) for _ in range(50_000)]
    last = bytearray(2000)
    blocks.clear()
    if released:
        meter.release()
    return meter.cost(lambda: [bytearray(2000) for _ in range(50_000)]).peak + 0 * len(last)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators give nothing back when asked"
)
def test_memory_used_again_is_no_growth_unless_it_was_released():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(growth, False).result() < 30e6
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(growth, True).result() > 70e6


def test_a_race_measures_every_call_in_turn():
    def busy(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    times = meter.race({"short": lambda: busy(0.002), "long": lambda: busy(0.02)}, rounds=3)
    assert min(times["long"]) > max(times["short"]) and len(times["short"]) == 3


def test_what_comes_first_in_a_fresh_process_does_not_count():
    found = meter.fresh(
        functools.partial(np.ones, 1_000_000), first=functools.partial(np.ones, 20_000_000)
    )
    assert found.peak < 80e6
