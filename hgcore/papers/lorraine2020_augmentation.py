"""Learned data augmentation (Lorraine et al. 2020, Figure 7 and Table 3): nets, losses, accuracy.

Needs torch, so `hgcore.papers` does not import it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hgcore.backend_torch import Torch
from hgcore.data import Split
from hgcore.modules import batches
from hgcore.nets import error_rate
from hgcore.optimizers import HeavyBall
from hgcore.papers.franceschi2017_tasks import multinomial
from hgcore.papers.lorraine2020_nets import Block, normalized
from hgcore.problem import Problem

TRAIN, VALID, TEST = range(3)  # the first number in the seed of a random draw


@dataclass(frozen=True)
class Nesterov(HeavyBall):
    """v' = decay v + g;  w' = w - rate (g + decay v'), as torch.optim.SGD(nesterov=True).

    Not reversible: the drift uses the gradient.
    """

    reversible = False

    def drift(self, c, gradient, velocity):
        return -c.rate * (gradient + c.decay * velocity)


def falling(rate: float, places: Sequence[int]) -> Callable:
    """Return (hyper, t) -> the rate, multiplied by 0.2 at each step in `places`."""
    return lambda hyper, t: rate * 0.2 ** sum(t >= place for place in places)


def _convolutions(before: int, after: int) -> nn.Sequential:
    first, second = (nn.Conv2d(n, after, 3, padding=1) for n in (before, after))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class UNet(nn.Module):
    """The augmentation network: images x (N, 3, H, W) -> x + tanh(.), of the same shape.

    A U-net of two levels with 8 and 16 filters: 6,659 weights. H and W are even. An additional
    input channel holds one normal number for each image, the same in all its pixels, so a call
    needs a seed. Source: the authors' code (depth 2, transposed convolution, residual).
    """

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = _convolutions(4, 8), _convolutions(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge, self.last = _convolutions(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, images):
        noise = torch.randn(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
        fine = self.fine(torch.cat([images, noise.expand_as(images[:, :1])], 1))
        coarse = self.up(self.coarse(F.max_pool2d(fine, 2)))
        return images + torch.tanh(self.last(self.merge(torch.cat([coarse, fine], 1))))


class ProjectedBlock(Block):
    """A block whose shortcut to another number of channels has weights: a 1 x 1 convolution."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__(before, after, stride)
        layers = normalized(before, after, stride, size=1) if before != after else []
        self.projection = nn.Sequential(*layers)  # the identity if it is empty

    def shortcut(self, x):
        return self.projection(x)


def resnet18(width: int = 64) -> nn.Sequential:
    """Return a ResNet18 for small images, (N, 3, H, W) -> scores (N, 10).

    width: the filters of the first of four stages, doubled in each; 11,173,962 weights for 64.
    """
    widths = [width, *(width * 2 ** (i // 2) for i in range(8))]
    blocks = [ProjectedBlock(widths[i], widths[i + 1], 1 + (i in (2, 4, 6))) for i in range(8)]
    first = *normalized(3, width), nn.ReLU()  # made last: torch draws in this order
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)
    return nn.Sequential(*first, *blocks, *head)


def pictures(splits: Sequence[Split], pool: int) -> tuple[list[Split], np.ndarray]:
    """Return (splits with images (N, 3, H, W), the values of black and white (2, 3, 1, 1)).

    splits: images (N, 784), which get three equal channels, or (N, 3072), in 0..1. pool: the side
    of the squares of pixels that are averaged. Each channel has mean 0 and standard deviation 1
    over the first split.
    """

    def shaped(images):
        channels = 1 if images.shape[1] == 784 else 3
        side = int((images.shape[1] / channels) ** 0.5) // pool
        squares = images.reshape(len(images), channels, side, pool, side, pool)
        return squares.mean(axis=(3, 5)).repeat(3 // channels, axis=1)

    images = [shaped(split.images) for split in splits]
    mean, deviation = (f(images[0], axis=(0, 2, 3), keepdims=True)[0] for f in (np.mean, np.std))
    pairs = zip(images, splits, strict=True)
    ends = np.stack([-mean / deviation, (1 - mean) / deviation])
    return [Split((part - mean) / deviation, split.labels) for part, split in pairs], ends


def crop_and_flip(images, most: int, black, seed_path: Sequence[int]):
    """Return images (N, C, H, W), shifted by up to `most` pixels, mirrored with probability 1/2.

    black: the value (C, 1, 1) of the pixels that enter at the edges.
    """
    rng, (n, c, height, width) = np.random.default_rng(seed_path), images.shape
    moves = rng.integers(2 * most + 1, size=(2, n, 1))
    rows, columns = moves[0] + np.arange(height), moves[1] + np.arange(width)
    columns = np.where(rng.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    place = np.arange(n)[:, None, None, None], np.arange(c)[:, None, None]
    padded = F.pad(images - black, (most,) * 4) + black
    return padded[(*place, rows[:, None, :, None], columns[:, None, None, :])]


@dataclass(frozen=True)
class Augmentation:
    """Training on augmented images, and the augmentation network as its hyperparameters (m,).

    net: (weights (n,), images) -> scores; start: its initial weights. augment: (hyper, images,
    seed=) -> images, None for crops and flips only. train, valid: images (N, C, H, W) and labels.
    black: see `crop_and_flip`. batch: images in a minibatch. every: inner steps in an outer step.
    weight_decay: as in torch.optim.SGD, the inner loss has weight_decay / 2 |w|^2. diversity:
    weight of mean |mean copy - image| - mean deviation of `samples` copies in the outer loss.
    """

    backend: Torch
    net: Callable
    start: object
    augment: Callable | None
    train: Split
    valid: Split
    black: object
    optimizer: HeavyBall
    batch: int
    every: int
    seed: int
    weight_decay: float = 5e-4
    diversity: float = 1.0
    samples: int = 10

    def inputs(self, hyper, t: int) -> tuple:
        """Return (augmented images, labels) of the batch of inner step t."""
        images, labels = batches.draw(tuple(self.train), self.batch, self.seed)(t)
        most, address = images.shape[-1] // 8, (TRAIN, self.seed, t)
        images = crop_and_flip(images, most, self.black, address)
        return images if self.augment is None else self.augment(hyper, images, seed=address), labels

    def problem(self, k: int) -> Problem:
        """Return the problem of outer step k; t = None is the first batch of outer step k + 1."""
        images, labels = batches.draw(tuple(self.valid), self.batch, self.seed)(k)

        def inner_loss(weights, hyper, t):
            inputs, labels = self.inputs(hyper, self.every * (k + 1) if t is None else t)
            loss = multinomial(self.net(weights, inputs), labels)
            return loss + self.weight_decay / 2 * weights @ weights

        def outer_loss(weights, hyper):
            loss = multinomial(self.net(weights, images), labels)
            if self.augment is None or not self.diversity:
                return loss
            copies = self.copies(hyper, images, self.samples, (VALID, self.seed, k))
            # as in the authors' code: keeps the network from returning its input
            gap = (copies.mean(0) - images).abs().mean() - copies.std(0).mean()
            return loss + self.diversity * gap

        return Problem(self.backend, inner_loss, outer_loss, self.optimizer, self.start, self.every)

    def copies(self, hyper, images, count: int, address: tuple):
        """Return `count` augmented copies of each image, (count, *images.shape)."""
        repeated = images.repeat(count, 1, 1, 1)
        return self.augment(hyper, repeated, seed=address).reshape(count, *images.shape)

    def accuracies(self, weights, hyper, parts: Sequence[Split]) -> list:
        """Return the accuracy on each part; scores are means over the clean image and five copies.

        Batch statistics are the means over the first ten training batches.
        """
        with torch.no_grad():
            net = self.net.evaluation(weights, [(self.inputs(hyper, t)[0],) for t in range(10)])
            scores = [self._scores(net, weights, hyper, part.images) for part in parts]
        return [1 - error_rate(x, part.labels) for x, part in zip(scores, parts, strict=True)]

    def _scores(self, net, weights, hyper, images):
        found = []
        for i, clean in enumerate(images.split(self.batch)):
            inputs = clean[None]
            if self.augment is not None:
                inputs = torch.cat([inputs, self.copies(hyper, clean, 5, (TEST, self.seed, i))])
            scores = net(weights, inputs.flatten(0, 1))
            found.append(scores.reshape(len(inputs), len(clean), -1).mean(0))
        return torch.cat(found)
