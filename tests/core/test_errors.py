"""What is refused, and how it is said: arguments at the border, runs at the step that fails."""

import math
from dataclasses import replace

import catalogue
import numpy as np
import pytest
import torch
from catalogue import LAYOUT, SOLVERS, bowl

import hgcore as hg
from hgcore.nets import DenseNet

BLOCKS = LAYOUT.split(np.zeros(11))
ONES = np.ones(3)
TORCH_ADAM = torch.optim.Adam([torch.zeros(1)])
IMPLICIT = hg.Implicit(hg.Identity())
STILL = {"optimizer": hg.GradientDescent(0.0), "steps": 1}


def run(backend, hyper=(0.1, 0.3), **changes):
    """Return the hypergradient of the small quadratic problem."""
    return hg.Reverse()(bowl(backend, **changes)[0], hyper)


def outer(backend, **changes):
    """Do the first step of an outer loop."""
    problem, hyper = bowl(backend)
    given = {"solver": hg.Reverse(), "problem": problem, "hyper": hyper, **STILL}
    return next(hg.descend(**given | changes))


EVERY = "every must .* inner steps >= 1, got"
REAL = "numbers must be real, got complex"
ARGUMENTS = [  # a call with a backend, words of its error
    (lambda b: bowl(b, steps=-1), "steps must be a whole number of steps >= 0, got -1"),
    (lambda b: bowl(b, inner_loss=1.0), "inner_loss must take .*: 1.0 is not a callable"),
    (lambda b: bowl(b, optimizer=TORCH_ADAM), "got an object of .*torch.optim.adam.Adam"),
    (lambda b: replace(bowl(b)[0], backend=type(b)), r"backend must be .* hg.Torch\(\), got <cl"),
    (lambda b: bowl(b, inner_loss=lambda w, h: 1), r"inner_loss must take \(weights, hyper, t\): "),
    (lambda b: bowl(b, initial=torch.nn.Linear(2, 2)), "got a module; hg.nets.functional gives"),
    (lambda b: bowl(b, initial=[np.zeros(2), np.zeros((2, 2))]), "function of hyper, got several"),
    (lambda b: bowl(b, initial=None), "initial must be a vector .*, got None"),
    (lambda b: hg.Adam(lambda h: h[0]), r"Adam: rate must take \(hyper, t\): too many positional"),
    (lambda b: hg.Adam(torch.ones((), requires_grad=True)), "rate is a tensor that requires a"),
    (lambda b: hg.AdamW(0.1, clip=0.0), "AdamW: clip must be positive, got 0"),
    (lambda b: hg.Adam(0.1, epsilon=-1.0), "Adam: epsilon must be >= 0, got -1"),
    (lambda b: hg.Torch("float32"), "device must be 'cpu', or 'cuda' .*, got 'float32'"),
    (lambda b: hg.Torch("cuda:99"), "on a machine with such a GPU, got 'cuda:99': "),
    (lambda b: hg.Torch(None), "device must be 'cpu', .*, got None"),
    (lambda b: hg.Torch(dtype="float16"), "'float32' or 'float64', got 'float16'"),
    (lambda b: hg.Implicit(hg.DenseSolve(), 8), r"must be values of t such as range\(8\)"),
    (lambda b: hg.Reverse(hg.Reversible), "trajectory must be an object such as"),
    (lambda b: hg.Shortcut(minibatches="last"), "'spread' or 'first', got 'last'"),
    (lambda b: hg.Shortcut(ends=0.5), r"\[0, 0.5\), got 0.5"),
    (lambda b: hg.Shortcut(share=0), r"share must lie in \(0, 1\].*got 0"),
    (lambda b: hg.Checkpointed(0), "states must be a whole number of states >= 1, got 0"),
    (lambda b: hg.ConjugateGradient(0), "iterations must be a whole number of products >= 1, got"),
    (lambda b: hg.Neumann(5, rate=0.0), "rate must be positive or None, got 0.0"),
    (lambda b: hg.Nystrom(2, rho=-1.0), "rho must be >= 0, got -1.0"),
    (lambda b: hg.Nystrom(2, 0)(lambda v: v, b.array(ONES)), r"positive .* \(2 < 3\), got 0"),
    (
        lambda b: hg.check(lambda k: bowl(b)[0], [0.1]),
        "problem must be an object .* got an .*function",
    ),
    (lambda b: run(b, 0.1), r"flat vector \(m,\), got shape .*Layout.join"),
    (lambda b: run(b, {"rate": 0.1}), "got dict; use Layout.join"),
    (lambda b: run(b, "0.1"), "flat vector .*, got str"),
    (lambda b: run(b, [0.1, math.nan]), "hyper holds"),
    (lambda b: run(b, torch.nn.Linear(2, 2)), r"flat vector .*, got Linear"),
    (lambda b: run(b, [np.zeros(2), np.zeros(3)]), "flat vector .*, got list"),
    (lambda b: run(b, np.array([0.1 + 1j, 0.3])), REAL),
    (lambda b: run(b, [np.complex128(0.1 + 1j), 0.3]), REAL),
    (lambda b: run(b, initial=b.xp.asarray([1 + 1j] * 5)), REAL),
    (lambda b: run(b, inner_loss=lambda w, h, t: b.xp.asarray(1j)), REAL),
    # with a graph, NumPy would make a new array; without, it would change hyper for what follows
    (lambda b: run(hg.Autograd(), inner_loss=lambda w, h, t: h.fill(0)), "read-only"),
    (lambda b: run(b, steps=10**12), r"Stored keeps 10\d+ states, .* GB.*Reversible\(\)"),
    (
        lambda b: IMPLICIT(*bowl(b, inner_loss=lambda w, h, t: (w - t % 4).sum())),
        "Implicit differentiates inner_loss.*None stands for all",
    ),
    (lambda b: outer(b, solver=hg.Reverse), "solver must be an object such as"),
    (lambda b: outer(b, problem=lambda k: []), "problem .* got an object of .*list"),
    (lambda b: outer(b, problem=lambda: 0), r"problem must take \(k\)"),
    (lambda b: outer(b, project=lambda h: h[:1]), r"a vector of shape \(2,\), got \(1,\)"),
    (lambda b: outer(b, optimizer=hg.Adam), "optimizer must be an object .* got <class .*Adam"),
    # would turn hyper into a matrix
    (lambda b: outer(b, optimizer=hg.Momentum(np.ones((2, 1)), 0.9)), r"shape \(2,\), got \(2, 1"),
    (lambda b: outer(b, optimizer=hg.Momentum(0.1, 0.9, np.ones(2))), "leave velocity out"),
    (lambda b: outer(b, optimizer=hg.Adam(0.1, beta2=1.0)), "beta2 must lie in .*, got 1.0"),
    (lambda b: outer(b, optimizer=hg.Momentum(0.1, -0.5)), "decay must lie in .*, got -0.5"),
    (lambda b: outer(b, resume="step.npz"), "resume must be .* hg.load.*, got an object of .*str"),
    (lambda b: outer(b, steps=2.5), "steps must be a whole number of steps >= 0, got 2.5"),
    (
        lambda b: next(hg.realtime(*bowl(b), **STILL, solver=hg.Reverse())),
        "Forward.*got an .*Reverse",
    ),
    (lambda b: next(hg.realtime(*bowl(b), **STILL, every=0)), EVERY),
    (lambda b: next(hg.alternate(IMPLICIT, *bowl(b), **STILL, every=0)), EVERY),
    (lambda b: hg.box_l1(-0.25, 1.0, 1.0)(b.array(ONES)), "low must be >= 0, got -0.25"),
    (lambda b: hg.box_l1(0.5, 1.0, 1.25)(b.array(ONES)), "up to 1.5, more than the radius 1.25"),
    (lambda b: hg.l1_ball(-1.0), "radius must be a number >= 0, got -1.0"),
    (lambda b: hg.box(0.0, None), "low <= high must hold, got 0 and nan; use -inf or inf"),
    (lambda b: hg.box([0.0, 2.0], 1.0), "low <= high must hold, got 2 and 1"),
    (lambda b: hg.box(0.0, 1.0)([1, 2]), "takes a vector of floats, got list; use backend.array"),
    (lambda b: DenseNet((4, 0, 3)), r"each >= 1, got \(.*; one layer takes two"),
    (lambda b: hg.Layout({"bias": 3}), "shape of block 'bias' must be a tuple, got 3"),
    (lambda b: LAYOUT.split(b.array(np.zeros(10))), r"takes a vector of shape \(11,\)"),
    (lambda b: LAYOUT.join({"matrix": b.array(np.ones((2, 3)))}), "blocks must be .*'number'"),
    (lambda b: LAYOUT.join(BLOCKS | {"matrix": np.ones(4)}), r"'matrix' must have shape \(2, 3\)"),
]


@pytest.mark.parametrize("call, words", ARGUMENTS)
def test_argument_is_refused(backend, call, words):
    with pytest.raises((TypeError, ValueError, MemoryError, hg.Diverged), match=words):
        call(backend)


def at(step, value):
    """Return a coefficient that has this value at one step."""
    return lambda hyper, t: value if t == step else 0.5


SHAPE = r"must be a scalar or have shape \(5,\), got .* at step"
DECAY = r"decay must lie in \[2\*\*-16, 1\], got .* at step 4"
BETA = r"beta. must lie in \[2\*\*-16, 1 - 2\*\*-16\], got"
SHRINK = r"1 - rate \* weight_decay must lie in .*; take 0 <= rate \* weight_decay < 1"
WRONG_DECAYS = 0.0, 1.5, math.nan, 1e-6, 1 + 1e-9, np.linspace(0.5, 1.5, 5)
# 1 - 2**-18 rounds to one, which would divide by 1 - beta**t = 0
WRONG_BETAS = {"beta1": 1.0}, {"beta1": 0.0}, {"beta2": 1 - 2.0**-18}
OPTIMIZERS = [  # one that a run refuses, words of the error
    (hg.Momentum(at(0, np.ones(1)), 0.9), f"rate {SHAPE} 0"),
    (hg.Momentum(at(2, np.ones(3)), 0.9), f"rate {SHAPE} 2"),
    (hg.Momentum(0.1, at(2, np.ones(0))), f"decay {SHAPE} 2"),
    (hg.Momentum(at(0, None), 0.9), "rate .*got None at step 0"),
    (hg.Momentum(0.1, 0.9, lambda h: h), r"shape \(n,\).*\(5,\), \(2,\)"),
    *((hg.HeavyBall(0.1, at(4, value)), DECAY) for value in WRONG_DECAYS),
    *((hg.AdamW(0.1, **beta), BETA) for beta in WRONG_BETAS),
    *((hg.AdamW(0.1, weight_decay=value), SHRINK) for value in (20.0, 10.0, -0.1)),
    (hg.Adam(0.1, clip=lambda h, t: 2 - t), "clip must be positive, got 0 at step 2"),
    (hg.Adam(0.1, epsilon=lambda h, t: 2 - t), "epsilon must be >= 0, got -1 at step 3"),
]
SCALAR = r"a loss must return a scalar of shape \(\), got"
RUNS = [  # changes of a small quadratic problem, words of the error of its run
    *(({"optimizer": optimizer}, words) for optimizer, words in OPTIMIZERS),
    ({"initial": lambda h: h[0]}, r"must have one shape \(n,\)"),
    ({"inner_loss": lambda w, h, t: (w * (math.nan if t == 3 else 1.0)).sum()}, "at step 3:"),
    ({"inner_loss": lambda w, h, t: (w * math.inf).sum()}, "at step 0:"),
    ({"inner_loss": lambda w, h, t: w * h[0]}, rf"{SCALAR} .*5"),
    ({"inner_loss": lambda w, h, t: 1.0 * (w > 9).sum()}, "inner_loss has no derivative: it is p"),
    (
        {"outer_loss": lambda w, h: 1.0 * (w > 9).sum()},
        "outer_loss has no derivative: it is piecew",
    ),
    ({"outer_loss": lambda w, h: w[:1]}, rf"{SCALAR} .*1.*; take its mean"),
    ({"outer_loss": lambda w, h: 1.0}, rf"{SCALAR} float: float\(\) and .item\(\) cut"),
    # its gradient is finite, as that of a logarithm below zero
    ({"outer_loss": lambda w, h: (w + math.nan).sum()}, "outer loss"),
]


@pytest.mark.parametrize("changes, words", RUNS)
def test_run_is_refused(backend, changes, words):
    problem, hyper = bowl(backend, **changes)
    for solver in SOLVERS.values():
        with np.errstate(all="ignore"), pytest.raises((ValueError, hg.Diverged), match=words):
            solver(problem, hyper)


OWN_STEP = type("OwnStep", (hg.Momentum,), {"step": lambda *given: hg.Momentum.step(*given)})
RUNAWAY = {"inner_loss": lambda w, h, t: -100 * w.sum(), "steps": 50}
IRREVERSIBLE = [  # changes of the problem, words of the error
    ({"optimizer": hg.GradientDescent(0.1)}, "GradientDescent cannot be run backwards"),
    ({"optimizer": hg.RMSProp(0.1)}, "RMSProp cannot be run backwards"),
    ({"optimizer": hg.Adam(1, fade=0.5)}, "Adam cannot be run backwards"),
    ({"optimizer": OWN_STEP(0.1, 0.9)}, "OwnStep cannot be run backwards"),
    ({"initial": np.linspace(0, -3000, 5)}, r"3000 before step 0; .* below 2048.*Stored\(\)"),
    (RUNAWAY | {"optimizer": hg.Momentum(1.0, 0.9)}, r"at step \d+; fixed point"),
    (RUNAWAY | {"optimizer": hg.HeavyBall(1e-6, 0.99)}, "fixed point"),  # the slot alone
]


@pytest.mark.parametrize("changes, words", IRREVERSIBLE)
def test_what_cannot_be_undone_raises(backend, changes, words):
    problem, hyper = bowl(backend, **changes)
    with pytest.raises((ValueError, hg.Diverged), match=words):
        hg.Reverse(hg.Reversible())(problem, hyper)
    assert np.isfinite(backend.numpy(hg.Reverse()(problem, hyper).grad)).all()


@pytest.mark.parametrize("ours, theirs", [("float32", "float64"), ("float64", "float32")])
def test_data_of_another_precision_is_named(ours, theirs):
    data = hg.Torch(dtype=theirs).array(np.ones((5, 5)))
    words = f"takes {theirs} weights but not {ours} ones.*use hg.Torch.*dtype='{theirs}'"
    with pytest.raises(TypeError, match=words):
        run(hg.Torch(dtype=ours), inner_loss=lambda w, h, t: (data @ w).sum())


UNSEEDED = [(hg.Reversible(), name) for name in ("initial", "rate", "decay", "inner_loss")]
UNSEEDED += [(way, "inner_loss") for way in (hg.Stored(), hg.Checkpointed(), hg.Truncated(3))]


@pytest.mark.parametrize("way, name", UNSEEDED)
def test_unseeded_randomness_raises(backend, way, name):
    (problem, hyper), rng = bowl(backend), np.random.default_rng(0)
    unseeded = {
        "inner_loss": lambda w, h, t: problem.inner_loss(w, h, t) * (1 + 0.01 * rng.random()),
        "initial": lambda h: problem.initial(h) * (1 + 0.01 * rng.random()),
        "rate": hg.Momentum(lambda h, t: 0.1 * (1 + rng.random()) * (1 + h[0]), 0.9),
        "decay": hg.HeavyBall(0.02, lambda h, t: 0.5 + 0.4 * rng.random() + 0 * h[0]),
    }
    changes = {name if name in ("initial", "inner_loss") else "optimizer": unseeded[name]}
    words = "missed its start in .* of 10 numbers|another gradient on the way back.*a seed made"
    with pytest.raises(hg.ReversalError, match=words):
        hg.Reverse(way)(replace(problem, **changes), hyper)


@pytest.mark.parametrize("way", [hg.Stored(), hg.Truncated(2), hg.Checkpointed(), hg.Shortcut()])
def test_divergence_is_seen_where_one_looks_seldom(way, monkeypatch):
    monkeypatch.setattr(hg.Torch, "sync_every", 64)
    problem, hyper = catalogue.everything(hg.Torch())
    last, loss = problem.steps - 1, problem.inner_loss
    steep = lambda w, h, t: loss(w, h, t) * (math.nan if t == last else 1)  # noqa: E731
    with pytest.raises(hg.Diverged, match=f"training diverged at step {last}"):
        hg.Reverse(way)(replace(problem, inner_loss=steep), hyper)


IN_PLACE = [(solver, "inner_loss", what) for solver in SOLVERS.values() for what in (0, 1)]
IN_PLACE += [(solver, "outer_loss", 1) for solver in SOLVERS.values()]


@pytest.mark.parametrize("solver, name, what", [*IN_PLACE, (IMPLICIT, "optimizer", 0)])
def test_change_in_place_is_refused(solver, name, what):
    """Without a graph it would move the state of training, or the hyper of all that follows."""

    def change(*given):
        with torch.no_grad():
            given[what].clamp_(max=0.05)
        return (given[0] ** 2).sum() * given[1][0]

    rate = hg.Momentum(lambda h, t: h.clamp_(max=0.05)[0], 0.9)
    problem, hyper = bowl(hg.Torch(), **{name: rate if name == "optimizer" else change})
    given = torch.tensor(hyper)
    with pytest.raises(ValueError, match="changes its weights or hyper in place"):
        solver(problem, given)
    assert given.tolist() == hyper.tolist()


def test_torch_without_graphs():
    backend = hg.Torch(dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        run(backend)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use torch.no_grad"):
        run(backend)
    with torch.no_grad():
        inside = run(backend).grad
    assert torch.equal(inside, run(backend).grad)
