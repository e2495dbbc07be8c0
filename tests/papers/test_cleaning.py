"""A weight for every example (Franceschi et al. 2017): two classes of points, some with the wrong label."""

import numpy as np
import pytest

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((4, 3))


def points(count, seed=0):
    """Three clouds, far from each other, and which one each point is from."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    return data.Split(
        3 * np.eye(3, 4)[labels] + 0.5 * rng.standard_normal((count, 4)), np.eye(3)[labels]
    )


def problem(backend, train, steps=12, rate=0.5):
    parts = (part.on(backend) for part in (train, points(40, seed=1)))
    return papers.weighted_examples(backend, NET, *parts, steps=steps, rate=rate)


def test_so_many_labels_are_corrupted_and_none_by_chance_right():
    clean = points(3000)
    kept = clean.labels.copy()
    noisy, wrong = papers.corrupted(clean, 0.5, np.random.default_rng(3))
    assert (
        wrong.sum() == 1500
        and np.array_equal((noisy.labels * clean.labels).sum(1), ~wrong)
        and (noisy.labels.sum(1) == 1).all()
    )
    assert np.array_equal(clean.labels, kept) and noisy.images is clean.images
    shares = (clean.labels[wrong].T @ noisy.labels[wrong]) / clean.labels[wrong].sum(0)[:, None]
    assert (
        np.abs(shares + np.eye(3) / 2 - 0.5).max() < 0.1
    )  # one class gives way to the others evenly
    again = papers.corrupted(clean, 0.5, np.random.default_rng(3))
    assert np.array_equal(again[0].labels, noisy.labels) and np.array_equal(again[1], wrong)


def test_an_example_of_weight_zero_is_not_there(backend):
    train, keep = points(30), np.arange(30) % 3 > 0
    whole = problem(backend, train, rate=0.6)
    part = problem(backend, data.Split(train.images[keep], train.labels[keep]), rate=0.4)
    found, expected = (
        backend.numpy(hg.train(case, case.as_hyper(np.ones(30)[:n] if n < 30 else 1.0 * keep))[0])
        for case, n in ((whole, 30), (part, 20))
    )
    assert np.abs(found - expected).max() < 1e-14


def test_hypergradient_against_differences_and_the_other_modes(backend):
    case, hyper = problem(backend, points(15)), np.random.default_rng(2).random(15)
    grad = backend.numpy(hg.Reverse()(case, hyper).grad)
    for solver in (hg.Reverse(hg.Checkpointed()), hg.Forward()):
        assert np.abs(grad - backend.numpy(solver(case, hyper).grad)).max() < 1e-15

    def value(shift):
        return float(
            backend.evaluate(
                case.outer_loss,
                hg.train(case, case.as_hyper(hyper + shift))[0],
                case.as_hyper(hyper),
            )
        )

    differences = [(value(1e-5 * unit) - value(-1e-5 * unit)) / 2e-5 for unit in np.eye(15)]
    assert np.abs(grad - differences).max() < 1e-9


def test_wrong_labels_are_found(backend):
    noisy, wrong = papers.corrupted(points(60), 0.4, np.random.default_rng(0))
    steps = list(
        hg.descend(
            hg.Reverse(),
            problem(backend, noisy, rate=0.5 * 60 / 36),
            np.full(60, 0.6),
            optimizer=hg.Adam(0.1),
            steps=20,
            project=hg.box_l1(0, 1, 36),
        )
    )
    assert float(steps[-1].updated.sum()) <= 36 + 1e-12
    assert papers.f1(backend.numpy(steps[-1].updated) == 0, wrong) > 0.9


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    found, wrong = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 1, 0], bool)
    assert papers.f1(found, wrong) == pytest.approx(2 / (3 / 2 + 4 / 2))
    assert papers.f1(wrong, wrong) == 1 and papers.f1(~wrong, wrong) == 0 == papers.f1(
        0 * found > 0, 0 * wrong > 0
    )
