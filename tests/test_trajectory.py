"""Remembering a run: exact kinds agree, approximate ones are what they say, a run that cannot be repeated is caught."""

import dataclasses
import functools

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import papers, reversal

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


@both
@pytest.mark.parametrize("every", [1, 3, 4, 12, 99, None])
@pytest.mark.parametrize("steps", [0, 1, 12, 13])
def test_checkpoints_at_any_distance_give_the_bits_of_stored(backend, every, steps):
    problem, hyper = catalogue.everything(backend, steps=steps)
    stored, marked = (
        hg.Reverse(r)(problem, hyper)
        for r in (hg.stored, functools.partial(hg.checkpointed, every=every))
    )
    assert all(np.array_equal(a, b) for a, b in zip(stored[:3], marked[:3], strict=True))


@both
def test_a_stored_run_keeps_the_state_before_every_step_in_one_block(backend):
    problem, hyper = catalogue.everything(backend)
    states = hg.stored(problem, backend.array(hyper)).states
    shorter = [
        hg.train(dataclasses.replace(problem, steps=t), backend.array(hyper))
        for t in range(problem.steps + 1)
    ]
    assert states.shape == (problem.steps + 1, 2, len(shorter[0][0]))
    assert all(
        np.array_equal(a, b)
        for state, true in zip(states, shorter, strict=True)
        for a, b in zip(state, true, strict=True)
    )


@pytest.mark.parametrize(
    "remember", [hg.stored, hg.truncated, hg.checkpointed, hg.shortcut]
)  # a CPU cannot look seldom at exact numbers
def test_divergence_in_the_last_steps_is_seen_where_one_looks_seldom(remember, monkeypatch):
    monkeypatch.setattr(hg.Torch, "patience", 64)
    problem, hyper = catalogue.everything(hg.Torch())
    steep = dataclasses.replace(
        problem,
        inner=lambda w, h, t: (
            problem.inner(w, h, t) * (float("nan") if t == problem.steps - 1 else 1)
        ),
    )
    with pytest.raises(hg.Diverged, match=f"training diverged at step {problem.steps - 1}"):
        hg.Reverse(remember)(steep, hyper)


@both
@pytest.mark.parametrize("last", [0, 1, 5, 12, 40])
def test_truncation_is_exact_reverse_mode_from_a_later_start(backend, last):
    """The run before is a constant: what it passes on depends on hyper in no way."""
    problem, hyper = catalogue.everything(backend)
    first = max(0, problem.steps - last)
    truth = dataclasses.replace(problem, steps=first)
    middle = [
        backend.array(x) for x in np.split(backend.numpy(hg.Reverse()(truth, hyper).state), 2)
    ]
    later = lambda f: lambda hyper, t: f(hyper, t + first)  # noqa: E731
    rest = hg.Problem(
        backend,
        lambda w, hyper, t: problem.inner(w, hyper, t + first),
        problem.outer,
        steps=problem.steps - first,
        dynamics=hg.Momentum(
            later(problem.dynamics.rate),
            later(problem.dynamics.decay),
            lambda hyper: middle[1] + 0 * hyper[0],
        ),
        initial=lambda hyper: middle[0] + 0 * hyper[0],
    )
    found = hg.Reverse(functools.partial(hg.truncated, last=last))(problem, hyper)
    whole = problem if last >= problem.steps else rest
    assert gap(backend.numpy(found.grad), catalogue.unrolled(whole, hyper)[1]) < 1e-12
    assert gap(backend.numpy(found.value), backend.numpy(hg.Reverse()(problem, hyper).value)) == 0


def straight_line(problem, hyper, rate, decay, replayed, places):
    """The recursion of the paper, completed as in the authors' code: constant rate and decay, no derivative but of the loss."""
    backend = problem.backend
    first, last = problem.start(hyper)[0], hg.train(problem, hyper)[0]
    _, dw, grad = backend.gradients(problem.outer, last, hyper)
    dv = 0 * dw
    for t, place in reversed(list(zip(replayed, places, strict=True))):
        w = (1 - place) * first + place * last
        dv = dv + rate * dw
        curvature, mixed = problem.second_order(w, hyper, t).product(dv)
        dw, grad = dw - (1 - decay) * curvature, grad - (1 - decay) * mixed
        dv = dv * decay
    return grad


CHOICES = {
    "every step": ({}, lambda T: (range(T), [t / T for t in range(T)])),
    "a third": (
        {"share": 1 / 3},
        lambda T: ([0, 3, 6, 9, 12, 15, 18, 21, 24, 27], np.arange(10) / 10),
    ),
    "a third, the first": (
        {"share": 1 / 3, "minibatches": "first"},
        lambda T: (range(10), np.arange(10) / 10),
    ),
    "the release": (
        {"share": 0.1, "minibatches": "first", "ends": 0.001},
        lambda T: (range(T // 10), np.linspace(0.001, 0.999, T // 10)),
    ),
    "one step": ({"share": 0.001}, lambda T: ([0], [0.0])),
}


@both
@pytest.mark.parametrize("decay", [0.1, 0.9, 0.95])
@pytest.mark.parametrize(
    "steps, choice",
    [
        (0, "every step"),
        (1, "every step"),
        (2, "every step"),
        *((30, choice) for choice in CHOICES),
        (100, "the release"),
    ],
)
def test_the_shortcut_is_the_recursion_of_its_paper(backend, steps, choice, decay):
    xp = backend.xp
    problem, hyper = catalogue.bowl(
        backend,
        steps=steps,
        dynamics=catalogue.momentum(0.1, decay),
        initial=lambda hyper: backend.array(np.linspace(-1, 2, 5)),
        inner=lambda w, hyper, t: (
            xp.sum(xp.exp(hyper[0]) * (w - hyper[1]) ** 4) * (1 + 0.1 * (t or 0) / steps)
        ),
    )
    options, replay = CHOICES[choice]
    found = hg.Reverse(functools.partial(hg.shortcut, **options))(problem, hyper).grad
    expected = straight_line(
        problem, backend.array(hyper), 0.1, reversal.round_decay(decay), *replay(steps)
    )
    assert float(abs(found - expected).max()) < 1e-13 * max(1, float(abs(expected).max()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"share": 0}, r"share must lie in \(0, 1\].*got 0"),
        ({"share": 1.5}, "got 1.5"),
        ({"minibatches": "last"}, "'spread' or 'first', got 'last'"),
        ({"ends": 0.5}, r"\[0, 0.5\), got 0.5"),
        ({"ends": -1.0}, "got -1.0"),
    ],
)
def test_choices_of_the_shortcut_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        hg.Reverse(functools.partial(hg.shortcut, **options))(*catalogue.bowl(hg.Torch()))


@both
def test_the_shortcut_bears_steps_that_do_not_move(backend):
    """A rate of zero leaves the velocity unknown; its cotangent is then finite all the same."""
    rate = backend.array([0.1, 0.0, 0.1, 0.0])
    problem = hg.Problem(
        backend,
        inner=lambda w, hyper, t: backend.xp.sum((w - hyper[0]) ** 2),
        outer=lambda w, hyper: backend.xp.sum(w**2),
        dynamics=hg.Momentum(rate=lambda hyper, t: rate[t] * hyper[1], decay=lambda hyper, t: 0.9),
        initial=lambda hyper: hyper[2:],
        steps=4,
    )
    assert np.isfinite(
        backend.numpy(hg.Reverse(hg.shortcut)(problem, [0.5, 1.0, 2.0, 3.0]).grad)
    ).all()


@both
@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
def test_the_shortcut_is_exact_where_the_path_is_straight_and_even(backend, kind):
    """A linear loss whose velocity starts at its limit: every step is the same, so the line is the path. Rates and decays count."""
    xp = backend.xp
    slope = backend.array(np.array([1.0, -2.0, 0.5]))
    limit = -slope if kind is hg.Momentum else slope / (1 - reversal.round_decay(0.75))
    problem = hg.Problem(
        backend,
        inner=lambda w, hyper, t: xp.sum(slope * w),
        outer=lambda w, hyper: xp.sum((w - 1) ** 2),
        steps=8,
        dynamics=kind(
            rate=lambda hyper, t: xp.exp(hyper[t]),
            decay=lambda hyper, t: 1 / (1 + xp.exp(-hyper[8 + t])),
            velocity=lambda hyper: limit + 0 * hyper[0],
        ),
        initial=lambda hyper: hyper[16:],
    )
    hyper = np.concatenate([np.full(8, -2.0), np.full(8, np.log(3.0)), [0.3, 0.2, 0.1]])
    line, exact = (hg.Reverse(r)(problem, hyper).grad for r in (hg.shortcut, hg.stored))
    assert gap(line, exact) < 1e-12


@both
@pytest.mark.parametrize("steps", [0, 1, 12])
@pytest.mark.parametrize(
    "case",
    [
        catalogue.everything,
        catalogue.plain,
        functools.partial(catalogue.everything, per_coordinate=True),
    ],
)
def test_the_shortcut_runs_on_every_kind_of_hyperparameter(backend, case, steps):
    problem, hyper = case(backend, steps=steps)
    exact, line = hg.Reverse()(problem, hyper), hg.Reverse(hg.shortcut)(problem, hyper)
    assert np.isfinite(backend.numpy(line.grad)).all() and float(line.value) == float(exact.value)
    if steps == 0:
        assert np.array_equal(line.grad, exact.grad)


@both
def test_what_is_kept_is_counted_and_comes_in_the_expected_order(backend):
    problem, hyper = catalogue.bowl(
        backend, n=200, steps=225, dynamics=catalogue.momentum(0.01, 0.9)
    )
    kept = {
        r.__name__: hg.Reverse(r)(problem, hyper).nbytes
        for r in (hg.stored, hg.checkpointed, hg.reversible, hg.shortcut, hg.truncated)
    }
    state = 2 * 200 * 8
    assert (
        kept["stored"] == 226 * state
        and kept["checkpointed"] == 30 * state
        and kept["shortcut"] == kept["truncated"] == 2 * state
    )
    assert kept["reversible"] < kept["checkpointed"] < kept["stored"]
    log = 225 * 200 * 0.152 / 8  # log2(1/0.9) bits a weight and step, and a state of the buffer
    assert state + log < kept["reversible"] < state + log + 200 * 8 + 3000


@both
@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
def test_reversal_with_layers_of_different_decays_arrives_after_hundreds_of_steps(backend, kind):
    decays = np.array([2.0**-16, 0.5, 0.9, 0.99998, 1.0])
    turning = lambda t: np.roll(decays, t)  # noqa: E731
    rate = 1e-3 if kind is hg.Momentum else 1e-5  # heavy ball with decay 1 oscillates freely
    problem, hyper = catalogue.bowl(
        backend, steps=300, dynamics=catalogue.momentum(rate, turning, kind)
    )
    exact, stored = (hg.Reverse(r)(problem, hyper) for r in (hg.reversible, hg.stored))
    assert (
        gap(backend.numpy(exact.grad), backend.numpy(stored.grad)) < 1e-10
    )  # 300 roundings of 2**-53


@both
def test_reversal_gives_the_same_bits_without_numba(backend, monkeypatch):
    problem, hyper = catalogue.everything(backend, per_coordinate=True, steps=40)
    fast = hg.Reverse(hg.reversible)(problem, hyper)
    monkeypatch.setattr(reversal, "loops", lambda: None)
    slow = hg.Reverse(hg.reversible)(problem, hyper)
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


@both
@pytest.mark.parametrize(
    "solver", [hg.Reverse(hg.reversible), hg.Reverse(), hg.Reverse(hg.checkpointed), hg.Forward()]
)
def test_the_same_call_gives_the_same_bits(backend, solver):
    problem, hyper = catalogue.everything(backend, per_coordinate=True)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(solver(problem, hyper), solver(problem, hyper), strict=True)
    )


@both
@pytest.mark.parametrize("name", ["inner", "initial", "rate", "decay"])
def test_unseeded_randomness_is_caught_by_reversal(backend, name):
    rng = np.random.default_rng(0)
    draw = lambda: 1 + 0.01 * rng.random()  # noqa: E731
    problem, hyper = catalogue.bowl(backend)
    changes = {
        "inner": {"inner": lambda w, hyper, t: problem.inner(w, hyper, t) * draw()},
        "initial": {"initial": lambda hyper: problem.initial(hyper) * draw()},
        "rate": {"dynamics": catalogue.momentum(rate=lambda t: 0.1 * draw())},
        "decay": {"dynamics": catalogue.momentum(decay=lambda t: 0.9 * draw())},
    }
    with pytest.raises(
        hg.ReversalError, match="missed its start in .* of 10 numbers.*seed what is random"
    ):
        hg.Reverse(hg.reversible)(catalogue.bowl(backend, **changes[name])[0], hyper)


@both
def test_bits_that_change_between_the_passes_are_caught(backend):
    """As another thread count on the way back would change them: in the last place."""
    calls = []

    def inner(w, hyper, t):
        calls.append(t)
        return backend.xp.sum((w - hyper[0]) ** 2) * (1.0 if len(calls) < 10 else 1 + 2.0**-50)

    problem, hyper = catalogue.bowl(backend, inner=inner)
    with pytest.raises(hg.ReversalError, match="Keep one thread count"):
        hg.Reverse(hg.reversible)(problem, hyper)


def test_threads_changed_by_the_outer_objective_do_not_reach_the_way_back():
    """Forward on 1, then 2 asked for in between: the way back is on 1 again. (The outer objective itself may round in another way.)"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        problem, hyper = catalogue.layered(hg.Torch())

        def outer(w, hyper):
            torch.set_num_threads(2)
            return problem.outer(w, hyper)

        found = hg.Reverse(hg.reversible)(dataclasses.replace(problem, outer=outer), hyper)
        assert torch.get_num_threads() == 1
        assert gap(found.grad, hg.Reverse(hg.reversible)(problem, hyper).grad) < 1e-13
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("base", [hg.Autograd, hg.Torch])
def test_where_plain_gradients_have_other_bits_the_joint_ones_are_used(base, monkeypatch):
    problem, hyper = catalogue.everything(base())
    expected = hg.Reverse(hg.reversible)(problem, hyper)
    plain = base.gradient
    monkeypatch.setattr(
        base,
        "gradient",
        lambda self, f, weights, hyper: plain(self, f, weights, hyper) * (1 + 2.0**-52),
    )
    found = hg.Reverse(hg.reversible)(problem, hyper)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("base", [hg.Autograd, hg.Torch])
def test_other_bits_only_at_a_later_step_are_caught_and_can_be_mended(base, monkeypatch):
    """Two places are tried both ways; for the others there is the comparison at the end, and `joint`."""
    problem, hyper = catalogue.everything(base())
    expected = hg.Reverse(functools.partial(hg.reversible, joint=True))(problem, hyper)
    plain, calls = base.gradient, []

    def gradient(self, f, weights, hyper):
        calls.append(0)
        return plain(self, f, weights, hyper) * (1 + 2.0**-52 * (len(calls) > 3))

    monkeypatch.setattr(base, "gradient", gradient)
    with pytest.raises(hg.ReversalError, match="joint=True"):
        hg.Reverse(hg.reversible)(problem, hyper)
    found = hg.Reverse(functools.partial(hg.reversible, joint=True))(problem, hyper)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_start_at_which_too_much_is_zero_tells_nothing():
    """Where the last layer is zero, the plain gradient of silu has the bits of the joint one by accident."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1)
    ).double()
    torch.nn.init.zeros_(module[2].weight)
    (weights, net), (x, y) = hg.nets.functional(module), torch.randn(2, 64, 8).double()

    def loss(w, hyper, t=None):
        return ((net(w, x) - y[:, :1]) ** 2).mean()

    problem = hg.Problem(
        hg.Torch(),
        loss,
        loss,
        hg.Momentum(lambda h, t: h[0].exp(), lambda h, t: 0.9),
        lambda h: weights,
        30,
    )
    assert (
        gap(hg.Reverse(hg.reversible)(problem, [-2.0]).grad, hg.Reverse()(problem, [-2.0]).grad)
        < 1e-12
    )


def test_no_more_numbers_can_be_missed_than_there_are():
    rng = np.random.default_rng(0)
    problem = hg.Problem(
        hg.Torch(),
        lambda w, h, t: rng.uniform() * (w @ w),
        lambda w, h: w @ w,
        hg.Momentum(lambda h, t: h[0], lambda h, t: 0.9),
        lambda h: torch.ones(3),
        5,
    )
    with pytest.raises(hg.ReversalError, match="missed its start in 6 of 6 numbers"):
        hg.Reverse(hg.reversible)(problem, [0.1])


def test_single_precision_reverses_exactly_and_agrees_with_stored():
    """The fixed-point run rounds its state to float32 before each gradient: T roundings of 6e-8."""
    backend = hg.Torch(dtype="float32")
    problem, hyper = catalogue.layered(backend)
    exact, stored = (hg.Reverse(r)(problem, hyper) for r in (hg.reversible, hg.stored))
    assert exact.grad.dtype == torch.float32 and gap(exact.grad, stored.grad) < 1e-5
    assert gap(stored.grad, hg.Reverse()(*catalogue.layered(hg.Torch())).grad) < 1e-4


def test_a_trajectory_of_ones_own_is_a_trajectory():
    class loud(hg.stored):
        def weights(self, t, coefficients):
            seen.append(t)
            return super().weights(t, coefficients)

    seen = []
    problem, hyper = catalogue.everything(hg.Torch())
    assert (
        np.array_equal(hg.Reverse(loud)(problem, hyper).grad, hg.Reverse()(problem, hyper).grad)
        and seen == list(range(12))[::-1]
    )


@both
def test_train_gives_the_state_of_every_exact_solver(backend):
    problem, hyper = catalogue.everything(backend)
    state = np.concatenate([backend.numpy(x) for x in hg.train(problem, backend.array(hyper))])
    for solver in (
        hg.Reverse(),
        hg.Reverse(hg.checkpointed),
        hg.Reverse(hg.shortcut),
        hg.Forward(),
    ):
        assert gap(backend.numpy(solver(problem, hyper).state), state) < 1e-14
    assert gap(backend.numpy(hg.Reverse(hg.reversible)(problem, hyper).state), state) < 1e-12


@both
def test_the_python_integers_of_2015_give_the_hypergradient_and_their_size(backend):
    problem, hyper = catalogue.everything(backend)
    old, new = (
        hg.Reverse(remember)(problem, hyper) for remember in (papers.as_in_2015, hg.reversible)
    )
    assert gap(old.grad, new.grad) < 1e-9 and old.nbytes > new.nbytes


def test_the_python_integers_of_2015_notice_a_missed_start():
    exact = papers.BigIntegers(np.ones(3), np.zeros(3))
    fresh = papers.BigIntegers(np.ones(3), np.zeros(3))
    exact.forth(np.arange(3.0), reversal.ratio(0.5), -0.5, 0.1)
    assert exact.misses(fresh)
    exact.back_position(0.1)
    exact.back_velocity(np.arange(3.0), reversal.ratio(0.5), -0.5)
    assert not exact.misses(fresh)
