"""The reversal buffer alone, by numba, by NumPy and by the Python integers of 2015."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np

from hgcore import fixed_point
from hgcore.fixed_point import DENOMINATOR, UNIT, ReversalBuffer, as_decay
from hgcore.papers.drmad2016 import BigIntegers


class Undone(NamedTuple):
    """CPU nanoseconds a coordinate and step; whether every number came back."""

    multiply: float
    divide: float
    exact: bool


def _machine_words(values) -> SimpleNamespace:
    buffer, held, decay = ReversalBuffer(), [values], as_decay(0.9)
    return SimpleNamespace(
        held=held,
        multiply=lambda: held.append(buffer.multiply(held.pop(), decay)),
        divide=lambda: held.append(buffer.divide(held.pop(), decay)),
    )


def _python_integers(values) -> SimpleNamespace:
    kept, (n, _) = BigIntegers(values * UNIT), as_decay(0.9)
    return SimpleNamespace(
        held=[kept],
        multiply=lambda: kept.multiply(n, DENOMINATOR),
        divide=lambda: kept.multiply(DENOMINATOR, n),
    )


BUFFERS = {
    "numba": (_machine_words, nullcontext),
    "NumPy": (
        _machine_words,
        lambda: mock.patch.object(fixed_point, "_fast", lambda: lambda bits, plain: plain),
    ),
    "Python integers, as in 2015": (_python_integers, nullcontext),
}


def undone(name: str, n: int, steps: int) -> Undone:
    """Multiply n numbers by 0.9, `steps` times, and divide them back, by one of BUFFERS."""
    begin, within = BUFFERS[name]
    start = np.random.default_rng(0).integers(-(2**52), 2**52, size=n)
    buffer, spent = begin(start.copy()), []
    with within():
        for act in (buffer.multiply, buffer.divide):
            before = time.process_time()
            for _ in range(steps):
                act()
            spent.append(1e9 * (time.process_time() - before) / n / steps)
    return Undone(*spent, bool((getattr(buffer.held[0], "bits", buffer.held[0]) == start).all()))
