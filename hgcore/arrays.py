"""Questions about an array that need no backend."""

from __future__ import annotations

import functools
import importlib
import itertools
from types import ModuleType


def namespace(array) -> ModuleType:
    """Return the module whose functions take `array`: numpy, autograd.numpy (traced) or torch."""
    if hasattr(array, "detach"):
        import torch  # a plain import: torch.compile follows it

        return torch
    return _numpy_like(type(array))


@functools.cache
def _numpy_like(kind: type) -> ModuleType:
    traced = kind.__module__.split(".")[0] == "autograd"
    return importlib.import_module("autograd.numpy" if traced else "numpy")


def pieces(vector, sizes: list[int]):
    """Return consecutive pieces of `vector` (sum of sizes,); on torch one operation, one node."""
    if hasattr(vector, "detach"):
        return vector.split(sizes)
    stops = itertools.accumulate(sizes)
    return [vector[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def root(square):
    """Return the square root of `square` >= 0, elementwise, with derivative 0 where it is 0."""
    xp, positive = namespace(square), square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, square, 1 + 0 * square)), 0 * square)


def require_instance(name: str, value, kind: type, example: str) -> None:
    """Raise TypeError unless `value` is a `kind`; a class in place of an object is told apart."""
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an object such as {example}, got the class {value.__name__}"
        )
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be an object such as {example}, got {type(value).__name__}")


def is_compiling(array) -> bool:
    """Return whether torch.compile traces the code that handles this tensor."""
    return hasattr(array, "detach") and namespace(array).compiler.is_compiling()
