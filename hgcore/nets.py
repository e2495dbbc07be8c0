"""Networks as functions of one flat weight vector: dense nets, and any torch module."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from hgcore.arrays import fast_module, namespace
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
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            rule = "sizes must be those of inputs, hidden layers and outputs, each >= 1"
            raise ValueError(f"{rule}, got {self.sizes}; one layer takes two, such as (4, 3)")
        shapes = {}
        for layer, (rows, columns) in enumerate(itertools.pairwise(self.sizes), start=1):
            shapes |= {f"weights {layer}": (rows, columns), f"biases {layer}": (columns,)}
        object.__setattr__(self, "layout", Layout(shapes))

    def __call__(self, weights, inputs):
        # asked first: torch.compile cannot follow a ContextVar
        compiling = hasattr(weights, "detach") and namespace(weights).compiler.is_compiling()
        fast = None if compiling or not reverse_mode.get() else fast_module("dense_net")
        if fast and fast.fits(weights, inputs):
            return fast.log_probabilities(weights, inputs, self.layout)
        return self.through(list(self.layout.split(weights).values()), inputs)

    def initial_weights(self, normal: Callable) -> np.ndarray:
        """Return weights (n,) of variance 1 / inputs in each layer, and biases of zero.

        normal: *shape -> numbers of a standard normal distribution.
        """
        blocks = {}
        for name, shape in self.layout.shapes.items():
            blocks[name] = normal(*shape) / np.sqrt(shape[0]) if shape[1:] else np.zeros(shape)
        return self.layout.join(blocks)

    @staticmethod
    def through(blocks: Sequence, inputs):
        """Return the log-probabilities of a net with these weights and biases, in turn."""
        hidden = inputs
        for matrix, bias in zip(blocks[:-2:2], blocks[1:-2:2], strict=True):
            hidden = namespace(matrix).tanh(hidden @ matrix + bias)
        return log_softmax(hidden @ blocks[-2] + blocks[-1])


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
        _require_repeatable(name, part)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameters to train (requires_grad)")
    layout = Layout({name: tuple(p.shape) for name, p in parameters.items()})
    weights = torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def function(vector, *inputs):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(module, layout.split(vector), inputs)

    function.layout = layout
    return weights, function


def _require_repeatable(name: str, part) -> None:
    """Raise ValueError if a module gives other results in another call or wrong derivatives."""
    classes = [type(x).__mro__ for x in (part, *part._forward_pre_hooks.values())]  # norms may hook
    kinds = {kind.__name__.removeprefix("_") for several in classes for kind in several}
    share = getattr(part, "p" if "DropoutNd" in kinds else "dropout", 0)
    draws = kinds & {"RReLU", "FractionalMaxPool2d", "FractionalMaxPool3d", "SpectralNorm"}
    draws = draws or isinstance(share, Real) and share > 0
    varies = part.training and (draws or getattr(part, "track_running_stats", False))
    if "WeightNorm" in kinds:
        why = "has second derivatives that torch gets wrong; divide by the norm in your own module"
    elif varies or "BatchNorm" in kinds and part.running_mean is None:
        why = "gives other results in another call or batch; use eval(), GroupNorm or LayerNorm"
    else:
        return
    kind = type(part).__name__
    raise ValueError(f"module {name or kind!r} ({kind}) {why}")
