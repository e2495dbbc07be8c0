"""Inner objectives that bring their own derivatives, against the same objectives left to autograd."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import layout, written

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
NET = hg.nets.Dense((6, 5, 4, 3))
STEPS = 12
NAMES = hg.Layout({"rate": (len(NET.layout),), "strength": (len(NET.layout),)})
SOLVERS = {
    "stored": hg.Reverse(),
    "reversible": hg.Reverse(hg.reversible),
    "shortcut": hg.Reverse(hg.shortcut),
    "forward": hg.Forward(),
    "stored, all graphs": hg.Reverse(functools.partial(hg.stored, graphs=STEPS)),
    "stored, more graphs than steps": hg.Reverse(functools.partial(hg.stored, graphs=99)),
    "reversible, five graphs": hg.Reverse(functools.partial(hg.reversible, graphs=5)),
    "Neumann": hg.Implicit(hg.Neumann(5, rate=0.1)),
    "Nystrom": hg.Implicit(hg.Nystrom(5, rho=1.0)),
    "identity": hg.Implicit(hg.Identity()),
}


def tasks(backend, dtype="float64", penalised=True):
    """(problem that knows its derivatives, the same as a closure, hyper)."""
    rng, xp = np.random.default_rng(0), backend.xp
    inputs, noise = (
        backend.array(rng.standard_normal((30, 6))),
        backend.array(0.5 * rng.standard_normal(NET.layout.size)),
    )
    labels = backend.array(np.eye(3)[rng.integers(3, size=30)])

    def batch(t):
        rows = slice(None) if t is None else slice(10 * (t % 3), 10 * (t % 3) + 10)
        return inputs[rows], labels[rows]

    def strength(hyper):
        return xp.exp(NAMES.split(hyper)["strength"])

    def closure(weights, hyper, t):
        rows, wanted = batch(t)
        loss = hg.nets.cross_entropy(NET(weights, rows), wanted)
        return (
            loss + xp.sum(NET.layout.expand(strength(hyper)) * weights * weights)
            if penalised
            else loss
        )

    known = hg.Problem(
        backend=backend,
        inner=hg.CrossEntropy(NET, batch, strength if penalised else None),
        steps=STEPS,
        outer=lambda weights, hyper: hg.nets.cross_entropy(NET(weights, inputs), labels),
        dynamics=hg.Momentum(
            rate=lambda hyper, t: NET.layout.expand(xp.exp(NAMES.split(hyper)["rate"])),
            decay=lambda hyper, t: 0.9,
        ),
        initial=lambda hyper: noise,
    )
    hyper = NAMES.join(
        {"rate": np.full(len(NET.layout), -2.0), "strength": np.linspace(-3, -2, len(NET.layout))}
    )
    return known, dataclasses.replace(known, inner=closure), hyper


@both
@pytest.mark.parametrize("name", SOLVERS)
def test_a_penalty_apart_gives_the_hypergradient_of_one_in_the_objective(backend, name):
    known, closure, hyper = tasks(backend)
    _, bare, _ = tasks(backend, penalised=False)
    for inner in (
        bare.inner,
        dataclasses.replace(known.inner, strength=None),
    ):  # left to the backend, and one that brings its own derivatives
        apart = dataclasses.replace(
            known, inner=hg.Penalised(inner, NET.layout, known.inner.strength)
        )
        ours, theirs = SOLVERS[name](apart, hyper), SOLVERS[name](closure, hyper)
        assert gap(ours.grad, theirs.grad) < 1e-11 and abs(float(ours.value - theirs.value)) < 1e-13


def test_a_penalty_is_added_to_a_gradient_that_is_one_number_in_memory():
    constant = hg.Penalised(
        lambda weights, hyper, t: weights.sum(), NET.layout, torch.exp
    )  # its gradient: ones, by expansion
    weights, hyper = torch.ones(NET.layout.size), torch.zeros(len(NET.layout))
    assert (constant.gradient(hg.Torch(dtype="float32"), weights, hyper, 0) == 3).all()


@both
@pytest.mark.parametrize(
    "name, penalised",
    [*((name, True) for name in SOLVERS), ("reversible", False), ("forward", False)],
)
def test_a_known_objective_gives_the_hypergradient_of_its_closure(backend, name, penalised):
    known, closure, hyper = tasks(backend, penalised=penalised)
    ours, theirs = SOLVERS[name](known, hyper), SOLVERS[name](closure, hyper)
    assert gap(ours.grad, theirs.grad) < 1e-11  # some thousand roundings
    assert abs(float(ours.value - theirs.value)) < 1e-13


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_off_the_cpu_the_same_is_reckoned_with_tensors(solver, monkeypatch):
    known, _, hyper = tasks(hg.Torch())
    here = solver(known, hyper)
    monkeypatch.setattr(written, "bare", lambda tensor: tensor.detach())
    monkeypatch.setattr(layout, "in_reverse", lambda array: False)
    assert gap(solver(known, hyper).grad, here.grad) < 1e-11


def test_single_precision_stays_single():
    known, closure, hyper = tasks(hg.Torch(dtype="float32"))
    ours, theirs = (hg.Reverse(hg.reversible)(problem, hyper).grad for problem in (known, closure))
    assert ours.dtype == torch.float32 and gap(ours.double(), theirs.double()) < 1e-4


@both
@pytest.mark.parametrize("size", [9, 10**3])
def test_a_layout_that_is_not_that_of_the_weights_is_refused(backend, size):
    known, _, hyper = tasks(backend)
    short = hg.Penalised(
        known.inner.inner, hg.Layout({"all": (size,)}), lambda hyper: backend.xp.exp(hyper[:1])
    )
    with pytest.raises(
        ValueError,
        match=f"layout must name all blocks of the weights, \\({NET.layout.size},\\); it has {size} numbers",
    ):
        hg.Reverse()(dataclasses.replace(known, inner=short), hyper)


def test_a_constant_penalty_adds_nothing_to_the_slope_by_hyper():
    known, _, hyper = tasks(hg.Torch())
    strength = known.backend.array(np.linspace(0.01, 0.1, len(NET.layout)))
    constant = dataclasses.replace(
        known, inner=dataclasses.replace(known.inner, strength=lambda hyper: strength)
    )
    forward, reverse = (solver(constant, hyper).grad for solver in (hg.Forward(), hg.Reverse()))
    assert gap(forward, reverse) < 1e-11 and not NAMES.split(forward)["strength"].any()


def test_another_hyper_has_another_penalty():
    known, closure, hyper = tasks(hg.Torch())
    for shift in (0.0, 1.0, 0.0):
        assert (
            gap(hg.Reverse()(known, hyper + shift).grad, hg.Reverse()(closure, hyper + shift).grad)
            < 1e-11
        )


def test_a_hyper_changed_in_place_is_another():
    known, closure, hyper = tasks(hg.Torch())
    hyper = torch.as_tensor(hyper.copy())
    (weights,) = known.start(hyper)[:1]
    known.gradient(weights, hyper, 0)
    hyper += 1
    assert gap(known.gradient(weights, hyper, 0), closure.gradient(weights, hyper, 0)) < 1e-13


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda x: x.float(), "inputs are torch.float32"),
        (lambda x: x.numpy(), "inputs are float64"),
    ],
)
def test_a_batch_of_another_kind_is_refused_with_the_way_out(wrong, told):
    known, _, hyper = tasks(hg.Torch())
    inner = dataclasses.replace(
        known.inner, batch=lambda t: (wrong(known.inner.batch(t)[0]), known.inner.batch(t)[1])
    )
    with pytest.raises(
        TypeError, match=f"batch\\(0\\) must give tensors like the weights.*{told}.*backend.array"
    ):
        hg.Reverse()(dataclasses.replace(known, inner=inner), hyper)


@pytest.mark.parametrize("remember", [hg.stored, hg.reversible])
def test_graphs_are_counted_in_steps_and_let_go(remember):
    known, _, hyper = tasks(hg.Torch())
    with pytest.raises(ValueError, match="graphs must be a number of steps >= 0, got -1"):
        remember(known, torch.as_tensor(hyper), graphs=-1)
    run = remember(known, torch.as_tensor(hyper), graphs=4)
    assert list(run.graphs) == [8, 9, 10, 11]


def test_the_blas_of_numpy_has_the_threads_of_torch():
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            written.forward(torch.zeros(NET.layout.size), torch.ones(1, 6), NET.layout)
            found = {
                pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
            }
            assert found <= {threads}
    finally:
        torch.set_num_threads(before)
        written.forward(torch.zeros(NET.layout.size), torch.ones(1, 6), NET.layout)


def compiler_at_work() -> bool:
    """Whether torch.compile can do anything here: it needs a C++ compiler, and paths without spaces."""
    try:
        return float(torch.compile(lambda x: x + 1)(torch.zeros(1))) == 1
    except Exception:  # whatever it was, it was not ours
        return False


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_objective_agrees_and_rewinds():
    if not compiler_at_work():
        pytest.skip("torch.compile does not work here")
    _, closure, hyper = tasks(hg.Torch())
    compiled = dataclasses.replace(closure, inner=hg.Compiled(closure.inner))
    for solver in (hg.Reverse(hg.reversible), hg.Reverse()):
        assert gap(solver(compiled, hyper).grad, solver(closure, hyper).grad) < 1e-11
