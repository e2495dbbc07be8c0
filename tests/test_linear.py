"""Inverse Hessians: iterative solves against dense ones, implicit hypergradients against closed forms and unrolling."""

import dataclasses

import catalogue
import numpy as np
import pytest
from test_solvers import gap

import hgcore as hg

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))[0]
    return (basis * eigenvalues) @ basis.T


def solved(backend, solve, a, b):
    a = backend.array(a)
    return backend.numpy(solve(lambda v: a @ v, backend.array(b)))


@both
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
@pytest.mark.parametrize("solve", [hg.Neumann(500, 0.6), hg.ConjugateGradient()], ids=["neumann", "cg"])
def test_iterative_solves_equal_the_dense_one_where_they_converge(backend, case, solve):
    problem, hyper = case(backend)
    dense, found = hg.Implicit(hg.Dense())(problem, hyper), hg.Implicit(solve)(problem, hyper)
    assert gap(backend.numpy(found.grad), backend.numpy(dense.grad)) < 1e-10
    assert np.array_equal(found.state, dense.state) and float(found.value) == float(dense.value)


@both
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
def test_at_the_optimum_the_implicit_hypergradient_is_that_of_the_whole_run(backend, case):
    problem, hyper = case(backend)
    assert gap(backend.numpy(hg.Implicit(hg.Dense())(problem, hyper).grad), backend.numpy(hg.Reverse()(problem, hyper).grad)) < 1e-10


@both
def test_the_implicit_hypergradient_of_ridge_regression_is_its_closed_form(backend):
    """w = (X'X/N + P)^-1 X'y/N, dw/dp_i = -A^-1 e_i p_i w_i."""
    problem, hyper = catalogue.ridge(backend)
    rng = np.random.default_rng(2)
    x, y, x2, y2 = (rng.standard_normal(s) for s in ((20, 6), (20,), (15, 6), (15,)))
    a = x.T @ x / 20 + np.diag(np.exp(hyper))
    w = np.linalg.solve(a, x.T @ y / 20)
    expected = -np.linalg.solve(a, x2.T @ (x2 @ w - y2) / 15) * np.exp(hyper) * w
    found = hg.Implicit(hg.ConjugateGradient())(problem, hyper, state=(backend.array(w),))
    assert gap(backend.numpy(found.grad), expected) < 1e-12
    assert gap(backend.numpy(hg.Implicit(hg.ConjugateGradient())(problem, hyper).grad), expected) < 1e-10


@both
@pytest.mark.parametrize("spread", [1, 1e3, 1e6])
def test_conjugate_gradients_solve_ill_conditioned_systems(backend, spread):
    """The error of a backward stable solve is the condition number times 1e-16, here up to 1e-10; the reference by eigenvectors."""
    a, b = matrix(np.geomspace(1, spread, 12)), np.random.default_rng(1).standard_normal(12)
    assert gap(solved(backend, hg.ConjugateGradient(iterations=300, tolerance=1e-14), a, b), np.linalg.solve(a, b)) < 1e-9


@both
def test_conjugate_gradients_need_one_step_for_each_distinct_eigenvalue(backend):
    a, b, calls = backend.array(matrix([1, 1, 1, 3, 3, 7.0])), backend.array(np.arange(1.0, 7)), []
    x = hg.ConjugateGradient()(lambda v: calls.append(0) or a @ v, b)
    assert len(calls) == 3 and float(abs(a @ x - b).max()) < 1e-12


@both
@pytest.mark.parametrize("solve", [hg.Neumann(5, 0.1), hg.ConjugateGradient(), hg.Identity(0.3), hg.Dense()])
def test_nothing_to_solve_gives_nothing(backend, solve):
    assert not solved(backend, solve, np.eye(3), np.zeros(3)).any()


@both
@pytest.mark.parametrize("terms", [0, 1, 7])
def test_a_neumann_sum_is_the_written_out_one(backend, terms):
    a, b = matrix([0.3, 1, 2]), np.array([1.0, -2, 0.5])
    expected = 0.4 * sum(np.linalg.matrix_power(np.eye(3) - 0.4 * a, j) @ b for j in range(terms + 1))
    assert gap(solved(backend, hg.Neumann(terms, 0.4), a, b), expected) < 1e-14
    if terms == 0:
        assert np.array_equal(solved(backend, hg.Neumann(0, 0.4), a, b), solved(backend, hg.Identity(0.4), a, b))


@both
@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_neumann_with_i_terms_is_unrolling_i_plus_one_steps_from_the_optimum(backend, terms):
    """Lorraine et al. 2020, Theorem 2."""
    problem, hyper = catalogue.logistic(backend)
    (optimum,) = hg.train(problem, backend.array(hyper))
    rate = 0.5
    few = dataclasses.replace(
        problem, dynamics=hg.GradientDescent(rate=lambda hyper, t: rate), initial=lambda hyper: optimum + 0 * hyper[0], steps=terms + 1)
    series = hg.Implicit(hg.Neumann(terms, rate))(problem, hyper, state=(optimum,))
    assert gap(backend.numpy(series.grad), catalogue.unrolled(few, hyper)[1]) < 1e-11  # the optimum is met to 1e-15


@both
@pytest.mark.parametrize("eigenvalues, rate", [([1, 2, 3.0], 1.0), ([0.1, -0.5, 1], 1.0), ([1, 2, 3], -0.1), ([1, 2, 3], 1e200)])
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_a_neumann_series_that_grows_is_an_error(backend, eigenvalues, rate):
    with pytest.raises(hg.Diverged, match="Neumann series grows with rate .*: it needs rate < 2 / largest eigenvalue"):
        solved(backend, hg.Neumann(60, rate), matrix(eigenvalues), np.ones(3))


@both
@pytest.mark.parametrize("a", [matrix([1, 2, -1.0]), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_conjugate_gradients_refuse_what_is_not_positive_definite(backend, a):
    with pytest.raises(hg.Diverged, match="not positive definite"):
        solved(backend, hg.ConjugateGradient(), a, np.array([1.0, 2, -1]))


@both
def test_few_iterations_give_an_approximation_that_gets_better(backend):
    a, b = matrix(np.geomspace(1, 100, 12)), np.ones(12)
    exact = np.linalg.solve(a, b)
    errors = [gap(solved(backend, hg.ConjugateGradient(iterations=i), a, b), exact) for i in (1, 3, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10


@both
def test_the_state_may_be_given_and_then_nothing_is_trained(backend):
    problem, hyper = catalogue.ridge(backend)
    w, steps = backend.array(np.linspace(-1, 1, 6)), []
    counted = dataclasses.replace(problem, inner=lambda w, hyper, t: steps.append(t) or problem.inner(w, hyper, t))
    found = hg.Implicit(hg.Dense())(counted, hyper, state=(w,))
    assert np.array_equal(found.state, w) and set(steps) == {None}
    assert float(found.value) == float(problem.outer(w, backend.array(hyper))) and found.nbytes == w.nbytes


@both
def test_the_outer_objective_may_depend_on_hyper_directly(backend):
    xp = backend.xp
    problem, hyper = catalogue.ridge(backend)
    direct = dataclasses.replace(problem, outer=lambda w, hyper: problem.outer(w, hyper) + xp.sum(hyper**3))
    difference = hg.Implicit(hg.Dense())(direct, hyper).grad - hg.Implicit(hg.Dense())(problem, hyper).grad
    assert gap(backend.numpy(difference), 3 * hyper**2) < 1e-14


@both
def test_a_flat_state_from_another_solver_is_taken_too(backend):
    problem, hyper = catalogue.everything(backend)
    solver = hg.Implicit(hg.Identity())
    expected = solver(problem, hyper)
    assert np.array_equal(backend.numpy(solver(problem, hyper, expected.state).grad), backend.numpy(expected.grad))
