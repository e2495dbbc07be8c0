"""The meter finds what a call really takes."""

import functools
import sys
import time

import numpy as np
import pytest

from hgcore import meter


def test_peak_memory_of_a_call_is_found_in_a_fresh_process():
    found = meter.fresh(functools.partial(np.ones, 20_000_000))
    assert 155e6 < found.peak < 260e6  # 160 MB of ones, and some for NumPy


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_an_earlier_peak_does_not_count():
    np.ones(20_000_000)
    assert meter.cost(lambda: np.ones(1_000_000)).peak < 80e6


def test_a_race_measures_every_call_in_turn():
    def busy(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    times = meter.race({"short": lambda: busy(0.002), "long": lambda: busy(0.02)}, rounds=3)
    assert min(times["long"]) > max(times["short"]) and len(times["short"]) == 3


def test_what_comes_first_in_a_fresh_process_does_not_count():
    found = meter.fresh(functools.partial(np.ones, 1_000_000), first=functools.partial(np.ones, 20_000_000))
    assert found.peak < 80e6
