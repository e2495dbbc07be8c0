"""The meter finds what a call really takes."""

import platform
import sys
from functools import partial

import numpy as np
import pytest

from hgcore.suite import meter

LARGE, SMALL = partial(np.ones, 20_000_000), partial(np.ones, 1_000_000)
KEPT = []


def fill():
    """Fill 100 MB and free them, below a block that stays: they are given back on request only."""
    blocks = [bytearray(2000) for _ in range(50_000)]
    KEPT.append(bytearray(2000))
    blocks.clear()


def test_fresh_finds_the_peak_of_the_call_alone():
    """160 MB of ones, and some for NumPy; what comes first does not count."""
    assert 155e6 < meter.fresh(LARGE).peak < 260e6
    assert meter.fresh(SMALL, first=LARGE).peak < 80e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back nothing")
def test_fresh_counts_memory_that_is_used_again():
    assert meter.fresh(fill, first=fill).peak > 70e6


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_cost_leaves_out_an_earlier_peak():
    LARGE()
    assert meter.cost(SMALL).peak < 80e6 and meter.cost(LARGE).peak > 155e6


def test_race_measures_every_call_in_turn():
    calls = {"short": partial(sum, range(10_000)), "long": partial(sum, range(1_000_000))}
    times = meter.race(calls, rounds=3)
    assert min(times["long"]) > max(times["short"]) and len(times["short"]) == 3
