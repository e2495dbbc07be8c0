"""Tasks that share weights (Maclaurin et al. 2015, section 3.5): tiny alphabets of noise."""

import numpy as np

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((16, 4, 3, 5))
SETTING = dict(steps=4, rate=0.5, decay=0.9, penalty=0.01, log_scale=-1.0)


def tasks(drawings=5):
    rng = np.random.RandomState(0)
    return papers.alphabets_and_turned(
        [rng.rand(3, drawings, 16), rng.rand(5, drawings, 16)], 5, rng
    )


def problem(backend):
    train, judged = papers.deal(tasks(), [3, 2], np.random.RandomState(1))
    return papers.sharing(backend, NET, train, judged, np.random.RandomState(2), **SETTING)


def test_a_turned_alphabet():
    picture = np.arange(4.0).reshape(1, 1, 4)  # 0 1 above 2 3
    assert papers.turned(picture).tolist() == [[[1, 3, 0, 2]]]


def test_tasks_are_centred_and_copies_keep_their_labels():
    four = tasks()
    assert [task.images.shape for task in four] == [(3, 5, 16), (5, 5, 16)] * 2
    assert (
        abs(np.concatenate([task.images.reshape(-1, 16) for task in four]).mean(axis=0)).max()
        < 1e-15
    )
    for task, copy in zip(four[:2], four[2:], strict=True):
        assert np.array_equal(task.labels, copy.labels) and np.linalg.matrix_rank(
            task.labels
        ) == len(task.labels)


def test_every_drawing_is_dealt_once_within_its_character():
    four = tasks()
    parts = papers.deal(four, [3, 2], np.random.RandomState(0))
    for i, task in enumerate(four):
        dealt = np.concatenate([part[i].images for part in parts], axis=1)
        assert [part[i].images.shape[1] for part in parts] == [3, 2]
        assert np.array_equal(np.sort(dealt, axis=1), np.sort(task.images, axis=1))
        assert not np.array_equal(dealt, task.images)


def test_even_sharing_and_its_correlations():
    hyper = papers.evenly(10, [0, 1, 0.5])
    means = [matrix[~np.eye(10, dtype=bool)].mean() for matrix in papers.shared(hyper, 10).values()]
    assert np.abs(np.array(means) - [0, 1, 0.075 / 0.325]).max() < 1e-12
    assert all(
        abs(np.diag(matrix) - 1).max() < 1e-15 for matrix in papers.shared(hyper, 10).values()
    )


def test_separate_tasks_are_nets_on_their_own(backend):
    case, four = problem(backend), papers.deal(tasks(), [3, 2], np.random.RandomState(1))[0]
    free = backend.numpy(case.initial_state(case.as_hyper(papers.evenly(4, [0, 0, 0])))[0])
    blocks = papers.mixed(NET, free, papers.evenly(4, [0, 0, 0]), 4)
    weights = [np.concatenate([block.ravel() for block in task]) for task in blocks]
    losses = [
        papers.loss(NET, w, data.Split(t.images.reshape(-1, 16), t.labels.repeat(3, axis=0)))
        for w, t in zip(weights, four, strict=True)
    ]
    got = case.inner_loss(backend.array(free), backend.array(papers.evenly(4, [0, 0, 0])), None)
    assert abs(float(got) - sum(losses) - 0.01 * free @ free) < 1e-12
    assert np.array_equal(np.sort(np.concatenate(weights)), np.sort(free))


def test_a_tied_layer_is_one_layer_and_the_upper_ones_are_not():
    free = np.random.RandomState(0).randn(4 * NET.layout.size)
    first, *others = papers.mixed(NET, free, papers.evenly(4, [1, 0, 0]), 4)
    for other in others:
        same = [np.abs(a - b).max() < 1e-15 for a, b in zip(first, other, strict=True)]
        assert same == [True, True, False, False, False, False]


def test_losses_by_task_are_what_the_outer_objective_averages(backend):
    case, hyper = problem(backend), backend.array(papers.evenly(4, [0.5, 0.3, 0.4]))
    free, judged = (
        case.initial_state(hyper)[0],
        papers.deal(tasks(), [3, 2], np.random.RandomState(1))[1],
    )
    assert (
        abs(
            papers.losses_by_task(backend, NET, free, hyper, judged).mean()
            - float(case.outer_loss(free, hyper))
        )
        < 1e-14
    )


def test_exact_solvers_agree(backend):
    hyper = papers.evenly(4, [0.5, 0.3, 0.4]) + 0.05 * np.random.RandomState(3).randn(48)
    forward, reverse, reversible = (
        solver(problem(backend), hyper).grad
        for solver in (hg.Forward(), hg.Reverse(), hg.Reverse(hg.Reversible()))
    )
    gaps = [np.abs(backend.numpy(grad - forward)).max() for grad in (reverse, reversible)]
    assert (
        gaps[0] < 1e-13 and gaps[1] < 1e-11
    )  # the reversible run differs by 2**-53 a step, times curvature
