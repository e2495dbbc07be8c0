"""Networks as functions of one flat weight vector: dense nets, and any torch module."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hgcore.arrays import namespace
from hgcore.backend import fast_nodes
from hgcore.layout import Layout


def log_softmax(scores):
    """Return the log of the softmax over the last axis of scores (batch, classes)."""
    xp = namespace(scores)
    if hasattr(xp, "log_softmax"):
        return xp.log_softmax(scores, -1)
    shifted = scores - xp.amax(scores, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def cross_entropy(log_probabilities, labels):
    """Return the mean negative log-likelihood of labels, given (batch, classes).

    labels: whole numbers (batch,), or one-hot or soft (batch, classes). ValueError for others.
    """
    xp = namespace(log_probabilities)
    if _are_classes(log_probabilities, labels):
        if hasattr(xp, "nn"):
            never = -(2**60)  # torch would leave out labels of -100, its default
            return xp.nn.functional.nll_loss(log_probabilities, labels.long(), ignore_index=never)
        return -xp.mean(log_probabilities[xp.arange(len(labels)), labels])
    return xp.sum(log_probabilities * labels) / -len(labels)


def error_rate(log_probabilities, labels) -> float:
    """Return the share of a batch whose likeliest class is not the labeled one; see above."""
    xp = namespace(log_probabilities)
    classes = _are_classes(log_probabilities, labels)
    true = labels if classes else namespace(labels).argmax(labels, axis=1)
    right = xp.argmax(log_probabilities, axis=1) == true
    return 1 - float(right.sum()) / len(labels)


def _are_classes(log_probabilities, labels) -> bool:
    """Whether labels are numbers of classes (batch,); ValueError unless they are that or soft."""
    shape, found = tuple(log_probabilities.shape), tuple(labels.shape)
    if found == shape:
        return False
    if found != shape[:1] or "int" not in str(labels.dtype):
        what = f"whole numbers of shape {shape[:1]} or of shape {shape}"
        raise ValueError(f"labels must be {what}, got {labels.dtype} of shape {found}")
    if isinstance(labels, np.ndarray) and labels.size and labels.min() < 0:
        raise ValueError(f"labels must lie in 0..{shape[1] - 1}, got {labels.min()}")
    return True


def functional(module) -> tuple:
    """Return (weights (n,), function) of a torch.nn.Module, for a Problem; see ModuleFunction."""
    from hgcore.modules.functional import ModuleFunction  # which needs torch

    function = ModuleFunction(module)
    return function.initial_weights(), function


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
        fast = fast_nodes("dense_net", weights)
        if fast and fast.fits(weights, inputs, self.layout):
            return fast.LogProbabilities.apply(weights, inputs, self.layout)
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
