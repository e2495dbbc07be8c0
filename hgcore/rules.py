"""Outer rules: how a hypergradient moves the hyperparameters. Plain functions of vectors, memory in and out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Descent:
    """velocity' = momentum velocity - (1 - momentum) grad;  hyper' = hyper + rate velocity'."""

    rate: float
    momentum: float = 0.0

    def start(self, hyper) -> tuple:
        return (0 * hyper,)

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        velocity = self.momentum * memory[0] - (1 - self.momentum) * grad
        return hyper + self.rate * velocity, (velocity,)


@dataclass(frozen=True)
class RMSProp:
    """square' = decay square + (1 - decay) grad**2;  hyper' = hyper - rate grad / (sqrt(square') + epsilon)."""

    rate: float = 0.01
    decay: float = 0.99
    epsilon: float = 1e-8

    def start(self, hyper) -> tuple:
        return (0 * hyper,)

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        square = self.decay * memory[0] + (1 - self.decay) * grad**2
        return hyper - self.rate * grad / (square**0.5 + self.epsilon), (square,)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2014).  first, second: decays of the two moments.

    fade: the decay of the first moment is first * fade**k at outer step k, as in the first version of that paper; 1 for none.
    Maclaurin's code has Adam(rate, 0.9, 0.99, epsilon=1e-4, fade=1e-4): no memory of the first moment but the full bias
    correction, so that its early steps are up to five times larger.
    """

    rate: float = 0.001
    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    fade: float = 1.0

    def start(self, hyper) -> tuple:
        return 0 * hyper, 0 * hyper, 0

    def __call__(self, hyper, grad, memory: tuple) -> tuple:
        mean, square, k = memory
        keep = self.first * self.fade**k
        mean = keep * mean + (1 - keep) * grad
        square = self.second * square + (1 - self.second) * grad**2
        step = (
            mean
            / (1 - self.first ** (k + 1))
            / ((square / (1 - self.second ** (k + 1))) ** 0.5 + self.epsilon)
        )
        return hyper - self.rate * step, (mean, square, k + 1)
