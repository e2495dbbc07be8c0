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


def bowl(**changes):
    return catalogue.bowl(hg.Torch(), **changes)


def test_check_finds_nothing_wrong(backend):
    for name in ("momentum", "rmsprop", "adamw"):
        report = hg.check(*catalogue.everything(backend, name, steps=3))
        assert report.ok and len(report.findings) > 20, str(report)


def single_precision(activation, seed, cut=lambda x: x):
    """AdamW on random data in float32; hyper: log rate, log weight decay, log penalty."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear
    layers = linear(8, 64), activation(), linear(64, 64), activation(), linear(64, 1)
    weights, f = hg.nets.functional(torch.nn.Sequential(*layers))
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(64, k, generator=draw, dtype=torch.float64).float() for k in (8, 1))
    loss = lambda w, rows: torch.nn.functional.mse_loss(f(w, x[rows]), y[rows])  # noqa: E731
    return hg.Problem(
        hg.Torch(dtype="float32"),
        lambda w, h, t: loss(w, slice(32)) + h[2].exp() * w @ w,
        lambda w, h: loss(w, slice(32, None)),
        hg.AdamW(lambda h, t: h[0].exp(), weight_decay=lambda h, t: cut(h[1]).exp()),
        weights,
        steps=10,
    )


def test_check_finds_a_small_effect_in_single_precision():
    """At the shortest steps it is lost in rounding, which looks like no effect."""
    hyper = [-5.0, -3.0, -30.0]
    assert hg.check(single_precision(torch.nn.Tanh, 3), hyper).ok
    report = hg.check(single_precision(torch.nn.Tanh, 3, torch.Tensor.detach), hyper)
    assert "WRONG hyper[1]" in str(report)


def test_check_of_right_kinks_in_single_precision():
    """Two step lengths across kinks agreed by chance, and not with the derivative."""
    for rate, seed in ((-5.0, 201), (-7.0, 205)):
        report = hg.check(single_precision(torch.nn.ReLU, seed), [rate, -2.0, -5.0])
        assert report.ok, str(report)


NOTES = [  # changes of the problem, hyper, words
    ({}, [0.1, 0.3, 1.0], "note  hyper[2]: no effect within 6 steps"),
    # at 1e-8 of a root, every step is too long
    ({"inner_loss": lambda w, h, t: w @ w * (1 + h[0].sqrt())}, [1e-9, 0.3], "not compared"),
    (
        {"inner_loss": lambda w, h, t: 0 * (w * w).sum() * h[0]},
        [0.1, 0.3],
        "ok    inner d/dw: 0, differ",
    ),
    # torch's derivative at the kink is zero, which is that of one side
    ({"outer_loss": lambda w, h: w @ w * (1 + (h[0] - 0.1).relu())}, [0.1, 0.3], "has a kink here"),
    # rounding to single precision hides the small derivative by h
    ({"outer_loss": lambda w, h: (w @ w + 1e-4 * h[0]).float().double()}, [0.1, 0.3], "scatter by"),
    # rounding of the loss, which cancels, is much larger than that of its value
    (
        {"outer_loss": lambda w, h: w @ w + ((1e6 + h[0]) - 1e6)},
        [0.1, 0.3, 1.0],
        "ok    outer d/dh",
    ),
    # fixed point cannot hold it: check goes on with another solver
    ({"initial": torch.full((5,), 1e5).double()}, [0.1, 0.3], "ok    Stored, Checkpointed"),
]


@pytest.mark.parametrize("change, hyper, words", NOTES)
def test_check_notes(change, hyper, words):
    report = hg.check(bowl(**change)[0], hyper)
    assert report.ok and words in str(report) and "note  " in str(report)


def halved(w):  # a square whose gradient is right and whose second derivative is not
    return (2 * w - w.detach()) @ w.detach()


FAULTS = [  # changes of the problem, words
    ({"inner_loss": lambda w, h, t: (w - w.detach() ** 2 * h[0]).square().sum()}, "inner d/dw:"),
    ({"inner_loss": lambda w, h, t: halved(w) * h[0]}, "inner d2/dw2:"),
    ({"inner_loss": lambda w, h, t: (w**2).sum() * h[0].item() * h[1]}, "inner d2/dw dhyper:"),
    ({"outer_loss": lambda w, h: (w * w.detach()).sum()}, "outer d/dw:"),
    ({"outer_loss": lambda w, h: (w * w).sum() * h[0].item() * h[1]}, "outer d/dhyper:"),
    ({"optimizer": hg.GradientDescent(lambda h, t: 0.1 * h[0].item() * h[1])}, "hyper[0]:"),
    ({"inner_loss": lambda w, h, t: torch.rand(()).double() * (w * w).sum()}, "same bits: the gr"),
    ({"outer_loss": lambda w, h: torch.rand(()).double() * w.sum()}, "same bits: the outer loss"),
    ({"optimizer": hg.HeavyBall(lambda h, t: torch.rand(()) * h[0], 0.9)}, "same bits: rate"),
    ({"inner_loss": lambda w, h, t: (w * w).sum() * {0: 1.0}[t]}, "KeyError"),
    ({"outer_loss": lambda w, h: (w > 0).double().mean()}, "ValueError: outer_loss has no deriv"),
]


@pytest.mark.parametrize("change, words", FAULTS)
def test_check_finds(change, words):
    report = hg.check(*bowl(**change))
    assert not report.ok and f"WRONG {words}" in str(report)


each_solver = pytest.mark.parametrize("solver", catalogue.SOLVERS.values(), ids=catalogue.SOLVERS)


def realtime(problem, hyper):
    return next(hg.realtime(problem, hyper, optimizer=hg.Adam(0.1), steps=1))


@pytest.mark.parametrize("name", ["inner_loss", "outer_loss"])
def test_module_itself_in_a_loss_is_noticed(name):
    """In place of its function: an error if nothing that is trained is in the loss, or a note."""
    module = torch.nn.Linear(5, 1).double()
    weights, net = hg.nets.functional(module)
    right = lambda w, h, t=None: net(w, INPUTS).square().sum() + h[0] * w.sum()  # noqa: E731
    itself = lambda w, h, t=None: module(INPUTS).square().sum()  # noqa: E731
    problem, hyper = bowl(initial=weights, inner_loss=right, outer_loss=right)
    assert "note" not in str(hg.check(problem, hyper[:1]))
    both = lambda w, h, t=None: right(w, h) + itself(w, h)  # noqa: E731
    report = hg.check(replace(problem, **{name: both}), hyper[:1])
    assert f"note  {name}: uses 2 other tensors that require a gradient" in str(report)
    for solver in catalogue.SOLVERS.values():
        with pytest.raises(ValueError, match=f"{name} has no deriv.* it calls a module itself"):
            solver(replace(problem, **{name: itself}), hyper)


def hooked(w, h, t):
    if w.requires_grad:
        w.register_hook(lambda g: g / 2)
    return (w**4).sum() * h[0]


@each_solver
def test_hook_on_the_weights_raises(solver):
    with pytest.raises(ValueError, match="hook on its weights.*clip="):
        solver(*bowl(inner_loss=hooked))


CUT = {  # what is wrong -> changes of the problem, by a function that loses the graph
    "rate": lambda cut: {"optimizer": hg.Momentum(lambda h, t: cut(h[0]), 0.9)},
    "initial": lambda cut: {"initial": lambda h: torch.ones(5).double() * cut(h[0])},
    "inner_loss": lambda cut: {"inner_loss": lambda w, h, t: (w * w).sum() * cut(h[0])},
    "outer_loss": lambda cut: {"outer_loss": lambda w, h: (w * w).sum() * cut(h[0])},
    "inner_loss of w": lambda cut: {"inner_loss": lambda w, h, t: cut((w * w).sum()) * h[0]},
    "outer_loss of w": lambda cut: {"outer_loss": lambda w, h: cut((w**3).sum()) + 0 * h[0]},
    # where the penalty has no slope at the start
    "inner_loss from zero": lambda cut: {
        "inner_loss": lambda w, h, t: (w - 1).square().sum() + cut(h[0]) * w @ w,
        "initial": torch.zeros(5).double(),
    },
}


@pytest.mark.parametrize("solver", [*catalogue.SOLVERS.values(), realtime])
@pytest.mark.parametrize("name", CUT)
def test_derivative_cut_off_raises(solver, name):
    """The hypergradient would be zero, and descend would stand still without a word."""
    words = f"{name.split()[0]} changes with its arguments but a derivative is"
    for cut in (torch.Tensor.item, torch.Tensor.detach):
        change = {"inner_loss": lambda w, h, t: (w * w).sum()} | CUT[name](cut)
        with pytest.raises(ValueError, match=words):
            solver(*bowl(**change))


FLAT = [  # functions with a derivative of zero at zero
    torch.relu,
    torch.square,
    torch.abs,
    lambda x: torch.relu(x - 4e-4) - torch.relu(-x - 5e-4),  # as of units that are off in a batch
    lambda x: 3 * torch.relu(x) - torch.relu(-x),  # up on both sides, but not as steeply
]


@each_solver
def test_zero_derivatives_that_are_right(solver):
    """At a kink, at a minimum, and for a constant."""
    for f in FLAT:
        loss = lambda w, h, t, f=f: (w * w).sum() * f(h[0] - 0.1) + h[1]  # noqa: E731
        problem, _ = bowl(inner_loss=loss, initial=torch.ones(5).double())
        assert not solver(problem, [0.1, 0.3]).grad.any()


def test_noise_of_kernels_is_no_derivative_cut_off():
    rng = np.random.default_rng(0)
    noise = lambda: 1 + 1e-15 * rng.standard_normal()  # noqa: E731
    problem, _ = bowl(inner_loss=lambda w, h, t: (w * w).sum() * noise() + 0 * h[0])
    assert float(hg.Reverse()(problem, [0.1, 0.3, 1.0]).grad[2]) == 0


def bad(t, at):
    return nan if t == at else 1.0


def zeros(w):
    return w - w.detach()


WAVES = {"inner_loss": lambda w, h, t: torch.sin(1e5 * w).sum() / 1e4, "steps": 100}
UNMOVED = {"inner_loss": lambda w, h, t: w[:4] @ w[:4] * h[0]}  # the last weight has no gradient
CAUSES = [  # changes, words of the error
    ({"inner_loss": lambda w, h, t: (bad(t, 2) * w).sum()}, "step 2: .* is nan, at other .* data"),
    ({"inner_loss": lambda w, h, t: zeros(w).square().sum().sqrt()}, "step 0: .*, 5 of 5: a root"),
    ({"inner_loss": lambda w, h, t: 18 * (w + 0.3).sqrt().sum()}, "step [0-9]: .* nan: a logar"),
    ({"inner_loss": lambda w, h, t: abs(zeros(w)).pow(1.5).sum()}, "second derivatives .* step 5"),
    ({"initial": torch.tensor([1, nan, 1, 1, 1]).double()}, r"initial weights .*\[1\], 1 of 5"),
    ({"optimizer": hg.Momentum(1e300, 0.9)}, "at step .: .* lower the rate|at step 0; fixed point"),
    (
        {"optimizer": hg.Momentum(lambda h, t: bad(t, 2), 0.9)},
        "step 2: the coefficient rate is not",
    ),
    ({"outer_loss": lambda w, h: (INPUTS * nan @ w).sum()}, "the outer loss is nan although train"),
    ({"outer_loss": lambda w, h: (0 * w).sum().sqrt()}, "gradient of the outer loss is not"),
    (UNMOVED | {"optimizer": hg.Adam(0.1, epsilon=0.0)}, "step 0: .* use a larger epsilon"),
    (WAVES | {"optimizer": hg.Momentum(0.01, 0.5)}, "adjoints grew to .* shorten"),
]


@each_solver
@pytest.mark.parametrize("changes, words", CAUSES)
def test_cause_of_what_is_not_finite(solver, changes, words):
    with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
        solver(*bowl(**changes))


@pytest.mark.parametrize("way", ["realtime", hg.Implicit(hg.Identity()), hg.Reverse()])
def test_cause_in_loops(way):
    """Also in a later part of training, whose first weights are large already."""
    optimizer = {"optimizer": hg.Adam(0.1), "steps": 5, "every": 4}
    problem = bowl(
        inner_loss=lambda w, h, t: ((w - h[0]) ** 4).sum(), optimizer=hg.HeavyBall(5.0, 0.9)
    )
    with pytest.raises(hg.Diverged, match="outer step 1: .* the inner loss is inf, .* lower the"):
        if way == "realtime":
            list(hg.realtime(*problem, **optimizer))
        list(hg.alternate(way, *problem, **optimizer))


def test_cause_in_hyper():
    problem, _ = bowl(inner_loss=lambda w, h, t: (w * w).sum() * h[0] * 1e300)
    with pytest.raises(
        hg.Diverged, match="is inf, with a hyperparameter beyond 1e6: lower the out"
    ):
        hg.Reverse()(problem, [1e9, 0.1])


def test_cause_in_implicit():
    for changes, words in (
        (
            {"inner_loss": lambda w, h, t: (w * w).sum() * bad(t, None)},
            "at the trained weights the",
        ),
        ({"inner_loss": lambda w, h, t: abs(zeros(w)).pow(1.5).sum()}, "second derivatives"),
        ({"outer_loss": lambda w, h: w.sum() * nan}, "the outer loss is nan"),
    ):
        with pytest.raises(hg.Diverged, match=words), np.errstate(all="ignore"):
            hg.Implicit(hg.ConjugateGradient())(*bowl(**changes))


def test_check_finds_one_cut_among_many():
    """20 of 501 are moved one by one; all together along a random direction."""
    half = lambda h: (h[500] / 2).exp() * (h[500] / 2).exp().detach()  # noqa: E731
    whole = lambda h: h[500].exp()  # noqa: E731
    hyper = np.append(np.linspace(-1, 1, 500), -2.0)
    for rate, ok in ((whole, True), (half, False)):
        report = hg.check(
            bowl(
                inner_loss=lambda w, h, t: (h[:500].reshape(-1, 5) @ w - 1).square().mean(),
                initial=torch.zeros(5),
                optimizer=hg.Momentum(lambda h, t, f=rate: f(h), 0.9),
            )[0],
            hyper,
        )
        assert report.ok == ok and ("WRONG all of hyper" in str(report)) != ok, str(report)


def test_check_moves_hyperparameters_that_act_first():
    problem, _ = bowl(initial=lambda h: h[100] + torch.zeros(5).double())
    report = hg.check(problem, np.linspace(0, 1, 101))
    assert "hyper[0]:" in str(report) and "hyper[100]:" in str(report)


def test_check_names_a_random_start_and_a_negative_rate():
    report = hg.check(*bowl(initial=lambda h: torch.randn(5).double()))
    assert not report.ok and "initial differs when computed twice" in str(report)
    report = hg.check(*bowl(optimizer=hg.Adam(lambda h, t: h[0] - 5.8)))
    assert report.ok and "rate: -5.7 at step 0, so the loss grows" in str(report)


def implicit(problem, hyper):
    return hg.Implicit(hg.DenseSolve())(problem, hyper)


def alternate(problem, hyper):
    solver = hg.Implicit(hg.DenseSolve())
    return next(hg.alternate(solver, problem, hyper, optimizer=hg.Adam(0.1), steps=1))


@pytest.mark.parametrize("solver", [implicit, alternate])
def test_implicit_sees_one_cut_of_several(solver):
    inner_loss = lambda w, h, t: (w - float(h[0])).square().sum() + h[1].exp() * w @ w  # noqa: E731
    with pytest.raises(ValueError, match="inner_loss changes with its arguments but a derivative"):
        solver(*bowl(inner_loss=inner_loss))


@pytest.mark.parametrize("solver", [implicit, alternate])
def test_implicit_warns_of_what_it_cannot_differentiate(solver):
    inner_loss = lambda w, h, t: (w - 1).square().sum() + h[1].exp() * w @ w  # noqa: E731
    change = {"inner_loss": inner_loss, "initial": torch.zeros(5)}
    optimizer = hg.HeavyBall(lambda h, t: 0.1 * h[0].exp(), 0.9)
    with pytest.warns(UserWarning, match=r"hyper\[0\] the derivative 0: .* not depend on rate"):
        solver(*bowl(**change, optimizer=optimizer))


@each_solver
def test_loss_without_the_weights_raises(solver):
    """Weight decay moves the weights all the same, so the hypergradient is not zero."""
    optimizer = hg.AdamW(lambda h, t: h[0], weight_decay=lambda h, t: h[1])
    cut = lambda w, h, t: (w.detach() - 1).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match="inner_loss has no derivative"):
        solver(*bowl(optimizer=optimizer, inner_loss=cut, initial=torch.ones(5).double()))


@pytest.mark.parametrize("seed", range(8))
def test_cut_images_of_a_relu_net_raise(seed):
    """The step of the test must be short: within 1e-3 the gradient jumps at many kinks."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 4)
    weights, f = hg.nets.functional(torch.nn.Sequential(*layers).double())
    labels, entropy = torch.arange(10) % 4, torch.nn.functional.cross_entropy
    x, images = torch.randn(2, 10, 20, dtype=torch.float64)
    problem = hg.Problem(
        hg.Torch(),
        lambda w, h, t: entropy(f(w, h.reshape(10, 20).detach()), labels),
        lambda w, h: entropy(f(w, x), labels),
        hg.HeavyBall(0.1, 0.9),
        weights,
        steps=40,
    )
    with pytest.raises(ValueError, match="inner_loss changes with its arguments"):
        hg.Reverse()(problem, images.ravel())


@pytest.mark.parametrize("solver", [hg.Reverse(), implicit], ids=["reverse", "implicit"])
def test_infinite_slope_by_a_hyperparameter_is_named(solver):
    """As of example weights that a projection puts on zero."""
    inner_loss = lambda w, h, t: (h.sqrt() * (w - 1).square()).sum() + w @ w  # noqa: E731
    hyper = [0.3, 0.0, 0.2, 0.1, 0.4]
    with pytest.raises(hg.Diverged, match=r"derivative of the inner loss by hyper\[1\].* root"):
        solver(bowl(inner_loss=inner_loss, initial=torch.zeros(5).double())[0], hyper)
