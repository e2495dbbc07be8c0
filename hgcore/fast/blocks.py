"""`Layout.expand` and `Layout.sums` in one pass over a vector on a CPU, as nodes of torch's graph.

Each is the derivative of the other, so both can be differentiated any number of times.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch


def fits(vector, layout) -> bool:
    """Return whether these nodes can take a tensor: real memory that no transform looks at.

    np.add.reduceat knows no empty blocks.
    """
    watched = torch.autograd.forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack()
    known = vector.is_cpu and vector.dtype in (torch.float32, torch.float64)
    if watched or not known or 0 in layout.sizes:
        return False
    try:
        vector.detach().numpy()
    except RuntimeError:  # of torch.func, or a vector with a negative bit
        return False
    return torch._C._functorch.maybe_current_level() is None


class Expand(torch.autograd.Function):
    """values (blocks,), layout -> one value per coordinate (size,)."""

    @staticmethod
    def forward(ctx, values, layout):
        ctx.layout = layout
        return torch.from_numpy(np.repeat(values.detach().numpy(), layout.sizes))

    @staticmethod
    def backward(ctx, cotangent):
        if fits(cotangent, ctx.layout):
            return Sums.apply(cotangent, ctx.layout), None
        return torch.stack([part.sum() for part in cotangent.split(ctx.layout.sizes)]), None


class Sums(torch.autograd.Function):
    """vector (size,), layout -> the sum of each block (blocks,)."""

    @staticmethod
    def forward(ctx, vector, layout):
        ctx.layout = layout
        starts = [0, *itertools.accumulate(layout.sizes[:-1])]
        return torch.from_numpy(np.add.reduceat(vector.detach().numpy(), starts))

    @staticmethod
    def backward(ctx, cotangent):
        if fits(cotangent, ctx.layout):
            return Expand.apply(cotangent, ctx.layout), None
        parts = zip(cotangent.split(1), ctx.layout.sizes, strict=True)
        return torch.cat([part.expand(size) for part, size in parts]), None
