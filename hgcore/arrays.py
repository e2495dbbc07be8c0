"""Functions of arrays that need no backend, and what several files share besides."""

import functools
import importlib
import inspect
import itertools
from numbers import Integral
from types import ModuleType

import numpy as np


def namespace(array) -> ModuleType:
    """Return the module whose functions take `array`: numpy, autograd.numpy (traced) or torch."""
    if hasattr(array, "detach"):
        import torch  # a plain import: torch.compile follows it

        return torch
    if type(array).__module__.startswith("autograd"):
        import autograd.numpy

        return autograd.numpy
    return np


def like(values, array):
    """Return `values` (numbers, NumPy's or like `array`) with the type and device of `array`."""
    device = getattr(array, "device", None)  # traced arrays have none
    return namespace(array).asarray(values, dtype=array.dtype, device=device)


def pieces(vector, sizes: list[int]):
    """Return consecutive pieces of `vector` (sum of sizes,); on torch one operation, one node."""
    if hasattr(vector, "detach"):
        return vector.split(sizes)
    stops = itertools.accumulate(sizes)
    return [vector[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def root(square):
    """Return the square root of `square` >= 0, elementwise, with derivative 0 where it is 0."""
    xp, zero = namespace(square), square <= 0  # not for NaN
    return xp.where(zero, 0.0, xp.sqrt(xp.where(zero, 1.0, square)))


@functools.cache
def fast_module(name: str) -> ModuleType | None:
    """Return the module hgcore.fast.`name`, None if it cannot be imported (no numba, no folder)."""
    try:
        return importlib.import_module(f"hgcore.fast.{name}")
    except ImportError:
        return None


def require_instance(name: str, value, kind: type | tuple | str, example: str) -> None:
    """Raise TypeError unless `value` is an object, not a class, of type or with method `kind`."""
    fits = hasattr(value, kind) if isinstance(kind, str) else isinstance(value, kind)
    if isinstance(value, type) or not fits:
        found = value if isinstance(value, type) else f"an object of {type(value)}"
        raise TypeError(f"{name} must be an object such as {example}, got {found}")


def require_count(name: str, count: int, least: int = 0, what: str = "steps") -> None:
    """Raise ValueError unless `count` is a whole number and at least `least`."""
    if not isinstance(count, Integral) or count < least:
        raise ValueError(f"{name} must be a whole number of {what} >= {least}, got {count!r}")


def require_arguments(name: str, function, *arguments: str) -> None:
    """Raise TypeError unless `function` can be called with these positional arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name} must take ({', '.join(arguments)}): {error}") from error
    except ValueError:  # functions written in C have no signature
        pass


def require_real(values) -> None:
    """Raise TypeError for complex numbers: their imaginary parts would be dropped."""
    if values.is_complex() if hasattr(values, "is_complex") else np.iscomplexobj(values):
        raise TypeError("numbers must be real, got complex ones; give both parts as real numbers")
