"""Dense tanh nets with log-softmax output: the gradient and its derivative, written by hand.

Implements: Pearlmutter 1994 (the R-operator). Of layer i: h[i] is its input, delta[i] the
cotangent of its sums, each (batch, units). `along` moves everything along a direction q of the
weights. On a CPU the numbers are NumPy views of the tensors: its matrix products are faster than
torch's where MKL does not know the processor. NumPy's BLAS gets as many threads as torch has.
"""

from __future__ import annotations

import functools

import numpy as np
import threadpoolctl
import torch

from hgcore.arrays import namespace


def numbers(tensor):
    """Return the numbers of a tensor in the same memory: NumPy's on a CPU, else without graph."""
    return tensor.detach().numpy() if tensor.is_cpu else tensor.detach()


@functools.cache
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
    """Return (matrix, bias) of each layer, views of the vector (n,)."""
    flat, start, layers = numbers(vector), 0, []
    for rows, columns in list(layout.shapes.values())[::2]:
        stop = start + rows * columns
        layers.append((flat[start:stop].reshape((rows, columns)), flat[stop : stop + columns]))
        start = stop + columns
    return layers


def _ones(vector):
    """Return ones like a vector, kept; products with them take a third of the time of sums."""
    return _kept_ones(namespace(vector), len(vector), vector.dtype, vector.device)


@functools.lru_cache
def _kept_ones(xp, size: int, dtype, device):
    return xp.ones(size, dtype=dtype, device=device)


def _sums(h, matrix, bias):
    sums = h @ matrix
    sums += bias
    return sums


def _gradient_into(matrix, bias, h, delta, ones) -> None:
    """Write h' delta and ones' delta, the sum over the batch: those of one layer."""
    matmul = namespace(h).matmul
    matmul(h.T, delta, out=matrix)
    matmul(ones[None], delta, out=bias[None])


class Forward:
    """A run of the net at weights (n,) on inputs (batch, features), tensors.

    log_probabilities, probabilities: (batch, classes). layout: the blocks of the weights. ones,
    ones_of_classes: (batch,) and (classes,), for sums.
    """

    def __init__(self, weights, inputs, layout):
        _blas_threads(torch.get_num_threads())
        self.layout, self.layers, self.h = layout, _layers(weights, layout), [numbers(inputs)]
        for layer in self.layers[:-1]:
            self.h.append(_into("tanh", _sums(self.h[-1], *layer)))
        sums = _sums(self.h[-1], *self.layers[-1])
        sums -= namespace(sums).amax(sums, 1, keepdims=True)
        self.ones, self.ones_of_classes = _ones(sums[:, 0]), _ones(sums[0])
        self.probabilities = _into("exp", sums + 0)
        total = (self.probabilities @ self.ones_of_classes)[:, None]
        self.probabilities /= total
        sums -= _into("log", total)
        self.log_probabilities = sums


class Backward:
    """The pass back: `gradient` is the cotangent of the weights (n,), a tensor.

    cotangent: that of the log-probabilities. softmax_term: the sum of the cotangents times the
    probabilities; slopes[i] is 1 - h[i]^2, None for the inputs.
    """

    def __init__(self, run: Forward, cotangent, weights):
        self.run, self.gradient = run, torch.empty_like(weights)
        share = cotangent @ run.ones_of_classes
        self.softmax_term = share[:, None] * run.probabilities
        self.delta, self.slopes = [cotangent - self.softmax_term], [None]
        to = _layers(self.gradient, run.layout)
        for h, (matrix, _), place in zip(run.h[:0:-1], run.layers[:0:-1], to[:0:-1], strict=True):
            _gradient_into(*place, h, self.delta[0], run.ones)
            self.slopes.insert(1, 1 - h * h)
            self.delta.insert(0, self.delta[0] @ matrix.T)
            self.delta[0] *= self.slopes[1]
        _gradient_into(*to[0], run.h[0], self.delta[0], run.ones)

    def along(self, q) -> tuple:
        """Return (how the log-probabilities move along q (n,), an array; how the gradient does)."""
        h, layers, delta, slopes = self.run.h, self.run.layers, self.delta, self.slopes
        ones, probabilities = self.run.ones, self.run.probabilities
        directions, product = _layers(q, self.run.layout), torch.empty_like(q)
        sums, inputs = [_sums(h[0], *directions[0])], [None]  # how both move, layer by layer
        for i in range(1, len(h)):
            sums.append(_sums(h[i], *directions[i]))
            inputs.append(sums[i - 1] * slopes[i])
            sums[i] += inputs[i] @ layers[i][0]
        output = sums[-1] - ((probabilities * sums[-1]) @ self.run.ones_of_classes)[:, None]
        moving, to = -self.softmax_term * output, _layers(product, self.run.layout)  # of delta
        for i in reversed(range(1, len(h))):
            matrix, bias = to[i]
            _gradient_into(matrix, bias, h[i], moving, ones)
            matrix += inputs[i].T @ delta[i]
            moving = moving @ layers[i][0].T
            moving += delta[i] @ directions[i][0].T
            moving *= slopes[i]
            bend = h[i] * sums[i - 1]
            bend *= delta[i - 1]
            bend *= 2
            moving -= bend
        _gradient_into(*to[0], h[0], moving, ones)
        return output, product


# ---- the same as nodes of torch's graph


def fits(weights, inputs, layout) -> bool:
    """Return whether `LogProbabilities` can take these, and a gradient is asked for."""
    return (
        getattr(weights, "requires_grad", False)
        and not getattr(inputs, "requires_grad", True)  # a tensor, and a constant
        and inputs.ndim == 2
        and inputs.dtype == weights.dtype
        and weights.shape == (layout.size,)
        and torch._C._functorch.maybe_current_level() is None  # no vmap or grad of torch.func
    )


class LogProbabilities(torch.autograd.Function):
    """weights (n,), inputs (batch, features), layout -> (batch, classes); twice differentiable."""

    @staticmethod
    def forward(ctx, weights, inputs, layout):
        ctx.run = Forward(weights, inputs, layout)
        ctx.save_for_backward(weights, inputs)
        # detached, here and below: a node that keeps its own output is freed late
        return torch.as_tensor(ctx.run.log_probabilities).detach()

    @staticmethod
    def backward(ctx, cotangent):
        return _Gradient.apply(cotangent, *ctx.saved_tensors, ctx.run), None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cotangent, weights, inputs, run):
        ctx.back = Backward(run, numbers(cotangent), weights)
        ctx.save_for_backward(weights, inputs)
        return ctx.back.gradient.detach()

    @staticmethod
    def backward(ctx, q):
        if torch.is_grad_enabled():  # a graph of what follows is asked for
            raise RuntimeError("the hand-written nets.DenseNet can be differentiated twice only")
        ctx.saved_tensors  # noqa: B018  raises if one, of which it has views, was changed
        output, product = ctx.back.along(q)
        return torch.as_tensor(output), product, None, None
