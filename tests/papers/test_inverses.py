"""Boston regression, the released conjugate gradients and peak memory (Lorraine et al.)."""

import numpy as np
import pytest
from catalogue import gap

from hgcore import papers


def test_released_routine_solves_until_a_denominator_is_small(backend):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    a, b = (basis * np.geomspace(1, 20, 8)) @ basis.T, np.ones(8)

    def error(solve, scale=1.0):
        found = solve(lambda v: backend.array(a) @ v, backend.array(scale * b))
        return gap(backend.numpy(found), np.linalg.solve(a, scale * b))

    assert error(papers.ReleasedConjugateGradient(50, floor=0.0, tolerance=1e-13)) < 1e-10
    assert error(papers.ReleasedConjugateGradient(50), 1e4) < 1e-3  # its tolerance
    assert error(papers.ReleasedConjugateGradient(50), 0.01) > 0.1


def test_boston_regression_has_its_closed_form(backend):
    train, valid = papers.boston_split(backend, (0, 0))
    hyper = np.linspace(-7, -1, 14)
    problem = papers.boston_regression(backend, train, valid, rate=0.1, steps=3, seed_path=(0,))
    x, y = (backend.numpy(part) for part in train)
    expected = 2 * x.T @ x / 409 + 2 * np.diag(np.exp(hyper))
    (found,) = papers.newton_minimum(problem, hyper)
    assert gap(papers.hessian(problem, hyper, found), expected) < 1e-12
    assert gap(backend.numpy(found), np.linalg.solve(expected, 2 * x.T @ y / 409)) < 1e-11


def test_cosine_and_relative_error():
    pair = np.array([3.0, 4]), np.array([3.0, 0])
    assert papers.cosine(*pair) == pytest.approx(0.6)
    assert papers.relative_error(*pair) == pytest.approx(4 / 3)


def test_peak_memory_has_no_matrix():
    """One of 500,000 squared would be 2 TB."""
    step, one = (papers.peak_memory(name, 500_000) for name in ("training step", "Neumann"))
    assert 1 < one / step < 4 and one < 40 * 8 * 500_000
