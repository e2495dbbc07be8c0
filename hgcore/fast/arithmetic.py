"""Which implementation of exact reversal's arithmetic is the fastest for a vector."""

from __future__ import annotations

import numpy as np

from hgcore.fixed_point import Arithmetic

try:
    from hgcore.fast.numba_kernels import KERNELS
except ImportError:  # no numba
    KERNELS = None
LARGE = 2**17  # for fewer numbers starting a GPU kernel takes longer than reading them


def fitting(bits, plain: Arithmetic) -> Arithmetic:
    """Return the fastest implementation for int64 vectors like `bits` (n,), or else `plain`.

    All give the same bits. Those for NumPy, by numba, work in place: see Arithmetic.
    """
    if isinstance(bits, np.ndarray):
        return KERNELS if KERNELS and bits.ndim == 1 and bits.dtype == np.int64 else plain
    if getattr(bits, "is_cuda", False) and bits.numel() >= LARGE:
        from hgcore.fast.compiled_kernels import compiled  # torch is loaded, as `bits` is its own

        return compiled(bits.device)
    return plain
