"""The papers' problems, small: derivatives equal an unrolled loop, settings mean what they say."""

from functools import partial

import numpy as np
import pytest
import torch
from catalogue import SOLVERS, gap, unrolled
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy_of_bits

import hgcore as hg
from hgcore import data, papers
from hgcore.papers import franceschi2017_phones as phones
from hgcore.papers.franceschi2017 import UNIT, tuned_problem

TORCH = hg.Torch()
NET, LINEAR, TASKS = map(hg.nets.DenseNet, [(6, 4, 3), (6, 3), (16, 4, 3, 5)])
PIXELS, PHONES = hg.nets.DenseNet((784, 3, 10)), phones.PhoneNet(24, [5, 4], 4, 3)
UNITS, SIZE = papers.unit_layout(NET).size, papers.LOGISTIC.layout.size
RNG = np.random.default_rng(0)
BLOCKS = {"images": RNG.standard_normal((6, 6)), "label logits": RNG.standard_normal((6, 3))}
LEARNED = hg.Layout({name: block.shape for name, block in BLOCKS.items()} | {"log penalty": ()})


def examples(count, seed=0):
    """Three clouds of points, about the first three unit vectors of six."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    images = 3 * np.eye(3, 6)[labels] + 0.5 * rng.standard_normal((count, 6))
    return data.Split(images, np.eye(3)[labels])


TRAIN, VALID = PAIR = examples(20), examples(40, seed=1)
RUNS = data.Split(TRAIN.images, np.array([TRAIN.labels, TRAIN.labels[::-1]]))  # two side by side
MNIST = papers.cached_splits("mnist_small", 60, 50)


def made(function, *parts, **settings):
    """Return backend -> function(backend, *parts, **settings), with splits on the backend."""

    def make(backend):
        placed = (part.on(backend) if isinstance(part, data.Split) else part for part in parts)
        return function(backend, *placed, **settings)

    return make


def alphabets():
    rng = np.random.RandomState(0)
    tasks = papers.alphabet_tasks([rng.rand(3, 5, 16), rng.rand(5, 5, 16)], 5, rng)
    return tasks, papers.split_drawings(tasks, [3, 2], np.random.RandomState(1))


def sharing(backend):
    settings = dict(steps=4, rate=0.5, decay=0.9, penalty=0.01, log_scale=-1.0)
    drawings, rng = alphabets()[1], np.random.RandomState(2)
    return papers.sharing_problem(backend, TASKS, *drawings, rng, **settings)


def updates(backend):
    task = papers.house_prices(backend, 3, (0, 0))
    return papers.update_problems(task, seed_path=(0, 1), batch=20, every=5, steps=6)(0)


def phone(backend):
    frames = phones.generated_frames(backend, 4, [6, 3], (0,), radius=1, noise=0.5)
    settings = dict(phones=4, stream=0, batch=20, valid_frames=30, steps=7)
    return phones.phone_problem(backend, PHONES, *frames, **settings)(3)


START, STREAM = papers.initial_weights(NET, (3, 1)), (0, 2, 0, "hyperloss")
SHORT, MOMENTUM = dict(steps=5, batch=4), dict(rate=0.5, decay=0.5)
AGAINST_REST = dict(steps=6, rate=0.1, decay=0.9, loss=papers.one_against_rest)
HEAVY_BALL = dict(optimizer=hg.HeavyBall(0.1, 0.9), steps=4)

weight_decays = made(papers.weight_decays, NET, START, *PAIR, **HEAVY_BALL)
weighted_examples = made(papers.weighted_examples, RUNS, VALID, steps=12, rates=(0.5, 0.7))
penalties = made(papers.penalty_problem, *MNIST, steps=7, batch=20, meta_penalty=0.01)
schedule = made(papers.schedule_problem, NET, *PAIR, **SHORT, address=(0, 1))
learned_data = made(papers.learned_data, LINEAR, LEARNED, {}, VALID, steps=7)
realtime = made(tuned_problem, PIXELS, *MNIST, seed_path=(3, 1), batch=10, steps=6, groups=4)
of_units = partial(papers.unit_penalties, address=STREAM, log_scale=-1.0)
unit_penalties = made(of_units, NET, *PAIR, **SHORT, **MOMENTUM)
interactions = made(papers.interactions, *PAIR, **AGAINST_REST, penalties=3)
one_rho = made(papers.interactions, *PAIR, **AGAINST_REST, penalties=1)


def tied(backend):
    return papers.tied_problem(penalties(backend), lambda few: few[np.arange(SIZE) % 3])


SCHEDULE, OF_2015 = papers.schedule_layout(NET, 5), hg.Reverse(papers.as_in_2015)
CASES = {  # name: (problem of a backend, hyper)
    "rosenbrock": (made(papers.rosenbrock_problem, steps=4), [-7.0] * 4 + [0.1, 0.3, 0.5, 0.7]),
    "schedule": (schedule, papers.constant_schedule(SCHEDULE, -1.0, 0.5, -1.0)),
    "weighted examples": (weighted_examples, RNG.random(40)),
    "weight decays": (weight_decays, RNG.normal(-2, 0.3, NET.layout.size)),
    "penalty": (penalties, [-3.0]),
    "tied": (tied, [-3.0, -4.0, -5.0]),
    "unit penalties": (unit_penalties, np.full(UNITS, 0.2)),
    "sharing": (sharing, papers.uniform_mixing(4, [0.5, 0.3, 0.4]) + 0.05 * RNG.normal(size=48)),
    "real time": (realtime, [0.1, 0.5, 1.0, 2.0, 3.0, 4.0]),
    "interactions": (interactions, [0.1, 0.0, 0.2, 0.0, 0.3, 0.05]),
    "updates": (updates, [-1.0, -2.0, 0.3]),
    "phones": (phone, [0.2, 0.7, 0.9]),
    "learned data": (learned_data, LEARNED.join(BLOCKS | {"log penalty": np.log(0.01)})),
}


@pytest.mark.parametrize("make, hyper", CASES.values(), ids=CASES)
def test_hypergradient_equals_the_unrolled_loop(make, hyper, backend):
    """1e-9: reversal rounds by 2**-53 a step."""
    problem = make(backend)
    value, slope = unrolled(problem, problem.as_hyper(hyper))
    for solver in (*SOLVERS.values(), OF_2015):
        exact = isinstance(getattr(solver, "trajectory", None), hg.Reversible)
        if not exact or problem.optimizer.reversible:
            found = solver(problem, hyper)
            error = 1e-10 if solver is OF_2015 else 1e-11  # its divisions keep no guard bits
            assert gap(backend.numpy(found.value), value) < error
            assert gap(backend.numpy(found.grad), slope) < 1e-9


@pytest.mark.parametrize("make, hyper", CASES.values(), ids=CASES)
def test_derivatives_equal_finite_differences(make, hyper):
    """Also that of the outer loss by the hyperparameters, which an unrolled loop would share."""
    report = hg.check(make(TORCH), hyper, steps=2)
    assert report.ok, report


def for_each(w, hyper):
    return (np.exp(hyper) * w**2).sum()


def in_stretches(w, hyper):
    return UNIT * hyper[2:] @ np.add.reduceat(w**2, [0, 599, 1198, 1797])  # of 2395 weights


def in_pairs(w, hyper):
    """Each pair of classes twice; without biases; one rho or one of each class."""
    matrix, upper = w.reshape(-1, 3)[:-1], np.zeros((3, 3))
    upper[np.triu_indices(3, 1)] = hyper[:3]
    gaps = ((matrix[:, :, None] - matrix[:, None]) ** 2).sum(0)
    return 2 * (upper * gaps).sum() + (hyper[3:] * (matrix**2).sum(0)).sum()


LOGS, RHOS, RATES = RNG.normal(-1, 0.5, SIZE), RNG.random(6), np.array([0.1, 0.5, 0, 0, 0, 0])
PENALTIES = {  # problem, hyper, hyper without penalties, what they add
    "one for each weight": (weight_decays, LOGS[: NET.layout.size], [-np.inf], for_each),
    "one for all weights": (weight_decays, LOGS[:1], [-np.inf], for_each),
    "one for each pixel": (penalties, LOGS, [-np.inf], for_each),
    "one for all pixels": (penalties, LOGS[:1], [-np.inf], for_each),
    "one for each stretch": (realtime, RATES + [0, 0, 1, 2, 3, 4], RATES, in_stretches),
    "one for each class": (interactions, RHOS, 0 * RHOS, in_pairs),
    "one for all classes": (one_rho, RHOS[:4], 0 * RHOS[:4], in_pairs),
}


@pytest.mark.parametrize("make, hyper, none, expected", PENALTIES.values(), ids=PENALTIES)
def test_penalties_are_sums_of_squares(make, hyper, none, expected, backend):
    problem, rng = make(backend), np.random.default_rng(0)
    w = rng.normal(size=len(problem.initial_state(problem.as_hyper(hyper))[0]))
    at = [map(backend.array, (w, h)) for h in (hyper, none)]
    penalized, bare = (float(problem.inner_loss(*each, None)) for each in at)
    assert penalized - bare == pytest.approx(expected(w, hyper), rel=1e-12)


def test_batches_are_consecutive_and_cycle(backend):
    problem = penalties(backend)
    at = backend.array(np.random.default_rng(0).normal(size=SIZE)), problem.as_hyper([-3.0])
    losses = [float(problem.inner_loss(*at, t)) for t in (0, 1, 2, 3, None)]
    assert losses[3] == losses[0] != losses[1]
    assert np.mean(losses[:3]) == pytest.approx(losses[4], rel=1e-12)


def test_tasks_are_centered_and_split_once():
    """Rotations keep the labels."""
    four, parts = alphabets()
    assert abs(sum(task.images.sum((0, 1)) for task in four)).max() < 1e-13
    for task, copy in zip(four[:2], four[2:], strict=True):
        assert np.array_equal(task.labels, copy.labels)
        assert np.linalg.matrix_rank(task.labels) == len(task.labels)
    assert papers.rotated(np.arange(4.0).reshape(1, 1, 4)).tolist() == [[[1, 3, 0, 2]]]
    for task, *split in zip(four, *parts, strict=True):
        assert [part.images.shape[1] for part in split] == [3, 2]
        drawings = np.concatenate([part.images for part in split], axis=1)
        assert np.array_equal(np.sort(drawings, axis=1), np.sort(task.images, axis=1))


def test_mixed_weights_are_separate_or_tied(backend):
    """Separate tasks are nets of their own; a tied layer is common to all."""
    case, (train, _), hyper = sharing(backend), alphabets()[1], papers.uniform_mixing(4, [0, 0, 0])
    free = np.random.default_rng(0).normal(size=4 * TASKS.layout.size)
    total = 0.01 * free @ free
    for blocks, task in zip(papers.mixed_weights(TASKS, free, hyper, 4), train, strict=True):
        split = data.Split(task.images.reshape(-1, 16), task.labels.repeat(3, axis=0))
        total += papers.loss(TASKS, np.concatenate([block.ravel() for block in blocks]), split)
    found = case.inner_loss(backend.array(free), backend.array(hyper), None)
    assert float(found) == pytest.approx(total, rel=1e-12)
    first, second, *_ = papers.mixed_weights(TASKS, free, papers.uniform_mixing(4, [1, 0, 0]), 4)
    assert np.allclose(first[0], second[0]) and not np.allclose(first[2], second[2])


def test_shuffled_splits_keep_labels():
    parts = [np.hstack(part) for part in papers.shuffled_splits(TRAIN, [14, 6], (0, "top_rs"))]
    assert [len(part) for part in parts] == [14, 6]
    assert sorted(np.concatenate(parts).tolist()) == sorted(np.hstack(TRAIN).tolist())


def test_scaled_multiplies_what_leaves_a_unit(backend):
    hyper = np.linspace(-1, 1, UNITS)
    free = backend.array(np.arange(1.0, NET.layout.size + 1))
    ratios = NET.layout.split(backend.numpy(papers.scaled(NET, free, backend.array(hyper)) / free))
    expected = {"weights 1": hyper[:6, None], "weights 2": hyper[6:, None]}
    for name, ratio in ratios.items():
        assert np.abs(ratio - np.exp(expected.get(name, 0.2))).max() < 1e-15


def test_corrupted_labels_are_never_right():
    clean = examples(3000)
    noisy, wrong = papers.corrupt_labels(clean, 0.5, np.random.default_rng(3))
    assert wrong.sum() == 1500
    assert np.array_equal((noisy.labels * clean.labels).sum(1), ~wrong)
    shares = (clean.labels[wrong].T @ noisy.labels[wrong]) / clean.labels[wrong].sum(0)[:, None]
    assert np.abs(shares + np.eye(3) / 2 - 0.5).max() < 0.1  # the other classes evenly


def test_losses_of_runs_add_up(backend):
    """Side by side or alone: a weighted sum over examples, and the mean over validation ones."""
    case, hyper = weighted_examples(backend), np.random.default_rng(0).random((2, 20))
    weights, inner, outer = np.random.default_rng(1).standard_normal((7, 2, 3)), 0.0, 0.0
    for k in range(2):
        own = weights[:, k].ravel()
        inner -= hyper[k] @ (LINEAR(own, TRAIN.images) * RUNS.labels[k]).sum(axis=1) / 20
        outer += papers.loss(LINEAR, own, VALID)
        assert (case.optimizer.rate.reshape((7, 2, 3))[:, k] == (0.5, 0.7)[k]).all()
    at = backend.array(weights.ravel()), backend.array(hyper.ravel())
    found = float(case.inner_loss(*at, 0)), float(case.outer_loss(*at))
    assert found == pytest.approx((inner, outer), rel=1e-12)


@pytest.mark.parametrize("total, binding", [(np.inf, False), (20.0, False), (3.0, True)])
def test_constraints_give_the_nearest_point(total, binding):
    """All positive C_jk fall by one number, zero if the bound on their sum is idle."""
    hyper = np.random.default_rng(0).standard_normal(11)
    found = papers.interaction_constraints(5, total)(hyper)
    point, matrix = (papers.as_matrix(x[:-1], 5) for x in (hyper, found))
    fall = (point - matrix)[matrix > 0].mean() if binding else 0.0
    assert abs(matrix - np.clip(point - fall, 0, None)).max() < 1e-14 and fall >= 0
    assert not binding or matrix.sum() == pytest.approx(total)
    assert np.array_equal(matrix, matrix.T) and found[-1] == max(hyper[-1], 0)


def test_splits_are_balanced_and_their_span_is_enough():
    """Training in the span of the examples gives the scores of training with all features."""
    train, valid, _ = parts = papers.deal(papers.generated(300), 24, 24, (0, 1))
    assert [part.labels.sum(axis=0).tolist() for part in parts[:2]] == [[3] * 8] * 2
    together = np.concatenate([part.images for part in parts])
    assert len(np.unique(together, axis=0)) == len(together) == 300
    assert np.abs(train.images.mean(axis=0)).max() < 1e-12
    assert abs((train.images**2).sum(axis=1).mean() - 1000) < 1e-9
    hyper, scores = np.append(np.full(28, 0.01), 0.02), []
    whole = [part.on(TORCH) for part in (train, valid)]
    for pair in (whole, papers.tuning_and_final(TORCH, parts)[0]):
        problem = papers.interactions(TORCH, *pair, steps=20, rate=0.01, decay=0.9)
        scores.append(papers.linear_scores(hg.train(problem, hyper)[0], pair[1].images, 8))
    assert problem.initial_state(None)[0].shape == (25 * 8,)
    assert float(abs(scores[0] - scores[1]).max()) < 1e-10


def test_one_against_rest_is_that_of_torch(backend):
    scores, labels = np.array([[800.0, -2.0], [-800.0, 0.1]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    expected = cross_entropy_of_bits(*map(torch.tensor, (scores, labels)), reduction="none")
    assert gap(papers.binary(*map(backend.array, (scores, labels))), expected.mean(0)) < 1e-14


def test_released_routine_stalls_on_short_vectors(backend):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    a, b = (basis * np.geomspace(1, 20, 8)) @ basis.T, np.ones(8)

    def error(scale, **options):
        solve = papers.ReleasedConjugateGradient(50, **options)
        found = solve(lambda v: backend.array(a) @ v, backend.array(scale * b))
        return gap(found, np.linalg.solve(a, scale * b))

    assert error(1.0, floor=0.0, tolerance=1e-13) < 1e-10
    assert error(1e4) < 1e-3 and error(0.01) > 0.1


def test_boston_regression_has_its_closed_form(backend):
    train, valid = papers.boston_split(backend, (0, 0))
    hyper = np.linspace(-7, -1, 14)
    problem = papers.boston_regression(backend, train, valid, rate=0.1, steps=3, seed_path=(0,))
    x, y = map(backend.numpy, train)
    expected = 2 * x.T @ x / 409 + 2 * np.diag(np.exp(hyper))
    (found,) = papers.newton_minimum(problem, hyper)
    assert gap(papers.hessian(problem, hyper, found), expected) < 1e-12
    assert gap(found, np.linalg.solve(expected, 2 * x.T @ y / 409)) < 1e-11


def test_tasks_are_scaled_by_known_rows(backend):
    """Of training and validation, so a constant output of digits has the loss ln 10."""
    digits = papers.digits(backend, 4, "mnist_small", (60, 30, 20))
    assert digits.test_loss() == pytest.approx(np.log(10))
    for task, known, test in ((digits, 90, 20), (papers.house_prices(backend, 4, (0, 0)), 455, 51)):
        images = backend.numpy(task.all_rows().train.images)
        assert len(images) == known and len(task.test.labels) == test
        assert abs(images.mean(axis=0)).max() < 1e-12
        assert set(images.std(axis=0).round(9)) <= {0.0, 1.0}
