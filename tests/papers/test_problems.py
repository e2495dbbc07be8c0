"""The papers' problems, small: derivatives equal an unrolled loop, settings mean what they say."""

from functools import partial

import numpy as np
import pytest
import torch
from catalogue import SOLVERS, gap, unrolled

import hgcore as hg
from hgcore import data, papers
from hgcore.papers import lorraine2020_nets as nets
from hgcore.papers.franceschi2017 import UNIT, tuned_problem

NET, LINEAR, TASKS = map(hg.nets.DenseNet, [(6, 4, 3), (6, 3), (16, 4, 3, 5)])
PIXELS = hg.nets.DenseNet((784, 3, 10))
UNITS, SIZE = papers.unit_layout(NET).size, papers.LOGISTIC.layout.size
RNG = np.random.default_rng(0)
HARD = np.tile(np.eye(3), (2, 1))  # two examples per class
BLOCKS = {"images": RNG.standard_normal((6, 6)), "label logits": RNG.standard_normal((6, 3))}
BLOCKS |= {"log penalty": np.log(0.01)}


def examples(count, seed=0):
    """Three clouds of points, about the first three unit vectors of six."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    images = 3 * np.eye(3, 6)[labels] + 0.5 * rng.standard_normal((count, 6))
    return data.Split(images, np.eye(3)[labels])


TRAIN, VALID = examples(20), examples(40, seed=1)
START = papers.initial_weights(NET, (3, 1))


def small_mnist(backend, *sizes):
    return [split.on(backend) for split in data.splits("mnist_small", sizes)]


def weighted_examples(backend, *labels, images=TRAIN.images, rates=(0.5, 0.7)):
    each = labels or (TRAIN.labels, TRAIN.labels[::-1])
    parts = data.Split(images, np.array(each)).on(backend), VALID.on(backend)
    return papers.weighted_examples(backend, *parts, steps=12, rates=rates)


def weight_decays(backend, net=NET, start=START):
    parts = TRAIN.on(backend), VALID.on(backend)
    return papers.weight_decays(backend, net, start, *parts, steps=4)


def learned_data(backend, names=("images", "log penalty"), **given):
    layout = hg.Layout({name: np.shape(BLOCKS[name]) for name in names})
    return papers.learned_data(backend, LINEAR, layout, given, VALID.on(backend), steps=7)


def learned_blocks(*names):
    return np.concatenate([np.ravel(BLOCKS[name]) for name in names])


def penalties(backend, **settings):
    parts = small_mnist(backend, 60, 50)
    return papers.penalty_problem(backend, *parts, steps=7, batch=20, **settings)


def unit_penalties(backend):
    parts = [part.on(backend) for part in papers.shuffled_splits(TRAIN, [14, 6], (0, "top_rs"))]
    settings = dict(address=(0, 2, 0, "hyperloss"), steps=5, batch=4, rate=0.5, decay=0.5)
    return papers.unit_penalties(backend, NET, *parts, **settings, log_scale=-1.0)


def alphabets():
    rng = np.random.RandomState(0)
    tasks = papers.alphabet_tasks([rng.rand(3, 5, 16), rng.rand(5, 5, 16)], 5, rng)
    return tasks, papers.split_drawings(tasks, [3, 2], np.random.RandomState(1))


def sharing(backend):
    settings = dict(steps=4, rate=0.5, decay=0.9, penalty=0.01, log_scale=-1.0)
    drawings, rng = alphabets()[1], np.random.RandomState(2)
    return papers.sharing_problem(backend, TASKS, *drawings, rng, **settings)


def realtime(backend, groups=1):
    settings = dict(seed_path=(3, 1), batch=10, steps=6, groups=groups)
    return tuned_problem(backend, PIXELS, *small_mnist(backend, 40, 30), **settings)


def updates(backend, steps=6):
    task = papers.house_prices(backend, 3, (0, 0))
    return papers.update_problems(task, seed_path=(0, 1), batch=20, every=5, steps=steps)


def interactions(backend, **settings):
    parts = TRAIN.on(backend), VALID.on(backend)
    return papers.interactions(backend, *parts, steps=6, rate=0.1, decay=0.9, **settings)


AGAINST_REST = dict(loss=papers.one_against_rest, penalties=3)
GIVEN = {"images": BLOCKS["images"], "labels": HARD, "log penalty": -4.0}
CASES = {  # name: (problem of a backend, hyper)
    "weighted examples": (weighted_examples, RNG.random(40)),
    "weight decays": (weight_decays, RNG.normal(-2, 0.3, NET.layout.size)),
    "penalty": (penalties, [-3.0]),
    "unit penalties": (unit_penalties, np.full(UNITS, 0.2)),
    "sharing": (sharing, papers.uniform_mixing(4, [0.5, 0.3, 0.4]) + 0.05 * RNG.normal(size=48)),
    "real time": (realtime, [0.1, 0.5, 1.0]),
    "interactions": (interactions, [0.1, 0.0, 0.2, 0.05]),
    "one against rest": (partial(interactions, **AGAINST_REST), [0.1, 0.0, 0.2, 0.0, 0.3, 0.05]),
    "updates": (lambda backend: updates(backend)(0), [-1.0, -2.0, 0.3]),
}
for learned in (("images", "log penalty"), tuple(BLOCKS), ("label logits",)):
    case = partial(learned_data, names=learned, **GIVEN), learned_blocks(*learned)
    CASES["learned " + ", ".join(learned)] = case


@pytest.mark.parametrize("make, hyper", CASES.values(), ids=CASES)
def test_hypergradient_equals_the_unrolled_loop(make, hyper, backend):
    """1e-9: reversal rounds by 2**-53 a step."""
    problem = make(backend)
    value, slope = unrolled(problem, problem.as_hyper(hyper))
    for solver in SOLVERS.values():
        if "Reversible" not in repr(solver) or problem.optimizer.reversible:
            found = solver(problem, hyper)
            assert gap(backend.numpy(found.value), value) < 1e-11
            assert gap(backend.numpy(found.grad), slope) < 1e-9


@pytest.mark.parametrize("make, size", [(weight_decays, NET.layout.size), (penalties, SIZE)])
def test_penalties_of_all_weights_add_up(make, size, backend):
    """To the single one."""
    for solver in (hg.Reverse(), hg.Implicit(hg.Identity())):
        each, single = (solver(make(backend), np.full(m, -2.0)) for m in (size, 1))
        assert gap(float(each.value), float(single.value)) < 1e-12
        assert gap(float(each.grad.sum()), float(single.grad[0])) < 1e-9


# ---- Maclaurin et al. 2015


def test_meta_penalty_adds_its_own_derivative(backend):
    hyper = np.random.default_rng(0).normal(-3, 0.1, SIZE)
    cases = (penalties(backend, meta_penalty=c) for c in (0.0, 0.01))
    plain, meta = (backend.numpy(hg.Reverse()(case, hyper).grad) for case in cases)
    np.testing.assert_allclose(meta - plain, 0.02 * np.exp(2 * hyper), rtol=1e-10)


def test_batches_are_consecutive_and_cycle(backend):
    problem = penalties(backend)
    at = backend.array(np.random.default_rng(0).normal(size=SIZE)), problem.as_hyper([-3.0])
    losses = [float(problem.inner_loss(*at, t)) for t in (0, 1, 2, 3, None)]
    assert losses[3] == losses[0] != losses[1]
    assert np.mean(losses[:3]) == pytest.approx(losses[4], rel=1e-12)


def test_constant_schedule_fills_any_layout():
    few = hg.Layout({"log scales": (8,), "log rates": (1, 8), "momentum logits": (1, 1)})
    assert papers.constant_schedule(few, 1.5, -2.0, 3.0).tolist() == 8 * [3.0] + 8 * [1.5] + [-2.0]


def test_tied_problem_has_the_summed_gradient(backend):
    problem, groups, few = penalties(backend), np.arange(SIZE) % 3, np.array([-3.0, -4.0, -5.0])
    tied = papers.tied_problem(problem, lambda few: few[groups])
    ours, free = hg.Reverse()(tied, few), hg.Reverse()(problem, few[groups])
    sums = [backend.numpy(free.grad)[groups == i].sum() for i in range(3)]
    np.testing.assert_allclose(backend.numpy(ours.grad), sums, rtol=1e-10)


def test_soft_labels_may_be_hard(backend):
    hyper = learned_blocks("images", "log penalty")
    given = {"labels": HARD}, {"label logits": 100 * HARD}
    hard, soft = (hg.Reverse()(learned_data(backend, **labels), hyper).value for labels in given)
    assert float(hard) == pytest.approx(float(soft), rel=1e-12)


def test_tasks_are_centered_and_split_once():
    """Rotations keep the labels."""
    four, parts = alphabets()
    images = np.concatenate([task.images.reshape(-1, 16) for task in four])
    assert abs(images.mean(axis=0)).max() < 1e-15
    for task, copy in zip(four[:2], four[2:], strict=True):
        assert np.array_equal(task.labels, copy.labels)
        assert np.linalg.matrix_rank(task.labels) == len(task.labels)
    assert papers.rotated(np.arange(4.0).reshape(1, 1, 4)).tolist() == [[[1, 3, 0, 2]]]
    for task, *split in zip(four, *parts, strict=True):
        assert [part.images.shape[1] for part in split] == [3, 2]
        drawings = np.concatenate([part.images for part in split], axis=1)
        assert np.array_equal(np.sort(drawings, axis=1), np.sort(task.images, axis=1))


def test_uniform_mixing_correlations():
    """T = I/2 + 11'/20 has off-diagonal correlations 0.075 / 0.325 for ten tasks."""
    correlations = papers.weight_correlations(papers.uniform_mixing(10, [0, 1, 0.5]), 10)
    for matrix, expected in zip(correlations.values(), [0, 1, 0.075 / 0.325], strict=True):
        assert abs(matrix - np.where(np.eye(10), 1, expected)).max() < 1e-12


def test_mixed_weights_are_separate_or_tied(backend):
    """Separate tasks are nets of their own; a tied layer is common to all."""
    case, (train, _), hyper = sharing(backend), alphabets()[1], papers.uniform_mixing(4, [0, 0, 0])
    free = backend.numpy(case.initial_state(case.as_hyper(hyper))[0])
    total = 0.01 * free @ free
    for blocks, task in zip(papers.mixed_weights(TASKS, free, hyper, 4), train, strict=True):
        split = data.Split(task.images.reshape(-1, 16), task.labels.repeat(3, axis=0))
        total += papers.loss(TASKS, np.concatenate([block.ravel() for block in blocks]), split)
    found = case.inner_loss(backend.array(free), backend.array(hyper), None)
    assert abs(float(found) - total) < 1e-12
    first, *rest = papers.mixed_weights(TASKS, free, papers.uniform_mixing(4, [1, 0, 0]), 4)
    for task in rest:
        same = [np.allclose(a, b, rtol=0, atol=1e-15) for a, b in zip(first, task, strict=True)]
        assert same == [True, True, False, False, False, False]


# ---- Fu et al. 2016


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


# ---- Franceschi et al. 2017


def test_corrupted_labels_are_never_right():
    clean = examples(3000)
    noisy, wrong = papers.corrupt_labels(clean, 0.5, np.random.default_rng(3))
    assert wrong.sum() == 1500
    assert np.array_equal((noisy.labels * clean.labels).sum(1), ~wrong)
    shares = (clean.labels[wrong].T @ noisy.labels[wrong]) / clean.labels[wrong].sum(0)[:, None]
    assert np.abs(shares + np.eye(3) / 2 - 0.5).max() < 0.1  # the other classes evenly


def test_weight_zero_removes_an_example(backend):
    train, keep = examples(30), np.arange(30) % 3 > 0
    part = train.labels[keep]
    cases = (
        weighted_examples(backend, part, images=train.images[keep], rates=[0.4]),
        weighted_examples(backend, train.labels, images=train.images, rates=[0.6]),
    )
    weights = np.ones(20), 1.0 * keep
    ends = [hg.train(case, case.as_hyper(w))[0] for case, w in zip(cases, weights, strict=True)]
    assert abs(ends[0] - ends[1]).max() < 1e-14


def test_runs_side_by_side_are_independent(backend):
    """Together and alone: the same weights, and hypergradients of one run each."""
    labels, hyper = (TRAIN.labels, TRAIN.labels[::-1]), RNG.random((2, 20))
    both = weighted_examples(backend, *labels)
    together = hg.Reverse()(both, both.as_hyper(hyper.ravel()))
    scores = papers.regressions(together.state, both.backend.array(VALID.images), 3)
    for k, rate in enumerate((0.5, 0.7)):
        one = weighted_examples(backend, labels[k], rates=[rate])
        alone = hg.Reverse()(one, one.as_hyper(hyper[k]))
        assert abs(together.grad.reshape((2, 20))[k] - alone.grad).max() < 1e-14
        own = papers.regressions(alone.state, one.backend.array(VALID.images), 3)
        assert abs(scores[k] - own[0]).max() < 1e-13


def test_wrong_labels_are_found(backend):
    noisy, wrong = papers.corrupt_labels(examples(60), 0.4, np.random.default_rng(0))
    case = weighted_examples(backend, noisy.labels, images=noisy.images, rates=[0.5 * 60 / 36])
    settings = dict(optimizer=hg.Adam(0.1), steps=20, project=hg.box_l1(0, 1, 36))
    *_, last = hg.descend(hg.Reverse(), case, np.full(60, 0.6), **settings)
    assert papers.f1_score(backend.numpy(last.updated) == 0, wrong) > 0.9


def test_measures():
    """F1 is the harmonic mean of precision and recall."""
    found, wrong = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 1, 0], bool)
    assert papers.f1_score(found, wrong) == pytest.approx(2 / (3 / 2 + 4 / 2))
    assert papers.f1_score(0 * found > 0, 0 * wrong > 0) == 0
    pair = np.array([3.0, 4]), np.array([3.0, 0])
    assert papers.cosine(*pair) == pytest.approx(0.6)
    assert papers.relative_error(*pair) == pytest.approx(4 / 3)


@pytest.mark.parametrize("groups", [1, 4, PIXELS.layout.size])
def test_each_stretch_of_weights_has_its_penalty(groups, backend):
    case, penalties = realtime(backend, groups), np.arange(1.0, groups + 1)
    none, every = (backend.array([0.1, 0.5, *c * penalties]) for c in (0, 1))
    weights = case.initial_state(none)[0] + 0.1
    gain = case.inner_loss(weights, every, 2) - case.inner_loss(weights, none, 2)
    length, squares = -(-PIXELS.layout.size // groups), backend.numpy(weights) ** 2
    parts = [squares[i * length : (i + 1) * length].sum() for i in range(groups)]
    assert float(gain) == pytest.approx(UNIT * penalties @ parts, rel=1e-9)


def test_cost_problem_needs_three_hyperparameters():
    with pytest.raises(ValueError, match="3 or more; got 2"):
        papers.cost_problem(hg.Torch(), "mnist_small", (20, 10), (3,), hypers=2, steps=1, batch=5)


# ---- Lorraine et al. 2020


def test_a_torch_module_is_the_same_net():
    layers = torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.LogSoftmax(1)
    module, blocks = torch.nn.Sequential(*layers).double(), NET.layout.split(START).values()
    for parameter, block in zip(module.parameters(), blocks, strict=True):
        parameter.data = torch.tensor(block.T.copy())  # torch stores a matrix transposed
    weights, function = hg.nets.functional(module)
    cases = weight_decays(hg.Torch()), weight_decays(hg.Torch(), function, weights)
    ours, theirs = (hg.Reverse()(case, [-2.0]) for case in cases)
    assert gap(float(theirs.value), float(ours.value)) < 1e-12
    assert gap(theirs.grad, ours.grad) < 1e-9


def test_released_routine_stops_early(backend):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    a, b = (basis * np.geomspace(1, 20, 8)) @ basis.T, np.ones(8)

    def error(scale, *options, **more):
        solve = papers.ReleasedConjugateGradient(50, *options, **more)
        found = solve(lambda v: backend.array(a) @ v, backend.array(scale * b))
        return gap(backend.numpy(found), np.linalg.solve(a, scale * b))

    assert error(1.0, floor=0.0, tolerance=1e-13) < 1e-10
    assert error(1e4) < 1e-3  # its tolerance
    assert error(0.01) > 0.1


def test_boston_regression_has_its_closed_form(backend):
    train, valid = papers.boston_split(backend, (0, 0))
    hyper = np.linspace(-7, -1, 14)
    problem = papers.boston_regression(backend, train, valid, rate=0.1, steps=3, seed_path=(0,))
    x, y = (backend.numpy(part) for part in train)
    expected = 2 * x.T @ x / 409 + 2 * np.diag(np.exp(hyper))
    (found,) = papers.newton_minimum(problem, hyper)
    assert gap(papers.hessian(problem, hyper, found), expected) < 1e-12
    assert gap(backend.numpy(found), np.linalg.solve(expected, 2 * x.T @ y / 409)) < 1e-11


def test_peak_memory_has_no_matrix():
    """One of 200,000 squared would be 320 GB."""
    step, one = (papers.peak_memory(name, 200_000) for name in ("training step", "Neumann"))
    assert 1 < one / step < 4 and one < 40 * 8 * 200_000


def test_weights_of_released_nets():
    """As counted by the authors' code and by He et al.; smaller images, too."""
    made = nets.linear(), nets.alexnet(), nets.resnet()
    counts = [sum(w.numel() for w in net.parameters()) for net in made]
    assert counts == [30_730, 23_272_266, 658_586]
    for net in (nets.linear, partial(nets.alexnet, features=8), partial(nets.resnet, width=4)):
        start, function = nets.seeded(hg.Torch(), partial(net, (1, 28, 28)), 3)
        output = function(start, torch.rand(2, 784, dtype=torch.float64))
        assert torch.allclose(output.exp().sum(dim=1), torch.ones(2, dtype=torch.float64))
        assert torch.equal(start, nets.seeded(hg.Torch(), partial(net, (1, 28, 28)), 3)[0])


# ---- Clarke et al. 2022


def test_tasks_are_scaled_by_known_rows(backend):
    """A constant output has the loss ln 10, or the variance about the known mean."""
    digits = papers.digits(backend, 4, "mnist_small", (60, 30, 20))
    houses, prices = papers.house_prices(backend, 4, (0, 0)), np.sort(data.boston()[1])
    assert digits.test_loss() == pytest.approx(np.log(10))
    for task, sizes in ((digits, (60, 30, 20)), (houses, (364, 91, 51))):
        images = backend.numpy(task.all_rows().train.images)
        assert len(images) == sum(sizes[:2]) and len(task.test.labels) == sizes[2]
        assert abs(images.mean(axis=0)).max() < 1e-12
        assert set(images.std(axis=0).round(9)) <= {0.0, 1.0}
    scaled = np.concatenate([backend.numpy(part.labels) for part in houses[1:4]])[:, 0]
    assert np.ptp(scaled) * houses.unit**0.5 == pytest.approx(np.ptp(prices))
    squares = (scaled[455:] ** 2).mean() * houses.unit
    assert houses.test_loss() == pytest.approx(squares)


def test_random_updates_fill_their_ranges():
    draws = np.array([papers.random_update((0, start)) for start in range(300)])
    draws[:, 2] = 1 / (1 + np.exp(-draws[:, 2]))
    for values, low, high in zip(draws.T, (-6, -7, 0), (-1, -2, 1), strict=True):
        assert low < values.min() < low + 0.1 and high - 0.1 < values.max() < high
