"""What can be asked of an array of either backend without knowing which."""

from __future__ import annotations

import functools
import importlib
import itertools
from types import ModuleType


def namespace(array) -> ModuleType:
    """The module whose functions take this array: numpy, autograd.numpy (traced values) or torch."""
    if hasattr(array, "detach"):
        import torch  # as torch.compile can follow

        return torch
    return _home(type(array))


@functools.cache
def _home(kind: type) -> ModuleType:
    return importlib.import_module(
        "autograd.numpy" if kind.__module__.split(".")[0] == "autograd" else "numpy"
    )


def cut(vector, sizes: list[int]):
    """`vector` (sum of sizes,) as consecutive pieces; one operation on torch, whose backward pass is one concatenation."""
    if hasattr(vector, "split"):
        return vector.split(sizes)
    return [
        vector[stop - size : stop]
        for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)
    ]


def in_reverse(array) -> bool:
    """Whether it is a torch tensor at which nothing looks but reverse mode: transforms of torch.func and tracing need plain operations."""
    if not hasattr(array, "detach"):
        return False
    torch = namespace(array)
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def written_out() -> ModuleType:
    """The nodes whose derivatives are written out; here, because they need torch."""
    from hgcore import written

    return written
