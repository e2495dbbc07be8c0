"""The atlas counts what is spent and knows the hypergradient at the optimum."""

from dataclasses import replace

import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore.benchmarks import atlas


def trained(problem, steps, decay=0.5):
    optimizer = hg.HeavyBall(problem.optimizer.rate, problem.backend.array(decay))
    return replace(problem, steps=steps, optimizer=optimizer)


def test_contrasts_are_orthonormal_and_of_sum_zero():
    rows = atlas.contrasts(10)
    assert gap(rows @ rows.T, np.eye(9)) < 1e-14 and abs(rows.sum(axis=1)).max() < 1e-14


def test_features_have_the_variances_asked_for():
    images = np.random.default_rng(0).standard_normal((2, 40, 7)) * np.arange(1, 8)
    first, second = atlas.pca_features(images, 4, 100)
    scales = np.geomspace(1, 0.1, 4)
    assert (first[:, 0] == 1).all() and second.shape == (40, 4)
    assert gap(first[:, 1:].T @ first[:, 1:] / 40, np.diag(scales[1:] ** 2)) < 1e-12


@pytest.mark.parametrize(
    "solver, gradients, products",
    [
        (hg.Reverse(), 12, 6),
        (hg.Reverse(hg.Stored(graphs=6)), 6, 6),
        (hg.Reverse(hg.Shortcut()), 12, 6),
        (hg.Forward(), 6, 12),
        (hg.Reverse(hg.Truncated(last=2)), 8, 2),
        (hg.Implicit(hg.Neumann(3, 0.01)), 7, 4),
    ],
    ids=repr,
)
def test_counts_are_those_of_the_algorithm(backend, solver, gradients, products):
    problem, hyper = atlas.regression(backend, [60, 40], 5, 1, 10)
    problem = trained(problem, 6)
    cost = atlas.cost_of(solver, problem, hyper)
    assert (cost.gradients, cost.products) == (gradients, products)
    assert np.array_equal(cost.grad, backend.numpy(solver(problem, hyper).grad))


def test_conditioned_problem_is_at_an_optimum(backend):
    easy, hard = (atlas.conditioned_problem(backend, [60, 40], 5, 2, x) for x in (3, 300))
    assert hard.condition > 20 * easy.condition
    for found in (easy, hard):
        objective = found.problem.objective(found.problem.as_hyper(found.hyper))
        assert abs(backend.numpy(objective.gradient(found.optimum, None))).max() < 1e-12
        assert np.exp(found.hyper[-1]) * found.curvatures[-1] == pytest.approx(1)
        assert found.hypergradient[-1] == 0
    unrolled = hg.Reverse()(trained(easy.problem, 400), easy.hyper).grad
    assert gap(backend.numpy(unrolled), easy.hypergradient) < 1e-9
