"""Solutions of A x = b, where A (n, n), symmetric, is known only by its products: solve(apply, b) with apply(v) = A v."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hgcore.arrays import namespace
from hgcore.problem import Diverged

SLACK = 0.02  # squared lengths that grow by less, a hundredth in length, are rounding or do no harm


def _like(values, b):
    """NumPy's `values` as an array of the kind of b."""
    return namespace(b).asarray(values, dtype=b.dtype, device=b.device)


def largest(apply: Callable, like, products: int = 20) -> float:
    """A lower bound of max |eigenvalue| of A, by so many products: power iteration from one random vector (of the kind of `like`).

    The largest |A v| / |v| that was seen: never above the truth, so that 2 / bound never refuses a rate below 2 / truth.
    """
    vector, found = _like(np.random.default_rng(len(like)).standard_normal(len(like)), like), 0.0
    for _ in range(products):
        vector = apply(vector / (vector @ vector) ** 0.5)
        if not 0 < (size := float(vector @ vector) ** 0.5) < np.inf:
            break
        found = max(found, size)
    return found


@dataclass(frozen=True)
class Neumann:
    """rate * sum_{j <= terms} (I - rate A)^j b.  One product a term.

    Converges to A^-1 b if 0 < rate < 2 / largest eigenvalue and A is positive definite. With `terms` terms beyond the first it equals
    unrolling terms + 1 steps of gradient descent from the optimum (Theorem 2).  Lorraine et al. 2020, Algorithm 3 (corrected: the
    printed one subtracts the terms and leaves out the rate).

    A rate that diverges is refused: `Diverged` names the eigenvalue at fault and the rate to use. The first solve of a size looks for
    the largest eigenvalue by `power` products (0: not at all), later ones trust that the Hessian changes slowly and look at their terms,
    at no cost: these are a power iteration of I - rate A, their lengths fall as long as the series converges, and once they grow they
    go on. So a last term that is longer, by a hundredth, than b or the term before it is refused too. rate=None takes 1 / largest
    eigenvalue, found by `power` products in every solve: sound once they see half of it.
    """

    terms: int
    rate: float | None = None
    power: int = 20
    _seen: set = field(
        default_factory=set, init=False, repr=False, compare=False
    )  # sizes that were looked at

    def __post_init__(self):
        if self.terms < 0 or self.power < 0 or self.rate is not None and not self.rate > 0:
            raise ValueError(
                f"a Neumann series needs terms >= 0, rate > 0 or None, power >= 0, got {self.terms}, {self.rate}, {self.power}"
            )

    def __call__(self, apply: Callable, b):
        rate = self._rate(apply, b)
        term = total = b
        first = before = last = b @ b
        for _ in range(self.terms):
            term = term - rate * apply(term)
            total = total + term
            before, last = last, term @ term
        if not bool((last <= (1 + SLACK) * before) & (last <= (1 + SLACK) * first)):
            raise Diverged(_grown(rate, _fastest(apply, b, rate, self.terms + 20)))
        return rate * total

    def _rate(self, apply, b) -> float:
        if self.rate and (not self.power or len(b) in self._seen):
            return self.rate
        found = largest(apply, b, self.power or 20)
        if not found > 0:
            raise Diverged("the inner Hessian is zero or not finite: it has no inverse")
        if self.rate and self.rate * found >= 2:
            raise Diverged(_grown(self.rate, found))
        self._seen.add(len(b))
        return self.rate or 1 / found


def _fastest(apply: Callable, vector, rate: float, products: int) -> float:
    """The eigenvalue of A whose direction grows fastest in the Neumann series, by power iteration of I - rate A from `vector`."""
    for _ in range(products):
        vector = vector / (vector @ vector) ** 0.5
        vector = vector / rate - apply(vector)  # not vector - rate A vector: a rate may be huge
    return float(vector @ apply(vector)) / float(vector @ vector)


def _grown(rate: float, eigenvalue: float) -> str:
    series = f"the Neumann series grows with rate {rate:.4g}"
    if eigenvalue > 0:
        return (
            f"{series}: it needs rate < 2 / largest eigenvalue of the inner Hessian, which is about {eigenvalue:.4g};"
            f" use rate={1 / eigenvalue:.4g}, or rate=None to have it found"
        )
    return (
        f"{series} along a direction of curvature {eigenvalue:.3g}: the inner Hessian is not positive definite, which no rate"
        " helps; train on to a minimum, add a penalty, or take fewer terms"
    )


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients: at most `iterations` products, until |A x - b| <= tolerance |b|.  For A positive definite.

    The error of x is at most the condition number times the larger of tolerance and rounding: with these defaults small systems are
    solved as well as by `Dense`. A direction of negative curvature raises `Diverged`: no minimum there, use Neumann or a better optimum.
    """

    iterations: int = 100
    tolerance: float = 1e-15

    def __call__(self, apply: Callable, b):
        x, residual = 0 * b, b
        direction, square = residual, float(b @ b)
        goal = max(self.tolerance, namespace(b).finfo(b.dtype).eps) ** 2 * square
        for _ in range(self.iterations):
            if square <= goal:
                break
            image = apply(direction)
            curvature = float(direction @ image)
            if not curvature > 0:
                raise Diverged(
                    f"conjugate gradients met curvature {curvature:.3g}: the inner Hessian is not positive definite"
                )
            x = x + (square / curvature) * direction
            residual = residual - (square / curvature) * image
            square, previous = float(residual @ residual), square
            direction = residual + (square / previous) * direction
        return x


def columns(rng: np.random.Generator, rank: int, n: int) -> np.ndarray:
    """`rank` different unit vectors (rank, n): their products are columns of A."""
    return (np.arange(n) == rng.permutation(n)[:rank, None]).astype(float)


def gaussian(rng: np.random.Generator, rank: int, n: int) -> np.ndarray:
    """`rank` random directions (rank, n): they see every coordinate, which pays where A is far from diagonal."""
    return rng.standard_normal((rank, n))


@dataclass(frozen=True)
class Nystrom:
    """(A_k + rho I)^-1 b, where A_k = C W^+ C' has rank k = `rank`: C = A S', W = S A S', S (k, n) = draw(rng, k, n).

    Hataya and Yamada 2023, Nystrom method for accurate and scalable implicit differentiation (draw=`columns`); draw=`gaussian` as
    Frangella, Tropp and Udell 2023. `rank` products that do not depend on each other, some 4 k n numbers at the peak, and no rate to choose.
    Differs from (A + rho I)^-1 b by at most e / (rho (rho + e)) |b|, e = |A - A_k|, for A positive semidefinite; with rank = n and
    rho -> 0 it is A^-1 b. seed, a number or a list such as [seed, k], is the address of the draw.
    """

    rank: int
    rho: float = 0.01
    draw: Callable = columns
    seed: int | Sequence[int] = 0

    def __post_init__(self):
        if self.rank < 1 or not self.rho >= 0:
            raise ValueError(
                f"rank must be at least 1 and rho >= 0, got {self.rank} and {self.rho}"
            )

    def __call__(self, apply: Callable, b):
        xp, n = namespace(b), len(b)
        sketch = _like(
            self.draw(np.random.default_rng([*np.atleast_1d(self.seed), n]), min(self.rank, n), n),
            b,
        )
        image = xp.stack([apply(row) for row in sketch])
        basis, values = _factors(xp, image, sketch)
        inside = basis.T @ b
        x = basis @ (inside / (values + self.rho))
        if self.rank >= n:  # then nothing lies outside but rounding
            return x
        if not self.rho > 0:
            raise ValueError(
                f"rho must be positive for a rank below the number of weights ({self.rank} < {n}), got {self.rho}"
            )
        return x + (b - basis @ inside) / self.rho


def _factors(xp, image, sketch) -> tuple:
    """(Q (n, k) orthonormal, eigenvalues (k,)) of C W^+ C', C' = `image` (k, n), W = `sketch` C."""
    core = sketch @ image.T
    values, vectors = xp.linalg.eigh((core + core.T) / 2)
    kept = abs(values) > len(values) * xp.finfo(values.dtype).eps * abs(values).max()
    inverse = (
        vectors * xp.where(kept, 1 / xp.where(kept, values, 1 + 0 * values), 0 * values)
    ) @ vectors.T
    basis, triangle = xp.linalg.qr(image.T)
    values, vectors = xp.linalg.eigh(triangle @ inverse @ triangle.T)
    return basis @ vectors, values


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
        matrix = xp.stack([apply(row) for row in xp.diag(0 * b + 1)])
        try:
            return xp.linalg.solve(matrix, b)
        except xp.linalg.LinAlgError as error:
            raise Diverged(
                f"the inner Hessian has no inverse ({error}): add a penalty, or solve with Nystrom or few Neumann terms"
            ) from error
