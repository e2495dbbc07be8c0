"""Projections against bisection of their multiplier: the nearest point of each allowed set."""

import numpy as np
import pytest
import torch

import hgcore as hg


def at_sum(point, low, high, total, least=-np.inf):
    """Return clip(point - m, low, high) with the smallest m >= least whose sum is <= total."""
    size = np.abs(point).max() + np.abs(total) + np.max(low)
    start, end = max(least, -size), size
    for _ in range(200):
        middle = (start + end) / 2
        above = np.clip(point - middle, low, high).sum() > total
        start, end = (middle, end) if above else (start, middle)
    return np.clip(point - end, low, high)


def sample(seed):
    """Return (point, low, high, radius of a box cut by its L1 ball): all scales, ties, bounds."""
    rng = np.random.default_rng(seed)
    size, scale = [1, 2, 7, 30, 5000][seed % 5], 10.0 ** rng.integers(-2, 3)
    point = scale * rng.standard_normal(size).round(1 if seed % 2 else 9)
    low, high = (0.0, scale)
    if seed % 3 == 0:
        low, high = scale * rng.random(size) / 2, scale * (0.5 + rng.random(size))
    least, most = np.sum(low + 0 * point), np.clip(point, low, high).sum()
    return point, low, high, least + rng.random() * (most - least)


@pytest.mark.parametrize("total", [0.0, 0.1, 7.0])
@pytest.mark.parametrize("seed", range(15))
def test_projection_is_nearest_point(seed, total, backend):
    point, low, high, radius = sample(seed)
    clipped = np.clip(point, low, high)
    close = 1e-12 * max(total, np.abs(point).max())
    for project, expected in (
        (hg.simplex(total), at_sum(point, 0, np.inf, total)),
        (hg.l1_ball(total), np.sign(point) * at_sum(np.abs(point), 0, np.inf, total, least=0)),
        (hg.box(low, high), clipped),
        (hg.box_l1(low, high, radius), at_sum(point, low, high, radius, least=0)),
        (hg.box_l1(low, high, clipped.sum() * (1 + 1e-12)), clipped),
        (hg.box_l1(low, high, np.inf), clipped),
        (hg.box_l1(0, np.inf, total), at_sum(point, 0, np.inf, total, least=0)),
    ):
        found = project(backend.array(point))
        error = np.abs(backend.numpy(found) - expected).max()
        assert error == 0 if expected is clipped else error < close
        assert np.abs(backend.numpy(project(found) - found)).max() < close


def test_projection_ends_whatever_is_rounded(backend):
    hard = [1e17, -1e17, 3.0], [1.0, 1.0, 1.0], [0.0], [5.0, 5.0, -1e300], [1e-300, 0.0]
    for point in map(backend.array, hard):
        found = backend.numpy(hg.simplex()(point))
        assert abs(found.sum() - 1) < 1e-12 and (found >= 0).all()
        assert np.abs(backend.numpy(hg.l1_ball()(point))).sum() < 1 + 1e-12
    single = hg.Torch(dtype="float32")  # a few roundings of 6e-8
    for project, total in ((hg.simplex(1.0), 1), (hg.box_l1(0.0, 1.0, 1000.0), 1000)):
        for point in ([3e8, 1.0, 3e8], np.linspace(-1, 2, 5000)):
            found = single.numpy(project(single.array(point)))
            assert found.dtype == np.float32 and found.sum(dtype=float) < total * (1 + 1e-6)


FAR = [  # a projection, a point far above its radius, the nearest allowed point
    (hg.l1_ball(), [1e15, -1e15, 3.0], [0.5, -0.5, 0.0]),
    (hg.l1_ball(0.125), [4e6, 3.0, 0.0], [0.125, 0.0, 0.0]),
    (hg.box_l1(0.0, 1.0, 1.5), [3e8, 1.0, 3e8], [0.75, 0.0, 0.75]),
    (hg.box_l1(0.0, 1.0, 1.5), [1e17, 1e16, 3.0], [1.0, 0.5, 0.0]),
    (hg.box_l1(0.0, [0.25, np.inf, 1.0], 0.75), [1e8, 1e8, 0.0], [0.25, 0.5, 0.0]),
    (hg.box_l1(0.0, np.inf, 1.0), [1e7, 1e7 + 1, 0.0], [0.0, 1.0, 0.0]),
]


@pytest.mark.parametrize("project, point, nearest", FAR)
def test_projection_of_a_far_point(project, point, nearest, backend):
    for given in (backend.array(point), np.array(point, "float32"), torch.tensor(point)):
        found = project(given)
        assert found.dtype == given.dtype and np.asarray(found).tolist() == nearest


@pytest.mark.parametrize("low, radius", [([0.1] * 3, 0.3), ([0.1] * 10, 1.0)])
def test_box_l1_of_one_point(low, radius, backend):
    """Its bounds may add up to a last bit more than the radius."""
    for number in (0.0, 0.2, 5.0):
        found = hg.box_l1(low, 1.0, radius)(backend.array(np.full(len(low), number)))
        assert np.abs(backend.numpy(found) - 0.1).max() < 1e-15
