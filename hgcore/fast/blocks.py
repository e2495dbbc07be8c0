"""`Layout.expand` and `Layout.sums` in one pass over a vector on a CPU, as nodes of torch's graph.

Each is the derivative of the other, so both can be differentiated any number of times.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch


def fits(vector, sizes: list[int]) -> bool:
    """Return whether these nodes can take a tensor; np.add.reduceat knows no empty blocks."""
    return (
        vector.device.type == "cpu"
        and vector.dtype in (torch.float32, torch.float64)
        and 0 not in sizes
        and torch._C._functorch.maybe_current_level() is None  # no vmap or grad of torch.func
    )


class Expand(torch.autograd.Function):
    """values (blocks,), sizes of the blocks -> one value per coordinate (sum of sizes,)."""

    @staticmethod
    def forward(ctx, values, sizes):
        ctx.sizes = sizes
        return torch.from_numpy(np.repeat(values.detach().numpy(), sizes))

    @staticmethod
    def backward(ctx, cotangent):
        return Sums.apply(cotangent, ctx.sizes), None


class Sums(torch.autograd.Function):
    """vector (sum of sizes,), sizes of the blocks -> the sum of each block (blocks,)."""

    @staticmethod
    def forward(ctx, vector, sizes):
        ctx.sizes = sizes
        starts = [0, *itertools.accumulate(sizes[:-1])]
        return torch.from_numpy(np.add.reduceat(vector.detach().numpy(), starts))

    @staticmethod
    def backward(ctx, cotangent):
        return Expand.apply(cotangent, ctx.sizes), None
