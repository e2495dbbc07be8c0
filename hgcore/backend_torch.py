"""The torch backend: PyTorch on any device, in float32 or float64."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from hgcore.backend import Linearized, host_memory, require_scalar, reverse_mode


@dataclass(frozen=True)
class Torch:
    """PyTorch on `device` ("cpu", "cuda", "cuda:1") in `dtype` ("float64" or "float32")."""

    device: str = "cpu"
    dtype: str = "float64"
    name: str = field(default="torch", init=False)

    def __post_init__(self):
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")
        torch = self.xp
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"torch {torch.__version__} sees no GPU for {self.device!r}; use 'cpu'"
            )

    @property
    def xp(self) -> ModuleType:
        import torch

        return torch

    @property
    def sync_every(self) -> int:
        return 1 if self.device == "cpu" else 64

    def array(self, values):
        if self.xp.is_inference_mode_enabled():
            raise RuntimeError(
                "cannot differentiate inside torch.inference_mode(); use torch.no_grad() instead"
            )
        return self.traced(values).detach()

    def traced(self, values):
        kind = {"dtype": getattr(self.xp, self.dtype), "device": self.device}
        if isinstance(values, (int, float)):  # filled on the device: no transfer to wait for
            return self.xp.full((), values, **kind)
        if isinstance(values, (list, tuple)) and any(hasattr(x, "detach") for x in values):
            return self.xp.stack([self.traced(x) for x in values])  # as_tensor cuts their graphs
        return self.xp.as_tensor(values, **kind)

    def constant(self, array):
        return array.detach()

    def numpy(self, array) -> np.ndarray:
        return array.detach().cpu().numpy()

    def host_view(self, array):
        if self.device != "cpu":
            return array.detach()
        return array.detach().numpy() if array.ndim else float(array)

    def floats(self, scalars: list) -> list[float]:
        if self.device == "cpu":
            return [float(x) for x in scalars]
        return self.xp.stack(scalars).tolist() if scalars else []

    def memory(self) -> int:
        if self.xp.device(self.device).type != "cuda":
            return host_memory()
        return self.xp.cuda.mem_get_info(self.device)[1]

    def evaluate(self, f, *args):
        with self.xp.no_grad():
            return f(*args)

    def gradients(self, f, *args) -> tuple:
        leaves = [x.detach().requires_grad_() for x in args]
        value = self._loss(f, *leaves)
        return value.detach(), *self._grad((value,), leaves)

    def gradient(self, f, weights, hyper):
        # no graph, but the operations of `linearize`: the bits must agree (Reversible checks)
        return self.gradients(lambda w: f(w, hyper), weights)[1]

    def linearize(self, f, weights, hyper) -> Linearized:
        w, h, gradient = self._gradient_graph(f, weights, hyper)
        pull = functools.partial(self._grad, (gradient,), retain_graph=True)
        return Linearized(
            gradient.detach(),
            lambda q: pull((w, h), (q,)),
            lambda q: pull((w,), (q,))[0],
            lambda q: pull((h,), (q,))[0],
        )

    def pushforward(self, f, weights, hyper) -> tuple:
        # one graph for all tangents: half the time of torch.func.vmap (torch 2.13, CPU)
        w, h, gradient = self._gradient_graph(f, weights, hyper, hand_written=False)
        mixed = self._transposed((gradient,), (h,), lambda h: (self.xp.func.grad(f)(weights, h),))

        def push(weights_tangent, hyper_tangent):
            (curvature,) = self._grad((gradient,), (w,), (weights_tangent,), retain_graph=True)
            return curvature + mixed(hyper_tangent)[0]  # the Hessian is symmetric

        return gradient.detach(), push

    def vjp(self, f, *args) -> tuple:
        leaves, outputs = self._outputs(f, args)
        live = [i for i, y in enumerate(outputs) if y.requires_grad]

        def pull(cotangents):
            chosen = [outputs[i] for i in live], leaves, [cotangents[i] for i in live]
            return self._grad(*chosen, retain_graph=True)

        return tuple(y.detach() for y in outputs), pull

    def jvp(self, f, *args) -> tuple:
        leaves, outputs = self._outputs(f, args)
        push = self._transposed(outputs, leaves, lambda *a: tuple(map(self.traced, f(*a))))
        return tuple(y.detach() for y in outputs), push

    @contextlib.contextmanager
    def fixed_threads(self) -> Iterator[Callable]:
        threads = self.xp.get_num_threads()
        yield lambda: self.xp.set_num_threads(threads)

    def _outputs(self, f, args) -> tuple:
        """Return (leaves like `args`, the outputs of f there)."""
        leaves = [x.detach().requires_grad_() for x in args]
        with self.xp.enable_grad():
            return leaves, tuple(map(self.traced, f(*leaves)))

    def _gradient_graph(self, f, weights, hyper, hand_written=True) -> tuple:
        """Return (weights, hyper, df/dw), where the last has a graph in the first two."""
        w, h = weights.detach().requires_grad_(), hyper.detach().requires_grad_()
        value = self._loss(f, w, h, hand_written=hand_written)
        return w, h, self._grad((value,), (w,), create_graph=True)[0]

    def _grad(self, outputs, inputs, cotangents=None, **keywords) -> tuple:
        """Return the cotangents of `inputs`, zeros for one that no output depends on."""
        if not any(y.requires_grad for y in outputs):
            return tuple(self.xp.zeros_like(x) for x in inputs)
        grad = self.xp.autograd.grad
        return grad(outputs, inputs, cotangents, materialize_grads=True, **keywords)

    def _transposed(self, outputs, leaves, f) -> Callable:
        """Return tangents of `leaves` -> those of `outputs`: the vjp of a (linear) vjp is the jvp.

        Falls back on torch.func.jvp of `f` where torch cannot differentiate the vjp.
        """
        torch, live = self.xp, [y for y in outputs if y.requires_grad]
        cotangents = [torch.zeros_like(y).requires_grad_() for y in live]
        points = tuple(x.detach() for x in leaves)
        pulled = []
        with torch.enable_grad():
            if live:
                options = {"create_graph": True, "allow_unused": True}
                pulled = torch.autograd.grad(live, leaves, cotangents, **options)
        used = [i for i, x in enumerate(pulled) if x is not None]

        def push(*tangents):
            if not used:
                return tuple(torch.zeros_like(y) for y in outputs)
            seeds = [pulled[i] for i in used], cotangents, [tangents[i] for i in used]
            try:  # an unused cotangent is an error here: the vjp is linear in each
                found = iter(torch.autograd.grad(*seeds, retain_graph=True))
            except RuntimeError:  # an operation that torch differentiates only once or twice
                return torch.func.jvp(f, points, tangents)[1]
            return tuple(next(found) if y.requires_grad else torch.zeros_like(y) for y in outputs)

        return push

    def _loss(self, f, *args, hand_written=True):
        """Return the scalar f(*args) with its graph."""
        token = reverse_mode.set(hand_written)
        try:
            with self.xp.enable_grad():
                return require_scalar(f(*args))
        except RuntimeError as error:
            self._explain(error, f, args)
            raise
        finally:
            reverse_mode.reset(token)

    def _explain(self, error, f, args) -> None:
        """Raise TypeError from `error` if f works in the other precision."""
        other = {"float32": "float64", "float64": "float32"}[self.dtype]
        try:
            self.evaluate(f, *(x.to(getattr(self.xp, other)) for x in args))
        except Exception:  # the precision is not what is wrong
            return
        raise TypeError(
            f"the loss takes {other} weights but not {self.dtype} ones: its data or module are"
            f" {other}, the backend is {self.dtype}; use hg.Torch(dtype={other!r}), or convert"
            f" data and module to {self.dtype}"
        ) from error
