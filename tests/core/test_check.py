"""What hg.check finds, and what solvers say of causes."""

import math
from dataclasses import replace

import catalogue
import numpy as np
import pytest
import torch

import hgcore as hg

nan = math.nan
INPUTS = torch.as_tensor(np.random.default_rng(0).standard_normal((6, 5)))


def statuses(report):
    return {finding.subject: finding.status for finding in report.findings}


def bowl(**changes):
    return catalogue.bowl(hg.Torch(), **changes)


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
def test_check_finds_nothing_wrong(backend, name):
    """So hypergradients equal finite differences."""
    report = hg.check(*catalogue.everything(backend, name, steps=4))
    assert report.ok and len(report.findings) > 20, str(report)


def test_check_sees_through_rounding_of_the_loss():
    """It cancels, so it is much larger than that of the loss's value."""
    lossy = lambda w, h: w @ w + ((1e6 + 0.01 * h[0]) - 1e6)  # noqa: E731
    report = hg.check(bowl(outer_loss=lossy)[0], [0.1, 0.3])
    assert set(statuses(report).values()) == {"ok"}, str(report)


def test_check_in_single_precision():
    assert hg.check(*catalogue.net(hg.Torch(dtype="float32"))).ok


NOTES = [  # changes of the problem, hyper, words
    ({}, [0.1, 0.3, 1.0], "note  hyper[2]: no effect within 6 steps"),
    # at 1e-8 of a root, every step is too long
    ({"inner_loss": lambda w, h, t: w @ w * (1 + h[0].sqrt())}, [1e-9, 0.3], "not compared"),
    ({"inner_loss": lambda w, h, t: 0 * (w * w).sum() * h[0]}, [0.1, 0.3], "inner d/dw"),
    # torch's derivative at the kink is zero, which is that of one side
    ({"outer_loss": lambda w, h: w @ w * (1 + (h[0] - 0.1).relu())}, [0.1, 0.3], "has a kink here"),
    # rounding to single precision hides the small derivative by h
    ({"outer_loss": lambda w, h: (w @ w + 1e-4 * h[0]).float().double()}, [0.1, 0.3], "scatter by"),
]


@pytest.mark.parametrize("change, hyper, words", NOTES)
def test_check_notes(change, hyper, words):
    report = hg.check(bowl(**change)[0], hyper)
    assert report.ok and words in str(report)


@pytest.mark.parametrize("name", ["inner_loss", "outer_loss"])
def test_check_notes_what_is_not_trained(name):
    """The module itself in place of its function."""
    module = torch.nn.Linear(5, 1).double()
    weights, net = hg.nets.functional(module)
    right = lambda w, h, t=None: net(w, INPUTS).square().sum() + h[0] * w.sum()  # noqa: E731
    wrong = lambda w, h, t=None: right(w, h) + module(INPUTS).square().sum()  # noqa: E731
    problem, _ = bowl(initial=weights, inner_loss=right, outer_loss=right)
    assert "note" not in str(hg.check(problem, [0.1]))
    report = hg.check(replace(problem, **{name: wrong}), [0.1])
    assert f"note  {name}: uses 2 other tensors that require a gradient" in str(report)


@pytest.mark.parametrize("name", ["inner_loss", "outer_loss"])
def test_module_itself_is_refused(name):
    """Nothing that is trained would be in that loss."""
    module = torch.nn.Linear(5, 1).double()
    weights, net = hg.nets.functional(module)
    right = lambda w, h, t=None: h[0].exp() * net(w, INPUTS).square().sum()  # noqa: E731
    problem, _ = bowl(initial=weights, inner_loss=right, outer_loss=right)
    itself = lambda w, h, t=None: h[0].exp() * module(INPUTS).square().sum()  # noqa: E731
    for solver in catalogue.SOLVERS.values():
        with pytest.raises(
            ValueError, match=f"{name} has no derivative .* it calls a module itself"
        ):
            solver(replace(problem, **{name: lambda w, h, t=None: itself(w, 0 * h)}), [0.1, 0.2])


def hooked(w, h, t):
    if w.requires_grad:
        w.register_hook(lambda g: g / 2)
    return (w**4).sum() * h[0]


class Halved(torch.autograd.Function):
    """A square whose gradient is right and whose second derivative is not."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return (w * w).sum()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0].detach()


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"inner_loss": lambda w, h, t: (w - w.detach() ** 2 * h[0]).square().sum()}, "inner d/dw"),
        ({"inner_loss": lambda w, h, t: Halved.apply(w) * h[0]}, "inner d2/dw2"),
        ({"inner_loss": lambda w, h, t: (w**2).sum() * float(h[0]) * h[1]}, "inner d2/dw dhyper"),
        ({"outer_loss": lambda w, h: (w * w.detach()).sum()}, "outer d/dw"),
        ({"outer_loss": lambda w, h: (w * w).sum() * float(h[0]) * h[1]}, "outer d/dhyper"),
        ({"optimizer": hg.GradientDescent(lambda h, t: 0.1 * float(h[0]) * h[1])}, "hyper[0]"),
        ({"inner_loss": lambda w, h, t: torch.rand(()).double() * (w * w).sum()}, "same bits"),
    ],
)
def test_check_finds(change, wrong):
    report = hg.check(*bowl(**change))
    assert not report.ok and statuses(report)[wrong] == "WRONG", str(report)


def single_precision(layers, seed, cut=lambda x: x):
    """AdamW on random data in float32; hyper: log rate, log weight decay, log penalty."""
    torch.manual_seed(seed)
    weights, f = hg.nets.functional(torch.nn.Sequential(*layers()))
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(64, k, generator=draw, dtype=torch.float64).float() for k in (8, 1))

    def loss(w, rows):
        return torch.nn.functional.mse_loss(f(w, x[rows]), y[rows])

    optimizer = hg.AdamW(lambda h, t: h[0].exp(), weight_decay=lambda h, t: cut(h[1]).exp())
    return hg.Problem(
        hg.Torch(dtype="float32"),
        lambda w, h, t: loss(w, slice(32)) + h[2].exp() * w @ w,
        lambda w, h: loss(w, slice(32, None)),
        optimizer,
        weights,
        10,
    )


def tanh_net():
    return torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)


def relu_net():
    linear = [torch.nn.Linear(8, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)]
    return linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2]


def test_check_finds_a_small_effect_in_single_precision():
    """At the shortest steps it is lost in rounding, which looks like no effect."""
    hyper = [-5.0, -3.0, -30.0]
    assert hg.check(single_precision(tanh_net, 3), hyper).ok
    report = hg.check(single_precision(tanh_net, 3, torch.Tensor.detach), hyper)
    assert statuses(report)["hyper[1]"] == "WRONG", str(report)


@pytest.mark.parametrize("rate, seed", [(-5.0, 201), (-5.0, 203), (-7.0, 205), (-7.0, 211)])
def test_check_of_right_kinks_in_single_precision(rate, seed):
    """Two step lengths across kinks agreed by chance, and not with the derivative."""
    report = hg.check(single_precision(relu_net, seed), [rate, -2.0, -5.0])
    assert report.ok, str(report)


def test_check_of_what_fixed_point_cannot_hold():
    """It says so, and goes on."""
    problem, hyper = bowl(initial=torch.full((5,), 1e5).double())
    report = hg.check(problem, hyper)
    assert report.ok and statuses(report)["Reversible"] == "note", str(report)
    assert statuses(report)["Stored, Checkpointed"] == statuses(report)["hyper[0]"] == "ok"


def test_check_reports_what_is_raised():
    report = hg.check(*bowl(optimizer=hg.GradientDescent(1e200)))
    assert "WRONG Diverged: training diverged at step" in str(report)
    data = {0: 1.0}
    report = hg.check(*bowl(inner_loss=lambda w, h, t: (w * w).sum() * data[t]))
    assert "WRONG KeyError" in str(report)
    report = hg.check(*bowl(outer_loss=lambda w, h: (w > 0).double().mean()))
    assert "WRONG ValueError: outer_loss has no derivative" in str(report)


def test_check_of_many_hyperparameters_is_quick():
    """Without exact reversal, too: not a tangent for each of them."""
    layout = hg.Layout({"rate": (), "penalties": (20_000,)})

    def inner_loss(w, h, t):
        return ((w - 1) ** 2).sum() + layout.split(h)["penalties"] @ w**2 / 20_000

    optimizer = hg.GradientDescent(lambda h, t: 0.1 * layout.split(h)["rate"])
    parts = {"initial": torch.ones(20_000).double(), "optimizer": optimizer, "steps": 3}
    report = hg.check(bowl(inner_loss=inner_loss, **parts)[0], np.linspace(0.5, 1, 20_001))
    assert report.ok and statuses(report)["Stored, Checkpointed"] == "ok"


# ---- in every solver


solvers = pytest.mark.parametrize("solver", catalogue.SOLVERS.values(), ids=catalogue.SOLVERS)
CUT = {  # what is wrong -> changes of the problem, by a function that loses the graph
    "rate": lambda cut: {"optimizer": hg.Momentum(lambda h, t: cut(h[0]), 0.9)},
    "initial": lambda cut: {"initial": lambda h: torch.ones(5).double() * cut(h[0])},
    "inner_loss": lambda cut: {"inner_loss": lambda w, h, t: (w * w).sum() * cut(h[0])},
    "outer_loss": lambda cut: {"outer_loss": lambda w, h: (w * w).sum() * cut(h[0])},
    "inner_loss of w": lambda cut: {"inner_loss": lambda w, h, t: cut((w * w).sum()) * h[0]},
    "outer_loss of w": lambda cut: {"outer_loss": lambda w, h: cut((w**3).sum()) + 0 * h[0]},
}


def kinks(x):
    """Zero near zero, with a kink on either side, as of units that are off in a batch."""
    return torch.relu(x - 4e-4) - torch.relu(-x - 5e-4)


def unlike(x):
    """A kink at zero: up on both sides, but not as steeply; torch's derivative there is zero."""
    return 3 * torch.relu(x) - torch.relu(-x)


@solvers
def test_hook_on_the_weights_raises(solver):
    with pytest.raises(ValueError, match="hook on its weights.*clip="):
        solver(*bowl(inner_loss=hooked))


@solvers
@pytest.mark.parametrize("cut", [float, torch.Tensor.item, torch.Tensor.detach])
@pytest.mark.parametrize("name", CUT)
def test_derivative_cut_off_raises(solver, cut, name):
    """The hypergradient would be zero, and descend would stand still without a word."""
    change = {"inner_loss": lambda w, h, t: (w * w).sum()} | CUT[name](cut)
    words = f"{name.split()[0]} changes with its arguments but a derivative is"
    with pytest.raises(ValueError, match=words):
        solver(*bowl(**change))


@solvers
def test_derivative_cut_off_raises_from_zero_weights(solver):
    """Where the penalty has no slope at the start."""
    inner_loss = lambda w, h, t: (w - 1).square().sum() + h[0].item() * w @ w  # noqa: E731
    problem, hyper = bowl(inner_loss=inner_loss, initial=torch.zeros(5).double())
    with pytest.raises(ValueError, match="inner_loss changes with its arguments but"):
        solver(problem, hyper)


def test_derivative_cut_off_raises_in_realtime():
    problem, hyper = bowl(optimizer=hg.Momentum(lambda h, t: h[0].item(), 0.9))
    with pytest.raises(ValueError, match="rate changes with its arguments but"):
        list(hg.realtime(problem, hyper, optimizer=hg.Adam(0.1), steps=1))


@solvers
@pytest.mark.parametrize(
    "inner_loss",
    [
        lambda w, h, t: (w * w).sum() * torch.relu(h[0] - 0.1) + h[1],
        lambda w, h, t: (w * w).sum() * (h[0] - 0.1) ** 2 + h[1],
        lambda w, h, t: (w * w).sum() * abs(h[0] - 0.1) + h[1],
        lambda w, h, t: (w * w).sum() * kinks(h[0] - 0.1) + h[1],
        lambda w, h, t: (w * w).sum() * unlike(h[0] - 0.1) + h[1],
    ],
)
def test_zero_derivatives_that_are_right(solver, inner_loss):
    """At a kink, at a minimum, and for a constant."""
    problem, _ = bowl(inner_loss=inner_loss, initial=torch.ones(5).double())
    assert not solver(problem, [0.1, 0.3]).grad.any()


def bad(t, at):
    return nan if t == at else 1.0


def zeros(w):
    """Zeros that depend on w."""
    return w - w.detach()


CAUSES = [  # what is changed, the new one, words of the error
    ("inner_loss", lambda w, h, t: (bad(t, 2) * w).sum(), "step 2: .* is nan, at other .* data"),
    ("inner_loss", lambda w, h, t: zeros(w).square().sum().sqrt(), "step 0: .*, 5 of 5: a root"),
    ("inner_loss", lambda w, h, t: 18 * (w + 0.3).sqrt().sum(), "step [0-9]: .* nan: a logarithm"),
    ("inner_loss", lambda w, h, t: abs(zeros(w)).pow(1.5).sum(), "second derivatives .* step 5"),
    ("initial", torch.tensor([1, nan, 1, 1, 1]).double(), r"initial weights .*\[1\], 1 of 5"),
    ("optimizer", hg.Momentum(1e300, 0.9), "at step .: .* lower the rate|at step 0; fixed point"),
    ("optimizer", hg.Momentum(lambda h, t: bad(t, 2), 0.9), "step 2: the coefficient rate is not"),
    ("outer_loss", lambda w, h: (INPUTS * nan @ w).sum(), "the outer loss is nan although train"),
    ("outer_loss", lambda w, h: (0 * w).sum().sqrt(), "gradient of the outer loss is not"),
]


@solvers
@pytest.mark.parametrize("name, value, words", CAUSES)
def test_cause_of_what_is_not_finite(solver, name, value, words):
    with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
        solver(*bowl(**{name: value}))


@solvers
def test_epsilon_of_zero_is_named(solver):
    """The last weight has no gradient."""
    changes = {
        "inner_loss": lambda w, h, t: w[:4] @ w[:4] * h[0],
        "optimizer": hg.Adam(0.1, epsilon=0.0),
    }
    with pytest.raises(hg.Diverged, match="step 0: .* use a larger epsilon"):
        solver(*bowl(**changes))


@solvers
def test_adjoints_that_grow_are_named(solver):
    waves = {"inner_loss": lambda w, h, t: torch.sin(1e3 * w).sum() / 10, "steps": 200}
    with pytest.raises(hg.Diverged, match="adjoints grew to .* shorten"), np.errstate(all="ignore"):
        solver(*bowl(optimizer=hg.Momentum(0.01, 0.5), **waves))


IMPLICIT = [
    ("inner_loss", lambda w, h, t: (w * w).sum() * bad(t, None), "at the trained weights the"),
    ("inner_loss", lambda w, h, t: abs(zeros(w)).pow(1.5).sum(), "second derivatives"),
    ("outer_loss", lambda w, h: w.sum() * nan, "the outer loss is nan"),
    ("initial", torch.full((5,), nan).double(), "initial weights"),
]


@pytest.mark.parametrize("name, value, words", IMPLICIT)
def test_cause_in_implicit(name, value, words):
    with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
        hg.Implicit(hg.ConjugateGradient())(*bowl(**{name: value}))


def test_noise_of_kernels_is_no_derivative_cut_off():
    """As of sums by atomic additions on a GPU: the last bits of a gradient differ."""
    rng = np.random.default_rng(0)

    def inner_loss(w, h, t):
        return (w * w).sum() * (1 + 1e-15 * rng.standard_normal()) + 0 * h[0]

    problem, _ = bowl(inner_loss=inner_loss)
    assert float(hg.Reverse()(problem, [0.1, 0.3, 1.0]).grad[2]) == 0
