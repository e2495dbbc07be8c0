"""Training whose rate, momentum and penalties are tuned in real time, and the random search that it is raced against."""

import numpy as np
import pytest

import hgcore as hg
from hgcore import data, papers
from hgcore.papers.franceschi2017 import UNIT

NET = hg.nets.DenseNet((784, 3, 10))
SIZE = NET.layout.size


def small(backend, groups=1, steps=6):
    train, judged = (split.on(backend) for split in data.splits("mnist_small", [40, 30]))
    return papers.running(
        backend, NET, train, judged, address=(3, 1), batch=10, steps=steps, groups=groups
    )


def hyper(backend, penalties):
    return backend.array([0.1, 0.5, *penalties])


@pytest.mark.parametrize("groups", [1, 4, SIZE])
def test_each_stretch_of_the_weights_has_its_own_penalty(backend, groups):
    problem, penalties = small(backend, groups), np.arange(1.0, groups + 1)
    weights = problem.initial_state(hyper(backend, penalties))[0] + 0.1
    gain = problem.inner_loss(weights, hyper(backend, penalties), 2) - problem.inner_loss(
        weights, hyper(backend, 0 * penalties), 2
    )
    squares = backend.numpy(weights) ** 2
    length = -(-SIZE // groups)
    by_hand = sum(
        penalty * squares[i * length : (i + 1) * length].sum()
        for i, penalty in enumerate(penalties)
    )
    assert float(gain) == pytest.approx(UNIT * by_hand, rel=1e-9)


def test_forward_and_reverse_mode_agree_on_it(backend):
    problem, at = small(backend, groups=2), hyper(backend, [3.0, 1.0])
    forward, reverse = (
        backend.numpy(solve(problem, at).grad) for solve in (hg.Forward(), hg.Reverse())
    )
    assert np.abs(forward - reverse).max() < 1e-12 * np.abs(reverse).max()


def test_what_is_not_allowed_goes_to_the_nearest_that_is(backend):
    projected = backend.numpy(papers.allowed(2)(backend.array([-1.0, 0.0, -2.0, 3.0])))
    assert projected.tolist() == [0.0, 2.0**-16, 0.0, 3.0]
    assert backend.numpy(papers.allowed()(backend.array([5.0, 1.0, 7.0]))).tolist() == [
        5.0,
        0.99,
        7.0,
    ]


def test_from_zero_the_learning_rate_and_then_the_momentum_rise(backend):
    project = papers.allowed()
    steps = list(
        hg.realtime(
            small(backend),
            project(backend.array([0.0, 0.0, 0.0])),
            optimizer=hg.Adam(0.01),
            steps=4,
            every=3,
            project=project,
        )
    )
    hypers = np.array([backend.numpy(step.updated) for step in steps])
    assert (np.diff(hypers[:, 0]) > 0).all() and hypers[-1, 1] > 2.0**-16
    assert float(steps[-1].value) < float(steps[0].value)


def test_a_trial_is_plain_training_and_keeps_its_best_weights(backend):
    problem, at = small(backend), hyper(backend, [1.0])
    scores = iter([1.0, 3.0, 2.0, 3.0, 2.0])
    one = papers.trial(
        problem, at, lambda weights: next(scores), every=3, patience=3, look=0.5, budget=100
    )
    assert one.score == 3.0 and one.cost == 5 * 3.5
    assert np.array_equal(one.weights, hg.train(problem, at)[0])


def test_a_search_ends_with_its_budget(backend):
    problem = small(backend)
    draws = (hyper(backend, [penalty]) for penalty in range(100))
    trials = papers.random_search(
        problem, draws, lambda weights: 0.0, budget=20.0, every=2, patience=2, look=1.0
    )
    assert [one.cost for one in trials] == [
        9.0,
        9.0,
    ]  # a first look and two without a gain; a third trial would not fit


def test_a_study_needs_three_hyperparameters():
    with pytest.raises(ValueError, match="3 or more; got 2"):
        papers.study(hg.Torch(), "mnist_small", (20, 10), (3,), hypers=2, steps=1, batch=5)


def test_a_study_runs_in_a_process_that_has_nothing():
    papers.studied(
        hg.Forward(),
        "torch",
        "cpu",
        "float64",
        "mnist_small",
        (20, 10),
        hidden=(3,),
        hypers=4,
        steps=2,
        batch=5,
    )
