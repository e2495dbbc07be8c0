"""Hyper-cleaning (Franceschi et al. 2017) on three clouds of points."""

import numpy as np
import pytest
from catalogue import unrolled

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((4, 3))


def points(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    images = 3 * np.eye(3, 4)[labels] + 0.5 * rng.standard_normal((count, 4))
    return data.Split(images, np.eye(3)[labels])


def problem(backend, train, steps=12, rate=0.5):
    parts = (part.on(backend) for part in (train, points(40, seed=1)))
    return papers.weighted_examples(backend, NET, *parts, steps=steps, rate=rate)


def test_corrupted_labels_are_never_right():
    clean = points(3000)
    noisy, wrong = papers.corrupt_labels(clean, 0.5, np.random.default_rng(3))
    assert wrong.sum() == 1500
    assert np.array_equal((noisy.labels * clean.labels).sum(1), ~wrong)
    shares = (clean.labels[wrong].T @ noisy.labels[wrong]) / clean.labels[wrong].sum(0)[:, None]
    assert np.abs(shares + np.eye(3) / 2 - 0.5).max() < 0.1  # the other classes evenly


def test_weight_zero_removes_an_example(backend):
    train, keep = points(30), np.arange(30) % 3 > 0
    part = problem(backend, data.Split(train.images[keep], train.labels[keep]), rate=0.4)
    whole = problem(backend, train, rate=0.6)
    found = backend.numpy(hg.train(whole, whole.as_hyper(1.0 * keep))[0])
    expected = backend.numpy(hg.train(part, part.as_hyper(np.ones(20)))[0])
    assert np.abs(found - expected).max() < 1e-14


def test_hypergradient_equals_the_unrolled_loop(backend):
    case, hyper = problem(backend, points(15)), np.random.default_rng(2).random(15)
    _, slope = unrolled(case, case.as_hyper(hyper))
    grad = backend.numpy(hg.Reverse()(case, hyper).grad)
    np.testing.assert_allclose(grad, slope, rtol=1e-9, atol=1e-13)


def test_wrong_labels_are_found(backend):
    noisy, wrong = papers.corrupt_labels(points(60), 0.4, np.random.default_rng(0))
    case, project = problem(backend, noisy, rate=0.5 * 60 / 36), hg.box_l1(0, 1, 36)
    settings = dict(optimizer=hg.Adam(0.1), steps=20, project=project)
    *_, last = hg.descend(hg.Reverse(), case, np.full(60, 0.6), **settings)
    assert papers.f1_score(backend.numpy(last.updated) == 0, wrong) > 0.9


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    found, wrong = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 1, 0], bool)
    assert papers.f1_score(found, wrong) == pytest.approx(2 / (3 / 2 + 4 / 2))
    assert papers.f1_score(0 * found > 0, 0 * wrong > 0) == 0
