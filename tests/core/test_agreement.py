"""Agreement: every exact solver, on both backends, with the unrolled loop and with each other."""

from functools import partial

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg

KINDS = {"scalars": {}, "per weight": {"per_weight": True}, "clipped": {"clip": 2.0}}
RATES = {"momentum": 0.3, "rmsprop": 0.01, "adam": 0.01, "adamw": 0.01}
CASES = {
    f"{name}, {kind}": partial(catalogue.everything, name=name, **options)
    for name in catalogue.OPTIMIZERS
    for kind, options in KINDS.items()
}
CASES |= {
    **{f"{name}, net": partial(catalogue.net, name=name, rate=r) for name, r in RATES.items()},
    "decay 0.99": partial(catalogue.everything, decay=0.99),
    "decay 0.3": partial(catalogue.everything, decay=0.3),
    "one weight": partial(catalogue.everything, name="adamw", n=1, per_weight=True),
    "no steps": partial(catalogue.everything, steps=0),
    "one step": partial(catalogue.everything, name="adam", steps=1),
}
ODD = {
    "outer loss of hyper": {"outer_loss": lambda w, h: (h**2).sum()},
    "outer loss of a weight": {"outer_loss": lambda w, h: w[0]},
    "linear inner loss": {"inner_loss": lambda w, h, t: w.sum() + 0 * h[0]},
    "no loss of hyper": {"inner_loss": lambda w, h, t: (w**2).sum(), "initial": np.ones(5)},
    "steps of NumPy": {"steps": np.int64(6)},
}
CASES |= {name: partial(catalogue.bowl, **changes) for name, changes in ODD.items()}
WAYS = hg.Stored(graphs=5), hg.Checkpointed(states=2), hg.Reversible(graphs=5), hg.Truncated(99)
EXACT = [*catalogue.SOLVERS.values(), *map(hg.Reverse, WAYS)]


def possible(problem, solvers):
    """Return the solvers without those that must refuse: descent cannot be reversed."""
    return [s for s in solvers if problem.optimizer.reversible or "Reversible" not in repr(s)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_solvers_equal_unrolled(case, backend):
    """Float64: T roundings of 1e-16, amplified 1e3 times; Adam's root amplifies by 1e2 more.

    Reversible Adam with epsilon = 1e-8 adds the unit of its second moments (see Reversible).
    """
    problem, hyper = case(backend)
    value, slope = catalogue.unrolled(problem, hyper)
    tiny_epsilon = getattr(problem.optimizer, "epsilon", 1) == 1e-8
    for solver in possible(problem, catalogue.SOLVERS.values()):
        result = solver(problem, hyper)
        wide = tiny_epsilon and "Reversible" in repr(solver)
        assert gap(backend.numpy(result.value), value) < (1e-9 if wide else 1e-11), solver
        assert gap(backend.numpy(result.grad), slope) < (1e-7 if wide else 1e-10), solver


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_backends_agree(case):
    """The same operations in another order: about 1e-16 a step."""
    ours, theirs = (hg.Reverse()(*case(b)) for b in (hg.Torch(), hg.Autograd()))
    assert all(gap(a, b) < 1e-11 for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert ours.nbytes == theirs.nbytes


@pytest.mark.parametrize("dtype, error", [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
def test_options_in_both_precisions(name, dtype, error):
    """6 steps of 1e-16 or 6e-8, amplified some 1e3 times."""
    problem, hyper = catalogue.everything(hg.Torch(dtype=dtype), name)
    exact = hg.Reverse()(*catalogue.everything(hg.Torch(), name))
    for solver in possible(problem, EXACT):
        assert gap(solver(problem, hyper).grad, exact.grad) < error


def test_same_call_gives_same_bits(backend):
    problem, hyper = catalogue.everything(backend, "adamw")
    for solver in catalogue.SOLVERS.values():
        results = zip(solver(problem, hyper), solver(problem, hyper), strict=True)
        assert all(np.array_equal(a, b) for a, b in results)


def test_forward_calls_the_loss_once_a_step(backend):
    """A hundred hyperparameters share the graph of one gradient."""
    calls = []

    def inner_loss(w, hyper, t):
        calls.append(t)
        return backend.xp.sum(backend.xp.exp(hyper) * w**2)

    start, hyper = (lambda hyper: hyper + 1), np.linspace(-2, 0, 100)
    problem, _ = catalogue.bowl(backend, n=100, steps=3, inner_loss=inner_loss, initial=start)
    found = hg.Forward()(problem, hyper).grad
    assert len(calls) <= 2 * problem.steps
    assert gap(found, hg.Reverse()(problem, hyper).grad) < 1e-13


@pytest.mark.parametrize("count", [1, 9, 0])
@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
@pytest.mark.parametrize("kind", ["numbers", "scalars", "vectors", "lists"])
def test_every_kind_of_coefficient(kind, name, count, backend):
    """Numbers, functions and vectors, of hyper or not; no hyperparameters at all."""
    xp, ramp = backend.xp, backend.array(np.linspace(0, 1, 5))
    rate, decay = {
        "numbers": (0.1, 0.8),
        "scalars": (lambda h, t: 0.1 + xp.sum(h), lambda h, t: 0.8),
        "vectors": (lambda h, t: 0.1 + xp.sum(h) * ramp, lambda h, t: 0.8 + 0.1 * ramp),
        "lists": ([0.1, 0.2, 0.1, 0.2, 0.1], [0.8, 0.9, 0.8, 0.9, 0.8]),
    }[kind]
    problem, _ = catalogue.bowl(
        backend,
        steps=5,
        inner_loss=lambda w, h, t: xp.sum(xp.exp(xp.sum(h)) * w**2 + xp.sin(w)),
        optimizer=catalogue.optimizer(name, rate, decay),
        initial=ramp + 1,
    )
    hyper = np.linspace(0.01, 0.02, count)
    solvers = (hg.Forward(), hg.Reverse())
    forward, reverse = (backend.numpy(solver(problem, hyper).grad) for solver in solvers)
    assert forward.shape == (count,) and np.allclose(forward, reverse, rtol=1e-11, atol=0)
