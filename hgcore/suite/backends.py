"""The backend that a notebook's parameters name."""

from hgcore.backend import Autograd, Backend
from hgcore.backend_torch import Torch


def make(name: str, device: str = "cpu", dtype: str = "float64") -> Backend:
    """Return the backend of that name: "autograd" (cpu and float64 only) or "torch"."""
    if name == "torch":
        return Torch(device, dtype)
    if name != "autograd":
        raise ValueError(f"backend must be 'autograd' or 'torch', got {name!r}")
    if (device, dtype) != ("cpu", "float64"):
        raise ValueError(
            f"the autograd backend runs on cpu in float64, got {device}, {dtype};"
            " use backend 'torch'"
        )
    return Autograd()
