"""What the algorithms ask of an array library, and `Autograd`, the CPU reference in float64.

`xp` is the module `autograd.numpy` or `torch`; user functions call it directly. Inside the
library every vector is flat, has the backend's type and carries no graph.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

Array = TypeVar("Array")

# True while a backend differentiates a loss in plain reverse mode: only then may the nodes of
# fast/ replace plain operations, because transforms and compilers cannot see into them.
reverse_mode = contextvars.ContextVar("reverse_mode", default=False)


class Linearized(NamedTuple):
    """The gradient (n,) of an inner loss at one point, and products with its derivatives.

    product: q (n,) -> (H q (n,), B'q (m,)) with H = d2L/dw2, B = d2L/dw dhyper; hvp: q -> H q;
    mixed: q -> B'q.
    """

    gradient: Array
    product: Callable
    hvp: Callable
    mixed: Callable


class Backend(Protocol):
    """What an algorithm may ask of a backend. Functions `f` take and return its arrays.

    array(values): without a graph; traced(values): with it; constant(array): its graph cut off
    numpy(array): NumPy's copy or view; host_view(array): NumPy's view if it lies in this machine's
        memory (a scalar: a float), else the array itself
    floats(scalars): as Python's, in one transfer; memory(): bytes that the device has
    evaluate(f, *args): f(*args) without a graph
    gradients(f, *args): (value, one gradient for each argument) of a scalar function
    gradient(f, weights, hyper): df/dw (n,) with the operations, so the bits, of `linearize`
    linearize(f, weights, hyper): Linearized, from one graph
    pushforward(f, weights, hyper): (df/dw (n,), tangents of weights and hyper -> that of df/dw)
    vjp(f, *args): (outputs, tuple of their cotangents -> those of the arguments)
    jvp(f, *args): (outputs, tangents of the arguments -> those of the outputs)
    fixed_threads(): a context that yields a function which restores the present thread count
    """

    name: str
    device: str
    dtype: str
    xp: ModuleType
    sync_every: int  # steps between two looks at numbers on the device


def require_scalar(value, what: str = "loss"):
    """Return `value`; raise ValueError unless its shape is ()."""
    if getattr(value, "shape", None) != ():
        shape = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"a {what} must return a scalar of shape (), got {shape}; take its mean")
    return value


@dataclass(frozen=True)
class Autograd:
    """NumPy in float64, differentiated by autograd: plain and slow, the reference for Torch."""

    name: str = field(default="autograd", init=False)
    device: str = field(default="cpu", init=False)
    dtype: str = field(default="float64", init=False)
    sync_every: int = field(default=1, init=False)

    @property
    def xp(self) -> ModuleType:
        import autograd.numpy

        return autograd.numpy

    def array(self, values) -> np.ndarray:
        return np.asarray(values, dtype=np.float64)

    def traced(self, values):
        from autograd.tracer import isbox

        return values if isbox(values) else self.xp.array(values, dtype=np.float64)

    def constant(self, array) -> np.ndarray:
        from autograd.tracer import getval

        return np.asarray(getval(array))

    def numpy(self, array) -> np.ndarray:
        return np.asarray(array)

    def host_view(self, array):
        return array if np.ndim(array) else float(array)

    def floats(self, scalars: list) -> list[float]:
        return [float(x) for x in scalars]

    def memory(self) -> int:
        return host_memory()

    def evaluate(self, f, *args):
        return f(*args)

    def gradients(self, f, *args) -> tuple:
        from autograd import make_vjp

        with _constants_allowed():
            pull, value = make_vjp(lambda *a: require_scalar(f(*a)), tuple(range(len(args))))(*args)
        return value, *pull(np.ones(()))

    def gradient(self, f, weights, hyper) -> np.ndarray:
        return self.gradients(lambda w: f(w, hyper), weights)[1]

    def linearize(self, f, weights, hyper) -> Linearized:
        pull, gradient = self._pullback(f, weights, hyper)
        return Linearized(gradient, pull, lambda q: pull(q)[0], lambda q: pull(q)[1])

    def pushforward(self, f, weights, hyper) -> tuple:
        pull, gradient = self._pullback(f, weights, hyper)
        push = _transposed(pull, gradient)
        return gradient, lambda *tangents: push(tangents)

    def vjp(self, f, *args) -> tuple:
        from autograd import make_vjp
        from autograd.builtins import tuple as boxed

        with _constants_allowed():
            pull, outputs = make_vjp(lambda *a: boxed(f(*a)), tuple(range(len(args))))(*args)
        return tuple(map(self.array, outputs)), lambda cotangents: pull(tuple(cotangents))

    def jvp(self, f, *args) -> tuple:
        outputs, pull = self.vjp(f, *args)
        push = _transposed(pull, outputs)
        return outputs, lambda *tangents: push(tangents)

    def fixed_threads(self):
        return contextlib.nullcontext(lambda: None)

    @staticmethod
    def _pullback(f, weights, hyper) -> tuple:
        from autograd import grad, make_vjp

        with _constants_allowed():
            return make_vjp(grad(lambda w, h: require_scalar(f(w, h))), (0, 1))(weights, hyper)


def _transposed(pull, outputs) -> Callable:
    """Return tangents forward from cotangents back: the vjp of a (linear) vjp is the jvp."""
    from autograd import make_vjp

    zeros = tuple(map(np.zeros_like, outputs)) if type(outputs) is tuple else 0 * outputs
    with _constants_allowed():
        return make_vjp(pull)(zeros)[0]


@contextlib.contextmanager
def _constants_allowed():
    """Silence autograd's warning about outputs that do not depend on the input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Output seems independent of input")
        yield


def host_memory() -> int:
    """Return the bytes of memory of this machine; a very large number where it is unknown."""
    import os

    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62
