"""The meter finds what a call really takes."""

import platform
import sys
import time
from functools import partial

import numpy as np
import pytest

from hgcore.suite import meter


def test_peak_memory_is_found_in_a_fresh_process():
    """160 MB of ones, and some for NumPy; what comes first does not count."""
    large = partial(np.ones, 20_000_000)
    assert 155e6 < meter.fresh(large).peak < 260e6
    assert meter.fresh(partial(np.ones, 1_000_000), first=large).peak < 80e6


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_an_earlier_peak_does_not_count():
    np.ones(20_000_000)
    assert meter.cost(lambda: np.ones(1_000_000)).peak < 80e6


def fill_again(released):
    """Raise unless filling again what was freed below a block that stays grows as expected."""
    blocks = [bytearray(2000) for _ in range(50_000)]
    last = bytearray(2000)
    blocks.clear()
    if released:
        meter.release()
    peak = meter.cost(lambda: [bytearray(2000) for _ in range(50_000)]).peak + 0 * len(last)
    assert peak > 70e6 if released else peak < 30e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back nothing")
@pytest.mark.parametrize("released", [False, True])
def test_memory_used_again_grows_if_released(released):
    meter.fresh(partial(fill_again, released))


def test_race_measures_every_call_in_turn():
    def busy(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    times = meter.race({"short": lambda: busy(0.002), "long": lambda: busy(0.02)}, rounds=3)
    assert min(times["long"]) > max(times["short"]) and len(times["short"]) == 3
