"""Networks as functions of one flat weight vector: dense nets over either backend, and any torch module without batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hgcore.arrays import in_reverse, namespace, written_out
from hgcore.layout import Layout


def log_softmax(scores):
    """log of the softmax over the last axis of scores (batch, classes)."""
    xp = namespace(scores)
    if hasattr(xp, "log_softmax"):
        return xp.log_softmax(scores, -1)
    shifted = scores - xp.amax(scores, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def cross_entropy(log_probabilities, labels):
    """Mean negative log-likelihood of one-hot (or soft) labels; both (batch, classes)."""
    return namespace(log_probabilities).sum(log_probabilities * labels) / -len(labels)


def error_rate(log_probabilities, labels) -> float:
    """Share of the batch whose most likely class is not the labelled one."""
    xp = namespace(log_probabilities)
    return 1 - float(
        (xp.argmax(log_probabilities, axis=1) == xp.argmax(labels, axis=1)).sum()
    ) / len(labels)


@dataclass(frozen=True)
class Dense:
    """A dense tanh net with log-softmax output: net(weights (n,), inputs (batch, sizes[0])) -> (batch, sizes[-1]).

    `layout` names its blocks 'weights 1', 'biases 1', ... in the order of the layers, n = layout.size.
    """

    sizes: Sequence[int]
    layout: Layout = field(init=False)

    def __post_init__(self):
        shapes = {}
        for layer, (rows, columns) in enumerate(
            zip(self.sizes[:-1], self.sizes[1:], strict=True), start=1
        ):
            shapes |= {f"weights {layer}": (rows, columns), f"biases {layer}": (columns,)}
        object.__setattr__(self, "layout", Layout(shapes))

    def __call__(self, weights, inputs):
        if (
            in_reverse(weights)
            and weights.requires_grad
            and not inputs.requires_grad
            and inputs.ndim == 2
            and inputs.dtype == weights.dtype
        ):
            return written_out().LogProbabilities.apply(weights, inputs, self.layout)
        return self.through(list(self.layout.split(weights).values()), inputs)

    def first(self, normal: Callable) -> np.ndarray:
        """Weights (n,) to begin with: normal with variance 1 / inputs in each layer, where normal(*shape) draws; no biases."""
        return self.layout.join(
            {
                name: normal(*shape) / np.sqrt(shape[0]) if len(shape) == 2 else np.zeros(shape)
                for name, shape in self.layout.shapes.items()
            }
        )

    @staticmethod
    def through(blocks: Sequence, inputs):
        """The log-probabilities of a net whose weights and biases are these blocks, in turn."""
        hidden = inputs
        for matrix, bias in zip(blocks[:-2:2], blocks[1:-2:2], strict=True):
            hidden = namespace(matrix).tanh(hidden @ matrix + bias)
        return log_softmax(hidden @ blocks[-2] + blocks[-1])


def functional(module) -> tuple:
    """(weights (n,), function(weights, *inputs)) of a `torch.nn.Module`, for use in a Problem on the Torch backend.

    The module is called by `torch.func.functional_call`, its parameters being views of the flat vector, but for those that require no
    gradient: they stay as they are. `function.layout` has the names. Modules that change while they run cannot be trained twice with the
    same bits and are refused: batch statistics, and dropout or spectral norms in training mode. So is weight_norm, whose second
    derivative torch has wrong. Attention is the plain one: torch's fused kernels have no second derivative.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for name, part in module.named_modules():
        if why := _unfit(part):
            raise ValueError(
                f"module {name or type(part).__name__!r} ({type(part).__name__}) {why}"
            )
    parameters = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    if not parameters:
        raise ValueError(
            f"{type(module).__name__} has no parameters to train, none that requires a gradient"
        )
    layout = Layout({name: tuple(p.shape) for name, p in parameters.items()})
    weights = torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def function(vector, *inputs):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(module, layout.split(vector), inputs)

    function.layout = layout
    return weights, function


def _unfit(part) -> str | None:
    """What forbids this module, if anything: it draws random numbers, uses batch statistics, updates what it keeps, or is wrongly differentiated."""
    import torch

    modules = torch.nn.modules
    kinds = {
        type(one).__name__.removeprefix("_") for one in (part, *part._forward_pre_hooks.values())
    }  # a norm is a hook or a part
    if "WeightNorm" in kinds:
        return "has second derivatives that torch gets wrong: remove the weight_norm, or divide by the norm in a module of your own"
    dropout = (
        part.p if isinstance(part, modules.dropout._DropoutNd) else getattr(part, "dropout", 0)
    )
    random = (
        isinstance(part, (modules.RReLU, modules.FractionalMaxPool2d, modules.FractionalMaxPool3d))
        or "SpectralNorm" in kinds
    )
    draws = part.training and (random or isinstance(dropout, float) and dropout > 0)
    batch = isinstance(part, modules.batchnorm._BatchNorm) and part.running_mean is None
    if draws or batch or (part.training and getattr(part, "track_running_stats", False)):
        return "gives other results when called again or in another batch: put it in eval() mode, or use GroupNorm or LayerNorm"
    return None
