"""Training run backwards: bit for bit, with the memory that decays lose, and never unnoticed."""

import dataclasses
import math

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg

torch = pytest.importorskip("torch")


def long_run(optimizer, steps=1000, n=300, dtype="float64"):
    """Noisy quadratics whose outer loss passes nothing back, so that no adjoint can overflow."""
    backend, rng = hg.Torch(dtype=dtype), np.random.default_rng(0)
    targets = backend.array(rng.standard_normal((7, n)))
    scales = backend.array(np.exp(rng.uniform(-12, 1, n)))
    return hg.Problem(
        backend,
        inner_loss=lambda w, h, t: (scales * (w - targets[t % 7]) ** 2).sum(),
        outer_loss=lambda w, h: (0 * w).sum() + h[0],
        optimizer=optimizer,
        initial=np.ones(n),
        steps=steps,
    )


MOVING = {
    "momentum": hg.Momentum(0.1, lambda h, t: 0.9 + 0.09 * math.sin(t)),
    "heavy ball": hg.HeavyBall(0.01, lambda h, t: 0.9 + 0.09 * math.sin(t)),
    "per weight": hg.Momentum(0.1, np.linspace(2.0**-16, 1, 300)),
    "rmsprop": hg.RMSProp(1e-3, 0.99, 1e-8, 0.9),
    "adam": hg.Adam(1e-3, lambda h, t: 0.9 + 0.09 * math.sin(t), lambda h, t: 0.99 + 0.009 * t % 1),
    "adamw": hg.AdamW(lambda h, t: 1e-3 * (2 + math.cos(t))),
    "adamw, strong": hg.AdamW(1e-2, weight_decay=30.0),
    "adamw, per weight": hg.AdamW(1e-2, weight_decay=np.linspace(0, 30, 300)),
    "adamw, clipped": hg.AdamW(1e-3, clip=0.1),
}
MOVING["adam"] = hg.Adam(
    1e-3, lambda h, t: 0.9 + 0.09 * math.sin(t), lambda h, t: 0.99 + 0.009 * math.cos(t)
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MOVING)
def test_a_thousand_steps_come_back(name, dtype):
    """close() compares every bit with the true start and raises otherwise."""
    problem = long_run(MOVING[name], dtype=dtype)
    assert float(hg.Reverse(hg.Reversible())(problem, [1.0]).grad[0]) == 1


@pytest.mark.parametrize(
    "optimizer, factors",
    [
        (hg.Momentum(0.1, 0.9), (0.9,)),
        (hg.AdamW(1e-3, weight_decay=0.01), (0.9, 0.999, 1 - 1e-5)),
        (hg.AdamW(1e-2, weight_decay=10.0), (0.9, 0.999, 0.9)),
    ],
)
def test_a_step_costs_what_its_factors_lose(optimizer, factors):
    """log2 of 1 / each factor; between 1,000 and 2,000 steps, so without the constant part."""
    few, many = (
        hg.Reverse(hg.Reversible())(long_run(optimizer, t, 3000), [1.0]) for t in (1000, 2000)
    )
    bits = 8 * (many.nbytes - few.nbytes) / 3000 / 1000
    assert bits == pytest.approx(
        -sum(math.log2(round(f * 2**16) / 2**16) for f in factors), rel=0.05
    )


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_plain_arithmetic_has_the_same_bits(backend, name, monkeypatch):
    """Whether or not fast/ is there."""
    problem, hyper = catalogue.everything(backend, name, per_weight=True, steps=40)
    fast = hg.Reverse(hg.Reversible())(problem, hyper)
    monkeypatch.setattr(hg.fixed_point, "arithmetic", lambda bits: hg.fixed_point.PLAIN)
    slow = hg.Reverse(hg.Reversible())(problem, hyper)
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


class Device(hg.Torch):
    """A CPU treated like a GPU: integers stay torch's, numbers are looked at now and then."""

    sync_every = 64

    def host_view(self, array):
        return array.detach()


@pytest.mark.parametrize("name", ["momentum", "heavy ball", "adam", "adamw"])
def test_device_path_has_the_bits_of_the_cpu_path(name):
    """Momentum's kicks round alike in NumPy and torch; Adam's root and logarithm to 1e-12."""
    ours, cpu = (
        hg.Reverse(hg.Reversible())(*catalogue.everything(backend, name))
        for backend in (Device(), hg.Torch())
    )
    assert gap(ours.grad, cpu.grad) < (1e-12 if "adam" in name else 1e-15)


@pytest.mark.parametrize("name", ["inner_loss", "initial", "optimizer"])
def test_unseeded_randomness_raises(backend, name):
    rng = np.random.default_rng(0)
    draw = lambda: 1 + 0.01 * rng.random()  # noqa: E731
    problem, hyper = catalogue.bowl(backend)
    changes = {
        "inner_loss": lambda w, h, t: problem.inner_loss(w, h, t) * draw(),
        "initial": lambda h: problem.initial(h) * draw(),
        "optimizer": hg.Momentum(lambda h, t: 0.1 * draw() * (1 + h[0]), 0.9),
    }
    with pytest.raises(hg.ReversalError, match="missed its start in .* of 10 numbers"):
        hg.Reverse(hg.Reversible())(dataclasses.replace(problem, **{name: changes[name]}), hyper)


def test_threads_changed_between_the_passes_are_restored():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        problem, hyper = catalogue.net(hg.Torch())

        def outer_loss(w, hyper):
            torch.set_num_threads(2)
            return problem.outer_loss(w, hyper)

        changed = dataclasses.replace(problem, outer_loss=outer_loss)
        found = hg.Reverse(hg.Reversible())(changed, hyper)
        assert torch.get_num_threads() == 1
        assert gap(found.grad, hg.Reverse(hg.Reversible())(problem, hyper).grad) < 1e-13
    finally:
        torch.set_num_threads(before)


def test_other_bits_of_the_plain_gradient_are_noticed(backend, monkeypatch):
    """At the start: the joint gradient is used. Later: an error that names joint=True."""
    problem, hyper = catalogue.everything(backend)
    expected = hg.Reverse(hg.Reversible(joint=True))(problem, hyper)
    kind, calls, late = type(backend), [], [True]
    plain = kind.gradient

    def gradient(self, f, weights, hyper):
        calls.append(0)
        other = len(calls) > 3 if late[0] else True
        return plain(self, f, weights, hyper) * (1 + 2.0**-52 * other)

    monkeypatch.setattr(kind, "gradient", gradient)
    with pytest.raises(hg.ReversalError, match="joint=True"):
        hg.Reverse(hg.Reversible())(problem, hyper)
    late[0] = False
    for way in (hg.Reversible(), hg.Reversible(joint=True)):
        found = hg.Reverse(way)(problem, hyper)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "optimizer", [hg.GradientDescent(0.1), hg.RMSProp(0.1), hg.Adam(1, fade=0.5)]
)
def test_what_cannot_be_undone_raises(backend, optimizer):
    problem, hyper = catalogue.bowl(backend, optimizer=optimizer)
    with pytest.raises(ValueError, match=f"{type(optimizer).__name__} cannot be run backwards"):
        hg.Reverse(hg.Reversible())(problem, hyper)


@pytest.mark.parametrize("where", ["initial", "velocity"])
def test_start_out_of_range_raises_and_stored_can(backend, where):
    far = np.linspace(0, -3000, 5)
    change = {"initial": far} if where == "initial" else {"optimizer": hg.Momentum(0.1, 0.9, far)}
    problem, hyper = catalogue.bowl(backend, steps=3, **change)
    with pytest.raises(hg.Diverged, match=r"reached 3000 before step 0; .* below 2048.*Stored\(\)"):
        hg.Reverse(hg.Reversible())(problem, hyper)
    assert np.isfinite(backend.numpy(hg.Reverse()(problem, hyper).grad)).all()


def test_leaving_the_range_on_the_way_raises(backend):
    parts = {"inner_loss": lambda w, h, t: -100 * w.sum(), "optimizer": hg.Momentum(1.0, 0.9)}
    with pytest.raises(hg.Diverged, match=r"at step \d+; fixed point"):
        hg.Reverse(hg.Reversible())(*catalogue.bowl(backend, steps=50, **parts))
