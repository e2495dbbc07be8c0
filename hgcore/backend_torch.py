"""The torch backend: PyTorch on any device, in float32 or float64."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from hgcore.arrays import require_real
from hgcore.backend import Backend, nodes_allowed, require_scalar
from hgcore.checks import second_derivatives


@contextlib.contextmanager
def _own_call(args: Sequence) -> Iterator[None]:
    """Allow the nodes of fast/ in the backend's call of a function of `args`.

    Raises ValueError if it changes tensors in place: the state of training shares their memory. By
    torch's count of changes, which does not see .data.
    """
    tensors = [x for x in args if hasattr(x, "_version")]
    before, token = [x._version for x in tensors], nodes_allowed.set(True)
    try:
        yield
    finally:
        nodes_allowed.reset(token)
    if before != [x._version for x in tensors]:
        raise ValueError(
            "a function changes its weights or hyper in place (clamp_, copy_, max_norm), which has"
            " no derivative: compute a new tensor, or use project= for hyper"
        )


@dataclass(frozen=True)
class Torch(Backend):
    """PyTorch on `device` ("cpu", "cuda", "cuda:1") in `dtype` ("float64" or "float32")."""

    device: str = "cpu"
    dtype: str = "float64"
    name = "torch"

    def __post_init__(self):
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")
        try:
            self.xp.empty(0, device=self.xp.device(self.device))
        except (RuntimeError, TypeError, AssertionError) as error:
            rule = "device must be 'cpu', or 'cuda' or 'cuda:1' on a machine with such a GPU"
            raise ValueError(f"{rule}, got {self.device!r}: {error}") from None

    @property
    def xp(self) -> ModuleType:
        import torch

        return torch

    @property
    def sync_every(self) -> int:
        return 1 if self.device == "cpu" else 64

    def array(self, values):
        if self.xp.is_inference_mode_enabled():
            raise RuntimeError("torch.inference_mode() has no derivatives; use torch.no_grad()")
        if self.xp.is_autocast_enabled(self.device.split(":")[0]):
            raise RuntimeError("hgcore has one dtype: use torch.autocast inside of a loss only")
        return self.traced(values).detach()

    def constant(self, values):
        return self.array(values).clone()

    def traced(self, values):
        torch = self.xp
        dtype = getattr(torch, self.dtype)
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(values)  # a tenth of the time of as_tensor
        if isinstance(values, torch.Tensor) and values.dtype == dtype:
            return values if values.is_cpu and self.device == "cpu" else values.to(self.device)
        kind = {"dtype": dtype, "device": self.device}
        if isinstance(values, (int, float)):  # filled on the device: no transfer to wait for
            return torch.full((), values, **kind)
        if isinstance(values, (list, tuple)) and any(hasattr(x, "detach") for x in values):
            return torch.stack([self.traced(x) for x in values])  # as_tensor would cut the graphs
        require_real(values)
        return torch.as_tensor(values, **kind)

    def numpy(self, array) -> np.ndarray:
        return array.detach().cpu().numpy()

    def host_view(self, array):
        if self.device != "cpu":
            return array.detach()
        return array.detach().numpy() if array.ndim else float(array)

    def floats(self, scalars: list) -> list[float]:
        return super().floats(scalars) if self.device == "cpu" else self.array(scalars).tolist()

    def memory(self) -> int:
        cuda = self.xp.device(self.device).type == "cuda"
        return self.xp.cuda.mem_get_info(self.device)[1] if cuda else super().memory()

    def evaluate(self, f, *args):
        with self.xp.no_grad(), _own_call(args):
            return f(*args)

    def gradients(self, f, *args) -> tuple:
        leaves = [x.detach().requires_grad_() for x in args]
        value = self._loss(f, leaves)
        return value.detach(), *self._grad((value,), leaves)

    def sources(self, f, *args) -> tuple[bool, int]:
        args = [x.detach().requires_grad_() for x in args]
        leaves = second_derivatives.leaves(self._loss(f, args))
        found, own = set(map(id, leaves)), set(map(id, args))
        return bool(found & own), len(found - own)

    def slopes(self, f, args, count: int) -> tuple:
        value = self._loss(f, args)
        if (why := second_derivatives.fault((value,))) is not None:
            raise RuntimeError(why)
        return self._grad((value,), args[:count], create_graph=True)

    def vjp(self, f, *args) -> tuple:
        leaves, outputs = self._outputs(f, args)

        def pull(cotangents, only=None):
            inputs = leaves if only is None else leaves[only : only + 1]
            found = self._grad(outputs, inputs, cotangents, retain_graph=True)
            return found if only is None else found[0]

        return tuple(y.detach() for y in outputs), pull

    def jvp(self, f, *args) -> tuple:
        leaves, outputs = self._outputs(f, args)
        if (why := second_derivatives.fault(outputs)) is not None:
            raise RuntimeError(why)
        cotangents = [self.xp.zeros_like(y, requires_grad=True) for y in outputs]
        with self.xp.enable_grad():
            pulled = self._grad(outputs, leaves, cotangents, create_graph=True)

        def push(*tangents):
            return self._grad(pulled, cotangents, tangents, retain_graph=True)

        return tuple(y.detach() for y in outputs), push  # the vjp of a linear vjp is the jvp

    def _outputs(self, f, args) -> tuple[list, tuple]:
        """Return (leaves like `args`, the outputs of f there, with their graph)."""
        leaves = [x.detach().requires_grad_() for x in args]
        with self.xp.enable_grad(), _own_call(leaves):
            return leaves, tuple(map(self.traced, f(*leaves)))

    def _loss(self, f, leaves):
        """Return the scalar f(*leaves) with its graph."""
        try:
            with self.xp.enable_grad(), _own_call(leaves):
                value = require_scalar(f(*leaves), "detach")
            if any(leaf._backward_hooks for leaf in leaves):
                raise ValueError(
                    "the loss left a hook on its weights, so its gradient is another function's;"
                    " to clip, use the optimizer's clip="
                )
            return value
        except RuntimeError as error:
            self._explain(error, f, leaves)
            raise

    def _grad(self, outputs, inputs, cotangents=None, **options) -> tuple:
        """Return the cotangents of `inputs`, zeros for one that no output depends on."""
        live = [i for i, y in enumerate(outputs) if y.requires_grad]
        if not live:
            return tuple(map(self.xp.zeros_like, inputs))
        seeds = [outputs[i] for i in live], inputs, cotangents and [cotangents[i] for i in live]
        with second_derivatives.explained():  # torch 2.8's own zeros always require a gradient
            found = self.xp.autograd.grad(*seeds, allow_unused=True, **options)
        zeros = functools.partial(self.xp.zeros_like, requires_grad="create_graph" in options)
        return tuple(zeros(x) if y is None else y for y, x in zip(found, inputs, strict=True))

    def _explain(self, error, f, args) -> None:
        """Raise TypeError from `error` if f works in the other precision and not in this one."""
        other = {"float32": "float64", "float64": "float32"}[self.dtype]

        def works(dtype) -> bool:
            try:
                self.evaluate(f, *(x.to(getattr(self.xp, dtype), copy=True) for x in args))
            except Exception:
                return False
            return True

        if works(self.dtype) or not works(other):  # the precision is not what is wrong
            return
        raise TypeError(
            f"the loss takes {other} weights but not {self.dtype} ones: its data or module are"
            f" {other}, the backend is {self.dtype}; use hg.Torch(dtype={other!r}), or convert"
            f" data and module to {self.dtype}"
        ) from error
