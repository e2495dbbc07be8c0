"""Networks as functions of one flat weight vector: dense nets, and any torch module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hgcore.arrays import is_compiling, namespace
from hgcore.backend import reverse_mode
from hgcore.layout import Layout


def log_softmax(scores):
    """Return the log of the softmax over the last axis of scores (batch, classes)."""
    xp = namespace(scores)
    if hasattr(xp, "log_softmax"):
        return xp.log_softmax(scores, -1)
    shifted = scores - xp.amax(scores, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def cross_entropy(log_probabilities, labels):
    """Return the mean negative log-likelihood of one-hot or soft labels; both (batch, classes)."""
    return namespace(log_probabilities).sum(log_probabilities * labels) / -len(labels)


def error_rate(log_probabilities, labels) -> float:
    """Return the share of a batch whose likeliest class is not the labeled one."""
    xp = namespace(log_probabilities)
    right = xp.argmax(log_probabilities, axis=1) == xp.argmax(labels, axis=1)
    return 1 - float(right.sum()) / len(labels)


@dataclass(frozen=True)
class DenseNet:
    """A dense tanh net with log-softmax output: net(weights (n,), inputs) -> log-probabilities.

    inputs (batch, sizes[0]) -> (batch, sizes[-1]). `layout` names the blocks of the weights,
    'weights 1', 'biases 1', ... in the order of the layers; n = layout.size.
    """

    sizes: Sequence[int]
    layout: Layout = field(init=False)

    def __post_init__(self):
        shapes = {}
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        for layer, (rows, columns) in enumerate(pairs, start=1):
            shapes |= {f"weights {layer}": (rows, columns), f"biases {layer}": (columns,)}
        object.__setattr__(self, "layout", Layout(shapes))

    def __call__(self, weights, inputs):
        plain = is_compiling(weights) or not reverse_mode.get()
        if not plain and (fast := _hand_written()) and fast.fits(weights, inputs):
            return fast.log_probabilities(weights, inputs, self.layout)
        return self.through(list(self.layout.split(weights).values()), inputs)

    def initial_weights(self, normal: Callable) -> np.ndarray:
        """Return weights (n,) of variance 1 / inputs in each layer, and biases of zero.

        normal: *shape -> numbers of a standard normal distribution.
        """
        return self.layout.join(
            {
                name: normal(*shape) / np.sqrt(shape[0]) if len(shape) == 2 else np.zeros(shape)
                for name, shape in self.layout.shapes.items()
            }
        )

    @staticmethod
    def through(blocks: Sequence, inputs):
        """Return the log-probabilities of a net with these weights and biases, in turn."""
        hidden = inputs
        for matrix, bias in zip(blocks[:-2:2], blocks[1:-2:2], strict=True):
            hidden = namespace(matrix).tanh(hidden @ matrix + bias)
        return log_softmax(hidden @ blocks[-2] + blocks[-1])


class HandWritten(NamedTuple):
    """A dense net with hand-written derivatives, and what it takes."""

    fits: Callable
    log_probabilities: Callable


@functools.cache
def _hand_written() -> HandWritten | None:
    try:
        from hgcore.fast.dense_net import fits, log_probabilities
    except ImportError:
        return None
    return HandWritten(fits, log_probabilities)


def functional(module) -> tuple:
    """Return (weights (n,), function(weights, *inputs)) of a torch.nn.Module, for a Problem.

    The parameters are views of the flat vector; those that require no gradient stay as they are.
    `function.layout` has the names. Modules that change while they run cannot give the same bits
    twice and raise ValueError: batch statistics, and dropout or spectral norms in training mode.
    So does weight_norm, whose second derivative torch gets wrong. Attention uses torch's plain
    kernel: the fused ones have no second derivative.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for name, part in module.named_modules():
        if why := _unfit(part):
            kind = type(part).__name__
            raise ValueError(f"module {name or kind!r} ({kind}) {why}")
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        kind = type(module).__name__
        raise ValueError(f"{kind} has no parameters to train, none that requires a gradient")
    layout = Layout({name: tuple(p.shape) for name, p in parameters.items()})
    weights = torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def function(vector, *inputs):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(module, layout.split(vector), inputs)

    function.layout = layout
    return weights, function


def _unfit(part) -> str | None:
    """Return what forbids this module, None if nothing does."""
    import torch

    modules = torch.nn.modules
    parts = (part, *part._forward_pre_hooks.values())  # a norm is a hook or a module
    kinds = {type(one).__name__.removeprefix("_") for one in parts}
    if "WeightNorm" in kinds:
        return (
            "has second derivatives that torch gets wrong: remove the weight_norm, or divide by the"
            " norm in a module of your own"
        )
    dropout = getattr(part, "p" if isinstance(part, modules.dropout._DropoutNd) else "dropout", 0)
    random = (modules.RReLU, modules.FractionalMaxPool2d, modules.FractionalMaxPool3d)
    draws = isinstance(part, random) or "SpectralNorm" in kinds
    draws = draws or isinstance(dropout, float) and dropout > 0
    batch = isinstance(part, modules.batchnorm._BatchNorm) and part.running_mean is None
    tracks = getattr(part, "track_running_stats", False)
    if batch or part.training and (draws or tracks):
        return (
            "gives other results when called again or in another batch: put it in eval() mode, or"
            " use GroupNorm or LayerNorm"
        )
    return None
