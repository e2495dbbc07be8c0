"""The problems that notebooks share: settings and derivatives."""

import numpy as np
import pytest

import hgcore as hg
from hgcore import data, papers


@pytest.fixture(scope="module")
def splits():
    return data.splits("mnist_small", [60, 50])


def small_problem(backend, splits, **settings):
    train, valid = (split.on(backend) for split in splits)
    return papers.penalty_problem(backend, train, valid, steps=7, batch=20, **settings)


def test_penalties_of_all_weights_add_up_to_the_single_one(backend, splits):
    problem, size = small_problem(backend, splits), papers.LOGISTIC.layout.size
    each, single = (hg.Reverse()(problem, np.full(m, -3.0)) for m in (size, 1))
    assert float(each.value) == pytest.approx(float(single.value), rel=1e-12)
    assert float(each.grad.sum()) == pytest.approx(float(single.grad[0]), rel=1e-10)


def test_meta_penalty_adds_its_own_derivative(backend, splits):
    hyper = np.random.default_rng(0).normal(-3, 0.1, papers.LOGISTIC.layout.size)
    plain, meta = (
        backend.numpy(hg.Reverse()(small_problem(backend, splits, meta_penalty=c), hyper).grad)
        for c in (0.0, 0.01)
    )
    np.testing.assert_allclose(meta - plain, 0.02 * np.exp(2 * hyper), rtol=1e-10)


def test_batches_are_consecutive_and_cycle(backend, splits):
    problem, weights = (
        small_problem(backend, splits),
        backend.array(np.random.default_rng(0).normal(size=papers.LOGISTIC.layout.size)),
    )
    losses = [
        float(problem.inner_loss(weights, problem.as_hyper([-3.0]), t)) for t in (0, 1, 2, 3, None)
    ]
    assert losses[3] == losses[0] != losses[1]
    assert np.mean(losses[:3]) == pytest.approx(losses[4], rel=1e-12)


def test_a_constant_schedule_fills_a_layout_of_any_shapes():
    few = hg.Layout({"log scales": (8,), "log rates": (1, 8), "momentum logits": (1, 1)})
    assert papers.constant_schedule(few, 1.5, -2.0, 3.0).tolist() == 8 * [3.0] + 8 * [1.5] + [-2.0]


def test_tied_problem_has_the_summed_gradient(backend, splits):
    problem, size = small_problem(backend, splits), papers.LOGISTIC.layout.size
    groups = np.arange(size) % 3
    tied = papers.tied_problem(problem, lambda few: few[groups])
    few = np.array([-3.0, -4.0, -5.0])
    ours, free = hg.Reverse()(tied, few), hg.Reverse()(problem, few[groups])
    sums = [backend.numpy(free.grad)[groups == i].sum() for i in range(3)]
    np.testing.assert_allclose(backend.numpy(ours.grad), sums, rtol=1e-10)
