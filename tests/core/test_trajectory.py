"""Strategies that keep states or guess them: exact ones agree, the others are what they say."""

import dataclasses
import math

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore.fixed_point import round_decay
from hgcore.trajectory import next_checkpoint


def optimum(steps: int, states: int) -> int:
    """Return Griewank and Walther's fewest advanced steps, by their recursion."""
    best = [0] + [length * (length - 1) // 2 for length in range(1, steps + 1)]
    for _ in range(states - 1):
        fewer, best = best, [0, 0]
        for length in range(2, steps + 1):
            best.append(min(d + fewer[length - d] + best[d] for d in range(1, length)))
    return best[steps]


@pytest.mark.parametrize("steps, states", [(1, 1), (7, 1), (12, 3), (40, 4), (100, 5)])
def test_checkpointed_replays_the_fewest_steps(steps, states):
    """Calls of the loss: every step advanced, the last one, and one linearized for each."""
    calls = []

    def inner_loss(w, hyper, t):
        calls.append(t)
        return (w * w).sum() * hyper[0]

    problem, hyper = catalogue.bowl(hg.Torch(), inner_loss=inner_loss, steps=steps)
    hg.Reverse(hg.Checkpointed(states))(problem, hyper)
    assert len(calls) == optimum(steps, states) + 1 + steps


@pytest.mark.parametrize("steps, states", [(100, 5), (1000, 10), (1000, 30)])
def test_checkpoint_schedule_meets_the_closed_form(steps, states):
    """r T - binomial(c + r, r - 1), r the least with T <= binomial(c + r, c)."""

    def advanced(length, free):
        if length == 1:
            return 0
        if not free:
            return length * (length - 1) // 2
        d = next_checkpoint(length, free)
        return d + advanced(length - d, free - 1) + advanced(d, free)

    r = next(r for r in range(steps) if steps <= math.comb(states + r, states))
    assert advanced(steps, states - 1) == r * steps - math.comb(states + r, r - 1)


@pytest.mark.parametrize("states", [1, 2, 5, 99, None])
@pytest.mark.parametrize("steps", [0, 1, 12])
def test_checkpointed_has_the_bits_of_stored(backend, states, steps):
    problem, hyper = catalogue.everything(backend, steps=steps)
    ours = hg.Reverse(hg.Checkpointed(states))(problem, hyper)
    stored = hg.Reverse()(problem, hyper)
    assert all(np.array_equal(a, b) for a, b in zip(stored[:3], ours[:3], strict=True))


@pytest.mark.parametrize("last", [0, 1, 5, 12, 40])
def test_truncated_is_reverse_mode_from_later(backend, last):
    """The run before is a constant: it passes nothing on."""
    problem, hyper = catalogue.everything(backend)
    first = max(0, problem.steps - last)
    middle = hg.train(dataclasses.replace(problem, steps=first), backend.array(hyper))
    opt = problem.optimizer
    rest = dataclasses.replace(
        problem,
        inner_loss=lambda w, h, t: problem.inner_loss(w, h, t + first),
        optimizer=hg.Momentum(
            lambda h, t: opt.rate(h, t + first), lambda h, t: opt.decay(h, t + first), middle[1]
        ),
        initial=middle[0],
        steps=problem.steps - first,
    )
    found = hg.Reverse(hg.Truncated(last))(problem, hyper)
    whole = problem if last >= problem.steps else rest
    assert gap(backend.numpy(found.grad), backend.numpy(hg.Forward()(whole, hyper).grad)) < 1e-12


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


CHOICES = {
    "every step": ({}, lambda T: (range(T), [t / T for t in range(T)])),
    "a third": ({"share": 1 / 3}, lambda T: (range(0, T, 3), np.arange(T // 3) * 3 / T)),
    "released": (
        {"share": 0.1, "minibatches": "first", "ends": 0.001},
        lambda T: (range(T // 10), np.linspace(0.001, 0.999, T // 10)),
    ),
}


@pytest.mark.parametrize("decay", [0.1, 0.9])
@pytest.mark.parametrize("choice", CHOICES)
def test_shortcut_is_the_recursion_of_its_paper(backend, choice, decay):
    problem, hyper = catalogue.bowl(
        backend,
        steps=30,
        optimizer=hg.Momentum(0.1, decay),
        initial=np.linspace(-1, 2, 5),
        inner_loss=lambda w, h, t: (
            backend.xp.exp(h[0]) * ((w - h[1]) ** 4).sum() * (1 + (t or 0) / 300)
        ),
    )
    options, replay = CHOICES[choice]
    hyper = backend.array(hyper)
    found = hg.Reverse(hg.Shortcut(**options))(problem, hyper).grad
    expected = straight_line(problem, hyper, 0.1, round_decay(decay), *replay(30))
    assert gap(found, expected) < 1e-12


@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
def test_shortcut_is_exact_on_a_straight_path(backend, kind):
    """A linear loss whose velocity starts at its limit: every step is the same."""
    xp = backend.xp
    slope = backend.array([1.0, -2.0, 0.5])
    limit = -slope if kind is hg.Momentum else slope / (1 - 0.75)
    problem = hg.Problem(
        backend,
        inner_loss=lambda w, h, t: (slope * w).sum(),
        outer_loss=lambda w, h: ((w - 1) ** 2).sum(),
        optimizer=kind(
            lambda h, t: xp.exp(h[t]), lambda h, t: 1 / (1 + xp.exp(-h[8 + t])), velocity=limit
        ),
        initial=lambda h: h[16:],
        steps=8,
    )
    hyper = np.concatenate([np.full(8, -2.0), np.full(8, np.log(3.0)), [0.3, 0.2, 0.1]])
    line, exact = (hg.Reverse(way)(problem, hyper).grad for way in (hg.Shortcut(), hg.Stored()))
    assert gap(line, exact) < 1e-12


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
def test_shortcut_takes_every_optimizer(backend, name):
    problem, hyper = catalogue.everything(backend, name)
    exact, line = hg.Reverse()(problem, hyper), hg.Reverse(hg.Shortcut())(problem, hyper)
    assert np.isfinite(backend.numpy(line.grad)).all() and float(line.value) == float(exact.value)


def test_shortcut_bears_steps_that_do_not_move(backend):
    """A rate of zero leaves the velocity unknown."""
    rates = backend.array([0.1, 0.0, 0.1, 0.0])
    problem, _ = catalogue.bowl(
        backend, steps=4, optimizer=hg.Momentum(lambda h, t: rates[t] * h[1], 0.9)
    )
    grad = hg.Reverse(hg.Shortcut())(problem, [0.5, 1.0]).grad
    assert np.isfinite(backend.numpy(grad)).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hg.Shortcut(share=0), r"share must lie in \(0, 1\].*got 0"),
        (lambda: hg.Shortcut(minibatches="last"), "'spread' or 'first', got 'last'"),
        (lambda: hg.Shortcut(ends=0.5), r"\[0, 0.5\), got 0.5"),
        (lambda: hg.Checkpointed(0), "states must be a number of states >= 1, got 0"),
        (lambda: hg.Truncated(-1), "last must be a number of steps >= 0, got -1"),
        (lambda: hg.Stored(graphs=-1), "graphs must be a number of steps >= 0, got -1"),
        (lambda: hg.Reversible(graphs=-1), "graphs must be a number of steps >= 0, got -1"),
    ],
)
def test_option_out_of_range_raises(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_nbytes_is_what_is_kept(backend):
    problem, hyper = catalogue.bowl(backend, n=200, steps=225, optimizer=hg.Momentum(0.01, 0.9))
    ways = (hg.Stored(), hg.Checkpointed(states=30), hg.Shortcut(), hg.Truncated(last=1))
    kept = [hg.Reverse(way)(problem, hyper).nbytes for way in ways]
    state = 2 * 200 * 8
    assert kept == [226 * state, 30 * state, 2 * state, 2 * state]
    reversible = hg.Reverse(hg.Reversible())(problem, hyper).nbytes
    assert 225 * 200 * 0.152 / 8 < reversible < 225 * 200 * 0.152 / 8 + state + 200 * 4


@pytest.mark.parametrize("way", [hg.Stored(), hg.Checkpointed(), hg.Truncated(3)], ids=repr)
def test_another_gradient_on_the_way_back_raises(backend, way):
    """An unseeded batch: the way back meets another loss than training did."""
    rng = np.random.default_rng(0)
    problem, hyper = catalogue.bowl(backend)
    noisy = dataclasses.replace(
        problem, inner_loss=lambda w, h, t: problem.inner_loss(w, h, t) * (1 + 0.01 * rng.random())
    )
    with pytest.raises(hg.ReversalError, match="another gradient on the way back.*a seed made"):
        hg.Reverse(way)(noisy, hyper)


@pytest.mark.parametrize("way", [hg.Stored(), hg.Truncated(2), hg.Checkpointed(), hg.Shortcut()])
def test_divergence_is_seen_where_one_looks_seldom(way, monkeypatch):
    monkeypatch.setattr(hg.Torch, "sync_every", 64)
    problem, hyper = catalogue.everything(hg.Torch())
    last = problem.steps - 1
    steep = dataclasses.replace(
        problem,
        inner_loss=lambda w, h, t: problem.inner_loss(w, h, t) * (math.nan if t == last else 1),
    )
    with pytest.raises(hg.Diverged, match=f"training diverged at step {last}"):
        hg.Reverse(way)(steep, hyper)


def test_memory_that_is_not_there_is_named(backend):
    problem, hyper = catalogue.bowl(backend, steps=10**12)
    with pytest.raises(MemoryError, match=r"Stored keeps 10\d+ states, .* GB.*Reversible\(\)"):
        hg.Reverse()(problem, hyper)
