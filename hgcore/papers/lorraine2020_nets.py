"""The networks of Lorraine et al. (2020), Figure 5: linear, AlexNet and ResNet44 for small images.

They leave out the dropout of the released code. Inputs are vectors (batch, pixels), ordered by
channel, row and column; outputs are log-probabilities (batch, 10). shape: (channels, side, side) of
an image.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from hgcore.nets import functional


def seeded(backend, make: Callable, seed: int) -> tuple:
    """Return (weights (n,), function) of the module make(), initialized by torch from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
    return functional(module.to(backend.device, getattr(torch, backend.dtype)))


def linear(shape: Sequence[int] = (3, 32, 32)) -> nn.Module:
    """Return softmax regression: 30,730 weights for CIFAR-10."""
    return nn.Sequential(nn.Linear(math.prod(shape), 10), nn.LogSoftmax(1))


def alexnet(
    shape=(3, 32, 32), channels=(64, 192, 384, 256, 256), features: int = 4096, kaiming=False
) -> nn.Module:
    """Return AlexNet for small images as the authors released it: 23,272,266 weights.

    The paper says more than 50 million. channels: outputs of each of the five convolutions;
    features: of each of the two hidden dense layers. kaiming: take the initial weights of He et al.
    (2015). With torch's, the signal fades from layer to layer.
    """
    layers = [nn.Unflatten(1, tuple(shape))]
    for i, (before, after) in enumerate(pairwise((shape[0], *channels))):
        layers += [nn.Conv2d(before, after, 3, stride=1 if i else 2, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (0, 1, 4) else []
    layers += [nn.Flatten()]
    side = (shape[1] + 1) // 2 // 8
    for before, after in pairwise((side**2 * channels[-1], features, features)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(features, 10), nn.LogSoftmax(1))
    return net.apply(_initialize) if kaiming else net


def resnet(shape: Sequence[int] = (3, 32, 32), blocks: int = 7, width: int = 16) -> nn.Module:
    """Return the residual net of He et al. (2016) for CIFAR: 6 * blocks + 2 layers.

    Three stages of `blocks` blocks, of width, 2 * width and 4 * width channels, with batch
    normalization and shortcuts without weights. The default is ResNet44: 658,586 weights.
    """
    layers = [nn.Unflatten(1, tuple(shape)), *normalized(shape[0], width), nn.ReLU()]
    for stage, (before, after) in enumerate(pairwise((width, width, 2 * width, 4 * width))):
        layers += [Block(before, after, stride=2 if stage else 1)]
        layers += [Block(after, after) for _ in range(blocks - 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10), nn.LogSoftmax(1)]
    return nn.Sequential(*layers, *head).apply(_initialize)


def _initialize(part: nn.Module) -> None:
    """Draw the weights of a convolution or dense layer as He et al. (2015)."""
    if isinstance(part, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(part.weight)


def normalized(before: int, after: int, stride: int = 1, size: int = 3) -> list[nn.Module]:
    """Return a convolution of size x size pixels (odd), and batch normalization of its output."""
    convolution = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


class Block(nn.Module):
    """A residual block of two convolutions, relu(body(x) + shortcut(x)).

    The shortcut has no weights: it takes every stride-th pixel and pads the channels with zeros.
    """

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        first, second = normalized(before, after, stride), normalized(after, after)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        self.stride, self.pad = stride, (after - before) // 2

    def shortcut(self, x):
        pixels = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(pixels, (0, 0, 0, 0, self.pad, self.pad))

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))
