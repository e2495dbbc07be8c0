"""Boston housing, the released conjugate gradients and peak memory (Lorraine et al. 2020)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hgcore import linear
from hgcore.backend_torch import Torch
from hgcore.data import boston
from hgcore.hypergradient import Implicit, Reverse
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem
from hgcore.suite import meter


@dataclass(frozen=True)
class ReleasedConjugateGradient:
    """Conjugate gradients as the authors released them: from x = b, denominators bounded below.

    A squared residual or curvature below floor / 2 is replaced by `floor`. Steps and directions are
    then too short, and the method stalls. Stops at a residual of tolerance |b|.
    """

    iterations: int
    floor: float = 0.01
    tolerance: float = 1e-4

    def __call__(self, apply: Callable, b):
        x, residual = b, b - apply(b)
        direction, square = residual, float(residual @ residual)
        goal = self.tolerance**2 * float(b @ b)
        for _ in range(self.iterations):
            image = apply(direction)
            length = square / self._bounded(float(direction @ image))
            x, residual = x + length * direction, residual - length * image
            square, previous = float(residual @ residual), square
            if square <= goal:
                break
            direction = residual + square / self._bounded(previous) * direction
        return x

    def _bounded(self, denominator: float) -> float:
        return self.floor if denominator < self.floor / 2 else denominator


def boston_split(backend, seed_path: tuple) -> list[tuple]:
    """Return (train, valid) of Boston housing: features (409 and 46, 14) and prices.

    Rows are drawn without replacement. Features and prices are standardized by mean and deviation
    of the training rows. The last feature is 1, for the bias.
    """
    features, prices = boston()
    rows = np.random.default_rng(seed_path).permutation(len(prices))
    table = np.column_stack([features, prices])[rows[: 409 + 46]]
    table = (table - table[:409].mean(axis=0)) / table[:409].std(axis=0)
    inputs = np.column_stack([table[:, :-1], np.ones(len(table))])
    parts = slice(409), slice(409, None)
    return [(backend.array(inputs[part]), backend.array(table[part, -1])) for part in parts]


def boston_regression(backend, train: tuple, valid: tuple, *, rate, steps, seed_path) -> Problem:
    """Return linear regression of prices by gradient descent with a log penalty for each weight.

    hyper: (14,). Inner loss: mean squared error on all of `train` plus sum(exp(hyper) * w**2).
    Outer loss: mean squared error on `valid`. Initial weights as of torch.nn.Linear: uniform within
    1 / sqrt(13).
    """
    xp, descent = backend.xp, GradientDescent(backend.array(rate))
    start = backend.array(np.random.default_rng(seed_path).uniform(-1, 1, 14) / 13**0.5)

    def inner(w, hyper, t):
        return xp.mean((train[0] @ w - train[1]) ** 2) + xp.sum(xp.exp(hyper) * w**2)

    def outer(w, hyper):
        return xp.mean((valid[0] @ w - valid[1]) ** 2)

    return Problem(backend, inner, outer, descent, start, steps)


def hessian(problem: Problem, hyper, weights) -> np.ndarray:
    """Return d2L/dw2 (n, n) of the inner loss on all examples; for small n."""
    hvp = problem.objective(problem.as_hyper(hyper)).linearize(weights, None).hvp
    rows = problem.backend.array(np.eye(len(weights)))
    return np.stack([problem.backend.numpy(hvp(row)) for row in rows])


def newton_minimum(problem: Problem, hyper, newton: int = 2) -> tuple:
    """Return the state after `newton` Newton steps; two reach the minimum of a quadratic loss."""
    hyper = problem.as_hyper(hyper)
    (weights,) = problem.initial_state(hyper)
    for _ in range(newton):
        linearized = problem.objective(hyper).linearize(weights, None)
        weights = weights - linear.DenseSolve()(linearized.hvp, linearized.gradient)
    return (weights,)


def cosine(found, true) -> float:
    """Return the cosine of the angle between two NumPy vectors."""
    return float(found @ true / (np.linalg.norm(found) * np.linalg.norm(true)))


def relative_error(found, true) -> float:
    """Return |found - true| / |true| of two NumPy vectors."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


INVERSES: dict[str, Callable] = {
    "identity": lambda terms: linear.Identity(0.1),
    "Neumann": lambda terms: linear.Neumann(terms, 0.01),
    "conjugate gradients": lambda terms: linear.ConjugateGradient(terms, 0.0),
    "Nystrom": lambda terms: linear.Nystrom(terms, 1.0),
}


def peak_memory(method: str, weights: int, terms: int = 1) -> int:
    """Return the peak bytes of one "training step", "unrolled" or one of INVERSES.

    In a process of its own. The problem is a dense net of about `weights` weights with a penalty
    for each, on torch in float64; the count begins before it is made. terms: terms, iterations,
    rank or steps.
    """
    small = partial(_run_once, method, 2000, terms)
    return meter.fresh(partial(_run_once, method, weights, terms), small).peak


def _run_once(method: str, weights: int, terms: int) -> None:
    problem, hyper = _wide_problem(weights)
    state = problem.initial_state(hyper)
    if method == "training step":
        problem.step(state, problem.objective(hyper).gradient(state[0], 0), hyper, 0)
    elif method == "unrolled":
        Reverse()(replace(problem, steps=terms), hyper)
    else:
        Implicit(INVERSES[method](terms))(problem, hyper, state)


def _wide_problem(weights: int) -> tuple[Problem, object]:
    """Return (problem, hyper) on 20 random images; no curvature is negative at hyper."""
    backend, rng = Torch(), np.random.default_rng([0])
    net = DenseNet((784, max(1, (weights - 10) // 795), 10))
    train, valid = (backend.array(rng.standard_normal((20, 784))) for _ in range(2))
    labels, others = (backend.array(np.eye(10)[rng.integers(10, size=20)]) for _ in range(2))
    start = backend.array(0.01 * rng.standard_normal(net.layout.size))

    def inner(w, hyper, t):
        return cross_entropy(net(w, train), labels) + backend.xp.sum(backend.xp.exp(hyper) * w * w)

    def outer(w, hyper):
        return cross_entropy(net(w, valid), others)

    descent = GradientDescent(backend.array(0.1))
    problem = Problem(backend, inner, outer, descent, start, steps=1)
    return problem, backend.array(np.ones(net.layout.size))
