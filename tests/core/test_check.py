"""What hg.check finds, and what solvers say of causes."""

import math
from dataclasses import replace

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg

nan = math.nan
INPUTS = torch.as_tensor(np.random.default_rng(0).standard_normal((6, 5)))


def statuses(report):
    return {finding.subject: finding.status for finding in report.findings}


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
def test_check_finds_nothing_wrong(backend, name):
    report = hg.check(*catalogue.everything(backend, name))
    assert report.ok and len(report.findings) > 20, str(report)


def test_check_in_single_precision():
    assert hg.check(*catalogue.net(hg.Torch(dtype="float32"))).ok


def test_check_names_idle_hyperparameters(backend):
    problem, _ = catalogue.bowl(backend)
    report = hg.check(problem, [0.1, 0.3, 1.0])
    assert report.ok and "note  hyper[2]: no effect within 6 steps" in str(report)


def test_check_notes_differences_that_are_not_finite():
    """At 1e-8 of a root, every step is too long."""
    change = {"inner_loss": lambda w, h, t: (w * w).sum() * (1 + h[0].sqrt())}
    problem, _ = catalogue.bowl(hg.Torch(), **change)
    report = hg.check(problem, [1e-9, 0.3])
    assert report.ok and "not compared: differences are not finite" in str(report)


@pytest.mark.parametrize("name", ["inner_loss", "outer_loss"])
def test_check_notes_what_is_not_trained(name):
    """The module itself in place of its function."""
    module = torch.nn.Linear(3, 1).double()
    weights, net = hg.nets.functional(module)
    inputs = torch.ones(2, 3, dtype=torch.float64)
    losses = {
        "inner_loss": lambda w, h, t: net(w, inputs).square().sum() + h[0] * (w @ w),
        "outer_loss": lambda w, h: net(w, inputs).square().sum() + w.sum(),
    }
    problem = hg.Problem(
        hg.Torch(), optimizer=hg.Momentum(0.1, 0.5), initial=weights, steps=2, **losses
    )
    assert "note" not in str(hg.check(problem, [0.1]))
    given = losses[name]
    losses[name] = lambda *args: given(*args) + module(inputs).square().sum()
    report = hg.check(replace(problem, **losses), [0.1])
    assert f"note  {name}: uses 2 other tensors that require a gradient" in str(report)


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
    report = hg.check(*catalogue.bowl(hg.Torch(), **change))
    assert not report.ok and statuses(report)[wrong] == "WRONG", str(report)


def test_check_reports_what_is_raised(backend):
    problem, hyper = catalogue.bowl(backend, optimizer=hg.GradientDescent(1e200))
    assert "WRONG Diverged: training diverged at step" in str(hg.check(problem, hyper))


# ---- in every solver


SOLVERS = hg.Reverse(), hg.Reverse(hg.Reversible()), hg.Reverse(hg.Checkpointed()), hg.Forward()
solvers = pytest.mark.parametrize(
    "solver", SOLVERS, ids="stored reversible checkpointed forward".split()
)


@solvers
def test_hook_on_the_weights_raises(solver):
    with pytest.raises(ValueError, match="hook on its weights.*clip="):
        solver(*catalogue.bowl(hg.Torch(), inner_loss=hooked))


@solvers
@pytest.mark.parametrize("cut", [float, torch.Tensor.item, torch.Tensor.detach])
@pytest.mark.parametrize("name", ["rate", "initial", "inner_loss", "outer_loss"])
def test_hyperparameter_cut_off_raises(solver, cut, name):
    """Its hypergradient would be zero, and descend would stand still without a word."""
    change = {
        "rate": {"optimizer": hg.Momentum(lambda h, t: cut(h[0]), 0.9)},
        "initial": {"initial": lambda h: torch.ones(5).double() * cut(h[0])},
        "inner_loss": {"inner_loss": lambda w, h, t: (w * w).sum() * cut(h[0])},
        "outer_loss": {"outer_loss": lambda w, h: (w * w).sum() * cut(h[0])},
    }[name]
    change = {"inner_loss": lambda w, h, t: (w * w).sum()} | change
    with pytest.raises(ValueError, match=f"{name} changes with its arguments but a derivative is"):
        solver(*catalogue.bowl(hg.Torch(), **change))


@solvers
@pytest.mark.parametrize(
    "inner_loss",
    [
        lambda w, h, t: (w * w).sum() * torch.relu(h[0] - 0.1) + h[1],
        lambda w, h, t: (w * w).sum() * (h[0] - 0.1) ** 2 + h[1],
        lambda w, h, t: (w * w).sum() * abs(h[0] - 0.1) + h[1],
    ],
)
def test_zero_derivatives_that_are_right(solver, inner_loss):
    """At a kink, at a minimum, and for a constant."""
    problem, _ = catalogue.bowl(hg.Torch(), inner_loss=inner_loss, initial=torch.ones(5).double())
    assert not solver(problem, [0.1, 0.3]).grad.any()


def bad(t, at):
    return nan if t == at else 1.0


CAUSES = [
    (
        {"inner_loss": lambda w, h, t: (bad(t, 2) * w).sum()},
        "step 2: the inner loss is nan, at other weights too: .* data",
    ),
    (
        {"initial": torch.tensor([1, nan, 1, 1, 1]).double()},
        r"initial weights are not finite in weights\[1\], 1 of 5",
    ),
    (
        {"optimizer": hg.Momentum(1e300, 0.9)},
        "at step .: .* lower the rate|reached .* at step 0; fixed point",
    ),
    (
        {"optimizer": hg.Momentum(lambda h, t: h[0] * bad(t, 2), 0.9)},
        "step 2: the coefficient rate is not finite",
    ),
    (
        {"inner_loss": lambda w, h, t: (w - w.detach()).square().sum().sqrt()},
        r"step 0: the inner loss is 0, its gradient not finite in weights\[0, .*, 5 of 5: a root",
    ),
    (
        {"inner_loss": lambda w, h, t: 18 * (w + 0.3).sqrt().sum()},
        "step [0-9]: the inner loss is nan: a logarithm",
    ),
    (
        {"outer_loss": lambda w, h: (INPUTS.index_fill(0, torch.tensor(2), nan) @ w).sum()},
        "the outer loss is nan although training",
    ),
    (
        {"outer_loss": lambda w, h: (0 * w).sum().sqrt()},
        "gradient of the outer loss is not finite in weights",
    ),
    (
        {"inner_loss": lambda w, h, t: abs(w - w.detach()).pow(1.5).sum()},
        "second derivatives of the inner loss at step 5 are not finite",
    ),
    (
        {"inner_loss": lambda w, h, t: torch.sin(1e3 * w).sum() / 10, "steps": 200},
        "adjoints grew to .* shorten the run",
    ),
]


@solvers
@pytest.mark.parametrize("change, words", CAUSES)
def test_cause_of_what_is_not_finite(solver, change, words):
    if "steps" in change:
        change = change | {"optimizer": hg.Momentum(0.01, 0.5)}
    with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
        solver(*catalogue.bowl(hg.Torch(), **change))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"outer_loss": lambda w, h: w.sum() * nan}, "the outer loss is nan"),
        (
            {"inner_loss": lambda w, h, t: (w * w).sum() * bad(t, None)},
            "at the trained weights the",
        ),
        ({"inner_loss": lambda w, h, t: abs(w - w.detach()).pow(1.5).sum()}, "second derivatives"),
        ({"initial": torch.full((5,), nan).double()}, "initial weights"),
    ],
)
def test_cause_of_what_is_not_finite_in_implicit(change, words):
    with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
        hg.Implicit(hg.ConjugateGradient())(*catalogue.bowl(hg.Torch(), **change))


def test_implicit_takes_the_mean_of_batches(backend):
    """Four batches are the data, so their mean is the loss on all of it."""
    problem, hyper = catalogue.ridge(backend)
    inner = problem.inner_loss

    def batched(w, h, t):
        return inner(w, h, None) * (1 + (-1) ** t / 2)

    parts = replace(problem, inner_loss=lambda w, h, t: batched(w, h, t % 2))
    found = hg.Implicit(hg.DenseSolve(), inner_batches=range(4))(parts, hyper, 0.1 * np.ones(6))
    expected = hg.Implicit(hg.DenseSolve())(problem, hyper, 0.1 * np.ones(6))
    assert gap(backend.numpy(found.grad), backend.numpy(expected.grad)) < 1e-12
    with pytest.raises(TypeError, match=r"inner_batches must be values of t such as range\(8\)"):
        hg.Implicit(hg.DenseSolve(), 8)


@solvers
@pytest.mark.parametrize(
    "change",
    [
        {"inner_loss": lambda w, h, t: (w * w).sum().detach() * h[0]},
        {"outer_loss": lambda w, h: (w.detach() ** 3).sum() + 0 * h[0]},
    ],
)
def test_weights_cut_off_raise(solver, change):
    with pytest.raises(ValueError, match="_loss changes with its arguments but a derivative is"):
        solver(*catalogue.bowl(hg.Torch(), **change))


WRONG_FORMS = [
    ({"inner_loss": lambda w, h: w.sum()}, r"inner_loss must take \(weights, hyper, t\): "),
    ({"outer_loss": lambda w, h, t: w.sum()}, r"outer_loss must take \(weights, hyper\): .* 't'"),
    ({"initial": lambda: 1}, r"initial must take \(hyper\): too many"),
    ({"initial": torch.nn.Linear(2, 2)}, "got a module; hg.nets.functional gives its weights"),
]


@pytest.mark.parametrize("change, words", WRONG_FORMS)
def test_functions_of_the_wrong_form(change, words):
    """Told where they are given, not at the first step."""
    with pytest.raises(TypeError, match=words):
        catalogue.bowl(hg.Torch(), **change)


def test_coefficients_and_losses_of_the_wrong_form():
    with pytest.raises(TypeError, match=r"Adam: rate must take \(hyper, t\): too many positional"):
        hg.Adam(lambda h: h[0])
    for value, words in (
        (1.5, "got float: float"),
        (torch.tensor(1j), "must be real, got complex"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            hg.Reverse()(*catalogue.bowl(hg.Torch(), inner_loss=lambda w, h, t, v=value: v))


def test_check_of_many_hyperparameters_is_quick():
    """Without exact reversal, too: not a tangent for each of them."""
    layout = hg.Layout({"rate": (), "penalties": (20_000,)})

    def inner_loss(w, h, t):
        return ((w - 1) ** 2).sum() + layout.split(h)["penalties"] @ w**2 / 20_000

    problem = hg.Problem(
        hg.Torch(), inner_loss, lambda w, h: (w**3).sum(),
        hg.GradientDescent(lambda h, t: 0.1 * layout.split(h)["rate"]),
        torch.ones(20_000).double(), 3,
    )  # fmt: skip
    report = hg.check(problem, np.linspace(0.5, 1, 20_001))
    assert report.ok and statuses(report)["Stored, Checkpointed"] == "ok"


def test_check_reports_any_error_and_gradients_of_zero():
    data = {0: 1.0}
    lookup = {"inner_loss": lambda w, h, t: (w * w).sum() * data[t]}
    assert "WRONG KeyError" in str(hg.check(*catalogue.bowl(hg.Torch(), **lookup)))
    flat = {"inner_loss": lambda w, h, t: 0 * (w * w).sum() * h[0]}
    assert hg.check(*catalogue.bowl(hg.Torch(), **flat)).ok


def test_noise_of_kernels_is_no_derivative_cut_off():
    """As of sums by atomic additions on a GPU: the last bits of a gradient differ."""
    rng = np.random.default_rng(0)

    def inner_loss(w, h, t):
        return (w * w).sum() * (1 + 1e-15 * rng.standard_normal()) + 0 * h[0]

    problem, _ = catalogue.bowl(hg.Torch(), inner_loss=inner_loss)
    assert float(hg.Reverse()(problem, [0.1, 0.3, 1.0]).grad[2]) == 0
