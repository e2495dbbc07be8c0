"""Networks that share weights (Maclaurin et al. 2015, section 3.5): tiny alphabets of noise."""

import numpy as np

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((16, 4, 3, 5))
SETTING = dict(steps=4, rate=0.5, decay=0.9, penalty=0.01, log_scale=-1.0)


def tasks():
    rng = np.random.RandomState(0)
    return papers.alphabet_tasks([rng.rand(3, 5, 16), rng.rand(5, 5, 16)], 5, rng)


def parts():
    return papers.split_drawings(tasks(), [3, 2], np.random.RandomState(1))


def problem(backend):
    return papers.sharing_problem(backend, NET, *parts(), np.random.RandomState(2), **SETTING)


def test_tasks_are_centered_and_rotations_keep_labels():
    four = tasks()
    images = np.concatenate([task.images.reshape(-1, 16) for task in four])
    assert abs(images.mean(axis=0)).max() < 1e-15
    for task, copy in zip(four[:2], four[2:], strict=True):
        assert np.array_equal(task.labels, copy.labels)
        assert np.linalg.matrix_rank(task.labels) == len(task.labels)
    assert papers.rotated(np.arange(4.0).reshape(1, 1, 4)).tolist() == [[[1, 3, 0, 2]]]


def test_split_drawings_uses_each_once():
    for task, *split in zip(tasks(), *parts(), strict=True):
        assert [part.images.shape[1] for part in split] == [3, 2]
        drawings = np.concatenate([part.images for part in split], axis=1)
        assert np.array_equal(np.sort(drawings, axis=1), np.sort(task.images, axis=1))


def test_uniform_mixing_correlations():
    """T = I/2 + 11'/20 has off-diagonal correlations 0.075 / 0.325 for ten tasks."""
    correlations = papers.weight_correlations(papers.uniform_mixing(10, [0, 1, 0.5]), 10)
    for matrix, expected in zip(correlations.values(), [0, 1, 0.075 / 0.325], strict=True):
        assert abs(matrix - np.where(np.eye(10), 1, expected)).max() < 1e-12


def test_separate_tasks_are_single_nets(backend):
    case, (train, _), hyper = problem(backend), parts(), papers.uniform_mixing(4, [0, 0, 0])
    free = backend.numpy(case.initial_state(case.as_hyper(hyper))[0])
    blocks = papers.mixed_weights(NET, free, hyper, 4)
    weights = [np.concatenate([block.ravel() for block in task]) for task in blocks]
    losses = [
        papers.loss(NET, w, data.Split(t.images.reshape(-1, 16), t.labels.repeat(3, axis=0)))
        for w, t in zip(weights, train, strict=True)
    ]
    found = case.inner_loss(backend.array(free), backend.array(hyper), None)
    assert abs(float(found) - sum(losses) - 0.01 * free @ free) < 1e-12


def test_tied_layer_is_common():
    free = np.random.RandomState(0).randn(4 * NET.layout.size)
    first, *rest = papers.mixed_weights(NET, free, papers.uniform_mixing(4, [1, 0, 0]), 4)
    for task in rest:
        same = [np.allclose(a, b, rtol=0, atol=1e-15) for a, b in zip(first, task, strict=True)]
        assert same == [True, True, False, False, False, False]


def test_exact_solvers_agree(backend):
    hyper = papers.uniform_mixing(4, [0.5, 0.3, 0.4]) + 0.05 * np.random.RandomState(3).randn(48)
    solvers = hg.Forward(), hg.Reverse(), hg.Reverse(hg.Reversible())
    forward, *reverse = (solver(problem(backend), hyper).grad for solver in solvers)
    gaps = [np.abs(backend.numpy(grad - forward)).max() for grad in reverse]
    assert gaps[0] < 1e-13 and gaps[1] < 1e-11  # reversal rounds by 2**-53 a step
