"""Two backends behind one set of verbs: `Autograd` (NumPy, float64, the reference) and `Torch` (any device).

`xp` is the module `autograd.numpy` or `torch` itself: user functions call it directly. Vectors cross at two doors only,
`array` in and `numpy` out; in between they are flat, of the backend's type, and carry no graph.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

Array = TypeVar("Array")


class SecondOrder(NamedTuple):
    """`gradient` (n,) of a scalar function, and `product(q, curvature=True, mixed=True)`: (H q, B'q), or the one asked for, (H q,) or (B'q,)."""

    gradient: Array
    product: Callable


class Backend(Protocol):
    """What an algorithm may ask of a backend. `f` is always a user's function of flat vectors."""

    name: str
    device: str
    dtype: str
    xp: ModuleType
    patience: int  # steps between two looks at the numbers: 1, or more where a look would stall the device

    def array(self, values) -> Array: ...
    def numpy(self, array) -> np.ndarray: ...
    def exact(self, array) -> Array: ...
    def numbers(self, scalars: list) -> list[float]: ...
    def evaluate(self, f, *args): ...
    def gradients(self, f, *args) -> tuple: ...
    def gradient(self, f, weights, hyper) -> Array: ...
    def second_order(self, f, weights, hyper) -> SecondOrder: ...
    def pullback(self, f, x) -> tuple: ...
    def pushforward(self, f, x) -> tuple: ...
    def gradient_along(self, f, weights, hyper) -> tuple: ...
    def pinned(self) -> contextlib.AbstractContextManager: ...


def make(name: str, device: str = "cpu", dtype: str = "float64") -> Backend:
    """The backend of that name: 'autograd' (cpu, float64 only) or 'torch'."""
    if name == "torch":
        return Torch(device, dtype)
    if name != "autograd":
        raise ValueError(f"backend must be 'autograd' or 'torch', got {name!r}")
    if (device, dtype) != ("cpu", "float64"):
        raise ValueError(
            f"the autograd backend runs on cpu in float64, got {device}, {dtype}; use backend 'torch'"
        )
    return Autograd()


def own(backend: Backend, inner: Callable, verb: str) -> Callable | None:
    """What an inner objective itself knows of its derivatives (objectives.py): on torch; autograd is the reference."""
    return getattr(inner, verb, None) if backend.name == "torch" else None


def derived(verb: str, backend: Backend, inner: Callable, weights, hyper, t):
    """What `inner` says of its derivatives at step t, if it knows, else `backend`. verb: "gradient", "gradient_along" or "second_order"."""
    if known := own(backend, inner, verb):
        return known(backend, weights, hyper, t)
    return getattr(backend, verb)(lambda w, h: inner(w, h, t), weights, hyper)


def _scalar(value, what: str = "objective"):
    if getattr(value, "shape", None) != ():
        shape = getattr(value, "shape", type(value).__name__)
        raise ValueError(
            f"an {what} must return a scalar of shape (), got {shape}; take its mean or sum"
        )
    return value


@contextlib.contextmanager
def _constants_allowed() -> Iterator[None]:
    """A constant rate, decay or start is no mistake: without autograd's warning about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Output seems independent of input")
        yield


@dataclass(frozen=True)
class Autograd:
    """NumPy in float64, differentiated by autograd: slow, plain, the reference that every other result must meet."""

    name: str = field(default="autograd", init=False)
    device: str = field(default="cpu", init=False)
    dtype: str = field(default="float64", init=False)
    patience: int = field(default=1, init=False)

    @functools.cached_property
    def xp(self) -> ModuleType:
        return importlib.import_module("autograd.numpy")

    def array(self, values) -> np.ndarray:
        return np.asarray(values, dtype=np.float64)

    def numpy(self, array) -> np.ndarray:
        return np.asarray(array)

    def exact(self, array) -> np.ndarray:
        """The array where integers live, here NumPy's; a scalar as a number."""
        return array if array.ndim else float(array)

    def numbers(self, scalars: list) -> list[float]:
        return [float(x) for x in scalars]

    def evaluate(self, f, *args):
        return f(*args)

    def gradients(self, f, *args) -> tuple:
        """(value, gradient with respect to each argument)."""
        from autograd import make_vjp

        pull, value = make_vjp(lambda *a: _scalar(f(*a)), tuple(range(len(args))))(*args)
        return value, *pull(np.ones(()))

    def gradient(self, f, weights, hyper) -> np.ndarray:
        return self.gradients(lambda w: f(w, hyper), weights)[1]

    def second_order(self, f, weights, hyper) -> SecondOrder:
        from autograd import grad, make_vjp

        pull, gradient = make_vjp(grad(lambda w, h: _scalar(f(w, h))), (0, 1))(weights, hyper)
        return SecondOrder(
            gradient,
            lambda q, curvature=True, mixed=True: pull(q)[
                0 if curvature else 1 : 2 if mixed else 1
            ],
        )

    def pullback(self, f, x) -> tuple:
        """(outputs y_i of f(x), a tuple; pull: cotangents c_i, each a function -> sum of (dy_i/dx)' c_i())."""
        outputs, pulls = self._pulls(f, x)
        return outputs, lambda cotangents: sum(
            pull(self.array(c())) for pull, c in zip(pulls, cotangents, strict=True)
        )

    def pushforward(self, f, x) -> tuple:
        """(outputs y_i of f(x), a tuple; push: tangent of x -> those of the y_i, a tuple)."""
        outputs, pulls = self._pulls(f, x)
        with _constants_allowed():
            pushes = [self._transposed(pull, y) for pull, y in zip(pulls, outputs, strict=True)]
        return outputs, lambda row: tuple(push(row) for push in pushes)

    def _pulls(self, f, x) -> tuple[tuple, tuple]:
        """(outputs of f(x), the pullback of each)."""
        from autograd import make_vjp

        with _constants_allowed():
            pulls, outputs = zip(
                *(make_vjp(lambda z, i=i: f(z)[i])(x) for i in range(len(f(x)))), strict=True
            )
        return tuple(map(self.array, outputs)), pulls

    def gradient_along(self, f, weights, hyper) -> tuple:
        """(gradient of f by the weights, (n,); along: tangents of weights (n,) and hyper (m,) -> tangent of the gradient (n,))."""
        from autograd import grad, make_vjp

        pull, gradient = make_vjp(grad(lambda w, h: _scalar(f(w, h))), (0, 1))(weights, hyper)
        push = self._transposed(pull, gradient)
        return gradient, lambda *tangents: push(tangents)

    @staticmethod
    def _transposed(pull, output) -> Callable:
        """Tangents forward out of cotangents back: a pullback is linear, so its own pullback is the pushforward."""
        from autograd import make_vjp

        return make_vjp(pull)(np.zeros(np.shape(output)))[0]

    def pinned(self):
        return contextlib.nullcontext(lambda: None)


@dataclass(frozen=True)
class Torch:
    """PyTorch on `device` ('cpu', 'cuda', 'cuda:1') in `dtype` ('float64' or 'float32')."""

    device: str = "cpu"
    dtype: str = "float64"
    name: str = field(default="torch", init=False)

    def __post_init__(self):
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")
        torch = self.xp
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device {self.device!r} asked for, but torch {torch.__version__} sees no GPU; use 'cpu'"
            )

    @functools.cached_property
    def xp(self) -> ModuleType:
        return importlib.import_module("torch")

    @functools.cached_property
    def _kind(self) -> dict:
        return {"dtype": getattr(self.xp, self.dtype), "device": self.device}

    @property
    def patience(self) -> int:
        return 1 if self.device == "cpu" else 64

    def _tensor(self, values):
        if isinstance(values, (int, float)):  # without a transfer that a GPU would have to wait for
            return self.xp.full((), values, **self._kind)
        if isinstance(values, (list, tuple)) and any(
            hasattr(value, "detach") for value in values
        ):  # as_tensor would cut their graphs
            return self.xp.stack([self._tensor(value) for value in values])
        return self.xp.as_tensor(values, **self._kind)

    def array(self, values):
        if self.xp.is_inference_mode_enabled():
            raise RuntimeError(
                "torch.inference_mode() keeps no graph, so nothing has a derivative in it: leave it; torch.no_grad() does no harm"
            )
        return self._tensor(values).detach()

    def numpy(self, array) -> np.ndarray:
        return array.detach().cpu().numpy()

    def exact(self, array):
        """The array where integers live: NumPy's (a scalar as a number) on a CPU, the device's own elsewhere."""
        if self.device != "cpu":
            return array.detach()
        return array.detach().numpy() if array.ndim else float(array)

    def numbers(self, scalars: list) -> list[float]:
        """Numbers on the device as Python's, in one transfer."""
        if len(scalars) == 1:
            return [float(scalars[0])]
        return self.xp.stack(scalars).tolist() if scalars else []

    def evaluate(self, f, *args):
        with self.xp.no_grad():
            return f(*args)

    def gradients(self, f, *args) -> tuple:
        """(value, gradient with respect to each argument)."""
        leaves = [a.detach().requires_grad_() for a in args]
        with self.xp.enable_grad():
            value = _scalar(f(*leaves))
        return value.detach(), *self._grad((value,), leaves, None)

    def gradient(self, f, weights, hyper):
        # without the graph of `second_order`, but by the same operations: the bits must agree, and `reversible` checks
        return self.gradients(lambda w: f(w, hyper), weights)[1]

    def second_order(self, f, weights, hyper) -> SecondOrder:
        w, h = weights.detach().requires_grad_(), hyper.detach().requires_grad_()
        with self.xp.enable_grad():
            (gradient,) = self._grad((_scalar(f(w, h)),), (w,), None, create_graph=True)

        def product(q, curvature=True, mixed=True):
            return self._grad((gradient,), (w,) * curvature + (h,) * mixed, (q,), retain_graph=True)

        return SecondOrder(gradient.detach(), product)

    def pullback(self, f, x) -> tuple:
        """(outputs y_i of f(x), a tuple; pull: cotangents c_i, each a function -> sum of (dy_i/dx)' c_i()).

        The cotangent of an output that does not depend on x is never asked for.
        """
        x, outputs = self._traced(f, x)
        live = [i for i, y in enumerate(outputs) if y.requires_grad]

        def pull(cotangents):
            return self._grad(
                [outputs[i] for i in live], (x,), [cotangents[i]() for i in live], retain_graph=True
            )[0]

        return tuple(y.detach() for y in outputs), pull

    def pushforward(self, f, x) -> tuple:
        """(outputs y_i of f(x), a tuple; push: tangent of x -> those of the y_i, a tuple, None for one that does not depend on x)."""
        leaf, outputs = self._traced(f, x)
        pushes = [
            self._push(y, leaf, functools.partial(self._jvp, lambda z, i=i: f(z)[i], x))
            for i, y in enumerate(outputs)
        ]
        return tuple(y.detach() for y in outputs), lambda row: tuple(push(row) for push in pushes)

    def _jvp(self, f, x, row):
        return self.xp.func.jvp(lambda z: self._tensor(f(z)), (x,), (row,))[1]

    def _traced(self, f, x) -> tuple:
        """(x as a leaf, the outputs of f there)."""
        x = x.detach().requires_grad_()
        with self.xp.enable_grad():
            return x, tuple(self._tensor(y) for y in f(x))

    def gradient_along(self, f, weights, hyper) -> tuple:
        """(gradient of f by the weights, (n,); along: tangents of weights (n,) and hyper (m,) -> tangent of the gradient (n,)).

        One graph, pulled back once for each tangent: half the time of pushing a batch of them through (torch 2.13, CPU).
        """
        w, h = weights.detach().requires_grad_(), hyper.detach().requires_grad_()
        with self.xp.enable_grad():
            (gradient,) = self._grad((_scalar(f(w, h)),), (w,), None, create_graph=True)
        slope = self.xp.func.grad(f)
        plain = functools.cache(lambda: self.pushforward(lambda h: (slope(weights, h),), hyper)[1])
        mixed = self._push(gradient, h, lambda unit: plain()(unit)[0])

        def along(row, unit):
            (curvature,), bend = (
                self._grad((gradient,), (w,), (row,), retain_graph=True),
                mixed(unit),
            )
            return curvature if bend is None else curvature + bend

        return gradient.detach(), along

    def _push(self, y, x, otherwise: Callable) -> Callable:
        """Tangent of x -> that of y, None if y does not depend on x: a pullback is linear, so this is its own pullback.

        `otherwise` does it where the graph cannot be differentiated once more in reverse: written.py, some operations of torch.
        """
        if not y.requires_grad:
            return lambda row: None
        grad = functools.partial(self.xp.autograd.grad, retain_graph=True)
        if not y.ndim:  # one number: its slopes in one go
            (slopes,) = grad(y, (x,), materialize_grads=True)
            return lambda row: row @ slopes
        cotangent = self.xp.zeros_like(y).requires_grad_()

        @functools.cache
        def pulled():
            with self.xp.enable_grad():
                return grad(y, (x,), cotangent, create_graph=True, allow_unused=True)[0]

        def push(row):
            try:
                return None if pulled() is None else grad(pulled(), (cotangent,), row)[0]
            except RuntimeError:
                return otherwise(row)

        return push

    def _grad(self, outputs, inputs, cotangents, **keywords) -> tuple:
        if not any(y.requires_grad for y in outputs):
            return tuple(self.xp.zeros_like(x) for x in inputs)
        return self.xp.autograd.grad(
            outputs, inputs, cotangents, materialize_grads=True, **keywords
        )

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Callable]:
        """Yield a function that restores the thread count of this moment: other counts give other bits."""
        torch = self.xp
        threads = torch.get_num_threads()
        yield lambda: torch.set_num_threads(threads)
