"""Solutions of A x = b, and implicit hypergradients: closed forms, dense solves, unrolling."""

import dataclasses
import itertools

import catalogue
import numpy as np
import pytest
from catalogue import gap, same_bits

import hgcore as hg
from hgcore.linear import columns, gaussian


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
    counted, calls = catalogue.counted(problem)
    solver = hg.Implicit(hg.Identity())
    expected = solver(problem, hyper)
    halves = expected.state[:4], expected.state[4:]
    for state in (expected.state, halves, tuple(map(backend.numpy, halves))):
        assert same_bits(solver(counted, hyper, state)[1:3], expected[1:3])
    assert set(calls) == {None}
    with pytest.raises(ValueError, match="2 vectors of 4 numbers here, weights first, got 7"):
        solver(problem, hyper, expected.state[:-1])


def test_implicit_takes_the_mean_of_batches(backend):
    problem, hyper = catalogue.regression(backend)

    def inner_loss(w, h, t):
        return problem.inner_loss(w, h, None) + (-1) ** t * ((w + 1) ** 4 * backend.xp.exp(h)).sum()

    batched, dense = dataclasses.replace(problem, inner_loss=inner_loss), hg.DenseSolve()
    given, whole = (batched, hyper, 0.1 * np.ones(6)), (problem, hyper, 0.1 * np.ones(6))
    each, mean = hg.Implicit(dense, inner_batches=range(4)), hg.Implicit(dense)
    assert gap(each(*given).grad, mean(*whole).grad) < 1e-12
    assert gap(each.conditions(*given).slope, mean.conditions(*whole).slope) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e-24])
def test_conditions_of_implicit(backend, scale):
    """The length of the gradient, and that of A x - b over that of b; x = 0.3 b by Identity.

    Small numbers are not taken for zero.
    """
    problem, hyper = catalogue.regression(backend, steps=3)
    outer_loss = lambda w, hyper: scale * problem.outer_loss(w, hyper)  # noqa: E731
    small = dataclasses.replace(problem, outer_loss=outer_loss)
    state = hg.train(problem, backend.array(hyper))
    curvature = problem.objective(backend.array(hyper)).linearize(state[0], None)
    b = problem.outer_gradients(state[0], backend.array(hyper))[1]
    missed = 0.3 * curvature.hvp(b) - b
    of_identity = float(missed @ missed / (b @ b)) ** 0.5
    for solve, residual in ((hg.DenseSolve(), 0.0), (hg.Identity(0.3), of_identity)):
        for given in (state, None):
            found = hg.Implicit(solve).conditions(small, hyper, given)
            assert abs(found.residual - residual) < 1e-12
            assert gap(found.slope, float(curvature.gradient @ curvature.gradient) ** 0.5) < 1e-14
    with pytest.raises(hg.Diverged, match="the outer loss is nan although training was finite"):
        hg.Implicit(hg.ConjugateGradient()).conditions(problem, hyper, np.full(6, np.nan))


INVERSES = [hg.DenseSolve(), hg.Nystrom(5, 0.0), hg.Nystrom(5, 0.0, gaussian)]
EXAMPLES = np.random.default_rng(0).standard_normal((3, 5))
FEW = EXAMPLES.T @ EXAMPLES  # rounding alone makes the smallest eigenvalues other than zero
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
    (hg.ConjugateGradient(), FEW, "not positive definite"),
    *((solve, FEW, "has no inverse") for solve in INVERSES),
    *((solve, np.full((5, 5), np.nan), "Hessian is not finite") for solve in INVERSES),
]


@pytest.mark.parametrize("backend", [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")])
@pytest.mark.parametrize("solve, a, words", REFUSED)
def test_solve_refuses(solve, a, words, backend):
    with pytest.raises(hg.Diverged, match=words):
        solved(backend, solve, a, [1.0, 2, 4, 0.5, 3][: len(a)])


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


@pytest.mark.parametrize("rate", [1.0, 1.9])
@pytest.mark.parametrize("seed", range(4))
def test_neumann_takes_rounding_for_no_growth(seed, rate):
    """Single precision, eigenvalues 1 and 0: the terms become constant, up to rounding."""
    backend, rng = hg.Torch(dtype="float32"), np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((300, 30)))[0]
    found = solved(backend, hg.Neumann(100, rate), basis @ basis.T, rng.standard_normal(300))
    assert np.isfinite(found).all()


SOLVES = [hg.Neumann(5, 0.1), hg.Identity(0.3), hg.Nystrom(2), *INVERSES, hg.ConjugateGradient()]


@pytest.mark.parametrize("size", [0, 1e20, 1e-24])
@pytest.mark.parametrize("solve", SOLVES)
def test_solve_of_zero_large_and_small_vectors(solve, size):
    """Single precision, where squares of such numbers overflow or are zero."""
    backend, b = hg.Torch(dtype="float32"), np.array([1.0, 2, 4])
    a = matrix([1, 2, 4.0])
    assert gap(solved(backend, solve, a, size * b), size * solved(backend, solve, a, b)) < 1e-6


def neumann_sums():
    """Written out, also of negative curvature in few terms; Identity is the sum of no terms."""
    b, few = np.array([1.0, -2, 0.5]), (([0.3, 1, 2], 0, 0.02), ([0.3, 1, 2], 7, 0.02))
    for eigenvalues, terms, growth in (*few, ([-3, 1, 2], 10, np.inf), ([1, 0.5, -0.01], 10, 0.02)):
        a = matrix(np.array(eigenvalues))
        powers = (np.linalg.matrix_power(np.eye(3) - 0.4 * a, j) for j in range(terms + 1))
        expected = 0.4 * sum(power @ b for power in powers)
        yield hg.Neumann(terms, 0.4, growth), a, b, expected, 1e-13, terms
    yield hg.Identity(0.4), a, b, 0.4 * b, 1e-16, 0
    a, b = matrix(np.geomspace(0.5, 40, 10)), np.array([3.0] + [1.0] * 9)
    yield hg.Neumann(2000), a, b, np.linalg.solve(a, b), 1e-9, 2020  # 20 to find a rate
    yield hg.Neumann(0), a, b, b / 40, 1e-6, 20  # the rate itself


def ill_conditioned():
    """Condition number 2**bits, solution known exactly: two published libraries get it wrong."""
    for bits in (0, 10, 27):
        eigenvalues = 2.0 ** np.linspace(0, bits, 16).round()
        a, b = matrix(eigenvalues), np.random.default_rng(1).integers(-9, 9, 16) + 0.5
        for solve in (hg.ConjugateGradient(), hg.DenseSolve()):
            yield solve, a, b, matrix(1 / eigenvalues) @ b, 1e-15 * 2.0**bits, None
            yield solve, a, a @ b, b, 1e-15 * 2.0**bits, None  # in the sharp directions


def best_of_krylov():
    a, b = matrix(np.geomspace(1, 20, 12)), np.random.default_rng(1).standard_normal(12)
    for iterations in (1, 4, 9, 14):
        powers = [np.linalg.matrix_power(a, j) @ b for j in range(min(iterations, 12))]
        krylov = np.linalg.qr(np.stack(powers, axis=1))[0]
        best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
        yield hg.ConjugateGradient(iterations, 1e-10), a, b, best, 1e-9, None


def woodbury():
    """b / rho - C (rho**2 W + rho C'C)^-1 C'b."""
    a, rho = matrix(np.geomspace(0.01, 10, 10)), 0.1
    b = np.random.default_rng(5).standard_normal(10)
    for draw, rank, seed in itertools.product((columns, gaussian), (1, 7), (6, 7)):
        sketch = draw(np.random.default_rng([seed, 10]), rank, 10)
        c, w = a @ sketch.T, sketch @ a @ sketch.T
        expected = b / rho - c @ np.linalg.solve(rho**2 * w + rho * c.T @ c, c.T @ b)
        yield hg.Nystrom(rank, rho, draw, seed), a, b, expected, 1e-9, rank


def low_rank():
    """8 draws see a matrix of rank 3 whole; the 5 that add nothing do no harm (half the digits)."""
    factor = np.random.default_rng(1).standard_normal((20, 3))
    a, b = factor @ factor.T, np.arange(20.0)
    expected = np.linalg.solve(a + 0.5 * np.eye(20), b)
    for draw in (columns, gaussian):
        yield hg.Nystrom(8, 0.5, draw), a, b, expected, 1e-7, 8


CLOSED_FORMS = neumann_sums, ill_conditioned, best_of_krylov, woodbury, low_rank


@pytest.mark.parametrize("cases", CLOSED_FORMS)
def test_solve_equals_closed_form(cases, backend):
    for solve, a, b, expected, error, products in cases():
        calls = []
        assert gap(solved(backend, solve, a, b, calls), expected) < error, solve
        assert products in (None, len(calls)), solve
