"""Solve A x = b, with A (n, n) symmetric and given by its products: solve(apply, b)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hgcore.arrays import like, namespace, require_count
from hgcore.problem import Diverged

_INSTEAD = "a few terms of Neumann with growth=math.inf, which does not look at this"


def rounding(b) -> float:
    """Return the part of the largest eigenvalue below which others are zero but for rounding."""
    return 10 * len(b) ** 0.5 * float(namespace(b).finfo(b.dtype).eps)


@dataclass(frozen=True)
class Neumann:
    """rate * sum_{j <= terms} (I - rate A)^j b, an approximation of A^-1 b; one product a term.

    terms: those after the first, so 0 gives rate * b.
    Converges if 0 < rate < 2 / largest eigenvalue and A is positive definite. Equals unrolling
    terms + 1 steps of gradient descent from the optimum (Theorem 2). rate=None takes 1 / largest
    eigenvalue, by 20 more products. Raises Diverged, with the rate to use, if the squared length of
    the terms grows by more than a fraction `growth`: less is rounding, or harmless. With few terms,
    and before training has come to a minimum, growth=math.inf looks at nothing, as in the paper.
    Implements: Lorraine et al. 2020, Algorithm 3 (corrected: the printed one subtracts the terms
    and leaves out the rate).
    """

    terms: int
    rate: float | None = None
    growth: float = 0.02

    def __post_init__(self):
        require_count("terms", self.terms, what="terms")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be positive or None, got {self.rate}")

    def __call__(self, apply: Callable, b):
        rate = self.rate or 1 / largest_eigenvalue(apply, b)
        term = total = b
        first = before = length = b @ b
        for _ in range(self.terms):
            term = term - rate * apply(term)
            before, length, total = length, term @ term, total + term
        # the terms are a power iteration of I - rate A: once they grow, they go on growing
        largest = (1 + self.growth) * namespace(b).minimum(first, before)
        if self.growth < np.inf and not bool(length <= largest):
            raise Diverged(self._explanation(apply, b, rate))
        return rate * total

    def _explanation(self, apply: Callable, vector, rate: float) -> str:
        """Return why the terms grow, found by terms + 20 more products; vector: b."""
        for _ in range(self.terms + 20):
            vector = vector / (vector @ vector) ** 0.5
            vector = vector / rate - apply(vector)  # not vector - rate A vector: a rate may be huge
        eigenvalue = float(vector @ apply(vector)) / float(vector @ vector)
        series = f"the Neumann series grows with rate {rate:.4g}"
        if eigenvalue > 0:
            return (
                f"{series}: it needs rate < 2 / largest eigenvalue of the inner Hessian, which is"
                f" about {eigenvalue:.4g}; use rate={1 / eigenvalue:.4g}, or rate=None to find one"
            )
        return (
            f"{series} along a direction of curvature {eigenvalue:.3g}: the inner Hessian is not"
            f" positive definite; train on to a minimum, add a penalty, or take {_INSTEAD}"
        )


def largest_eigenvalue(apply: Callable, vector, products: int = 20) -> float:
    """Return a lower bound of max |eigenvalue| of A: the largest |A v| / |v| of a power iteration.

    It starts from a random vector like `vector` (n,). Raises Diverged if A is zero or not finite.
    """
    n, found = len(vector), 0.0
    vector = like(np.random.default_rng(n).standard_normal(n), vector)
    for _ in range(products):
        vector = apply(vector / (vector @ vector) ** 0.5)
        if not 0 < (size := float(vector @ vector) ** 0.5) < np.inf:
            break
        found = max(found, size)
    if not found:
        raise Diverged("the inner Hessian is zero or not finite: it has no inverse")
    return found


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients: at most `iterations` products, until |A x - b| <= tolerance |b|.

    For A positive definite. The error of x is at most the condition number times the larger of
    tolerance and rounding. A direction without positive curvature raises Diverged.
    """

    iterations: int = 100
    tolerance: float = 1e-15

    def __post_init__(self):
        require_count("iterations", self.iterations, least=1, what="products")

    def __call__(self, apply: Callable, b):
        unit = 2.0 ** math.frexp(float(abs(b).max()))[1]  # squares must not overflow
        residual = direction = b / unit
        x, square, largest = 0 * b, float(residual @ residual), 0.0
        goal = max(self.tolerance, namespace(b).finfo(b.dtype).eps) ** 2 * square
        for _ in range(self.iterations):
            if square <= goal:
                break
            image = apply(direction)
            curvature = float(direction @ image)
            relative = curvature / float(direction @ direction)
            largest = max(largest, relative)
            if not relative > rounding(b) * largest:
                found = f"conjugate gradients met curvature {relative:.3g}"
                raise Diverged(
                    f"{found}: the inner Hessian is not positive definite; use {_INSTEAD}"
                )
            x = x + (square / curvature) * direction
            residual = residual - (square / curvature) * image
            square, previous = float(residual @ residual), square
            direction = residual + (square / previous) * direction
        return unit * x


def columns(rng: np.random.Generator, rank: int, n: int) -> np.ndarray:
    """Return `rank` different unit vectors (rank, n): their products are columns of A."""
    return (np.arange(n) == rng.permutation(n)[:rank, None]).astype(float)


def gaussian(rng: np.random.Generator, rank: int, n: int) -> np.ndarray:
    """Return `rank` random directions (rank, n), better where A is far from diagonal."""
    return rng.standard_normal((rank, n))


@dataclass(frozen=True)
class Nystrom:
    """(A_k + rho I)^-1 b with A_k = C W^+ C' of rank k: C = A S', W = S A S', S (k, n) drawn.

    `rank` products that do not depend on each other, about 4 k n numbers, and no rate. Differs
    from (A + rho I)^-1 b by at most e / (rho (rho + e)) |b|, e = |A - A_k|, for A positive
    semidefinite, and by rounding, some |A| eps / rho of it or more: use double precision unless
    |A| / rho is below 1e3. seed: a number or a list such as [seed, k], the address of the draw.
    Implements: Hataya and Yamada 2023 (draw=columns); Frangella et al. 2023 (draw=gaussian).
    """

    rank: int
    rho: float = 0.01
    draw: Callable = columns
    seed: int | Sequence[int] = 0

    def __post_init__(self):
        require_count("rank", self.rank, least=1, what="products")
        if not self.rho >= 0:
            raise ValueError(f"rho must be >= 0, got {self.rho}")

    def __call__(self, apply: Callable, b):
        xp, n = namespace(b), len(b)
        if self.rank < n and not self.rho > 0:
            why = f"for a rank below the number of weights ({self.rank} < {n}), got {self.rho}"
            raise ValueError(f"rho must be positive {why}")
        rng = np.random.default_rng([*np.atleast_1d(self.seed), n])
        sketch = like(self.draw(rng, min(self.rank, n), n), b)
        image = xp.stack([apply(row) for row in sketch])
        _require_finite(image)
        core, smallest = sketch @ image.T, len(sketch) * xp.finfo(b.dtype).eps
        inverse = xp.linalg.pinv((core + core.T) / 2, rtol=smallest, hermitian=True)
        basis, triangle = xp.linalg.qr(image.T)
        values, vectors = xp.linalg.eigh(triangle @ inverse @ triangle.T)
        basis = basis @ vectors  # eigenvectors (n, k) of A_k
        if self.rank >= n:
            _require_inverse(values + self.rho, b)
        inside = basis.T @ b
        x = basis @ (inside / (values + self.rho))
        # with full rank, only rounding lies outside the basis
        return x if self.rank >= n else x + (b - basis @ inside) / self.rho


@dataclass(frozen=True)
class Identity:
    """rate * b: the inverse replaced by a multiple of the identity, a Neumann sum of no terms.

    Implements: Luketina et al. 2016, T1-T2.
    """

    rate: float = 1.0

    def __call__(self, apply: Callable, b):
        return self.rate * b


@dataclass(frozen=True)
class DenseSolve:
    """Solves with the whole matrix, n products and n**2 numbers: the reference for small n."""

    def __call__(self, apply: Callable, b):
        xp = namespace(b)
        matrix = xp.stack([apply(row) for row in xp.diag(0 * b + 1)])
        _require_finite(matrix)
        _require_inverse(xp.linalg.eigvalsh(matrix), b)
        return xp.linalg.solve(matrix, b)


def _require_finite(products) -> None:
    """Raise Diverged unless products with A are finite; mixed products of zero would hide it."""
    if not bool(namespace(products).isfinite(products).all()):
        raise Diverged("the inner Hessian is not finite: it has no inverse")


def _require_inverse(eigenvalues, b) -> None:
    """Raise Diverged if an eigenvalue is zero but for rounding: a solution would be any number."""
    sizes = abs(eigenvalues)
    smallest, largest = float(sizes.min()), float(sizes.max())
    if not smallest > rounding(b) * largest:
        found = f"its eigenvalues have magnitudes from {smallest:.1e} to {largest:.1e}"
        way = "add a penalty, or use Nystrom with rho > 0 or few Neumann terms"
        raise Diverged(f"the inner Hessian has no inverse, {found}: {way}")
