"""Dense tanh nets with log-softmax output on torch, their derivatives written out: the gradient, and its pullback
(the R-operator of Pearlmutter 1994); and `Expand` and `Sums`, what layouts do to each block, as one node each.

Of layer i: h[i] is its input, felt[i] the cotangent of its sums, each (batch, units). Along a direction q of the weights, sums, inputs
and what is felt move. On a CPU all is reckoned on NumPy views of the tensors: its BLAS and its tanh are faster than torch's where MKL
does not know the processor. It gets as many threads as torch has.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import threadpoolctl
import torch

from hgcore.arrays import cut, namespace


class Passed(NamedTuple):
    """A forward pass: log-probabilities, probabilities (batch, classes), inputs of the layers, (matrix, bias) of each."""

    log_likely: object
    likely: object
    h: list
    layers: list


class Felt(NamedTuple):
    """A backward pass: what its pullback needs. weight: the sum of the cotangents times the probabilities; slopes: of the tanh."""

    weight: object
    likely: object
    h: list
    layers: list
    slopes: list
    felt: list


_threads = 0  # that NumPy's BLAS was given


def bare(tensor):
    """The numbers of a tensor, in the same memory: a NumPy array on a CPU, a tensor without graph elsewhere."""
    return tensor.detach().numpy() if tensor.device.type == "cpu" else tensor.detach()


def _layers(vector, layout) -> list[tuple]:
    """(matrix, bias) of each layer, views of the vector."""
    blocks = list(layout.split(bare(vector)).values())
    return list(zip(blocks[::2], blocks[1::2], strict=True))


def _backwards(layers) -> list[tuple]:
    return list(enumerate(layers))[::-1]


def _ones(vector):
    """Sums by products with ones are three times as fast as sums."""
    return namespace(vector).ones_like(vector)


def forward(weights, inputs, layout) -> Passed:
    """The net at weights (n,), tensors; `layout` holds its blocks."""
    global _threads
    if _threads != (threads := torch.get_num_threads()):
        threadpoolctl.threadpool_limits(threads, user_api="blas")
        _threads = threads
    h, layers = [bare(inputs)], _layers(weights, layout)
    xp = namespace(h[0])
    for i, (matrix, bias) in enumerate(layers):
        sums = h[i] @ matrix
        sums += bias
        if i + 1 < len(layers):
            h.append(xp.tanh(sums, out=sums))
    sums -= bare(
        torch.amax(torch.as_tensor(sums), 1, keepdim=True)
    )  # NumPy's takes three times as long on short rows
    likely = xp.exp(sums)
    total = (likely @ _ones(likely[0]))[:, None]
    likely /= total
    sums -= xp.log(total)
    return Passed(sums, likely, h, layers)


def backward(cotangent, weights, layout, passed: Passed) -> tuple:
    """(cotangent of the weights (n,), a tensor; what `along` needs), from that of the log-probabilities."""
    _, likely, h, layers = passed
    xp, ones, gradient = namespace(likely), _ones(likely[None, :, 0]), torch.empty_like(weights)
    weight = (cotangent @ _ones(likely[0]))[:, None] * likely
    felt, slopes = [cotangent - weight], [None]
    for i, (to_matrix, to_bias) in _backwards(_layers(gradient, layout)):
        xp.matmul(h[i].T, felt[0], out=to_matrix)
        xp.matmul(ones, felt[0], out=to_bias[None])
        if i:
            slopes.insert(1, 1 - h[i] * h[i])
            felt.insert(0, felt[0] @ layers[i][0].T)
            felt[0] *= slopes[1]
    return gradient, Felt(weight, likely, h, layers, slopes, felt)


def along(q, layout, kept: Felt) -> tuple:
    """(how the log-probabilities move along q (n,), an array; how the gradient does (n,), a tensor)."""
    weight, likely, h, layers, slopes, felt = kept
    xp, ones, product, directions = (
        namespace(likely),
        _ones(likely[None, :, 0]),
        torch.empty_like(q),
        _layers(q, layout),
    )
    sums, inputs = [], [None]  # how they move: the sums of every layer, its inputs
    for i, (matrix, bias) in enumerate(directions):
        sums.append(h[i] @ matrix)
        sums[i] += bias
        if i:
            inputs.append(sums[i - 1] * slopes[i])
            sums[i] += inputs[i] @ layers[i][0]
    output = sums[-1] - ((likely * sums[-1]) @ _ones(likely[0]))[:, None]
    moving = -weight * output  # how felt[i] moves
    for i, (to_matrix, to_bias) in _backwards(_layers(product, layout)):
        xp.matmul(h[i].T, moving, out=to_matrix)
        xp.matmul(ones, moving, out=to_bias[None])
        if i:
            to_matrix += inputs[i].T @ felt[i]
            moving = moving @ layers[i][0].T
            moving += felt[i] @ directions[i][0].T
            moving *= slopes[i]
            bend = h[i] * sums[i - 1]
            bend *= felt[i - 1]
            moving -= 2 * bend
    return output, product


class LogProbabilities(torch.autograd.Function):
    """Weights (n,), inputs (batch, features), layout -> (batch, classes); twice differentiable with respect to the weights."""

    @staticmethod
    def forward(ctx, weights, inputs, layout):
        ctx.layout, ctx.passed = layout, forward(weights, inputs, layout)
        ctx.save_for_backward(weights)
        return torch.as_tensor(ctx.passed.log_likely)

    @staticmethod
    def backward(ctx, cotangent):
        return _Gradient.apply(cotangent, *ctx.saved_tensors, ctx.layout, ctx.passed), None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cotangent, weights, layout, passed):
        gradient, ctx.kept = backward(bare(cotangent), weights, layout, passed)
        ctx.layout = layout
        ctx.save_for_backward(weights)
        return gradient

    @staticmethod
    def backward(ctx, q):
        if torch.is_grad_enabled():  # a graph of what follows is asked for
            raise RuntimeError(
                "nets.Dense on torch can be differentiated twice; write the net out over Layout.split to do it again"
            )
        ctx.saved_tensors  # noqa: B018  raises if the weights, of which `kept` has views, were changed
        output, product = along(q, ctx.layout, ctx.kept)
        return torch.as_tensor(output), product, None, None


class Expand(torch.autograd.Function):
    """One value per block (k,) -> one per coordinate (sum of sizes,), on a CPU; as often differentiable as asked for."""

    @staticmethod
    def forward(ctx, values, sizes):
        ctx.sizes = sizes
        return torch.from_numpy(np.repeat(bare(values), sizes))

    @staticmethod
    def backward(ctx, cotangent):
        return Sums.apply(cotangent, ctx.sizes), None


class Sums(torch.autograd.Function):
    """The sum of each block: (sum of sizes,) -> (k,), on a CPU; as often differentiable as asked for."""

    @staticmethod
    def forward(ctx, vector, sizes):
        ctx.sizes = sizes
        numbers, starts = bare(vector), [0, *itertools.accumulate(sizes[:-1])]
        return torch.from_numpy(
            np.add.reduceat(numbers, starts)
            if all(sizes)
            else np.array([np.add.reduce(piece) for piece in cut(numbers, sizes)])
        )

    @staticmethod
    def backward(ctx, cotangent):
        return Expand.apply(cotangent, ctx.sizes), None
