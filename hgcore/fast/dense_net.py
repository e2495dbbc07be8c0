"""Dense tanh nets with log-softmax output: the gradient and its derivative, written by hand.

Implements: Pearlmutter 1994 (the R-operator). Of layer i: h[i] is its input, delta[i] the
cotangent of its sums, each (batch, units). `along` moves everything along a direction q of the
weights. On a CPU the numbers are NumPy views of the tensors: its matrix products are faster than
torch's where MKL does not know the processor. NumPy's BLAS gets as many threads as torch has.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import threadpoolctl
import torch

from hgcore.arrays import namespace


class ForwardCache(NamedTuple):
    """A forward pass: log-probabilities, probabilities (batch, classes), h, (matrix, bias)s."""

    log_probabilities: object
    probabilities: object
    h: list
    layers: list


class BackwardCache(NamedTuple):
    """What `along` needs of a backward pass; slopes[i] is 1 - h[i]^2, None for the inputs."""

    softmax_term: object  # the sum of the cotangents times the probabilities
    probabilities: object
    h: list
    layers: list
    slopes: list
    delta: list


def numbers(tensor):
    """Return the numbers of a tensor in the same memory: NumPy's on a CPU, else without graph."""
    return tensor.detach().numpy() if tensor.device.type == "cpu" else tensor.detach()


def elementwise(dtype) -> str:
    """Return which library computes tanh, exp and log of NumPy arrays of this type, the faster one.

    NumPy has vector code for double precision with AVX-512 only; without, its tanh takes 2.3 times
    as long as torch's. A rule, not a timing, so that runs on one machine have the same bits.
    """
    vectors = dtype == np.float32 or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "numpy" if vectors else "torch"


def _into(name: str, array):
    """Return the function `name` of an array, computed in its place."""
    if isinstance(array, np.ndarray) and elementwise(array.dtype) == "numpy":
        return getattr(np, name)(array, out=array)
    tensor = torch.as_tensor(array)
    getattr(torch, name)(tensor, out=tensor)
    return array


@functools.lru_cache(maxsize=1)
def _blas_threads(threads: int) -> None:
    threadpoolctl.threadpool_limits(threads, user_api="blas")


def _layers(vector, layout) -> list[tuple]:
    """Return (matrix, bias) of each layer, views of the vector."""
    blocks = list(layout.split(numbers(vector)).values())
    return list(zip(blocks[::2], blocks[1::2], strict=True))


def _from_last(layers) -> list[tuple]:
    return list(enumerate(layers))[::-1]


def _ones(vector):
    """Products with ones take a third of the time of sums."""
    return namespace(vector).ones_like(vector)


def forward(weights, inputs, layout) -> ForwardCache:
    """Run the net at weights (n,), tensors; `layout` has its blocks."""
    _blas_threads(torch.get_num_threads())
    h, layers = [numbers(inputs)], _layers(weights, layout)
    for i, (matrix, bias) in enumerate(layers):
        sums = h[i] @ matrix
        sums += bias
        if i + 1 < len(layers):
            h.append(_into("tanh", sums))
    sums -= numbers(torch.amax(torch.as_tensor(sums), 1, keepdim=True))  # NumPy's takes 3 times it
    probabilities = _into("exp", sums + 0)
    total = (probabilities @ _ones(probabilities[0]))[:, None]
    probabilities /= total
    sums -= _into("log", total)
    return ForwardCache(sums, probabilities, h, layers)


def backward(cotangent, weights, layout, cache: ForwardCache) -> tuple:
    """Return (cotangent of the weights (n,), a tensor; what `along` needs).

    cotangent: that of the log-probabilities.
    """
    _, probabilities, h, layers = cache
    gradient, xp = torch.empty_like(weights), namespace(probabilities)
    ones = _ones(probabilities[None, :, 0])
    softmax_term = (cotangent @ _ones(probabilities[0]))[:, None] * probabilities
    delta, slopes = [cotangent - softmax_term], [None]
    for i, (to_matrix, to_bias) in _from_last(_layers(gradient, layout)):
        _product(h[i], delta[0], to_matrix)
        xp.matmul(ones, delta[0], out=to_bias[None])
        if i:
            slopes.insert(1, 1 - h[i] * h[i])
            delta.insert(0, delta[0] @ layers[i][0].T)
            delta[0] *= slopes[1]
    return gradient, BackwardCache(softmax_term, probabilities, h, layers, slopes, delta)


def along(q, layout, cache: BackwardCache) -> tuple:
    """Return (how the log-probabilities move along q (n,), an array; how the gradient does)."""
    softmax_term, probabilities, h, layers, slopes, delta = cache
    xp, ones, product = namespace(h[0]), _ones(probabilities[None, :, 0]), torch.empty_like(q)
    directions = _layers(q, layout)
    sums, inputs = _forward_along(directions, cache)
    output = sums[-1] - ((probabilities * sums[-1]) @ _ones(probabilities[0]))[:, None]
    moving = -softmax_term * output  # how delta[i] moves
    for i, (to_matrix, to_bias) in _from_last(_layers(product, layout)):
        _product(h[i], moving, to_matrix)
        xp.matmul(ones, moving, out=to_bias[None])
        if i:
            to_matrix += inputs[i].T @ delta[i]
            moving = moving @ layers[i][0].T
            moving += delta[i] @ directions[i][0].T
            moving *= slopes[i]
            bend = h[i] * sums[i - 1]
            bend *= delta[i - 1]
            bend *= 2
            moving -= bend
    return output, product


def _forward_along(directions: list, cache: BackwardCache) -> tuple[list, list]:
    """Return how the sums of every layer, and its inputs, move along the directions."""
    sums, inputs = [], [None]
    for i, (matrix, bias) in enumerate(directions):
        sums.append(cache.h[i] @ matrix)
        sums[i] += bias
        if i:
            inputs.append(sums[i - 1] * cache.slopes[i])
            sums[i] += inputs[i] @ cache.layers[i][0]
    return sums, inputs


def _product(h, delta, out) -> None:
    """Write h' delta into `out`."""
    namespace(h).matmul(h.T, delta, out=out)


# ---- the same as nodes of torch's graph


def fits(weights, inputs) -> bool:
    """Return whether `log_probabilities` can take these, and a gradient is asked for."""
    return (
        hasattr(weights, "requires_grad")
        and weights.requires_grad
        and hasattr(inputs, "requires_grad")
        and not inputs.requires_grad
        and inputs.ndim == 2
        and inputs.dtype == weights.dtype
    )


def log_probabilities(weights, inputs, layout):
    """Return the net's log-probabilities (batch, classes), differentiable twice by the weights."""
    return LogProbabilities.apply(weights, inputs, layout)


class LogProbabilities(torch.autograd.Function):
    """weights (n,), inputs (batch, features), layout -> (batch, classes)."""

    @staticmethod
    def forward(ctx, weights, inputs, layout):
        ctx.layout, ctx.cache = layout, forward(weights, inputs, layout)
        ctx.save_for_backward(weights)
        return torch.as_tensor(ctx.cache.log_probabilities)

    @staticmethod
    def backward(ctx, cotangent):
        return _Gradient.apply(cotangent, *ctx.saved_tensors, ctx.layout, ctx.cache), None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cotangent, weights, layout, cache):
        gradient, ctx.cache = backward(numbers(cotangent), weights, layout, cache)
        ctx.layout = layout
        ctx.save_for_backward(weights)
        return gradient

    @staticmethod
    def backward(ctx, q):
        if torch.is_grad_enabled():  # a graph of what follows is asked for
            raise RuntimeError("the hand-written nets.DenseNet can be differentiated twice only")
        ctx.saved_tensors  # noqa: B018  raises if the weights, of which it has views, were changed
        output, product = along(q, ctx.layout, ctx.cache)
        return torch.as_tensor(output), product, None, None
