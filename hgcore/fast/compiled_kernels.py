"""The arithmetic of fixed_point.py on a GPU: each function one kernel by torch.compile.

Operation by operation a GPU reads and writes every vector many times; a kernel does it once.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable

import numpy as np
import torch

from hgcore.fixed_point import DENOMINATOR, LOW_BITS, PLAIN, UNIT, Arithmetic

RANGES = {"numerator": (1, DENOMINATOR + 1), "state": (0, 2**52), "bits": (-(2**62), 2**62)}
RANGES["low"] = 0, 2**LOW_BITS


@functools.cache
def compiled(device) -> Arithmetic:
    """Return the arithmetic for torch's vectors (n,) on `device`.

    A function is compiled at its first use with each kind of arguments, in some seconds. Warns
    (RuntimeWarning) and uses the plain function where that fails or gives other bits.
    """
    return Arithmetic(*(_on_device(function, device) for function in PLAIN))


def _on_device(function: Callable, device) -> Callable:
    by_kind = {}

    @functools.wraps(function)
    def call(*arguments):
        # tensors without a transfer: as constants, numbers would be compiled anew
        tensors = [
            torch.full((), x, device=device, dtype=torch.int64 if type(x) is int else torch.float64)
            if isinstance(x, (int, float))
            else x
            for x in arguments
        ]
        kind = tuple((x.ndim, x.dtype) if torch.is_tensor(x) else x for x in tensors)
        if kind not in by_kind:
            by_kind[kind] = _checked(function, tensors)
        return by_kind[kind](*tensors)

    return call


def _checked(function: Callable, arguments: list) -> Callable:
    """Return `function` compiled if it then has the same bits, else `function`."""
    samples = list(map(_sample, inspect.signature(function).parameters, arguments))
    if samples[1] is not None:  # of a wide value
        samples[0] = samples[0] >> 17
    try:
        fast = torch.compile(function, fullgraph=True, dynamic=True)
        pairs = zip(fast(*samples), function(*samples), strict=True)
        pairs = [(a, b) for a, b in pairs if b is not None]
        # a number is the largest magnitude, a bound
        same = all(torch.equal(a, b) if b.ndim else torch.allclose(a, b) for a, b in pairs)
        reason = "its bits are not those of the operations one by one"
    except Exception as error:  # noqa: BLE001  torch and the compilers under it raise all kinds
        same, reason = False, f"{type(error).__name__}: {str(error).strip()[:200]}"
    if same:
        return fast
    message = f"torch.compile cannot fuse `{function.__name__}` of exact reversal on"
    message += f" {arguments[0].device} ({reason}); it runs operation by operation, but slower"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return function


def _sample(name: str, like):
    """Return numbers of the kind of `like` that show wrong integers and roundings.

    About as many, too: the compiler fits the work to the sizes that it sees first.
    """
    if not torch.is_tensor(like):  # None, or a type
        return like
    if name == "unit":
        return torch.full_like(like, UNIT)
    rng, few = np.random.default_rng(0), (4099,) if like.ndim else ()
    if name in RANGES:
        values = rng.integers(*RANGES[name], few)
    else:
        values = rng.standard_normal(few) * 2.0 ** rng.integers(-60, 8, few)
    values = np.resize(values, min(len(like), 2**20)) if like.ndim else values
    return torch.as_tensor(values).to(like)
