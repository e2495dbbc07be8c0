"""Solutions of A x = b, and implicit hypergradients: closed forms, dense solves, unrolling."""

import dataclasses
import itertools

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore.linear import columns, gaussian, largest_eigenvalue


def matrix(eigenvalues):
    """Return a symmetric matrix; no rounding for 4 or 16 eigenvalues that are powers of two."""
    basis = np.eye(len(eigenvalues)) - 2 / len(eigenvalues)
    return basis * eigenvalues @ basis


def solved(backend, solve, a, b, calls=None):
    """Return solve(A, b) in NumPy; count the products in `calls`."""
    a, calls = backend.array(a), [] if calls is None else calls
    with np.errstate(all="ignore"):  # as Implicit does
        return backend.numpy(solve(lambda v: calls.append(0) or a @ v, backend.array(b)))


CONVERGED = [hg.Neumann(300, 0.9), hg.Neumann(1000), hg.ConjugateGradient()]
CONVERGED += [hg.Nystrom(50, 0.0), hg.Nystrom(50, 1e-13, gaussian)]


def test_implicit_equals_dense_solve_and_reverse(backend):
    """At an optimum, by a solve that converged, or of full rank: condition numbers below 1e3."""
    problem, hyper = catalogue.regression(backend)
    dense = hg.Implicit(hg.DenseSolve())(problem, hyper)
    assert gap(dense.grad, hg.Reverse()(problem, hyper).grad) < 1e-10
    for solve in CONVERGED:
        assert gap(hg.Implicit(solve)(problem, hyper, dense.state).grad, dense.grad) < 1e-10


def test_implicit_at_a_given_state(backend):
    """Nothing is trained, the loss is asked for all examples only; flat states and tuples."""
    problem, hyper = catalogue.everything(backend, n=4)
    steps, solver = [], hg.Implicit(hg.Identity())
    expected = solver(problem, hyper)

    def inner_loss(w, hyper, t):
        steps.append(t)
        return problem.inner_loss(w, hyper, t)

    counted = dataclasses.replace(problem, inner_loss=inner_loss)
    halves = expected.state[:4], expected.state[4:]
    for state in (expected.state, halves, tuple(map(backend.numpy, halves))):
        found = solver(counted, hyper, state)
        assert np.array_equal(found.grad, expected.grad)
        assert np.array_equal(found.state, expected.state)
    assert set(steps) == {None}
    with pytest.raises(ValueError, match="2 vectors of 4 numbers here, weights first, got 7"):
        solver(problem, hyper, expected.state[:-1])


def test_implicit_adds_the_direct_derivative(backend):
    losses = ((lambda w, h, p=p: w.sum() + (h**p).sum()) for p in (1, 3))
    (sums, hyper), (cubes, _) = (catalogue.bowl(backend, outer_loss=loss) for loss in losses)
    found, expected = (hg.Implicit(hg.Identity())(problem, hyper) for problem in (cubes, sums))
    assert gap(found.grad - expected.grad, 3 * hyper**2 - 1) < 1e-12


def test_implicit_takes_the_mean_of_batches(backend):
    problem, hyper = catalogue.regression(backend)

    def inner_loss(w, h, t):
        return problem.inner_loss(w, h, None) + (-1) ** t * ((w + 1) ** 4 * backend.xp.exp(h)).sum()

    batched, dense = dataclasses.replace(problem, inner_loss=inner_loss), hg.DenseSolve()
    found = hg.Implicit(dense, inner_batches=range(4))(batched, hyper, 0.1 * np.ones(6))
    expected = hg.Implicit(dense)(problem, hyper, 0.1 * np.ones(6))
    assert gap(backend.numpy(found.grad), backend.numpy(expected.grad)) < 1e-12


NO_RATE = r"grows with rate .* about 3; use rate=0.3333, or rate=None"
REFUSED = [  # a solve, A, words of the error
    *((hg.Neumann(60, rate), matrix([1, 2, 3.0]), NO_RATE) for rate in (1.0, 0.68, 1e200)),
    (hg.Neumann(60, 1.0), matrix([0.1, -0.5, 1]), "curvature -0.5: .* not positive definite"),
    (hg.Neumann(60, 0.1), matrix([-1, -2, -3.0]), "curvature -3: .* not positive definite"),
    (hg.Neumann(2000, 0.5), matrix([1, 0.5, -0.01]), "curvature -0.01: .* not positive"),
    (hg.Neumann(3), np.zeros((3, 3)), "zero or not finite"),
    (hg.ConjugateGradient(), matrix([1, 2, -1.0]), "not positive definite"),
    (hg.ConjugateGradient(), np.zeros((3, 3)), "not positive definite"),
    (hg.ConjugateGradient(), np.full((3, 3), np.nan), "not positive definite"),
]


@pytest.mark.parametrize("solve, a, words", REFUSED)
def test_solve_refuses(solve, a, words, backend):
    with pytest.raises(hg.Diverged, match=words):
        solved(backend, solve, a, [1.0, 2, 4])


INVERSES = [hg.DenseSolve(), hg.Nystrom(5, 0.0), hg.Nystrom(5, 0.0, gaussian)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solve", [*INVERSES, hg.ConjugateGradient()])
def test_hessian_without_inverse_is_named(solve, dtype):
    """More weights than examples: rounding alone makes the smallest eigenvalues other than zero."""
    rng, backend = np.random.default_rng(0), hg.Torch(dtype=dtype)
    x, b = backend.array(rng.standard_normal((3, 5))), backend.array(rng.standard_normal(5))
    with pytest.raises(hg.Diverged, match="has no inverse|is not positive definite"):
        solve(lambda v: x.T @ (x @ v), b)


def test_neumann_is_the_sum_written_out(backend):
    """Also of negative curvature in few terms. Identity is the sum of no terms."""
    b, calls = np.array([1.0, -2, 0.5]), []
    for eigenvalues, terms, growth in (
        ([0.3, 1, 2], 0, 0.02),
        ([0.3, 1, 2], 7, 0.02),
        ([-3, 1, 2], 10, np.inf),
        ([1, 0.5, -0.01], 10, 0.02),
    ):
        a = matrix(np.array(eigenvalues))
        powers = (np.linalg.matrix_power(np.eye(3) - 0.4 * a, j) for j in range(terms + 1))
        found = solved(backend, hg.Neumann(terms, 0.4, growth), a, b, calls)
        assert gap(found, 0.4 * sum(power @ b for power in powers)) < 1e-13
    assert len(calls) == 0 + 7 + 10 + 10
    none = solved(backend, hg.Neumann(0, 0.4), a, b)
    assert np.array_equal(none, solved(backend, hg.Identity(0.4), a, b))


def test_neumann_finds_a_rate(backend):
    a, b, calls = matrix(np.geomspace(0.5, 40, 10)), np.ones(10), []
    b[0] = 3
    found = solved(backend, hg.Neumann(2000), a, b, calls)
    assert gap(found, np.linalg.solve(a, b)) < 1e-9 and len(calls) == 2020
    held = backend.array(a)
    assert 0.9 < largest_eigenvalue(lambda v: held @ v, held[0]) / 40 <= 1 + 1e-12
    with pytest.raises(hg.Diverged, match="zero or not finite"):
        solved(backend, hg.Neumann(3), 0 * a, b)


SOLVES = (
    hg.Neumann(5, 0.1),
    hg.ConjugateGradient(),
    hg.Identity(0.3),
    hg.DenseSolve(),
    hg.Nystrom(2),
)


def test_solve_of_zero_is_zero(backend):
    assert not any(solved(backend, solve, np.eye(3), np.zeros(3)).any() for solve in SOLVES)


@pytest.mark.parametrize("seed", range(4))
def test_neumann_refuses_what_grew_only(seed, backend):
    """No rate below 2 / largest eigenvalue; a longer last term by 2 %, that is 4 % squared."""
    rng = np.random.default_rng(seed)
    eigenvalues, b = np.exp(rng.uniform(-8, 3, 8)), rng.standard_normal(8)
    for terms, share in itertools.product((1, 5, 60), (1e-9, 0.5, 1.999, 2.05, 2.5, 30.0)):
        a, rate = matrix(eigenvalues), share / eigenvalues.max()
        last = np.linalg.matrix_power(np.eye(8) - rate * a, terms) @ b
        if share < 2:
            solved(backend, hg.Neumann(terms, rate), a, b)
        elif np.linalg.norm(last) > 1.02 * np.linalg.norm(b):
            with pytest.raises(hg.Diverged, match="largest eigenvalue"):
                solved(backend, hg.Neumann(terms, rate), a, b)


def test_neumann_takes_rounding_for_no_growth():
    """Single precision, eigenvalues 1 and 0: the terms become constant, up to rounding."""
    for seed in range(4):
        backend, rng = hg.Torch(dtype="float32"), np.random.default_rng(seed)
        basis = backend.array(np.linalg.qr(rng.standard_normal((300, 30)))[0])
        b = backend.array(rng.standard_normal(300))
        for rate in (1.0, 1.9):
            found = hg.Neumann(100, rate)(lambda v, basis=basis: basis @ (basis.T @ v), b)
            assert bool(found.isfinite().all())


@pytest.mark.parametrize("bits", [0, 10, 27])
@pytest.mark.parametrize("sharp", [False, True], ids=["any b", "b in the sharp directions"])
@pytest.mark.parametrize("solve", [hg.ConjugateGradient(), hg.DenseSolve()], ids=repr)
def test_solve_of_ill_conditioned_system(solve, sharp, bits, backend):
    """Condition number 2**bits, solution known exactly: two published libraries get it wrong."""
    eigenvalues = 2.0 ** np.linspace(0, bits, 16).round()
    a, b = matrix(eigenvalues), np.random.default_rng(1).integers(-9, 9, 16) + 0.5
    exact, b = (b, a @ b) if sharp else (matrix(1 / eigenvalues) @ b, b)
    assert gap(solved(backend, solve, a, b), exact) < 1e-15 * 2.0**bits


@pytest.mark.parametrize("iterations", [1, 4, 9, 14])
def test_conjugate_gradient_is_best_of_krylov(iterations, backend):
    a, b = matrix(np.geomspace(1, 20, 12)), np.random.default_rng(1).standard_normal(12)
    powers = [np.linalg.matrix_power(a, j) @ b for j in range(min(iterations, 12))]
    krylov = np.linalg.qr(np.stack(powers, axis=1))[0]
    best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
    found = solved(backend, hg.ConjugateGradient(iterations, tolerance=1e-10), a, b)
    assert gap(found, best) < 1e-9


@pytest.mark.parametrize("size", [1e20, 1e-24])
def test_conjugate_gradients_of_large_and_small_vectors(size):
    b = hg.Torch(dtype="float32").array([size, 2 * size])
    assert gap(hg.ConjugateGradient()(lambda v: 4 * v, b), b / 4) < 1e-6


@pytest.mark.parametrize("draw", [columns, gaussian])
@pytest.mark.parametrize("rank", [1, 7])
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


def test_nystrom_of_low_rank_is_exact(backend):
    """8 draws see a matrix of rank 3 whole; the 5 that add nothing do no harm (half the digits)."""
    factor = np.random.default_rng(1).standard_normal((20, 3))
    a, b = factor @ factor.T, np.arange(20.0)
    expected = np.linalg.solve(a + 0.5 * np.eye(20), b)
    for draw in (columns, gaussian):
        assert gap(solved(backend, hg.Nystrom(8, 0.5, draw), a, b), expected) < 1e-7
