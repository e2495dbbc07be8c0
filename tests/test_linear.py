"""Inverse Hessians: iterative solves against dense ones, implicit hypergradients against closed forms and unrolling."""

import dataclasses

import catalogue
import numpy as np
import pytest
from catalogue import gap, matrix, solved

import hgcore as hg
from hgcore.papers import exactly

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


@both
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
@pytest.mark.parametrize(
    "solve", [hg.Neumann(500, 0.6), hg.ConjugateGradient()], ids=["neumann", "cg"]
)
def test_iterative_solves_equal_the_dense_one_where_they_converge(backend, case, solve):
    problem, hyper = case(backend)
    dense, found = hg.Implicit(hg.Dense())(problem, hyper), hg.Implicit(solve)(problem, hyper)
    assert gap(backend.numpy(found.grad), backend.numpy(dense.grad)) < 1e-10
    assert np.array_equal(found.state, dense.state) and float(found.value) == float(dense.value)


@both
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
def test_at_the_optimum_the_implicit_hypergradient_is_that_of_the_whole_run(backend, case):
    problem, hyper = case(backend)
    assert (
        gap(
            backend.numpy(hg.Implicit(hg.Dense())(problem, hyper).grad),
            backend.numpy(hg.Reverse()(problem, hyper).grad),
        )
        < 1e-10
    )


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
    assert (
        gap(backend.numpy(hg.Implicit(hg.ConjugateGradient())(problem, hyper).grad), expected)
        < 1e-10
    )


@both
@pytest.mark.parametrize("spread, error", [(1, 1e-14), (1e3, 1e-12), (1e6, 1e-9), (1e8, 1e-7)])
@pytest.mark.parametrize(
    "sharp", [False, True], ids=["any right-hand side", "one of the sharp directions"]
)
def test_conjugate_gradients_solve_ill_conditioned_systems_as_well_as_numbers_allow(
    backend, spread, error, sharp
):
    """12 dimensions, defaults. Rounding allows the condition number times some 1e-16; at 1e6 that is below the 1e-9 that is asked."""
    a = matrix(np.geomspace(1, spread, 12))
    b = np.random.default_rng(1).standard_normal(12)
    a, b = (a + a.T) / 2, a @ b if sharp else b
    assert gap(solved(backend, hg.ConjugateGradient(), a, b), exactly(a, b)) < error


@both
@pytest.mark.parametrize("solve", [hg.ConjugateGradient(), hg.Dense()], ids=["cg", "dense"])
def test_the_hypergradient_of_an_ill_conditioned_system_is_right_to_1e_9(backend, solve):
    """12 weights, a penalty each, condition number near 1e6: the case that two published libraries get wrong."""
    xp, rng = backend.xp, np.random.default_rng(3)
    a, y, target = (
        matrix(np.geomspace(1e-4, 100, 12)),
        rng.standard_normal(12),
        rng.standard_normal(12),
    )
    held, slope, aim, hyper = (
        backend.array((a + a.T) / 2),
        backend.array(y),
        backend.array(target),
        np.full(12, -10.0),
    )
    problem = hg.Problem(
        backend=backend,
        steps=0,
        dynamics=hg.GradientDescent(rate=lambda hyper, t: 0.0),
        initial=lambda hyper: 0 * hyper,
        inner=lambda w, hyper, t: (
            0.5 * w @ (held @ w) - slope @ w + 0.5 * xp.sum(xp.exp(hyper) * w**2)
        ),
        outer=lambda w, hyper: 0.5 * xp.sum((w - aim) ** 2),
    )
    whole = (a + a.T) / 2 + np.diag(np.exp(hyper))
    weights = exactly(whole, y)
    expected = -np.exp(hyper) * weights * exactly(whole, weights - target)
    found = hg.Implicit(solve)(problem, hyper, state=(backend.array(weights),))
    assert gap(backend.numpy(found.grad), expected) < 1e-9


@pytest.mark.parametrize("iterations", range(1, 15))
def test_conjugate_gradients_never_lose_the_last_iterate(iterations):
    """Each iterate is the best of its Krylov space in the norm of A, whether or not the tolerance is met at it."""
    a, b = matrix(np.geomspace(1, 20, 12)), np.ones(12)
    krylov = np.linalg.qr(
        np.stack([np.linalg.matrix_power(a, j) @ b for j in range(min(iterations, 12))], axis=1)
    )[0]
    best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
    assert (
        gap(solved(hg.Autograd(), hg.ConjugateGradient(iterations, tolerance=1e-10), a, b), best)
        < 1e-9
    )


@both
def test_conjugate_gradients_need_one_step_for_each_distinct_eigenvalue(backend):
    a, b, calls = backend.array(matrix([1, 1, 1, 3, 3, 7.0])), backend.array(np.arange(1.0, 7)), []
    x = hg.ConjugateGradient()(lambda v: calls.append(0) or a @ v, b)
    assert len(calls) == 3 and float(abs(a @ x - b).max()) < 1e-12


@both
@pytest.mark.parametrize(
    "solve",
    [hg.Neumann(5, 0.1), hg.ConjugateGradient(), hg.Identity(0.3), hg.Dense(), hg.Nystrom(2)],
)
def test_nothing_to_solve_gives_nothing(backend, solve):
    assert not solved(backend, solve, np.eye(3), np.zeros(3)).any()


@both
@pytest.mark.parametrize("terms", [0, 1, 7])
def test_a_neumann_sum_is_the_written_out_one(backend, terms):
    a, b = matrix([0.3, 1, 2]), np.array([1.0, -2, 0.5])
    expected = 0.4 * sum(
        np.linalg.matrix_power(np.eye(3) - 0.4 * a, j) @ b for j in range(terms + 1)
    )
    assert gap(solved(backend, hg.Neumann(terms, 0.4), a, b), expected) < 1e-14
    if terms == 0:
        assert np.array_equal(
            solved(backend, hg.Neumann(0, 0.4), a, b), solved(backend, hg.Identity(0.4), a, b)
        )


@both
@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_neumann_with_i_terms_is_unrolling_i_plus_one_steps_from_the_optimum(backend, terms):
    """Lorraine et al. 2020, Theorem 2."""
    problem, hyper = catalogue.logistic(backend)
    (optimum,) = hg.train(problem, backend.array(hyper))
    rate = 0.5
    few = dataclasses.replace(
        problem,
        dynamics=hg.GradientDescent(rate=lambda hyper, t: rate),
        initial=lambda hyper: optimum + 0 * hyper[0],
        steps=terms + 1,
    )
    series = hg.Implicit(hg.Neumann(terms, rate))(problem, hyper, state=(optimum,))
    assert (
        gap(backend.numpy(series.grad), catalogue.unrolled(few, hyper)[1]) < 1e-11
    )  # the optimum is met to 1e-15


@both
@pytest.mark.parametrize("rate", [1.0, 0.68, 1e200])
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_a_neumann_series_that_grows_names_the_eigenvalue_and_the_rate_to_use(backend, rate):
    a, b = matrix([1, 2, 3.0]), np.ones(3)
    with pytest.raises(
        hg.Diverged,
        match=r"grows with rate .*: it needs rate < 2 / largest eigenvalue .* about 3; use rate=0.3333, or rate=None",
    ):
        solved(backend, hg.Neumann(60, rate), a, b)
    assert gap(solved(backend, hg.Neumann(60, 0.3333), a, b), np.linalg.solve(a, b)) < 1e-9


@both
@pytest.mark.parametrize(
    "eigenvalues, rate", [([0.1, -0.5, 1], 1.0), ([-3.0, 1, 2], 0.1), ([-1, -2, -3.0], 0.1)]
)
def test_negative_curvature_is_told_apart_from_a_rate_too_large(backend, eigenvalues, rate):
    with pytest.raises(
        hg.Diverged,
        match=rf"along a direction of curvature {min(eigenvalues):.2g}: the inner Hessian is not positive definite",
    ):
        solved(backend, hg.Neumann(60, rate), matrix(eigenvalues), np.ones(3))


@both
@pytest.mark.parametrize("terms", [1, 5, 60])
@pytest.mark.parametrize("seed", range(8))
def test_no_rate_that_converges_is_refused_and_every_sum_that_grew_is(backend, terms, seed):
    """Where the last term is longer than b, by two hundredths, the sum has grown; within 2 / largest eigenvalue none ever is."""
    rng = np.random.default_rng(seed)
    eigenvalues, b = np.exp(rng.uniform(-8, 3, 8)), rng.standard_normal(8)
    a, top = matrix(eigenvalues, seed), eigenvalues.max()
    for share in (1e-9, 0.5, 1.0, 1.999):
        solved(backend, hg.Neumann(terms, share / top), a, b)
        solved(backend, hg.Neumann(terms, share / top, power=0), a, b)
    for share in (2.05, 2.5, 30.0):
        last = np.linalg.matrix_power(np.eye(8) - share / top * a, terms) @ b
        if np.linalg.norm(last) > 1.02 * np.linalg.norm(b):
            with pytest.raises(hg.Diverged, match="largest eigenvalue"):
                solved(backend, hg.Neumann(terms, share / top, power=0), a, b)
        with pytest.raises(
            hg.Diverged, match="largest eigenvalue"
        ):  # looking finds what the terms do not show yet
            solved(backend, hg.Neumann(terms, share / top, power=100), a, b)


def test_rounding_in_single_precision_is_no_growth():
    backend = hg.Torch(dtype="float32")
    basis = backend.array(np.linalg.qr(np.random.default_rng(0).standard_normal((300, 30)))[0])
    found = hg.Neumann(1000, 1.99)(
        lambda v: basis @ (basis.T @ v), backend.array(np.ones(300))
    )  # eigenvalues 1 and 0
    assert bool(backend.xp.isfinite(found).all())


@both
def test_a_little_negative_curvature_is_borne_as_long_as_it_does_no_harm(backend):
    a, b = matrix([1, 0.5, -0.01]), np.ones(3)
    solved(backend, hg.Neumann(10, 0.5), a, b)
    with pytest.raises(hg.Diverged, match="curvature -0.01"):
        solved(backend, hg.Neumann(2000, 0.5), a, b)


@both
def test_a_series_without_a_rate_finds_one(backend):
    a, b, calls = matrix(np.geomspace(0.5, 40, 10)), np.ones(10), []
    exact = np.linalg.solve(a, b)
    x = hg.Neumann(2000)(lambda v: calls.append(0) or backend.array(a) @ v, backend.array(b))
    assert gap(backend.numpy(x), exact) < 1e-9 and len(calls) == 2020
    assert (
        0.9 * 40
        < hg.linear.largest(lambda v: backend.array(a) @ v, backend.array(b))
        <= 40 * (1 + 1e-12)
    )
    with pytest.raises(hg.Diverged, match="zero or not finite"):
        solved(backend, hg.Neumann(3), 0 * a, b)


@both
def test_a_given_rate_is_looked_at_once_and_then_costs_one_product_a_term(backend):
    calls, series = [], hg.Neumann(5, 0.1)
    for size, products in ((3, 25), (3, 5), (4, 25)):
        calls.clear()
        series(lambda v: calls.append(0) or v, backend.array(np.ones(size)))
        assert len(calls) == products
    calls.clear()
    hg.Neumann(5, 0.1, power=0)(lambda v: calls.append(0) or v, backend.array(np.ones(3)))
    assert (
        len(calls) == 5
        and series == hg.Neumann(5, 0.1)
        and hash(series) == hash(hg.Neumann(5, 0.1))
    )


@both
def test_a_rate_a_little_too_large_is_refused_before_it_shows(backend):
    a, b = matrix(np.linspace(0.1, 1, 10)), np.ones(10)
    with pytest.raises(hg.Diverged, match="use rate="):
        solved(backend, hg.Neumann(5, 2.1), a, b)
    solved(backend, hg.Neumann(5, 2.1, power=0), a, b)  # five terms do no harm yet


@pytest.mark.parametrize(
    "bad",
    [
        dict(terms=-1),
        dict(terms=1, rate=0.0),
        dict(terms=1, rate=-0.1),
        dict(terms=1, rate=float("nan")),
        dict(terms=1, power=-1),
    ],
)
def test_a_series_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="terms >= 0, rate > 0 or None"):
        hg.Neumann(**bad)


@both
@pytest.mark.parametrize("terms", [0, 3, 30])
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
def test_the_error_of_a_neumann_sum_is_bounded_by_its_contraction(backend, case, terms):
    """|x_K - x| <= max |1 - rate eigenvalue|**(K + 1) |x|, and equal where b has one eigenvector only."""
    a, b = hessian(case, backend)
    rate = 1.5 / np.linalg.eigvalsh(a).max()
    contraction, exact = (
        abs(1 - rate * np.linalg.eigvalsh(a)).max() ** (terms + 1),
        np.linalg.solve(a, b),
    )
    assert np.linalg.norm(solved(backend, hg.Neumann(terms, rate), a, b) - exact) <= (
        1 + 1e-9
    ) * contraction * np.linalg.norm(exact)
    slowest = np.linalg.eigh(a)[1][:, np.argmax(abs(1 - rate * np.linalg.eigvalsh(a)))]
    assert (
        abs(
            gap(solved(backend, hg.Neumann(terms, rate), a, slowest), np.linalg.solve(a, slowest))
            / contraction
            - 1
        )
        < 1e-6
    )


@both
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
def test_the_error_of_few_conjugate_gradients_is_bounded_by_the_condition_number(
    backend, case, iterations
):
    """In the norm of A: |x_k - x| <= 2 ((sqrt(c) - 1) / (sqrt(c) + 1))**k |x| at condition number c."""
    a, b = hessian(case, backend)
    root, exact = np.linalg.cond(a) ** 0.5, np.linalg.solve(a, b)
    error = solved(backend, hg.ConjugateGradient(iterations), a, b) - exact
    assert (error @ a @ error) ** 0.5 <= 2 * ((root - 1) / (root + 1)) ** iterations * (
        exact @ a @ exact
    ) ** 0.5


def hessian(case, backend):
    """(A, b) of the implicit hypergradient of a case at its last weights, in NumPy."""
    problem, hyper = case(backend)
    (weights,) = hg.train(problem, backend.array(hyper))
    _, product = problem.second_order(weights, backend.array(hyper), None)
    rows = [
        backend.numpy(product(backend.array(row), mixed=False)[0]) for row in np.eye(len(weights))
    ]
    return np.array(rows), backend.numpy(problem.judge(weights, backend.array(hyper))[1])


DRAWS = [hg.linear.columns, hg.linear.gaussian]
draws = pytest.mark.parametrize("draw", DRAWS, ids=lambda d: d.__name__)


@both
@draws
@pytest.mark.parametrize("case", [catalogue.ridge, catalogue.logistic])
@pytest.mark.parametrize("rho", [0.0, 1e-13])
def test_nystrom_of_full_rank_is_exact(backend, case, draw, rho):
    problem, hyper = case(backend)
    exact, found = (
        hg.Implicit(solve)(problem, hyper).grad for solve in (hg.Dense(), hg.Nystrom(50, rho, draw))
    )
    assert gap(backend.numpy(found), backend.numpy(exact)) < 1e-10


@both
@draws
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_nystrom_is_the_woodbury_formula_and_keeps_its_bound(backend, draw, rank):
    """Hataya and Yamada 2023, equation of their Algorithm: b / rho - C (rho**2 W + rho C'C)^-1 C' b; the bound is their theorem's."""
    rho, n = 0.1, 10
    a, b = matrix(np.geomspace(0.01, 10, n), 4), np.random.default_rng(5).standard_normal(n)
    sketch = draw(np.random.default_rng([6, n]), rank, n)
    c, w = a @ sketch.T, sketch @ a @ sketch.T
    expected = b / rho - c @ np.linalg.solve(rho**2 * w + rho * c.T @ c, c.T @ b)
    found = solved(backend, hg.Nystrom(rank, rho, draw, seed=6), a, b)
    assert gap(found, expected) < 1e-9
    missed = np.linalg.norm(a - c @ np.linalg.solve(w, c.T), 2)
    truth = np.linalg.solve(a + rho * np.eye(n), b)
    assert np.linalg.norm(found - truth) <= missed / (rho * (rho + missed)) * np.linalg.norm(b)


@both
@draws
def test_nystrom_sees_a_matrix_of_low_rank_whole_and_ignores_directions_it_drew_twice(
    backend, draw
):
    factor = np.random.default_rng(1).standard_normal((20, 3))
    a, b = factor @ factor.T, np.arange(20.0)
    assert (
        gap(
            solved(backend, hg.Nystrom(8, 0.5, draw), a, b),
            np.linalg.solve(a + 0.5 * np.eye(20), b),
        )
        < 1e-7
    )


@both
def test_nystrom_draws_by_address_and_takes_rank_products(backend):
    a, b, calls = matrix(np.geomspace(0.01, 10, 10)), np.ones(10), []
    hg.Nystrom(4)(lambda v: calls.append(0) or backend.array(a) @ v, backend.array(b))
    assert len(calls) == 4
    same, again, other = (
        solved(backend, hg.Nystrom(4, seed=seed), a, b) for seed in ([0, 1], [0, 1], [0, 2])
    )
    assert np.array_equal(same, again) and gap(same, other) > 1e-3


def test_what_nystrom_cannot_do_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        hg.Nystrom(0)
    with pytest.raises(ValueError, match=r"rho must be positive for a rank below .* \(2 < 3\)"):
        solved(hg.Torch(), hg.Nystrom(2, 0.0), np.eye(3), np.ones(3))


@both
@pytest.mark.parametrize("a", [matrix([1, 2, -1.0]), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_conjugate_gradients_refuse_what_is_not_positive_definite(backend, a):
    with pytest.raises(hg.Diverged, match="not positive definite"):
        solved(backend, hg.ConjugateGradient(), a, np.array([1.0, 2, -1]))


@both
def test_few_iterations_give_an_approximation_that_gets_better(backend):
    a, b = matrix(np.geomspace(1, 100, 12)), np.ones(12)
    exact = np.linalg.solve(a, b)
    errors = [
        gap(solved(backend, hg.ConjugateGradient(iterations=i), a, b), exact)
        for i in (1, 3, 6, 12, 24)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10


@both
def test_the_state_may_be_given_and_then_nothing_is_trained(backend):
    problem, hyper = catalogue.ridge(backend)
    w, steps = backend.array(np.linspace(-1, 1, 6)), []
    counted = dataclasses.replace(
        problem, inner=lambda w, hyper, t: steps.append(t) or problem.inner(w, hyper, t)
    )
    found = hg.Implicit(hg.Dense())(counted, hyper, state=(w,))
    assert np.array_equal(found.state, w) and set(steps) == {None}
    assert (
        float(found.value) == float(problem.outer(w, backend.array(hyper)))
        and found.nbytes == w.nbytes
    )


@both
def test_the_outer_objective_may_depend_on_hyper_directly(backend):
    xp = backend.xp
    problem, hyper = catalogue.ridge(backend)
    direct = dataclasses.replace(
        problem, outer=lambda w, hyper: problem.outer(w, hyper) + xp.sum(hyper**3)
    )
    difference = (
        hg.Implicit(hg.Dense())(direct, hyper).grad - hg.Implicit(hg.Dense())(problem, hyper).grad
    )
    assert gap(backend.numpy(difference), 3 * hyper**2) < 1e-14


@both
def test_a_flat_state_from_another_solver_is_taken_too(backend):
    problem, hyper = catalogue.everything(backend)
    solver = hg.Implicit(hg.Identity())
    expected = solver(problem, hyper)
    assert np.array_equal(
        backend.numpy(solver(problem, hyper, expected.state).grad), backend.numpy(expected.grad)
    )


@both
def test_a_flat_state_of_another_size_is_refused(backend):
    problem, hyper = catalogue.everything(backend)
    state = hg.Reverse()(problem, hyper).state
    for wrong in (state[: len(state) // 2], state[:-1]):
        with pytest.raises(
            ValueError,
            match=f"2 vectors of 4 numbers here, weights first, got {len(wrong)} numbers",
        ):
            hg.Implicit(hg.Identity())(problem, hyper, wrong)


@both
def test_a_hessian_without_inverse_is_named(backend):
    with pytest.raises(hg.Diverged, match="the inner Hessian has no inverse"):
        solved(backend, hg.Dense(), np.zeros((3, 3)), np.ones(3))
