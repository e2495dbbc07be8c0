"""Solutions of A x = b, and implicit hypergradients: closed forms, dense solves, unrolling."""

import dataclasses

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore.linear import columns, gaussian, largest_eigenvalue

SOLVES = (
    hg.Neumann(5, 0.1),
    hg.ConjugateGradient(),
    hg.Identity(0.3),
    hg.DenseSolve(),
    hg.Nystrom(2),
)


def matrix(eigenvalues):
    """Return a symmetric matrix; no rounding for 4 or 16 eigenvalues that are powers of two."""
    basis = np.eye(len(eigenvalues)) - 2 / len(eigenvalues)
    return basis * eigenvalues @ basis


def solved(backend, solve, a, b, calls=None):
    """Return solve(A, b) in NumPy; count the products in `calls`."""
    a = backend.array(a)

    def apply(v):
        if calls is not None:
            calls.append(0)
        return a @ v

    with np.errstate(all="ignore"):  # as Implicit does
        return backend.numpy(solve(apply, backend.array(b)))


# ---- implicit hypergradients


CONVERGED = [
    hg.Neumann(500, 0.6),
    hg.Neumann(2000),
    hg.ConjugateGradient(),
    hg.Nystrom(50, 0.0),
    hg.Nystrom(50, 1e-13, gaussian),
]


@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
def test_implicit_equals_dense_solve_and_reverse(case, backend):
    """At an optimum, by a solve that converged, or of full rank: condition numbers below 1e3."""
    problem, hyper = case(backend)
    dense = hg.Implicit(hg.DenseSolve())(problem, hyper)
    assert gap(dense.grad, hg.Reverse()(problem, hyper).grad) < 1e-10
    for solve in CONVERGED:
        assert gap(hg.Implicit(solve)(problem, hyper, dense.state).grad, dense.grad) < 1e-10


def test_implicit_at_a_given_state(backend):
    """Nothing is trained, the loss is asked for all examples only; flat states and tuples."""
    problem, hyper = catalogue.everything(backend)
    steps = []

    def inner_loss(w, hyper, t):
        steps.append(t)
        return problem.inner_loss(w, hyper, t)

    solver = hg.Implicit(hg.Identity())
    expected = solver(problem, hyper)
    counted = dataclasses.replace(problem, inner_loss=inner_loss)
    halves = expected.state[:4], expected.state[4:]
    numbers = tuple(map(backend.numpy, halves))
    for state in (expected.state, halves, numbers):
        found = solver(counted, hyper, state)
        assert np.array_equal(found.grad, expected.grad)
        assert np.array_equal(found.state, expected.state)
    assert set(steps) == {None}
    for wrong in (expected.state[:4], expected.state[:-1]):
        match = rf"2 vectors of 4 numbers here, weights first, got {len(wrong)}"
        with pytest.raises(ValueError, match=match):
            solver(problem, hyper, wrong)


def test_implicit_adds_the_direct_derivative(backend):
    """Of an outer loss that depends on hyper by itself."""
    losses = ((lambda w, h, p=p: w.sum() + (h**p).sum()) for p in (1, 3))
    sums, cubes = (catalogue.bowl(backend, outer_loss=loss) for loss in losses)
    solver = hg.Implicit(hg.Identity())
    assert gap(solver(*cubes).grad - solver(*sums).grad, 3 * cubes[1] ** 2 - 1) < 1e-12


def test_solve_of_zero_is_zero(backend):
    assert not any(solved(backend, solve, np.eye(3), np.zeros(3)).any() for solve in SOLVES)


def test_implicit_takes_the_mean_of_batches(backend):
    """Of a loss to which even t add what odd t subtract."""
    problem, hyper = catalogue.ridge(backend)

    def inner_loss(w, h, t):
        return problem.inner_loss(w, h, None) + (-1) ** t * ((w + 1) ** 4 * backend.xp.exp(h)).sum()

    batched, dense = dataclasses.replace(problem, inner_loss=inner_loss), hg.DenseSolve()
    found = hg.Implicit(dense, inner_batches=range(4))(batched, hyper, 0.1 * np.ones(6))
    expected = hg.Implicit(dense)(problem, hyper, 0.1 * np.ones(6))
    assert gap(backend.numpy(found.grad), backend.numpy(expected.grad)) < 1e-12


# ---- Neumann


@pytest.mark.parametrize("terms", [0, 1, 7])
def test_neumann_is_the_sum_written_out(terms, backend):
    """And Identity is the sum of no terms."""
    a, b = matrix([0.3, 1, 2]), np.array([1.0, -2, 0.5])
    powers = (np.linalg.matrix_power(np.eye(3) - 0.4 * a, j) for j in range(terms + 1))
    calls = []
    found = solved(backend, hg.Neumann(terms, 0.4), a, b, calls)
    assert gap(found, 0.4 * sum(power @ b for power in powers)) < 1e-14 and len(calls) == terms
    assert terms or np.array_equal(found, solved(backend, hg.Identity(0.4), a, b))


def test_neumann_finds_a_rate(backend):
    """By 20 products; power iteration gives a lower bound of the largest eigenvalue."""
    a, b, calls = matrix(np.geomspace(0.5, 40, 10)), np.ones(10), []
    b[0] = 3
    found = solved(backend, hg.Neumann(2000), a, b, calls)
    assert gap(found, np.linalg.solve(a, b)) < 1e-9 and len(calls) == 2020
    held = backend.array(a)
    assert 0.9 < largest_eigenvalue(lambda v: held @ v, held[0]) / 40 <= 1 + 1e-12
    with pytest.raises(hg.Diverged, match="zero or not finite"):
        solved(backend, hg.Neumann(3), 0 * a, b)


@pytest.mark.parametrize("rate", [1.0, 0.68, 1e200])
def test_neumann_names_a_rate_that_converges(rate, backend):
    a, b = matrix([1, 2, 3.0]), np.array([1.0, 2, 4])
    match = r"grows with rate .* about 3; use rate=0.3333, or rate=None"
    with pytest.raises(hg.Diverged, match=match):
        solved(backend, hg.Neumann(60, rate), a, b)
    assert gap(solved(backend, hg.Neumann(60, 0.3333), a, b), np.linalg.solve(a, b)) < 1e-9


NEGATIVE = [([0.1, -0.5, 1], 1.0, 60), ([-3, 1, 2], 0.1, 60), ([-1, -2, -3], 0.1, 60)]


@pytest.mark.parametrize("eigenvalues, rate, terms", [*NEGATIVE, ([1, 0.5, -0.01], 0.5, 2000)])
def test_neumann_tells_negative_curvature(eigenvalues, rate, terms, backend):
    """But no harm is done by a little of it in ten terms."""
    match = rf"along a direction of curvature {min(eigenvalues):.2g}: .* not positive definite"
    a, b = matrix(np.array(eigenvalues)), [1.0, 2, 4]
    with pytest.raises(hg.Diverged, match=match):
        solved(backend, hg.Neumann(terms, rate), a, b)
    powers = (np.linalg.matrix_power(np.eye(3) - rate * a, j) for j in range(4))
    found = solved(backend, hg.Neumann(3, rate, growth=np.inf), a, b)
    assert gap(found, rate * sum(power @ b for power in powers)) < 1e-13
    if terms == 2000:
        solved(backend, hg.Neumann(10, rate), a, b)


@pytest.mark.parametrize("terms", [1, 5, 60])
@pytest.mark.parametrize("seed", range(8))
def test_neumann_refuses_what_grew_only(terms, seed, backend):
    """No rate below 2 / largest eigenvalue; a longer last term by 2 %, that is 4 % squared."""
    rng = np.random.default_rng(seed)
    eigenvalues, b = np.exp(rng.uniform(-8, 3, 8)), rng.standard_normal(8)
    a, largest = matrix(eigenvalues), eigenvalues.max()
    for share in (1e-9, 0.5, 1.0, 1.999):
        solved(backend, hg.Neumann(terms, share / largest), a, b)
    for share in (2.05, 2.5, 30.0):
        last = np.linalg.matrix_power(np.eye(8) - share / largest * a, terms) @ b
        if np.linalg.norm(last) > 1.02 * np.linalg.norm(b):
            with pytest.raises(hg.Diverged, match="largest eigenvalue"):
                solved(backend, hg.Neumann(terms, share / largest), a, b)


@pytest.mark.parametrize("seed", range(8))
def test_neumann_takes_rounding_for_no_growth(seed):
    """Single precision, eigenvalues 1 and 0: the terms become constant, up to rounding."""
    backend, rng = hg.Torch(dtype="float32"), np.random.default_rng(seed)
    basis = backend.array(np.linalg.qr(rng.standard_normal((300, 30)))[0])
    b = backend.array(rng.standard_normal(300))
    for rate in (1.0, 1.9):
        found = hg.Neumann(100, rate)(lambda v: basis @ (basis.T @ v), b)
        assert np.isfinite(backend.numpy(found)).all()


# ---- conjugate gradients and the dense solve


@pytest.mark.parametrize("bits", [0, 10, 20, 27])
@pytest.mark.parametrize("sharp", [False, True], ids=["any b", "b in the sharp directions"])
@pytest.mark.parametrize("solve", [hg.ConjugateGradient(), hg.DenseSolve()], ids=repr)
def test_solve_of_ill_conditioned_system(solve, sharp, bits, backend):
    """Condition number 2**bits, solution known exactly: a few roundings of 1e-16 times that.

    Two published libraries get it wrong.
    """
    eigenvalues = 2.0 ** np.linspace(0, bits, 16).round()
    a, b = matrix(eigenvalues), np.random.default_rng(1).integers(-9, 9, 16) + 0.5
    exact, b = (b, a @ b) if sharp else (matrix(1 / eigenvalues) @ b, b)
    assert gap(solved(backend, solve, a, b), exact) < 1e-15 * 2.0**bits


@pytest.mark.parametrize("iterations", range(1, 15))
def test_conjugate_gradient_is_best_of_krylov(iterations, backend):
    """In the norm of A, whether the tolerance is met or not."""
    a, b = matrix(np.geomspace(1, 20, 12)), np.random.default_rng(1).standard_normal(12)
    powers = [np.linalg.matrix_power(a, j) @ b for j in range(min(iterations, 12))]
    krylov = np.linalg.qr(np.stack(powers, axis=1))[0]
    best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
    found = solved(backend, hg.ConjugateGradient(iterations, tolerance=1e-10), a, b)
    assert gap(found, best) < 1e-9


def test_conjugate_gradient_steps_by_eigenvalue(backend):
    """One product for each different eigenvalue."""
    a, b, calls = matrix([1, 1, 1, 3, 3, 7.0]), np.arange(1.0, 7), []
    found = solved(backend, hg.ConjugateGradient(tolerance=1e-12), a, b, calls)
    assert len(calls) == 3 and gap(a @ found, b) < 1e-12


def test_solve_refuses_indefinite_or_singular(backend):
    for a in (matrix([1, 2, -1.0]), np.zeros((3, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(hg.Diverged, match="not positive definite"):
            solved(backend, hg.ConjugateGradient(), a, [2.0, 1, -1])
    with pytest.raises(hg.Diverged, match="the inner Hessian has no inverse"):
        solved(backend, hg.DenseSolve(), np.zeros((3, 3)), np.ones(3))


# ---- Nystrom

DRAWS = pytest.mark.parametrize("draw", [columns, gaussian], ids=lambda draw: draw.__name__)


@DRAWS
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_nystrom_is_woodbury_and_keeps_its_bound(rank, draw, backend):
    """b / rho - C (rho**2 W + rho C'C)^-1 C'b, with the bound of Hataya and Yamada's theorem."""
    rho, n, calls = 0.1, 10, []
    a, b = matrix(np.geomspace(0.01, 10, n)), np.random.default_rng(5).standard_normal(n)
    sketch = draw(np.random.default_rng([6, n]), rank, n)
    c, w = a @ sketch.T, sketch @ a @ sketch.T
    expected = b / rho - c @ np.linalg.solve(rho**2 * w + rho * c.T @ c, c.T @ b)
    found = solved(backend, hg.Nystrom(rank, rho, draw, seed=6), a, b, calls)
    assert gap(found, expected) < 1e-9 and len(calls) == rank
    missed = np.linalg.norm(a - c @ np.linalg.solve(w, c.T), 2)
    error = np.linalg.norm(found - np.linalg.solve(a + rho * np.eye(n), b))
    assert error <= missed / (rho * (rho + missed)) * np.linalg.norm(b)


@DRAWS
def test_nystrom_of_low_rank_is_exact(draw, backend):
    """8 draws see a matrix of rank 3 whole; the 5 that add nothing do no harm (half the digits)."""
    factor = np.random.default_rng(1).standard_normal((20, 3))
    a, b = factor @ factor.T, np.arange(20.0)
    expected = np.linalg.solve(a + 0.5 * np.eye(20), b)
    assert gap(solved(backend, hg.Nystrom(8, 0.5, draw), a, b), expected) < 1e-7


def test_nystrom_draws_by_address(backend):
    a, b = matrix(np.geomspace(0.01, 10, 10)), np.arange(10.0)
    seeds = [0, 1], [0, 1], [0, 2]
    same, again, other = (solved(backend, hg.Nystrom(4, seed=seed), a, b) for seed in seeds)
    assert np.array_equal(same, again) and gap(same, other) > 1e-3


SINGULAR = [hg.DenseSolve(), hg.Nystrom(5, 0.0), hg.Nystrom(5, 0.0, gaussian)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solve", [*SINGULAR, hg.ConjugateGradient()])
def test_hessian_without_inverse_is_named(solve, dtype):
    """More weights than examples: rounding alone makes the smallest eigenvalues other than zero."""
    rng, backend = np.random.default_rng(0), hg.Torch(dtype=dtype)
    x, b = backend.array(rng.standard_normal((3, 5))), backend.array(rng.standard_normal(5))
    with pytest.raises(hg.Diverged, match="has no inverse|is not positive definite"):
        solve(lambda v: x.T @ (x @ v), b)


@pytest.mark.parametrize("size", [1e20, 1e-24])
def test_conjugate_gradients_of_large_and_small_vectors(size):
    """Their squares overflow in single precision, or are zero."""
    b = hg.Torch(dtype="float32").array([size, 2 * size])
    assert gap(hg.ConjugateGradient()(lambda v: 4 * v, b), b / 4) < 1e-6
