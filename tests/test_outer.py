"""Outer loops: rules against torch's own, projections against brute force, resumed loops against uninterrupted ones."""

import dataclasses
import functools
import itertools

import catalogue
import numpy as np
import pytest
import torch
from catalogue import RULES, gap, loops

import hgcore as hg

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
kinds = pytest.mark.parametrize(
    "make", [np.array, functools.partial(torch.tensor, dtype=torch.float64)], ids=["numpy", "torch"]
)
STILL = hg.Descent(rate=0.0)


def followed(rule, slopes, start):
    """The points that a rule visits, given the gradients it sees."""
    hyper, memory, points = start, rule.start(start), []
    for slope in slopes:
        hyper, memory = rule(hyper, slope, memory)
        points.append(hyper)
    return np.array([np.asarray(p) for p in points])


def followed_by_torch(make, slopes, start):
    x = torch.tensor(start, requires_grad=True)
    optimiser, points = make([x]), []
    for slope in slopes:
        x.grad = torch.tensor(slope)
        optimiser.step()
        points.append(x.detach().numpy().copy())
    return np.array(points)


SLOPES, START = (
    np.random.default_rng(0).standard_normal((20, 3)) * [1, 1e-6, 100],
    np.array([1.0, -2.0, 0.0]),
)


@kinds
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (hg.Adam(0.01, 0.8, 0.95, 1e-6), lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95), 1e-6)),
        (hg.Adam(), torch.optim.Adam),
        (hg.RMSProp(0.02, 0.9, 1e-7), lambda p: torch.optim.RMSprop(p, 0.02, 0.9, 1e-7)),
        (hg.RMSProp(), torch.optim.RMSprop),
        (hg.Descent(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (hg.Descent(0.1, 0.7), lambda p: torch.optim.SGD(p, 0.1, 0.7, 0.7)),
    ],
)
def test_a_rule_is_that_of_torch(make, ours, theirs):
    found = followed(ours, [make(s) for s in SLOPES], make(START))
    expected = followed_by_torch(theirs, SLOPES, START)
    if isinstance(ours, hg.Descent) and ours.momentum:  # torch's first step is not damped
        velocity, x, expected = 0, START, []
        for slope in SLOPES:
            velocity = 0.7 * velocity - 0.3 * slope
            x = x + 0.1 * velocity
            expected.append(x)
    assert np.allclose(found, expected, rtol=1e-13, atol=1e-14)


@kinds
def test_adam_with_a_fade_is_maclaurins_loop(make):
    """hypergrad/optimizers.py, written out: b1t = 1 - (1 - b1) lam**i with their b1 = 1 - ours; the correction does not fade."""
    rule, x, m, v, expected = hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=0.5), START, 0, 0, []
    for i, g in enumerate(SLOPES):
        b1t = 1 - (1 - 0.1) * 0.5**i
        m, v = b1t * g + (1 - b1t) * m, 0.01 * g**2 + 0.99 * v
        mhat, vhat = m / (1 - 0.9 ** (i + 1)), v / (1 - 0.99 ** (i + 1))
        x = x - 0.04 * mhat / (np.sqrt(vhat) + 1e-4)
        expected.append(x)
    assert np.allclose(followed(rule, [make(s) for s in SLOPES], make(START)), expected, rtol=1e-13)


@kinds
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_changes_nothing_in_place(make, rule):
    hyper, slope = make(START), make(SLOPES[0])
    memory = rule(hyper, slope, rule.start(hyper))[1]
    kept = [np.asarray(m).copy() for m in memory]
    rule(hyper, slope, memory)
    assert np.array_equal(np.asarray(hyper), START) and np.array_equal(np.asarray(slope), SLOPES[0])
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(memory, kept, strict=True))


def nearest(point, total, ball):
    """The projection onto the simplex (or the L1 ball), by bisection on its multiplier."""
    if ball and np.abs(point).sum() <= total:
        return point
    sizes = np.abs(point) if ball else point
    low, high = sizes.min() - total, sizes.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(sizes - middle, 0).sum() > total else (low, middle)
    parts = np.maximum(sizes - (low + high) / 2, 0)
    return np.sign(point) * parts if ball else parts


@kinds
@pytest.mark.parametrize("total", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("seed", range(12))
def test_projections_are_the_nearest_points(make, seed, total):
    rng = np.random.default_rng(seed)
    point = rng.standard_normal(rng.integers(1, 30)) * 10.0 ** rng.integers(-2, 3)
    for project, ball in ((hg.simplex(total), False), (hg.l1_ball(total), True)):
        found = np.asarray(project(make(point)))
        assert np.allclose(
            found, nearest(point, total, ball), atol=1e-12 * max(1, abs(point).max())
        )
        assert np.allclose(
            np.asarray(project(make(found))), found, atol=1e-12
        )  # where it is allowed, it stays


@kinds
@pytest.mark.parametrize(
    "point", [[1e17, -1e17, 3.0], [1.0, 1.0, 1.0], [0.0], [5.0, 5.0, -1e300], [1e-300, 0.0]]
)
def test_projections_end_whatever_is_rounded(make, point):
    found = np.asarray(hg.simplex(1.0)(make(point)))
    assert abs(found.sum() - 1) < 1e-12 and (found >= 0).all()
    assert np.abs(np.asarray(hg.l1_ball(1.0)(make(point)))).sum() < 1 + 1e-12


def test_projections_in_single_precision_end_too():
    found = hg.simplex(1.0)(torch.tensor([3e8, 1.0, 3e8], dtype=torch.float32))
    assert found.dtype == torch.float32 and abs(float(found.sum()) - 1) < 1e-6


@pytest.mark.parametrize("total", [0.0, -1.0, float("nan")])
def test_an_empty_simplex_is_refused(total):
    with pytest.raises(ValueError, match="the sum must be positive"):
        hg.l1_ball(total)
    with pytest.raises(ValueError, match="must be positive"):
        hg.simplex(total)


@kinds
@pytest.mark.parametrize(
    "low, high",
    [(0.0, 1.0), ([0.0, -1.0, 0.5], [1.0, 1.0, 2.0]), (0.0, [1.0, 2.0, 3.0]), (-np.inf, 0.5)],
)
def test_a_box_takes_numbers_and_vectors(make, low, high):
    point = [-2.0, 1.5, 9.0]
    for bound in (lambda x: x, np.asarray, lambda x: make(x)):
        assert np.array_equal(
            np.asarray(hg.box(bound(low), bound(high))(make(point))), np.clip(point, low, high)
        )


def capped(point, low, high, radius):
    """The projection onto the box cut off by an L1 ball, by bisection on its multiplier."""
    start, end = 0.0, np.abs(point).max() + np.max(high)
    for _ in range(200):
        middle = (start + end) / 2
        start, end = (
            (middle, end) if np.clip(point - middle, low, high).sum() > radius else (start, middle)
        )
    return np.clip(point - end, low, high)


def cut_box(seed):
    """(point, low, high, radius): some with bounds as numbers, some with ties among the coordinates."""
    rng = np.random.default_rng(seed)
    size, scale = [1, 2, 7, 30, 5000][seed % 5], 10.0 ** rng.integers(-2, 3)
    point = scale * rng.standard_normal(size).round(1 if seed % 2 else 9)
    low, high = (
        (0.0, scale)
        if seed % 3
        else (scale * rng.random(size) / 2, scale * (0.5 + rng.random(size)))
    )
    least, clipped = np.sum(low + 0 * point), np.clip(point, low, high).sum()
    return point, low, high, least + rng.random() * (clipped - least)


@kinds
@pytest.mark.parametrize("seed", range(30))
def test_the_point_of_a_cut_box_is_the_nearest(make, seed):
    """By bisection, and by Karush, Kuhn and Tucker: found = clip(point - m, low, high) for an m >= 0, and the sum is the radius."""
    point, low, high, radius = cut_box(seed)
    project, close = hg.box_l1(low, high, radius), 1e-12 * (np.abs(point).max() + np.max(high))
    found = np.asarray(project(make(point)))
    assert np.abs(found - capped(point, low, high, radius)).max() < close
    assert (
        np.abs(np.asarray(project(make(found))) - found).max() < close
    )  # where it is allowed, it stays
    assert (
        (low <= found).all()
        and (found <= high).all()
        and abs(found.sum() - radius) < close * len(point)
    )
    moved = point - found
    assert (
        moved[found < high - close].max(initial=0)
        <= moved[found > low + close].min(initial=np.inf) + close
    )


@kinds
def test_a_cut_box_is_a_box_or_a_simplex_where_the_other_bound_is_idle(make):
    point = np.random.default_rng(0).standard_normal(50)
    clipped = np.clip(point, 0, 1)
    for radius in (clipped.sum(), clipped.sum() + 1e-9, np.inf):
        assert np.array_equal(np.asarray(hg.box_l1(0, 1, radius)(make(point))), clipped)
    assert np.array_equal(np.asarray(hg.box_l1(0, 1, 0)(make(point))), 0 * point)
    assert (
        np.abs(
            np.asarray(hg.box_l1(0, np.inf, 3.0)(make(point)))
            - np.asarray(hg.simplex(3.0)(make(point)))
        ).max()
        < 1e-14
    )


@kinds
def test_a_cut_box_gives_ties_the_same(make):
    found = np.asarray(hg.box_l1(0.0, 1.0, 2.5)(make([3.0, 0.5, 0.5, 3.0, 0.5, -1.0, 0.0])))
    assert (
        np.array_equal(found[[0, 3, 5, 6]], [1, 1, 0, 0])
        and np.abs(found[[1, 2, 4]] - 1 / 6).max() < 1e-15
    )
    assert (
        np.abs(np.asarray(hg.box_l1(0.0, 1.0, 1.0)(make(np.full(5000, 1e9)))) - 1 / 5000).max()
        < 1e-15
    )


def test_a_cut_box_in_single_precision_keeps_to_its_sum():
    found = hg.box_l1(0.0, 1.0, 1000.0)(torch.linspace(-1, 2, 5000, dtype=torch.float32))
    assert found.dtype == torch.float32 and abs(float(found.double().sum()) - 1000) < 1e-3


@kinds
def test_a_cut_box_may_be_a_single_point(make):
    """Ten times 0.1 may add up to a last bit more than 1."""
    for low, radius in ([0.1] * 3, 0.3), ([0.1] * 10, 1.0):
        for point in (0.0, 0.2, 5.0):
            assert (
                np.abs(
                    np.asarray(hg.box_l1(low, 1.0, radius)(make(np.full(len(low), point)))) - 0.1
                ).max()
                < 1e-15
            )


@kinds
@pytest.mark.parametrize(
    "low, high, radius, message",
    [
        (0.0, 1.0, -2.5, "radius must be a number >= 0, got -2.5"),
        (0.0, 1.0, float("nan"), "got nan"),
        (-0.25, 1.0, 1.0, "low must be >= 0, got -0.25"),
        (0.5, [1.0, 0.25, 1.0], 2.0, "exceeds it by 0.25"),
        (0.5, 1.0, 1.25, "low alone adds up to 1.5, more than the radius 1.25"),
    ],
)
def test_a_cut_box_without_points_is_refused(make, low, high, radius, message):
    with pytest.raises(ValueError, match=message):
        hg.box_l1(low, high, radius)(make([0.0, 1.0, 2.0]))


@both
@pytest.mark.parametrize("loop", loops(hg.Autograd()))
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loop_resumed_from_any_step_goes_on_with_the_same_bits(backend, loop, rule):
    loop = functools.partial(loops(backend)[loop], rule=rule)
    whole = list(loop(steps=6))
    assert [step.k for step in whole] == list(range(6))
    for record in whole:
        rest = list(loop(steps=6, resume=record))
        assert [s.k for s in rest] == list(range(record.k + 1, 6))
        for ours, theirs in zip(rest, whole[record.k + 1 :], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours[:7], theirs[:7], strict=True))


@both
@pytest.mark.parametrize("loop", loops(hg.Autograd()))
def test_every_loop_keeps_to_the_allowed_set_and_tells_what_it_did(backend, loop):
    steps = list(loops(backend)[loop](steps=5, rule=hg.Descent(100.0)))
    for before, after in itertools.pairwise(steps):
        assert np.array_equal(before.updated, after.hyper)
    assert all(-3 <= float(x) <= 0 for s in steps for x in s.updated) and any(
        float(x) in (-3, 0) for x in steps[-1].updated
    )
    assert all(s.grad.shape == (6,) and s.nbytes > 0 and s.state.shape == (6,) for s in steps)


@pytest.mark.parametrize(
    "project", [lambda hyper: hyper.numpy(), lambda hyper: hyper[:1], lambda hyper: None]
)
def test_a_projection_gives_what_it_takes(project):
    problem, hyper = catalogue.ridge(hg.Torch(), steps=5)
    with pytest.raises(TypeError, match="project must return what it was given, a Tensor of shape"):
        list(
            hg.descend(
                hg.Reverse(),
                problem,
                hyper,
                rule=hg.Adam(0.1),
                steps=1,
                project=lambda hyper: project(hyper),
            )
        )


@pytest.mark.parametrize(
    "loop", [hg.realtime, functools.partial(hg.alternate, hg.Implicit(hg.Identity()))]
)
def test_outer_steps_have_inner_ones(loop):
    with pytest.raises(ValueError, match="every must be a number of inner steps >= 1, got 0"):
        next(loop(*catalogue.ridge(hg.Torch(), steps=5), rule=STILL, steps=1, every=0))


@both
def test_descent_is_the_written_out_loop(backend):
    problem, hyper = catalogue.everything(backend)
    x = backend.array(hyper)
    for step in hg.descend(hg.Reverse(), problem, hyper, rule=hg.Descent(1e-3), steps=4):
        result = hg.Reverse()(problem, x)
        assert (
            np.array_equal(step.hyper, x)
            and np.array_equal(step.grad, result.grad)
            and float(step.value) == float(result.value)
        )
        x = x - 1e-3 * result.grad
        assert np.array_equal(step.updated, x)


@both
def test_each_outer_step_may_have_a_problem_of_its_own(backend):
    asked = []

    def problem(k):
        asked.append(k)
        return catalogue.ridge(backend, steps=10 * k)[0]

    hyper = catalogue.ridge(backend)[1]
    values = [float(s.value) for s in hg.descend(hg.Reverse(), problem, hyper, rule=STILL, steps=3)]
    assert values == [
        float(hg.Reverse()(catalogue.ridge(backend, steps=10 * k)[0], hyper).value)
        for k in range(3)
    ]
    assert set(asked) == {0, 1, 2}


@both
@pytest.mark.parametrize("case", [catalogue.everything, catalogue.plain])
@pytest.mark.parametrize("every", [1, 3])
def test_realtime_with_a_rule_that_moves_nothing_is_plain_training(backend, case, every):
    problem, hyper = case(backend, steps=12)
    steps = list(hg.realtime(problem, hyper, rule=STILL, steps=12 // every, every=every))
    whole = hg.Forward()(problem, hyper)
    assert np.array_equal(steps[-1].state, whole.state) and np.array_equal(
        steps[-1].grad, whole.grad
    )
    shorter = hg.Forward()(dataclasses.replace(problem, steps=every), hyper)
    assert gap(steps[0].grad, shorter.grad) < 1e-14


@both
def test_realtime_lowers_the_outer_objective_while_it_trains(backend):
    problem, hyper = catalogue.ridge(backend)
    steps = list(hg.realtime(problem, hyper, rule=hg.Adam(0.05), steps=25, every=2))
    plain = list(hg.realtime(problem, hyper, rule=STILL, steps=25, every=2))
    assert float(steps[-1].value) < float(plain[-1].value)


@both
def test_alternation_is_training_from_where_the_last_steps_ended(backend):
    problem, hyper = catalogue.ridge(backend, steps=12)
    steps = list(
        hg.alternate(hg.Implicit(hg.Dense()), problem, hyper, rule=STILL, steps=4, every=3)
    )
    assert np.array_equal(steps[-1].state, hg.Implicit(hg.Dense())(problem, hyper).state)
    assert np.array_equal(steps[-1].grad, hg.Implicit(hg.Dense())(problem, hyper).grad)


class March:
    """A rule that adds one."""

    def start(self, hyper):
        return ()

    def __call__(self, hyper, grad, memory):
        return hyper + 1, memory


@both
@pytest.mark.parametrize("loop, step", [("descend", 1), ("realtime", 6), ("alternate", 8)])
def test_divergence_names_the_outer_and_the_inner_step(backend, loop, step):
    """At the third outer step, where hyper is two, the gradient is not a number from inner step 1 on."""

    def inner(w, hyper, t):
        return backend.xp.sum(w * w) * (1.0 if not t else backend.xp.sqrt(1.5 - hyper[0]))

    problem, hyper = catalogue.bowl(backend, steps=4, inner=inner)[0], [0.0, 0.0]
    run = {
        "descend": functools.partial(hg.descend, hg.Reverse(), problem, hyper),
        "realtime": functools.partial(hg.realtime, problem, hyper, every=3),
        "alternate": functools.partial(
            hg.alternate, hg.Implicit(hg.Identity()), problem, hyper, every=4
        ),
    }[loop]
    with (
        np.errstate(all="ignore"),
        pytest.raises(hg.Diverged, match=f"outer step 2: training diverged at step {step}:"),
    ):
        list(run(rule=March(), steps=5))


@both
def test_a_hypergradient_that_is_not_finite_stops_realtime_too(backend):
    problem, hyper = catalogue.bowl(
        backend, outer=lambda w, hyper: backend.xp.sum(backend.xp.log(w - 100))
    )
    with (
        np.errstate(all="ignore"),
        pytest.raises(hg.Diverged, match="outer step 0: the outer objective"),
    ):
        list(hg.realtime(problem, hyper, rule=STILL, steps=2))


def test_the_runner_sees_lines_and_others_see_nothing(monkeypatch, capsys):
    problem, hyper = catalogue.plain(hg.Autograd(), steps=2)
    monkeypatch.delenv("HGCORE_PROGRESS", raising=False)
    list(hg.descend(hg.Reverse(), problem, hyper, rule=STILL, steps=3))
    assert list(hg.progress(range(3), "seed")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    monkeypatch.setenv("HGCORE_PROGRESS", "1")
    list(hg.descend(hg.Reverse(), problem, hyper, rule=STILL, steps=3))
    assert list(hg.progress(iter("ab"), "seed", total=2)) == ["a", "b"]
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("@progress 1/3 outer step\n")
        and "@progress 1/2 seed" in captured.err
    )
