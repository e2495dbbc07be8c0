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
BLOCKS = LAYOUT.split(np.zeros(11))
STILL = {"optimizer": hg.GradientDescent(0.0), "steps": 1}
TORCH_ADAM = torch.optim.Adam([torch.zeros(1)])
ARGUMENTS = [  # a call with a backend, words of its error
    (lambda b: bowl(b, steps=-1), "steps must be a whole number of steps >= 0, got -1"),
    (lambda b: bowl(b, inner_loss=1.0), "inner_loss must be a function, got float"),
    (lambda b: bowl(b, optimizer=TORCH_ADAM), "such as .*, got Adam of torch"),
    (lambda b: replace(bowl(b)[0], backend=type(b)), r"must be hg.Torch\(\) or hg.Autograd\(\)"),
    (lambda b: bowl(b, inner_loss=lambda w, h: 1), r"inner_loss must take \(weights, hyper, t\): "),
    (lambda b: bowl(b, initial=torch.nn.Linear(2, 2)), "got a module; hg.nets.functional gives"),
    (lambda b: bowl(b, initial=[np.zeros(2), np.zeros((2, 2))]), "function of hyper, got several"),
    (lambda b: hg.Adam(lambda h: h[0]), r"Adam: rate must take \(hyper, t\): too many positional"),
    (lambda b: hg.Implicit(hg.DenseSolve(), 8), r"must be values of t such as range\(8\)"),
    (lambda b: hg.Reverse(hg.Reversible), "trajectory must be an object such as"),
    (lambda b: hg.Reverse()(bowl(b)[0], 0.1), r"flat vector \(m,\), got shape .*Layout.join"),
    (lambda b: hg.Reverse()(bowl(b)[0], {"rate": 0.1}), "got dict; use Layout.join"),
    (lambda b: hg.Reverse()(bowl(b)[0], [0.1, math.nan]), "hyper holds"),
    (lambda b: hg.Reverse()(bowl(b)[0], torch.nn.Linear(2, 2)), r"flat vector .*, got Linear"),
    (lambda b: hg.Reverse()(bowl(b)[0], [np.zeros(2), np.zeros(3)]), "flat vector .*, got list"),
    (lambda b: next(hg.descend(hg.Reverse(), lambda k: [], [0.1], **STILL)), "problem .* got list"),
    (lambda b: hg.check(lambda k: bowl(b)[0], [0.1]), "problem must be an object .* got function"),
    (lambda b: hg.Adam(torch.ones((), requires_grad=True)), "rate is a tensor that requires a"),
    (lambda b: hg.Torch("float32"), "device must be 'cpu', 'cuda' or 'cuda:1', got 'float32'"),
    (lambda b: hg.ConjugateGradient(0), "iterations must be a whole number of products >= 1, got"),
    (lambda b: hg.Reverse()(bowl(b)[0], np.array([0.1 + 1j, 0.3])), "must be real, got complex"),
    (lambda b: hg.Reverse()(*bowl(b, initial=b.xp.asarray([1 + 1j] * 5))), "be real, got complex"),
    (lambda b: hg.Reverse()(bowl(b)[0], [np.complex128(0.1 + 1j), 0.3]), "be real, got complex"),
    (lambda b: hg.Reverse()(*bowl(b, inner_loss=lambda w, h, t: b.xp.asarray(1j))), "must be real"),
    (lambda b: next(hg.descend(hg.Reverse, *bowl(b), **STILL)), "solver must be an object such as"),
    (
        lambda b: next(hg.descend(hg.Reverse(), lambda: 0, [0.1], **STILL)),
        r"problem must take \(k\)",
    ),
    (lambda b: next(hg.realtime(*bowl(b), **STILL, solver=hg.Reverse())), "Forward.*got Reverse"),
    (lambda b: hg.AdamW(0.1, clip=0.0), "AdamW: clip must be positive, got 0"),
    (lambda b: hg.Adam(0.1, epsilon=-1.0), "Adam: epsilon must be >= 0, got -1"),
    (lambda b: limited(b, clip=lambda h, t: 2 - t), "clip must be positive, got 0 at step 2"),
    (lambda b: limited(b, epsilon=lambda h, t: 2 - t), "epsilon must be >= 0, got -1 at step 3"),
    (lambda b: hg.Shortcut(minibatches="last"), "'spread' or 'first', got 'last'"),
    (lambda b: hg.Shortcut(ends=0.5), r"\[0, 0.5\), got 0.5"),
    (lambda b: hg.Torch(dtype="float16"), "'float32' or 'float64', got 'float16'"),
    (lambda b: bowl(b, initial=None), "initial must be a vector .*, got None"),
    (lambda b: hg.Shortcut(share=0), r"share must lie in \(0, 1\].*got 0"),
    (lambda b: hg.Checkpointed(0), "states must be a whole number of states >= 1, got 0"),
    (lambda b: hg.Nystrom(2, 0)(lambda v: v, b.array(np.ones(3))), r"positive .* \(2 < 3\), got 0"),
    (lambda b: box_l1(b, -0.25, 1.0, 1.0), "low must be >= 0, got -0.25"),
    (lambda b: box_l1(b, 0.5, 1.0, 1.25), "low alone adds up to 1.5, more than the radius 1.25"),
    (lambda b: hg.box(0.0, None), "high must be a number or a vector, got None"),
    (lambda b: hg.box(0.0, 1.0)([1, 2]), "takes a vector of floats, got list; use backend.array"),
    (lambda b: DenseNet((4, 0, 3)), r"each >= 1, got \(.*; one layer takes two"),
    (lambda b: hg.Layout({"bias": 3}), "shape of block 'bias' must be a tuple, got 3"),
    (lambda b: LAYOUT.split(b.array(np.zeros(10))), r"takes a vector of shape \(11,\)"),
    (lambda b: LAYOUT.join({"matrix": b.array(np.ones((2, 3)))}), "blocks must be .*'number'"),
    (lambda b: LAYOUT.join(BLOCKS | {"matrix": np.ones(4)}), r"'matrix' must have shape \(2, 3\)"),
]


def limited(backend, **limit):
    return hg.Forward()(*bowl(backend, optimizer=hg.Adam(0.1, **limit)))


def box_l1(backend, low, high, radius):
    return hg.box_l1(low, high, radius)(backend.array([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("call, words", ARGUMENTS)
def test_argument_is_refused(backend, call, words):
    with pytest.raises((TypeError, ValueError, hg.Diverged), match=words):
        call(backend)


def coefficient(name, shape, first=0):
    value = lambda h, t: np.full(shape if t >= first else (), 0.5)  # noqa: E731
    words = rf"{name} must be a scalar or have shape \(5,\), got .* at step {first}"
    return {"optimizer": hg.Momentum(**{"rate": 0.1, "decay": 0.9} | {name: value})}, words


def decay(value):
    optimizer = hg.HeavyBall(0.1, lambda h, t: value if t == 4 else 0.9)
    return {"optimizer": optimizer}, r"decay must lie in \[2\*\*-16, 1\], got .* at step 4"


def adam(words, **options):
    return {"optimizer": hg.AdamW(0.1, **options)}, words


BETA = r"beta. must lie in \[2\*\*-16, 1 - 2\*\*-16\], got"
SHRINK = r"1 - rate \* weight_decay must lie in .*; take 0 <= rate \* weight_decay < 1"
SCALAR = r"a loss must return a scalar of shape \(\), got"
RUNS = [  # changes of a small quadratic problem, words of the error of its run
    *(coefficient(*case) for case in (("rate", (1,)), ("rate", (3,), 2), ("decay", (0,), 2))),
    *map(decay, (0.0, 1.5, math.nan, 1e-6, 1 + 1e-9, np.linspace(0.5, 1.5, 5))),
    # 1 - 2**-18 rounds to one, which would divide by 1 - beta**t = 0
    *(adam(BETA, **beta) for beta in ({"beta1": 1.0}, {"beta1": 0.0}, {"beta2": 1 - 2.0**-18})),
    *(adam(SHRINK, weight_decay=value) for value in (20.0, 10.0, -0.1)),
    ({"inner_loss": lambda w, h, t: (w * (math.nan if t == 3 else 1.0)).sum()}, "at step 3:"),
    ({"inner_loss": lambda w, h, t: (w * math.inf).sum()}, "at step 0:"),
    ({"inner_loss": lambda w, h, t: w * h[0]}, rf"{SCALAR} .*5"),
    ({"outer_loss": lambda w, h: w[:1]}, rf"{SCALAR} .*1.*; take its mean"),
    ({"outer_loss": lambda w, h: 1.0}, rf"{SCALAR} float: float\(\) and .item\(\) cut"),
    ({"optimizer": hg.Momentum(lambda h, t: None, 0.9)}, "rate .*got None at step 0"),
    ({"initial": lambda h: h[0]}, r"must have one shape \(n,\)"),
    ({"optimizer": hg.Momentum(0.1, 0.9, lambda h: h)}, r"shape \(n,\).*\(5,\), \(2,\)"),
    # its gradient is finite, as that of a logarithm below zero
    ({"outer_loss": lambda w, h: (w + math.nan).sum()}, "outer loss"),
]


@pytest.mark.parametrize("changes, words", RUNS)
def test_run_is_refused(backend, changes, words):
    problem, hyper = bowl(backend, **changes)
    for solver in SOLVERS.values():
        with np.errstate(all="ignore"), pytest.raises((ValueError, hg.Diverged), match=words):
            solver(problem, hyper)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_loss_that_counts_is_refused(backend, solver):
    count = lambda w, h, t=None: backend.array(backend.xp.sum(w > 9))  # noqa: E731
    for name in ("inner_loss", "outer_loss"):
        with pytest.raises(ValueError, match=f"{name} has no derivative: it is piecew"):
            solver(*bowl(backend, **{name: count}))


FAR = np.linspace(0, -3000, 5)
RUNAWAY = {"inner_loss": lambda w, h, t: -100 * w.sum(), "steps": 50}
IRREVERSIBLE = [  # changes of the problem, words of the error
    ({"optimizer": hg.GradientDescent(0.1)}, "GradientDescent cannot be run backwards"),
    ({"optimizer": hg.RMSProp(0.1)}, "RMSProp cannot be run backwards"),
    ({"optimizer": hg.Adam(1, fade=0.5)}, "Adam cannot be run backwards"),
    ({"initial": FAR}, r"reached 3000 before step 0; .* below 2048.*Stored\(\)"),
    (RUNAWAY | {"optimizer": hg.Momentum(1.0, 0.9)}, r"at step \d+; fixed point"),
]


@pytest.mark.parametrize("changes, words", IRREVERSIBLE)
def test_what_cannot_be_undone_raises(backend, changes, words):
    problem, hyper = bowl(backend, **changes)
    with pytest.raises((ValueError, hg.Diverged), match=words):
        hg.Reverse(hg.Reversible())(problem, hyper)
    assert np.isfinite(backend.numpy(hg.Reverse()(problem, hyper).grad)).all()


def test_data_of_another_precision_is_named():
    for ours, theirs in (("float32", "float64"), ("float64", "float32")):
        data = hg.Torch(dtype=theirs).array(np.ones((5, 5)))
        problem = bowl(hg.Torch(dtype=ours), inner_loss=lambda w, h, t, x=data: (x @ w).sum())
        words = f"takes {theirs} weights but not {ours} ones.*use hg.Torch.*dtype='{theirs}'"
        with pytest.raises(TypeError, match=words):
            hg.Reverse()(*problem)


def test_loss_that_does_not_take_none_is_named(backend):
    problem = bowl(backend, inner_loss=lambda w, h, t: ((w - t % 4) ** 2).sum() * h[0])
    with pytest.raises(TypeError, match="Implicit differentiates inner_loss.*None stands for all"):
        hg.Implicit(hg.ConjugateGradient())(*problem)


UNSEEDED = [(hg.Reversible(), name) for name in ("initial", "optimizer", "inner_loss")]
UNSEEDED += [(way, "inner_loss") for way in (hg.Stored(), hg.Checkpointed(), hg.Truncated(3))]


@pytest.mark.parametrize(
    "optimizer", [hg.HeavyBall, lambda rate, decay: hg.RMSProp(rate, decay=decay)]
)
def test_unseeded_decay_raises(backend, optimizer):
    """Also where no gradient changes with the decay, so that the weights come back."""
    rng = np.random.default_rng(0)
    optimizer = optimizer(0.02, lambda h, t: 0.5 + 0.4 * rng.random() + 0 * h[0])
    with pytest.raises(hg.ReversalError):
        hg.Reverse(hg.Reversible())(*bowl(backend, optimizer=optimizer))


@pytest.mark.parametrize("way, name", UNSEEDED)
def test_unseeded_randomness_raises(backend, way, name):
    (problem, hyper), rng = bowl(backend), np.random.default_rng(0)
    unseeded = {
        "inner_loss": lambda w, h, t: problem.inner_loss(w, h, t) * (1 + 0.01 * rng.random()),
        "initial": lambda h: problem.initial(h) * (1 + 0.01 * rng.random()),
        "optimizer": hg.Momentum(lambda h, t: 0.1 * (1 + rng.random()) * (1 + h[0]), 0.9),
    }
    words = "missed its start in .* of 10 numbers|another gradient on the way back.*a seed made"
    with pytest.raises(hg.ReversalError, match=words):
        hg.Reverse(way)(replace(problem, **{name: unseeded[name]}), hyper)


@pytest.mark.parametrize("way", [hg.Stored(), hg.Truncated(2), hg.Checkpointed(), hg.Shortcut()])
def test_divergence_is_seen_where_one_looks_seldom(way, monkeypatch):
    monkeypatch.setattr(hg.Torch, "sync_every", 64)
    problem, hyper = catalogue.everything(hg.Torch())
    last, loss = problem.steps - 1, problem.inner_loss
    steep = lambda w, h, t: loss(w, h, t) * (math.nan if t == last else 1)  # noqa: E731
    with pytest.raises(hg.Diverged, match=f"training diverged at step {last}"):
        hg.Reverse(way)(replace(problem, inner_loss=steep), hyper)


def test_missing_memory_or_gpu_is_named(backend, monkeypatch):
    with pytest.raises(MemoryError, match=r"Stored keeps 10\d+ states, .* GB.*Reversible\(\)"):
        hg.Reverse()(*bowl(backend, steps=10**12))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU for 'cuda'; use 'cpu'"):
        hg.Torch("cuda")


@pytest.mark.parametrize("name, what", [("inner_loss", 0), ("inner_loss", 1), ("outer_loss", 1)])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_change_in_place_is_refused(solver, name, what):
    """Without a graph it would move the state of training, or the hyper of all that follows."""

    def loss(*at):
        with torch.no_grad():
            at[what].clamp_(max=0.05)
        return (at[0] ** 2).sum() * at[1][0]

    problem, hyper = bowl(hg.Torch(), **{name: loss})
    given = torch.tensor(hyper)
    with pytest.raises(ValueError, match="changes its weights or hyper in place"):
        solver(problem, given)
    assert given.tolist() == hyper.tolist()


def test_rate_that_changes_hyper_is_refused():
    problem = bowl(hg.Torch(), optimizer=hg.Momentum(lambda h, t: h.clamp_(max=0.05)[0], 0.9))
    with pytest.raises(ValueError, match="hyper in place"):
        hg.Implicit(hg.DenseSolve())(*problem)


def test_numpy_hyper_is_constant():
    """With a graph -= makes a new array; without, it would change hyper for all that follows."""

    def inner_loss(w, h, t):
        h -= 0.1
        return (w**2).sum() * h[0]

    given = np.array([0.3, 0.4])
    with pytest.raises(ValueError, match="read-only"):
        hg.Reverse()(bowl(hg.Autograd(), inner_loss=inner_loss)[0], given)
    assert given.tolist() == [0.3, 0.4]


def test_optimizer_with_a_step_of_its_own_is_not_reversible():
    class Half(hg.Momentum):
        def step(self, state, gradient, c):
            return super().step(state, gradient / 2, c)

    assert hg.Momentum(0.1, 0.9).reversible and not Half(0.1, 0.9).reversible


def test_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        hg.Reverse()(*bowl(hg.Torch(dtype="float32")))


def test_torch_without_graphs():
    problem, hyper = bowl(hg.Torch())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="use torch.no_grad"):
        hg.Reverse()(problem, hyper)
    with torch.no_grad():
        inside = hg.Reverse()(problem, hyper).grad
    assert torch.equal(inside, hg.Reverse()(problem, hyper).grad)
