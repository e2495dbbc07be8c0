"""Solutions of A x = b, where A (n, n), symmetric, is known only by its products: solve(apply, b) with apply(v) = A v."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hgcore.backend import namespace
from hgcore.problem import Diverged


def _norm(v) -> float:
    return float(v @ v) ** 0.5


@dataclass(frozen=True)
class Neumann:
    """rate * sum_{j <= terms} (I - rate A)^j b.  One product a term.

    Converges to A^-1 b if 0 < rate < 2 / largest eigenvalue and A is positive definite; a series that grew raises `Diverged`.
    Lorraine et al. 2020, Algorithm 3 (corrected: the printed one subtracts the terms and leaves out the rate). With `terms`
    terms beyond the first it equals unrolling terms + 1 steps of gradient descent from the optimum (their Theorem 2).
    """

    terms: int
    rate: float

    def __call__(self, apply: Callable, b):
        term = total = b
        for _ in range(self.terms):
            term = term - self.rate * apply(term)
            total = total + term
        if not _norm(term) <= _norm(b):
            raise Diverged(f"the Neumann series grows with rate {self.rate:.4g}: it needs rate < 2 / largest eigenvalue of"
                           " the inner Hessian, and no negative eigenvalue along the outer gradient")
        return self.rate * total


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients: at most `iterations`, until |A x - b| <= tolerance |b|.  For A positive definite.

    A direction of negative curvature raises `Diverged`: there is no minimum there, use Neumann or a better optimum.
    """

    iterations: int = 100
    tolerance: float = 1e-12

    def __call__(self, apply: Callable, b):
        x, residual = 0 * b, b
        direction, square = residual, float(b @ b)
        goal = self.tolerance**2 * square
        for _ in range(self.iterations):
            if square <= goal:
                break
            image = apply(direction)
            curvature = float(direction @ image)
            if not curvature > 0:
                raise Diverged(f"conjugate gradients met curvature {curvature:.3g}: the inner Hessian is not positive definite")
            x = x + (square / curvature) * direction
            residual = residual - (square / curvature) * image
            square, previous = float(residual @ residual), square
            direction = residual + (square / previous) * direction
        return x


@dataclass(frozen=True)
class Identity:
    """rate * b: the inverse replaced by a multiple of the identity (Luketina et al. 2016, T1-T2), a Neumann sum of no terms."""

    rate: float = 1.0

    def __call__(self, apply: Callable, b):
        return self.rate * b


@dataclass(frozen=True)
class Dense:
    """Solves with the whole matrix, n products and n**2 numbers: the reference for small n."""

    def __call__(self, apply: Callable, b):
        xp = namespace(b)
        identity = xp.diag(0 * b + 1)
        return xp.linalg.solve(xp.stack([apply(row) for row in identity]), b)
