"""What is refused, and how it is said: arguments at the border, runs at the step that fails."""

import math
from dataclasses import replace

import catalogue
import numpy as np
import pytest
import torch
from catalogue import SOLVERS, bowl

import hgcore as hg
from hgcore.nets import DenseNet

LAYOUT = hg.Layout({"matrix": (2, 3), "number": (), "empty": (0,), "vector": (4,)})
TORCH_ADAM = torch.optim.Adam([torch.zeros(1)])
ARGUMENTS = [  # a call with a backend, words of its error
    (lambda b: bowl(b, steps=-1), "steps must be a whole number of steps >= 0, got -1"),
    (lambda b: bowl(b, steps=2.5), "got 2.5"),
    (lambda b: bowl(b, inner_loss=1.0), "inner_loss must be a function, got float"),
    (lambda b: bowl(b, outer_loss=None), "outer_loss must be a function"),
    (lambda b: bowl(b, optimizer=hg.Momentum), "got the class Momentum"),
    (lambda b: bowl(b, optimizer=TORCH_ADAM), "such as .*, got Adam"),
    (lambda b: bowl(b, optimizer=0.1), r"such as hg.Momentum\(0.1, 0.9\), got float"),
    (lambda b: replace(bowl(b)[0], backend=type(b)), r"must be hg.Torch\(\) or hg.Autograd\(\)"),
    (lambda b: bowl(b, inner_loss=lambda w, h: 1), r"inner_loss must take \(weights, hyper, t\): "),
    (lambda b: bowl(b, outer_loss=lambda w, h, t: 1), r"must take \(weights, hyper\): .* 't'"),
    (lambda b: bowl(b, initial=lambda: 1), r"initial must take \(hyper\): too many"),
    (lambda b: bowl(b, initial=torch.nn.Linear(2, 2)), "got a module; hg.nets.functional gives"),
    (lambda b: hg.Adam(lambda h: h[0]), r"Adam: rate must take \(hyper, t\): too many positional"),
    (lambda b: hg.Implicit(hg.DenseSolve(), 8), r"must be values of t such as range\(8\)"),
    (lambda b: hg.Reverse(hg.Reversible), "trajectory must be an object such as"),
    (lambda b: hg.Reverse(3), "trajectory must be an object"),
    (lambda b: hg.Implicit(hg.ConjugateGradient), "got the class ConjugateGradient"),
    (lambda b: hg.Reverse()(bowl(b)[0], [[0.1, 0.3]]), r"flat vector \(m,\), got shape .*.join"),
    (lambda b: hg.Reverse()(bowl(b)[0], 0.1), r"flat vector \(m,\), got shape .*Layout.join"),
    (lambda b: hg.Reverse()(bowl(b)[0], {"rate": 0.1}), "got dict; use Layout.join"),
    (lambda b: hg.Reverse()(bowl(b)[0], [0.1, math.nan]), "hyper holds"),
    (lambda b: hg.Reverse()(bowl(b)[0], [0.1, math.inf]), "hyper holds"),
    (lambda b: hg.Momentum("fast", 0.9), "Momentum: rate must be a number, .* got 'fast'"),
    (lambda b: hg.Adam(0.1, beta1=None), "Adam: beta1 must be a number, a vector or a function"),
    (lambda b: hg.GradientDescent(float), "rate must be a number, .*got <class 'float'>"),
    (lambda b: hg.AdamW(0.1, clip={}), "clip must be a number"),
    (lambda b: hg.AdamW(0.1, clip=0.0), "AdamW: clip must be positive, got 0"),
    (lambda b: hg.Adam(0.1, epsilon=-1.0), "Adam: epsilon must be >= 0, got -1"),
    (lambda b: bowl(b, initial=None), "initial must be a vector .*, got None"),
    (lambda b: hg.Reverse()(bowl(b)[0], None), r"flat vector \(m,\), got NoneType"),
    (lambda b: hg.load("step.npz", hg.Torch), "got the class Torch"),
    (lambda b: hg.save("step.npz", (1, 2)), "one of hg.descend's, got tuple"),
    (lambda b: hg.Shortcut(share=0), r"share must lie in \(0, 1\].*got 0"),
    (lambda b: hg.Shortcut(minibatches="last"), "'spread' or 'first', got 'last'"),
    (lambda b: hg.Shortcut(ends=0.5), r"\[0, 0.5\), got 0.5"),
    (lambda b: hg.Checkpointed(0), "states must be a whole number of states >= 1, got 0"),
    (lambda b: hg.Truncated(-1), "last must be a whole number of steps >= 0, got -1"),
    (lambda b: hg.Stored(graphs=-1), "graphs must be a whole number of steps >= 0, got -1"),
    (lambda b: hg.Reversible(graphs=-1), "graphs must be a whole number of steps >= 0, got -1"),
    (lambda b: hg.Checkpointed(2.5), "states must be a whole number of states >= 1, got 2.5"),
    (lambda b: hg.Neumann(-1), "terms must be a whole number of terms >= 0, got -1"),
    (lambda b: hg.Neumann(1, 0.0), "rate must be positive or None, got 0.0"),
    (lambda b: hg.Neumann(1, math.nan), "rate must be positive or None, got nan"),
    (lambda b: hg.ConjugateGradient(-1), "iterations must be a whole number of products >= 0"),
    (lambda b: hg.Nystrom(0), "rank must be a whole number of products >= 1, got 0"),
    (lambda b: hg.Nystrom(1, -1.0), "rho must be >= 0, got -1.0"),
    (lambda b: hg.Nystrom(2, 0)(lambda v: v, b.array(np.ones(3))), r"positive .* \(2 < 3\), got 0"),
    (lambda b: hg.simplex(0.0), "must be positive, got"),
    (lambda b: hg.simplex(math.nan), "must be positive, got"),
    (lambda b: hg.l1_ball(-1.0), "must be positive, got"),
    (lambda b: box_l1(b, 0.0, 1.0, -2.5), "radius must be a number >= 0, got -2.5"),
    (lambda b: box_l1(b, 0.0, 1.0, math.nan), "got nan"),
    (lambda b: box_l1(b, -0.25, 1.0, 1.0), "low must be >= 0, got -0.25"),
    (lambda b: box_l1(b, 0.5, [1.0, 0.25, 1.0], 2.0), "exceeds it by 0.25"),
    (lambda b: box_l1(b, 0.5, 1.0, 1.25), "low alone adds up to 1.5, more than the radius 1.25"),
    (lambda b: hg.box(1.0, 0.0), "low must be <= high, but exceeds it by 1"),
    (lambda b: hg.box([0, 2], [1, 1]), "low must be <= high, but exceeds it by 1"),
    (lambda b: hg.box(0.0, None), "high must be a number or a vector, got None"),
    (lambda b: hg.box(0.0, 1.0)([1, 2]), "takes a vector of floats, got list; use backend.array"),
    (lambda b: hg.l1_ball()(np.array([0, 3])), "takes a vector of floats, got int64"),
    (lambda b: DenseNet(()), r"each >= 1, got \(.*; one layer takes two"),
    (lambda b: DenseNet((4,)), r"each >= 1, got \(.*; one layer takes two"),
    (lambda b: DenseNet((4, 0, 3)), r"each >= 1, got \(.*; one layer takes two"),
    (lambda b: hg.Layout({"bias": 3}), "shape of block 'bias' must be a tuple, got 3"),
    (lambda b: hg.Layout({}), "at least one block"),
    (lambda b: LAYOUT.split(b.array(np.zeros(10))), r"takes a vector of shape \(11,\)"),
    (lambda b: LAYOUT.split(b.array(np.zeros((1, 11)))), r"takes a vector of shape \(11,\)"),
    (lambda b: LAYOUT.expand(b.array(np.ones(3))), r"per block, shape \(4,\), got \(3,\)"),
    (lambda b: LAYOUT.join(blocks(b, vector=None)), "blocks must be"),
    (lambda b: LAYOUT.join(blocks(b, other=1.0)), "blocks must be"),
    (lambda b: LAYOUT.join(blocks(b, matrix=np.ones(4))), r"'matrix' must have shape \(2, 3\)"),
    (lambda b: hg.Torch(dtype="float16"), "'float32' or 'float64', got 'float16'"),
]


def box_l1(backend, low, high, radius):
    return hg.box_l1(low, high, radius)(backend.array([0.0, 1.0, 2.0]))


def blocks(backend, **changes):
    found = LAYOUT.split(backend.array(np.zeros(11))) | changes
    return {name: block for name, block in found.items() if block is not None}


@pytest.mark.parametrize("call, words", ARGUMENTS)
def test_argument_is_refused(backend, call, words):
    with pytest.raises((TypeError, ValueError, hg.Diverged), match=words):
        call(backend)


def coefficient(name, shape, first):
    """Momentum with a coefficient of this shape from step `first` on."""

    def changes(b):
        value = lambda h, t: b.array(np.full(shape if t >= first else (), 0.5))  # noqa: E731
        return {"optimizer": hg.Momentum(**{"rate": 0.1, "decay": 0.9} | {name: value})}

    words = rf"{name} must be a scalar or have shape \(5,\), got .* at step {first}"
    return changes, words


def decay(value):
    optimizer = hg.HeavyBall(0.1, lambda h, t: value if t == 4 else 0.9)
    words = r"decay must lie in \[2\*\*-16, 1\], got .* at step 4"
    return lambda b: {"optimizer": optimizer}, words


def beta(name, value):
    words = rf"{name} must lie in \[2\*\*-16, 1 - 2\*\*-16\], got"
    return lambda b: {"optimizer": hg.Adam(0.1, **{name: value})}, words


def shrink(value):
    optimizer = hg.AdamW(0.1, weight_decay=value)
    words = r"1 - rate \* weight_decay must lie in .*; take 0 <= rate \* weight_decay < 1"
    return lambda b: {"optimizer": optimizer}, words


def gradient(value, at):
    inner_loss = lambda w, h, t: (w * (value if t == at else 1.0)).sum()  # noqa: E731
    return lambda b: {"inner_loss": inner_loss}, f"at step {at}:"


RUNS = [  # changes of a small quadratic problem, words of the error of its run
    *(coefficient(*case) for case in (("rate", (1,), 0), ("rate", (3,), 2), ("decay", (2, 5), 0))),
    *(coefficient(*case) for case in (("decay", (0,), 2), ("decay", (1,), 2), ("rate", (0,), 0))),
    *map(decay, (0.0, 1.5, -0.1, math.nan, 1e-6, 1 + 1e-9)),
    # 1 - 2**-18 rounds to one, which would divide by 1 - beta**t = 0
    *(beta("beta1", value) for value in (1.0, 0.0, math.nan)),
    *(beta("beta2", value) for value in (1 - 2.0**-18, -0.5)),
    *map(shrink, (20.0, 10.0, -0.1)),
    *(gradient(value, at) for value in (math.nan, math.inf) for at in (0, 3)),
    (lambda b: {"inner_loss": lambda w, h, t: w * h[0]}, r"a scalar of shape \(\), got .*5"),
    (lambda b: {"outer_loss": lambda w, h: w * h[0]}, r"a scalar of shape \(\), got .*5"),
    (lambda b: {"optimizer": hg.Momentum(lambda h, t: None, 0.9)}, "rate .*got None at step 0"),
    (lambda b: {"initial": lambda h: h[0]}, r"must have one shape \(n,\)"),
    (lambda b: {"initial": lambda h: h[:0]}, r"must have one shape \(n,\)"),
    (lambda b: {"optimizer": hg.Momentum(0.1, 0.9, lambda h: h)}, r"shape \(n,\).*\(5,\), \(2,\)"),
    (lambda b: {"outer_loss": lambda w, h: b.array(b.xp.sum(w > 0))}, "loss has no derivative: .*"),
    (lambda b: {"inner_loss": lambda w, h, t: b.array(b.xp.sum(w > 9))}, "inner_loss has no deriv"),
    # its gradient is finite, as that of a logarithm below zero
    (lambda b: {"outer_loss": lambda w, h: b.xp.sum(b.xp.log(w - 100))}, "outer loss"),
]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("changes, words", RUNS)
def test_run_is_refused(backend, solver, changes, words):
    problem, hyper = bowl(backend, **changes(backend))
    with np.errstate(all="ignore"), pytest.raises((ValueError, hg.Diverged), match=words):
        solver(problem, hyper)


FAR = np.linspace(0, -3000, 5)
RUNAWAY = {"inner_loss": lambda w, h, t: -100 * w.sum(), "steps": 50}
IRREVERSIBLE = [  # changes of the problem, words of the error
    ({"optimizer": hg.GradientDescent(0.1)}, "GradientDescent cannot be run backwards"),
    ({"optimizer": hg.RMSProp(0.1)}, "RMSProp cannot be run backwards"),
    ({"optimizer": hg.Adam(1, fade=0.5)}, "Adam cannot be run backwards"),
    ({"initial": FAR}, r"reached 3000 before step 0; .* below 2048.*Stored\(\)"),
    ({"optimizer": hg.Momentum(0.1, 0.9, FAR)}, r"reached 3000 before step 0; .*Stored\(\)"),
    (RUNAWAY | {"optimizer": hg.Momentum(1.0, 0.9)}, r"at step \d+; fixed point"),
]


@pytest.mark.parametrize("changes, words", IRREVERSIBLE)
def test_what_cannot_be_undone_raises(backend, changes, words):
    """And is no error for Stored."""
    problem, hyper = bowl(backend, **changes)
    with pytest.raises((ValueError, hg.Diverged), match=words):
        hg.Reverse(hg.Reversible())(problem, hyper)
    assert np.isfinite(backend.numpy(hg.Reverse()(problem, hyper).grad)).all()


@pytest.mark.parametrize("ours, theirs", [("float32", "float64"), ("float64", "float32")])
def test_data_of_another_precision_is_named(ours, theirs):
    data = hg.Torch(dtype=theirs).array(np.ones((5, 5)))
    problem = bowl(hg.Torch(dtype=ours), inner_loss=lambda w, h, t: (data @ w).sum())
    words = f"takes {theirs} weights but not {ours} ones.*use hg.Torch.*dtype='{theirs}'"
    with pytest.raises(TypeError, match=words):
        hg.Reverse()(*problem)


def test_loss_that_does_not_take_none_is_named(backend):
    problem = bowl(backend, inner_loss=lambda w, h, t: ((w - t % 4) ** 2).sum() * h[0])
    with pytest.raises(TypeError, match="Implicit differentiates inner_loss.*None stands for all"):
        hg.Implicit(hg.ConjugateGradient())(*problem)


def noisy(problem, name):
    """Return the problem with one function that draws from an unseeded generator."""
    rng = np.random.default_rng(0)
    draw = lambda: 1 + 0.01 * rng.random()  # noqa: E731
    changes = {
        "inner_loss": lambda w, h, t: problem.inner_loss(w, h, t) * draw(),
        "initial": lambda h: problem.initial(h) * draw(),
        "optimizer": hg.Momentum(lambda h, t: 0.1 * draw() * (1 + h[0]), 0.9),
    }
    return replace(problem, **{name: changes[name]})


UNSEEDED = [(hg.Reversible(), name) for name in ("initial", "optimizer", "inner_loss")]
UNSEEDED += [(way, "inner_loss") for way in (hg.Stored(), hg.Checkpointed(), hg.Truncated(3))]


@pytest.mark.parametrize("way, name", UNSEEDED)
def test_unseeded_randomness_raises(backend, way, name):
    problem, hyper = bowl(backend)
    words = "missed its start in .* of 10 numbers|another gradient on the way back.*a seed made"
    with pytest.raises(hg.ReversalError, match=words):
        hg.Reverse(way)(noisy(problem, name), hyper)


@pytest.mark.parametrize("way", [hg.Stored(), hg.Truncated(2), hg.Checkpointed(), hg.Shortcut()])
def test_divergence_is_seen_where_one_looks_seldom(way, monkeypatch):
    monkeypatch.setattr(hg.Torch, "sync_every", 64)
    problem, hyper = catalogue.everything(hg.Torch())
    last, loss = problem.steps - 1, problem.inner_loss
    steep = lambda w, h, t: loss(w, h, t) * (math.nan if t == last else 1)  # noqa: E731
    with pytest.raises(hg.Diverged, match=f"training diverged at step {last}"):
        hg.Reverse(way)(replace(problem, inner_loss=steep), hyper)


def test_memory_that_is_not_there_is_named(backend):
    problem, hyper = bowl(backend, steps=10**12)
    with pytest.raises(MemoryError, match=r"Stored keeps 10\d+ states, .* GB.*Reversible\(\)"):
        hg.Reverse()(problem, hyper)


def test_cuda_without_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU for 'cuda'; use 'cpu'"):
        hg.Torch("cuda")


def test_torch_without_graphs():
    """no_grad changes nothing, inference_mode forbids derivatives."""
    problem, hyper = catalogue.everything(hg.Torch())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use torch.no_grad"):
        hg.Reverse()(problem, hyper)
    with torch.no_grad():
        inside = hg.Reverse()(problem, hyper).grad
    assert torch.equal(inside, hg.Reverse()(problem, hyper).grad)
