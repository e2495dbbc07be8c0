"""What Lorraine et al. (2020) compare their inverse Hessian with: routines as released or as
misprinted, older inverses, and wide nets to weigh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from hgcore import linear
from hgcore.arrays import namespace
from hgcore.backend_torch import Torch
from hgcore.data import boston
from hgcore.hypergradient import Implicit, Reverse
from hgcore.nets import DenseNet, cross_entropy
from hgcore.optimizers import GradientDescent
from hgcore.problem import Problem
from hgcore.suite import meter


@dataclass(frozen=True)
class ReleasedConjugateGradient:
    """Conjugate gradients as the authors released them: from x = b, and no denominator below floor
    / 2, `floor` in its place.

    Right as long as squared residuals and curvatures stay above floor / 2; below it steps and
    directions are too short, and it stalls. Stops at a residual of tolerance |b|. No iterations: b
    itself.
    """

    iterations: int
    floor: float = 0.01
    tolerance: float = 1e-4

    def __call__(self, apply: Callable, b):
        x = b
        residual = b - apply(b) if self.iterations else 0 * b
        direction, square, goal = (
            residual,
            float(residual @ residual),
            self.tolerance**2 * float(b @ b),
        )
        for _ in range(self.iterations):
            image = apply(direction)
            length = square / self._above(float(direction @ image))
            x, residual = x + length * direction, residual - length * image
            square, previous = float(residual @ residual), square
            if square <= goal:
                break
            direction = residual + square / self._above(previous) * direction
        return x

    def _above(self, denominator: float) -> float:
        return self.floor if denominator < self.floor / 2 else denominator


@dataclass(frozen=True)
class Unscaled:
    """A Neumann sum without its factor, sum_{j <= terms} (I - rate A)^j b: the right direction, 1 /
    rate times too long.
    """

    terms: int
    rate: float

    def __call__(self, apply: Callable, b):
        return linear.Neumann(self.terms, self.rate)(apply, b) / self.rate


@dataclass(frozen=True)
class Misprinted:
    """Algorithm 3 as the arXiv version prints it: every new term is subtracted, and the sum
    returned without the rate.
    """

    terms: int
    rate: float

    def __call__(self, apply: Callable, b):
        return 2 * b - Unscaled(self.terms, self.rate)(apply, b)


@dataclass(frozen=True)
class OuterProducts:
    """(G'G / N)^+ b in place of A^-1 b, G (N, n) the training gradients of single examples: the
    Hessian of Larsen et al. 1996.
    """

    gradients: object

    def __call__(self, apply: Callable, b):
        g = self.gradients
        return namespace(b).linalg.pinv(g.T @ g / len(g)) @ b


def exchanged(problem: Problem, hyper, state: tuple, solve: Callable):
    """The hypergradient by Algorithm 2 as the arXiv version prints it: grad(dL/dhyper, weights, v)
    for grad(dL/dweights, hyper, v).

    It exists only where there are as many hyperparameters as weights, and is right only where
    d2L/dhyper dweights is symmetric.
    """
    hyper = problem.as_hyper(hyper)
    _, weights_adjoint, direct = problem.outer_gradients(state[0], hyper)
    inverse = solve(problem.objective(hyper).linearize(state[0], None).hvp, weights_adjoint)
    turned = problem.backend.linearize(lambda h, w: problem.inner_loss(w, h, None), hyper, state[0])
    return direct - turned.mixed(inverse)


def houses(backend, address: tuple, sizes: tuple[int, int] = (409, 46)) -> tuple[tuple, tuple]:
    """(training, validation) Boston housing, each (features (N, 14), prices (N,)); the last feature
    is 1, for the bias.

    Drawn without replacement at `address`. Features and prices are standardised by the mean and
    deviation of the training rows.
    """
    features, prices = boston()
    rows = np.random.default_rng([*address]).permutation(len(prices))
    table = np.column_stack([features, prices])[rows]
    table = (table - table[: sizes[0]].mean(axis=0)) / table[: sizes[0]].std(axis=0)
    parts = [table[: sizes[0]], table[sizes[0] : sum(sizes)]]
    return tuple(
        (
            backend.array(np.column_stack([part[:, :-1], np.ones(len(part))])),
            backend.array(part[:, -1]),
        )
        for part in parts
    )


def linear_houses(
    backend, train: tuple, valid: tuple, *, rate: float, steps: int, address: tuple
) -> Problem:
    """Linear regression of prices with a log penalty on each of the 14 weights, full batch; outer
    objective: the validation error.

    Starts as a torch.nn.Linear does, uniform within 1 / sqrt(13), at `address`.
    """
    xp, step = backend.xp, backend.array(rate)
    start = backend.array(np.random.default_rng([*address]).uniform(-1, 1, 14) / 13**0.5)
    return Problem(
        backend=backend,
        steps=steps,
        optimizer=GradientDescent(rate=step),
        initial=lambda hyper: start,
        inner_loss=lambda w, hyper, t: (
            xp.mean((train[0] @ w - train[1]) ** 2) + xp.sum(xp.exp(hyper) * w**2)
        ),
        outer_loss=lambda w, hyper: xp.mean((valid[0] @ w - valid[1]) ** 2),
    )


def hessian(problem: Problem, hyper, weights) -> np.ndarray:
    """d2L/dw2 (n, n) of the full inner objective, for small n."""
    hvp = problem.objective(problem.as_hyper(hyper)).linearize(weights, None).hvp
    rows = problem.backend.array(np.eye(len(weights)))
    return np.stack([problem.backend.numpy(hvp(row)) for row in rows])


def minimum(problem: Problem, hyper, newton: int = 2) -> tuple:
    """The state after so many Newton steps from the start: the minimum to rounding, where the inner
    objective is quadratic in the weights.
    """
    hyper = problem.as_hyper(hyper)
    (weights,) = problem.initial_state(hyper)
    for _ in range(newton):
        linearized = problem.objective(hyper).linearize(weights, None)
        weights = weights - linear.DenseSolve()(linearized.hvp, linearized.gradient)
    return (weights,)


def exactly(matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    """matrix^-1 b in rational numbers, rounded once: for a dozen unknowns."""
    rows = [
        [Fraction(x) for x in (*row, right)]
        for row, right in zip(matrix.tolist(), b.tolist(), strict=True)
    ]
    for i in range(len(rows)):
        pivot = rows[i]
        rows = [
            row
            if row is pivot
            else [x - row[i] / pivot[i] * y for x, y in zip(row, pivot, strict=True)]
            for row in rows
        ]
    return np.array([float(row[-1] / row[i]) for i, row in enumerate(rows)])


def nearness(found, true) -> tuple[float, float]:
    """(cosine of the angle, distance relative to |true|) of two vectors of NumPy."""
    length = np.linalg.norm(true)
    return float(found @ true / (np.linalg.norm(found) * length)), float(
        np.linalg.norm(found - true) / length
    )


def _wide(weights: int, examples: int = 20, rate: float = 0.1) -> tuple[Problem, object]:
    """(problem, hyper): a dense net of about so many weights with a log penalty for each, on random
    images and labels, on torch.

    Gradient descent on all examples; the outer objective is the loss on as many others.
    """
    backend, rng = Torch(), np.random.default_rng([0])
    net = DenseNet((784, max(1, (weights - 10) // 795), 10))
    inputs, judged = (backend.array(rng.standard_normal((examples, 784))) for _ in range(2))
    labels, truth = (backend.array(np.eye(10)[rng.integers(10, size=examples)]) for _ in range(2))
    start = backend.array(0.01 * rng.standard_normal(net.layout.size))
    xp, step = backend.xp, backend.array(rate)
    problem = Problem(
        backend=backend,
        steps=1,
        optimizer=GradientDescent(rate=step),
        initial=lambda hyper: start,
        inner_loss=lambda w, hyper, t: (
            cross_entropy(net(w, inputs), labels) + xp.sum(xp.exp(hyper) * w * w)
        ),
        outer_loss=lambda w, hyper: cross_entropy(net(w, judged), truth),
    )
    return problem, backend.array(
        np.ones(net.layout.size)
    )  # a penalty so strong that no curvature is negative


WEIGHED: dict[str, Callable] = {
    "training step": lambda problem, hyper, state, terms: problem.step(
        state, problem.objective(hyper).gradient(state[0], 0), hyper, 0
    ),
    "identity": lambda problem, hyper, state, terms: Implicit(linear.Identity(0.1))(
        problem, hyper, state
    ),
    "Neumann": lambda problem, hyper, state, terms: Implicit(linear.Neumann(terms, 0.01))(
        problem, hyper, state
    ),
    "conjugate gradients": lambda problem, hyper, state, terms: Implicit(
        linear.ConjugateGradient(terms, 0.0)
    )(problem, hyper, state),
    "Nystrom": lambda problem, hyper, state, terms: Implicit(linear.Nystrom(terms, 1.0))(
        problem, hyper, state
    ),
    "unrolled": lambda problem, hyper, state, terms: Reverse()(
        replace(problem, steps=terms), hyper
    ),
}


def weigh(method: str, weights: int, terms: int = 1) -> int:
    """Peak bytes of one `method` of WEIGHED on a dense net of so many weights, each with a penalty
    of its own; in a process of its own.

    terms: terms, iterations, rank or steps. Counted from before net, data and hyperparameters are
        made, on torch in float64.
    """
    return meter.fresh(
        partial(_once, method, weights, terms), partial(_once, method, 2000, terms)
    ).peak


def _once(method: str, weights: int, terms: int) -> None:
    problem, hyper = _wide(weights)
    WEIGHED[method](problem, hyper, problem.initial_state(hyper), terms)
