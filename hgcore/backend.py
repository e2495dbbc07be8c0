"""What the algorithms need from an array library, and `Autograd`, the CPU reference in float64.

`xp` is the module `autograd.numpy` or `torch`; user functions call it directly. Inside the
library every vector is flat, has the backend's type and carries no graph.
"""

import contextlib
import contextvars
import functools
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from types import ModuleType
from typing import NamedTuple

import numpy as np

from hgcore.arrays import fast_module, namespace, require_real

# True while a backend itself calls a function: only then may the nodes of fast/ replace plain
# operations, because transforms and compilers of torch cannot see into them.
nodes_allowed = contextvars.ContextVar("nodes_allowed", default=False)


def fast_nodes(name: str, vector) -> ModuleType | None:
    """Return hgcore.fast.`name` if its nodes may replace operations on `vector`, None if not."""
    if not hasattr(vector, "detach") or namespace(vector).compiler.is_compiling():
        return None  # asked first: torch.compile cannot follow a ContextVar
    return fast_module(name) if nodes_allowed.get() else None


class Linearized(NamedTuple):
    """The gradient (n,) of an inner loss at one point, and products with its derivatives.

    product: q (n,) -> (H q (n,), B'q (m,)), H = d2L/dw2, B = d2L/dw dhyper; hvp, mixed: one alone.
    """

    gradient: object
    product: Callable
    hvp: Callable
    mixed: Callable


class Backend:
    """What both backends provide. Functions `f` take and return its arrays.

    array(values): without a graph; traced(values): with it; numpy(array): NumPy's copy or view
    constant(values): a copy without a graph, which no function may change
    host_view(array): NumPy's view if it lies in this machine's memory (a scalar: a float), else
        the array itself
    gradients(f, *args): (value, one gradient for each argument) of a scalar function
    slopes(f, args, count): its gradients by the first `count` of args, with their graph
    vjp(f, *args): (outputs, tuple of their cotangents -> those of the arguments); the latter takes
        only=i for that of argument i alone
    jvp(f, *args): (outputs, tangents of the arguments -> those of the outputs)
    sources(f, *args): of a scalar f(*args): (whether it has a derivative by args, the number of
        other tensors that it could have one by, such as parameters of a module called itself)
    """

    name: str
    device: str
    dtype: str
    xp: ModuleType
    sync_every: int = 1  # steps between two looks at numbers on the device

    def gradient(self, f, weights, hyper):
        """Return df/dw (n,) by the operations of `linearize`: Reversible needs the same bits."""
        return self.gradients(lambda w: f(w, hyper), weights)[1]

    def linearize(self, f, weights, hyper) -> Linearized:
        """Return the gradient of f by the weights and its products, from one graph."""
        (gradient,), pull = self.vjp(lambda *at: self.slopes(f, at, 1), weights, hyper)
        hvp, mixed = (lambda q, i=i: pull((q,), only=i) for i in range(2))
        return Linearized(gradient, lambda q: pull((q,)), hvp, mixed)

    def pushforward(self, f, weights, hyper) -> tuple:
        """Return (df/dw (n,), tangents of weights and hyper -> that of df/dw)."""
        (gradient, _), pull = self.vjp(lambda *at: self.slopes(f, at, 2), weights, hyper)
        return gradient, lambda *tangents: pull(tangents, only=0)  # H is symmetric

    def evaluate(self, f, *args):
        """Return f(*args) without a graph."""
        return f(*args)

    def floats(self, scalars: list) -> list[float]:
        """Return scalars as Python's floats, in one transfer."""
        return [float(x) for x in scalars]

    def memory(self) -> int:
        """Return the bytes of memory of the device; a very large number where it is unknown."""
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return 2**62


def require_scalar(value, attribute: str = "shape"):
    """Return the value of a loss; raise ValueError unless it is a real scalar of shape ().

    attribute: what the backend's arrays have; "detach" refuses those of NumPy.
    """
    what, kind = "a loss must return a scalar of shape (), got", type(value).__name__
    if not hasattr(value, attribute):
        cut = ": float() and .item() cut its graph off" * isinstance(value, Real)
        if hasattr(value, "shape"):
            cut = f" of shape {value.shape}: NumPy cut its graph off; use backend.xp"
        raise ValueError(f"{what} {kind}{cut}")
    if value.shape != ():
        raise ValueError(f"{what} {value.shape}; take its mean")
    require_real(value)
    return value


@functools.cache
def _autograd() -> ModuleType:
    """Return autograd, with a count of traces for each thread: a single one mixes their levels."""
    import autograd.numpy

    class TraceStack(threading.local):
        top = -1
        new_trace = autograd.tracer.TraceStack.new_trace

    autograd.tracer.trace_stack = TraceStack()
    return autograd


@contextlib.contextmanager
def _constants_allowed():
    """Silence autograd's warning about outputs that do not depend on the input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Output seems independent of input")
        yield


@dataclass(frozen=True)
class Autograd(Backend):
    """NumPy in float64, differentiated by autograd: plain and slow, the reference for Torch."""

    name = "autograd"
    device = "cpu"
    dtype = "float64"

    @property
    def xp(self) -> ModuleType:
        return _autograd().numpy

    def array(self, values) -> np.ndarray:
        require_real(values := _autograd().tracer.getval(values))
        return np.asarray(values, dtype=np.float64)

    def traced(self, values):
        if _autograd().tracer.isbox(values):
            return values
        require_real(values)
        return self.xp.array(values, dtype=np.float64)

    def constant(self, values) -> np.ndarray:
        copy = np.array(self.array(values))
        copy.flags.writeable = False  # what is changed in place has no derivative
        return copy

    def numpy(self, array) -> np.ndarray:
        return np.asarray(array)

    def host_view(self, array):
        return array if np.ndim(array) else float(array)

    def gradients(self, f, *args) -> tuple:
        (value,), pull = self.vjp(lambda *a: (require_scalar(f(*a)),), *args)
        return value[()], *pull((np.ones(()),))

    def sources(self, f, *args) -> tuple[bool, int]:
        found = []
        self.vjp(lambda *a: found.append(f(*a)) or (found[0],), *args)
        return _autograd().tracer.isbox(found[0]), 0

    def slopes(self, f, args, count: int) -> tuple:
        return _autograd().grad(lambda *a: require_scalar(f(*a)), tuple(range(count)))(*args)

    @_constants_allowed()
    def vjp(self, f, *args) -> tuple:
        make_vjp, boxed = _autograd().make_vjp, _autograd().tuple
        back, outputs = make_vjp(lambda *a: boxed(f(*a)), tuple(range(len(args))))(*args)

        def pull(cotangents, only=None):
            found = back(tuple(cotangents))
            return found if only is None else found[only]

        return tuple(map(self.array, outputs)), pull

    @_constants_allowed()
    def jvp(self, f, *args) -> tuple:
        outputs, pull = self.vjp(f, *args)
        push, _ = _autograd().make_vjp(pull)(tuple(map(np.zeros_like, outputs)))
        return outputs, lambda *tangents: push(tangents)  # the vjp of a linear vjp is the jvp
