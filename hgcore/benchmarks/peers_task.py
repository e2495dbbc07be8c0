"""The task of the race, and its mathematics on lists of the net's blocks, written once for torch
and for jax (`lib`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hgcore.backend_torch import Torch
from hgcore.fixed_point import round_decay
from hgcore.layout import Layout
from hgcore.nets import DenseNet

DECAY, BATCHES = float(round_decay(0.9)), 8


@dataclass(frozen=True)
class Task:
    """Training a dense tanh net with momentum for T = `steps`; its hyperparameters: a log rate per
    step and block, a log penalty per block.
    """

    sizes: tuple[int, ...]
    batch: int
    steps: int
    dtype: str = "float64"
    device: str = "cpu"

    @property
    def backend(self) -> Torch:
        return Torch(self.device, self.dtype)

    @property
    def net(self) -> DenseNet:
        return DenseNet(self.sizes)

    @property
    def hypers(self) -> Layout:
        blocks = len(self.net.layout)
        return Layout({"rate": (self.steps, blocks), "penalty": (blocks,)})

    @property
    def state(self) -> int:
        """Bytes of weights and velocity."""
        return 2 * self.net.layout.size * np.dtype(self.dtype).itemsize


class Setting(NamedTuple):
    """What a task is about, as a library's arrays: `inputs` (batches, batch, features), `labels`,
    blocks to start from, hyper (m,).
    """

    inputs: object
    labels: object
    start: list
    hyper: object

    def rows(self, t):
        """The minibatch of step t."""
        return self.inputs[t % BATCHES], self.labels[t % BATCHES]

    def judged(self):
        """What the outer objective looks at: half of all examples."""
        return tuple(
            part[: BATCHES // 2].reshape((-1, part.shape[-1]))
            for part in (self.inputs, self.labels)
        )


def setting(task: Task, array: Callable, transposed: bool = False) -> Setting:
    """Noise, which costs what real numbers do, by `array` from NumPy's; `transposed`: matrices
    (outputs, inputs), as torch's modules have them.
    """
    rng, layout = np.random.default_rng(0), task.net.layout
    inputs = rng.standard_normal((BATCHES, task.batch, task.sizes[0]))
    labels = np.eye(task.sizes[-1])[rng.integers(task.sizes[-1], size=(BATCHES, task.batch))]
    start = layout.split(0.05 * rng.standard_normal(layout.size)).values()
    rates, penalties = (
        np.full(task.hypers.shapes["rate"], math.log(0.05)),
        np.full(len(layout), -6.0),
    )
    hyper = task.hypers.join({"rate": rates, "penalty": penalties})
    blocks = [block.T.copy() if transposed else block for block in start]
    inputs, labels, hyper, *blocks = (
        array(part.astype(task.dtype)) for part in (inputs, labels, hyper, *blocks)
    )
    return Setting(inputs, labels, blocks, hyper)


# ---- the mathematics, of torch and of jax alike


def loss(lib, w: list, x, y):
    """Mean cross-entropy of the net."""
    for matrix, bias in zip(w[:-2:2], w[1:-2:2], strict=True):
        x = lib.tanh(x @ matrix + bias)
    return -(lib.log_softmax(x @ w[-2] + w[-1], -1) * y).sum() / len(y)


def penalised(lib, w: list, penalties, x, y):
    """`loss` and a penalty on the squares of each block."""
    return loss(lib, w, x, y) + sum(
        p * (block * block).sum() for p, block in zip(penalties, w, strict=True)
    )


def taught(lib, hyper, blocks: int) -> tuple:
    """(rates (T, blocks), penalties (blocks,))"""
    return lib.exp(hyper[:-blocks]).reshape((-1, blocks)), lib.exp(hyper[-blocks:])


def moved(w: list, v: list, gradient, rates) -> tuple[list, list]:
    """(weights, velocity) after a step."""
    v = [DECAY * a - (1 - DECAY) * b for a, b in zip(v, gradient, strict=True)]
    return [a + rate * b for a, rate, b in zip(w, rates, v, strict=True)], v


def leaves(blocks) -> list:
    """Tensors cut off from their past, to be differentiated by."""
    return [block.detach().requires_grad_() for block in blocks]


def module(task: Task):
    """The net as a torch.nn.Module."""
    nn = task.backend.xp.nn
    layers = [
        layer
        for a, b in zip(task.sizes[:-1], task.sizes[1:], strict=True)
        for layer in (nn.Linear(a, b), nn.Tanh())
    ]
    return nn.Sequential(*layers[:-1]).to(getattr(task.backend.xp, task.dtype))
