"""Strategies: what they keep, that they come back, and that guesses are those of the papers."""

import math

import catalogue
import numpy as np
import pytest
from catalogue import gap, same_bits

import hgcore as hg
from hgcore.fixed_point import round_decay

REVERSIBLE = hg.Reverse(hg.Reversible())


@pytest.mark.parametrize("steps, states", [(0, 1), (1, 1), (7, 1), (12, 3), (9, 99), (60, 5)])
def test_checkpointed_is_stored_by_fewest_steps(backend, steps, states):
    """Griewank and Walther: r T - binomial(c + r, r - 1), r the least with T <= binomial(c + r, c).

    Calls of the loss: every step advanced, the last one, and one linearized for each.
    """
    loss = lambda w, h, t: ((w - 0.01 * t) ** 2).sum() * h[0]  # noqa: E731
    problem, hyper = catalogue.bowl(backend, steps, inner_loss=loss)
    counted, calls = catalogue.counted(problem)
    found = hg.Reverse(hg.Checkpointed(states))(counted, hyper)
    assert same_bits(found[:3], hg.Reverse()(problem, hyper)[:3])
    r = next(r for r in range(steps + 1) if steps <= math.comb(states + r, states))
    fewest = r * steps - math.comb(states + r, r - 1) if r else 0
    assert len(calls) == fewest + bool(steps) + steps


def test_nbytes_is_what_is_kept(backend):
    """Reversible keeps log2 of 1 / each factor, per weight and step, besides its state."""
    problem, hyper = catalogue.bowl(backend, n=200, optimizer=hg.Momentum(0.01, 0.5))
    ways = hg.Stored(), hg.Checkpointed(3), hg.Checkpointed(), hg.Shortcut(), hg.Truncated(last=1)
    kept = [hg.Reverse(way)(problem, hyper).nbytes for way in ways]
    assert kept == [x * 2 * 200 * 8 for x in (7, 3, 5, 2, 2)]
    weak, strong = hg.Momentum(0.1, 0.1), hg.AdamW(1e-2, 0.25, 0.1, weight_decay=10.0)
    for optimizer, factors in ((weak, (0.1,)), (strong, (0.25, 0.1, 0.9))):
        runs = (catalogue.noisy(backend, optimizer, steps) for steps in (30, 130))
        few, many = (REVERSIBLE(run, [1.0]).nbytes for run in runs)
        lost = -sum(map(math.log2, factors))
        assert 8 * (many - few) / 100 / 300 == pytest.approx(lost, rel=0.06)


def straight_line(problem, hyper, rate, decay, replayed, places):
    """The recursion of the DrMAD paper, completed as in the authors' code."""
    backend, objective = problem.backend, problem.objective(hyper)
    first, last = problem.initial_state(hyper)[0], hg.train(problem, hyper)[0]
    _, dw, grad = problem.outer_gradients(last, hyper)
    dv = 0 * dw
    for t, place in reversed(list(zip(replayed, places, strict=True))):
        dv = dv + rate * dw
        weights = (1 - place) * first + place * last
        curvature, mixed = objective.linearize(backend.array(weights), t).product(dv)
        dw, grad = dw - (1 - decay) * curvature, grad - (1 - decay) * mixed
        dv = dv * decay
    return grad


LINES = [  # options, steps replayed of 30, places on the line
    ({}, range(30), [t / 30 for t in range(30)]),
    ({"share": 1 / 3}, range(0, 30, 3), np.arange(10) / 10),
    ({"share": 0.1, "minibatches": "first", "ends": 0.001}, range(3), np.linspace(0.001, 0.999, 3)),
]


@pytest.mark.parametrize("decay", [0.1, 0.9])
@pytest.mark.parametrize("options, replayed, places", LINES)
def test_shortcut_is_the_recursion_of_its_paper(backend, options, replayed, places, decay):
    def inner_loss(w, h, t):
        return backend.xp.exp(h[0]) * ((w - h[1]) ** 4).sum() * (1 + (t or 0) / 300)

    parts = {"optimizer": hg.Momentum(0.1, decay), "initial": np.linspace(-1, 2, 5)}
    problem, hyper = catalogue.bowl(backend, steps=30, inner_loss=inner_loss, **parts)
    hyper = backend.array(hyper)
    expected = straight_line(problem, hyper, 0.1, round_decay(decay), replayed, places)
    assert gap(hg.Reverse(hg.Shortcut(**options))(problem, hyper).grad, expected) < 1e-12


@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
def test_shortcut_is_exact_on_a_straight_path(backend, kind):
    """A linear loss whose velocity starts at its limit; the last hyper, 0, acts by the weights."""
    xp, slope = backend.xp, backend.array([1.0, -2.0, 0.5])
    limit = -slope if kind is hg.Momentum else slope / (1 - 0.75)
    rate, decay = (lambda h, t: xp.exp(h[t])), (lambda h, t: 1 / (1 + xp.exp(-h[8 + t])))
    parts = {"optimizer": kind(rate, decay, velocity=limit), "initial": lambda h: h[16:19]}
    loss = lambda w, h, t: (slope * w).sum() + h[19] * (w**3).sum() * (1 + t)  # noqa: E731
    problem, _ = catalogue.bowl(backend, steps=8, inner_loss=loss, **parts)
    hyper = np.concatenate([np.full(8, -2.0), np.full(8, np.log(3.0)), [0.3, 0.2, 0.1, 0.0]])
    line, exact = (hg.Reverse(way)(problem, hyper).grad for way in (hg.Shortcut(), hg.Stored()))
    assert gap(line, exact) < 1e-12


def test_shortcut_walks_at_a_steady_pace(backend):
    """The velocity before each step is the one that made 1 / T of the line of the step before."""
    rate = lambda h, t: 0.1 + 0.1 * t  # noqa: E731
    problem, hyper = catalogue.bowl(backend, steps=5, optimizer=hg.Momentum(rate, 0.5))
    hyper = backend.array(hyper)
    run, first = hg.Shortcut().train(problem, hyper), problem.initial_state(hyper)[0]
    for t in (4, 3, 2, 1):
        velocity = run.undo(t)[0][1]
        assert gap(rate(None, t - 1) * velocity, (run.final[0] - first) / 5) < 1e-15


def test_shortcut_takes_every_optimizer(backend):
    """And a rate of zero, from which no velocity follows."""
    still = hg.Momentum(lambda h, t: 0.1 * (t % 2) * h[1], 0.9)
    cases = [catalogue.everything(backend, name) for name in catalogue.OPTIMIZERS]
    for problem, hyper in [*cases, catalogue.bowl(backend, steps=4, optimizer=still)]:
        exact, line = hg.Reverse()(problem, hyper), hg.Reverse(hg.Shortcut())(problem, hyper)
        assert np.isfinite(backend.numpy(line.grad)).all() and line.value == exact.value


def wave(h, t):
    return 0.7 + 0.29 * math.sin(t)


MOVING = {
    "momentum": hg.Momentum(0.1, wave),
    "heavy ball": hg.HeavyBall(0.01, wave),
    "per weight": hg.Momentum(0.1, np.linspace(2.0**-16, 1, 300)),
    "rmsprop": hg.RMSProp(1e-3, 0.9, 1e-8, 0.6),
    "adam": hg.Adam(1e-3, wave, lambda h, t: 0.99 + 0.009 * math.cos(t)),
    "adamw": hg.AdamW(lambda h, t: 1e-3 * (2 + math.cos(t)), 0.6),
    "adamw, strong": hg.AdamW(1e-2, weight_decay=30.0),
    "adamw, per weight": hg.AdamW(1e-2, weight_decay=np.linspace(0, 30, 300)),
    "adamw, clipped": hg.AdamW(1e-3, 0.6, clip=0.1),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", MOVING.values(), ids=MOVING)
def test_training_comes_back_to_its_start(optimizer, dtype):
    """close() compares every bit with the true start and raises otherwise."""
    problem = catalogue.noisy(hg.Torch(dtype=dtype), optimizer)
    assert float(REVERSIBLE(problem, [1.0]).grad[0]) == 1


class Device(hg.Torch):
    """A CPU treated like a GPU: integers stay torch's, numbers are looked at now and then."""

    sync_every = 64
    host_view = lambda self, array: array.detach()  # noqa: E731


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_device_path_has_the_bits_of_the_cpu_path(name):
    """Momentum's kicks round alike in NumPy and torch; Adam's root and logarithm to 1e-12."""
    ours, cpu = (REVERSIBLE(*catalogue.everything(b, name)).grad for b in (Device(), hg.Torch()))
    assert gap(ours, cpu) < (1e-12 if "adam" in name else 1e-15)


def test_other_bits_of_the_plain_gradient_are_noticed(backend, monkeypatch):
    """At the start: the joint gradient is used. Later: an error that names joint=True."""
    problem, hyper = catalogue.everything(backend)
    expected = hg.Reverse(hg.Reversible(joint=True))(problem, hyper)
    kind, calls, late = type(backend), [], [3]
    plain = kind.gradient

    def gradient(self, f, weights, hyper):
        calls.append(0)
        return plain(self, f, weights, hyper) * (1 + 2.0**-52 * (len(calls) > late[0]))

    monkeypatch.setattr(kind, "gradient", gradient)
    with pytest.raises(hg.ReversalError, match="joint=True"):
        REVERSIBLE(problem, hyper)
    for late[0] in (0, 1):  # seen by the first probe, the second
        for way in (hg.Reversible(), hg.Reversible(joint=True)):
            calls.clear()
            assert same_bits(hg.Reverse(way)(problem, hyper), expected)
