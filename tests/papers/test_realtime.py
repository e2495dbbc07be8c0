"""Real-time tuning and the random search it is compared with (Franceschi et al. 2017)."""

import numpy as np
import pytest

import hgcore as hg
from hgcore import data, papers
from hgcore.papers.franceschi2017 import UNIT, train_early_stopped

NET = hg.nets.DenseNet((784, 3, 10))


def problem(backend, groups=1):
    train, valid = (split.on(backend) for split in data.splits("mnist_small", [40, 30]))
    settings = dict(seed_path=(3, 1), batch=10, steps=6, groups=groups)
    return papers.rtho_problem(backend, NET, train, valid, **settings)


@pytest.mark.parametrize("groups", [1, 4, NET.layout.size])
def test_each_stretch_of_weights_has_its_penalty(groups, backend):
    case, penalties = problem(backend, groups), np.arange(1.0, groups + 1)
    none, all_of_them = (backend.array([0.1, 0.5, *c * penalties]) for c in (0, 1))
    weights = case.initial_state(none)[0] + 0.1
    gain = case.inner_loss(weights, all_of_them, 2) - case.inner_loss(weights, none, 2)
    length, squares = -(-NET.layout.size // groups), backend.numpy(weights) ** 2
    parts = [squares[i * length : (i + 1) * length].sum() for i in range(groups)]
    assert float(gain) == pytest.approx(UNIT * penalties @ parts, rel=1e-9)


def test_projection_onto_the_constraints(backend):
    two, one = papers.rtho_constraints(2), papers.rtho_constraints()
    assert two(backend.array([-1.0, 0.0, -2.0, 3.0])).tolist() == [0.0, 2.0**-16, 0.0, 3.0]
    assert one(backend.array([5.0, 1.0, 7.0])).tolist() == [5.0, 0.99, 7.0]


def test_rate_and_momentum_rise_from_zero(backend):
    project = papers.rtho_constraints()
    settings = dict(optimizer=hg.Adam(0.01), steps=4, every=3, project=project)
    steps = list(hg.realtime(problem(backend), project(backend.array(np.zeros(3))), **settings))
    hypers = np.array([backend.numpy(step.updated) for step in steps])
    assert (np.diff(hypers[:, 0]) > 0).all() and hypers[-1, 1] > 2.0**-16
    assert float(steps[-1].value) < float(steps[0].value)


def test_early_stopped_run_is_plain_training(backend):
    case, hyper = problem(backend), backend.array([0.1, 0.5, 1.0])
    scores = iter([1.0, 3.0, 2.0, 3.0, 2.0])
    settings = dict(every=3, patience=3, score_cost=0.5, budget=100)
    trial = train_early_stopped(case, hyper, lambda weights: next(scores), **settings)
    assert trial.score == 3.0 and trial.cost == 5 * 3.5
    assert np.array_equal(trial.weights, hg.train(case, hyper)[0])


def test_random_search_ends_with_its_budget(backend):
    draws = (backend.array([0.1, 0.5, penalty]) for penalty in range(100))
    settings = dict(budget=20.0, every=2, patience=2, score_cost=1.0)
    trials = papers.random_search(problem(backend), draws, lambda weights: 0.0, **settings)
    assert [trial.cost for trial in trials] == [9.0, 9.0]  # a third does not fit


def test_cost_problem_needs_three_hyperparameters():
    with pytest.raises(ValueError, match="3 or more; got 2"):
        papers.cost_problem(hg.Torch(), "mnist_small", (20, 10), (3,), hypers=2, steps=1, batch=5)
