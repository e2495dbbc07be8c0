"""What hg.check finds, and what solvers say of causes."""

import math

import catalogue
import numpy as np
import pytest
import torch
from torch import nn

import hgcore as hg

nan = math.nan
ONES, ZEROS = torch.ones(5).double(), torch.zeros(5).double()
INPUTS = torch.as_tensor(np.random.default_rng(0).standard_normal((6, 5)))
MODULE = nn.Linear(5, 1).double()
WEIGHTS, NET = hg.nets.functional(MODULE)
TRAINED = {"initial": WEIGHTS, "n": 6}
cut = torch.Tensor.detach


def bowl(hyper=(0.1, 0.3), dtype="float64", **changes):
    return catalogue.bowl(hg.Torch(dtype=dtype), **changes)[0], list(hyper)


def inner(loss, **changes):
    return {"inner_loss": loss} | changes


def outer(loss, **changes):
    return {"outer_loss": loss} | changes


def rated(rate, decay=0.9, **changes):
    return {"optimizer": hg.Momentum(rate, decay)} | changes


def right(w, h, t=None):
    return NET(w, INPUTS).square().sum() + h[0] * w.sum()


def itself(w, h, t=None):
    """The module in place of its function."""
    return MODULE(INPUTS).square().sum()


def both(w, h, t=None):
    return right(w, h) + itself(w, h)


def halved(w):  # a square whose gradient is right and whose second derivative is not
    return (2 * w - cut(w)) @ cut(w)


def small(x):
    return 5e-5 * (3 * x).exp()


def many(part):
    """20 of 501 are moved one by one; all together along a random direction."""
    loss = lambda w, h, t: (h[:500].reshape(-1, 5) @ w - 1).square().mean()  # noqa: E731
    rate = lambda h, t: (h[500] / 2).exp() * part((h[500] / 2).exp())  # noqa: E731
    return inner(loss, initial=ZEROS, hyper=[*np.linspace(-1, 1, 500), -2.0]) | rated(rate)


def test_check_finds_nothing_wrong(backend):
    for name in ("momentum", "rmsprop", "adamw"):
        report = hg.check(*catalogue.everything(backend, name, steps=3))
        assert report.ok and len(report.findings) > 20, str(report)
    report = hg.check(*bowl([0.1], inner_loss=right, outer_loss=right, **TRAINED))
    assert "note" not in str(report)


FREE = inner(lambda w, h, t: (w * w).sum())
FINDINGS = [  # changes of the problem, words
    (inner(lambda w, h, t: (w - cut(w) ** 2 * h[0]).square().sum()), "WRONG inner d/dw:"),
    (inner(lambda w, h, t: halved(w) * h[0]), "WRONG inner d2/dw2:"),
    (inner(lambda w, h, t: w @ w * h[0].item() * h[1]), "WRONG inner d2/dw dhyper:"),
    (outer(lambda w, h: (w * cut(w)).sum()), "WRONG outer d/dw:"),
    (outer(lambda w, h: w @ w * h[0].item() * h[1]), "WRONG outer d/dhyper:"),
    (FREE | {"optimizer": hg.GradientDescent(lambda h, t: h[0].item())}, "WRONG hyper[0]:"),
    (many(lambda x: x), "ok    all of hyper"),
    (many(cut), "WRONG all of hyper"),
    (inner(lambda w, h, t: torch.rand(()).double() * w @ w), "WRONG same bits: the gradient"),
    (outer(lambda w, h: torch.rand(()).double() * w.sum()), "WRONG same bits: the outer loss"),
    (rated(lambda h, t: torch.rand(()) * h[0]), "WRONG same bits: rate"),
    ({"initial": lambda h: torch.randn(5).double()}, "WRONG same bits: initial differs when"),
    (inner(lambda w, h, t: (w * w).sum() * {0: 1.0}[t]), "WRONG KeyError"),
    (outer(lambda w, h: (w > 0).double().mean()), "WRONG ValueError: outer_loss has no deriv"),
    (inner(both, **TRAINED), "note  inner_loss: uses 2 other tensors that require a grad"),
    (outer(both, **TRAINED), "note  outer_loss: uses 2 other tensors that require a grad"),
    ({"optimizer": hg.Adam(lambda h, t: h[0] - 5.8)}, "rate: -5.7 at step 0, so the loss grows"),
    ({"hyper": [0.1, 0.3, 1.0]}, "note  hyper[2]: no effect within 6 steps"),
    # of more than 20, those that act come first
    ({"initial": lambda h: h[100] + ZEROS, "hyper": np.linspace(0, 1, 101)}, "ok    hyper[0]:"),
    # at 1e-8 of a root, every step is too long
    (inner(lambda w, h, t: w @ w * (1 + h[0].sqrt()), hyper=[1e-9, 0.3]), "not compared"),
    (inner(lambda w, h, t: 0 * (w * w).sum() * h[0]), "ok    inner d/dw: 0, differ"),
    # torch's derivative at the kink is zero, which is that of one side
    (outer(lambda w, h: w @ w * (1 + (h[0] - 0.1).relu())), "has a kink here"),
    # at the shortest steps the small effect is lost in rounding, which looks like no effect
    (outer(lambda w, h: w @ w + 1 + small(cut(h[0])), dtype="float32"), "WRONG outer d/dhyper:"),
    (outer(lambda w, h: w @ w + 1 + small(h[0]), dtype="float32"), "ok    outer d/dhyper:"),
    # differences of two step lengths agree by chance
    (
        outer(lambda w, h: w @ w + 1e-4 * cut(h[0]), dtype="float32"),
        "d/dhyper: 0, not compared: diff",
    ),
    # rounding to single precision hides the small derivative by h
    (outer(lambda w, h: (w @ w + 1e-4 * h[0]).float().double()), "scatter by"),
    # rounding of the loss, which cancels, is much larger than that of its value
    (outer(lambda w, h: w @ w + ((1e6 + h[0]) - 1e6), hyper=[0.1, 0.3, 1.0]), "ok    outer d/dh"),
    # fixed point cannot hold it: check goes on with another solver
    ({"initial": 1e5 * ONES}, "ok    Stored, Checkpointed"),
]


@pytest.mark.parametrize("changes, words", FINDINGS)
def test_check_finds(changes, words):
    report = hg.check(*bowl(**changes))
    assert words in str(report) and report.ok == ("WRONG" not in words), str(report)


def hooked(w, h, t):
    if w.requires_grad:
        w.register_hook(lambda g: g / 2)
    return (w**4).sum() * h[0]


def jagged(x):
    """Kinks within 1e-3, so that a step must be short, and one right beside 0.1."""
    return abs(torch.tensor([3103, 5237, 7774, 4516, 400.001]).double() * x % 2 - 1)


def bad(t, at):
    return nan if t == at else 1.0


def zeros(w):
    return w - cut(w)


FLAT = inner(lambda w, h, t: w[:4] @ w[:4] * h[0])  # the last weight has no gradient
WAVES = inner(lambda w, h, t: torch.sin(1e5 * w).sum() / 1e4, steps=100)
# the penalty has no slope at the start
PENALTY = inner(lambda w, h, t: (w - 1).square().sum() + cut(h[0]) * w @ w, initial=ZEROS)
# it moves the weights without a gradient, too, so the hypergradient is not zero
DECAYED = {
    "optimizer": hg.AdamW(lambda h, t: h[0], weight_decay=lambda h, t: h[1]),
    "initial": ONES,
}
CUT = "{} changes with its arguments but a derivative is".format
CUTS = [  # changes of the problem, words of the error: else a hypergradient would be zero
    (FREE | rated(lambda h, t: h[0].item()), CUT("rate")),
    (FREE | rated(0.1, lambda h, t: 0.9 * h[0].sigmoid().item()), CUT("decay")),
    (FREE | {"initial": lambda h: ONES * cut(h[0])}, CUT("initial")),
    (inner(lambda w, h, t: (w * w).sum() * h[0].item()), CUT("inner_loss")),
    (FREE | outer(lambda w, h: (w * w).sum() * cut(h[0])), CUT("outer_loss")),
    (inner(lambda w, h, t: cut((w * w).sum()) * h[0]), CUT("inner_loss")),
    (FREE | outer(lambda w, h: (w**3).sum().item() + 0 * h[0]), CUT("outer_loss")),
    (PENALTY, CUT("inner_loss")),
    (inner(lambda w, h, t: w**2 @ jagged(cut(h[0]))), CUT("inner_loss")),
    (inner(itself, **TRAINED), "inner_loss has no deriv.* it calls a module itself"),
    (outer(itself, **TRAINED), "outer_loss has no deriv.* it calls a module itself"),
    (inner(hooked), "hook on its weights.*clip="),
]
CAUSES = [  # changes of the problem, words of the error
    (DECAYED | inner(lambda w, h, t: (cut(w) - 1).square().sum()), "inner_loss has no derivative"),
    (inner(lambda w, h, t: (bad(t, 2) * w).sum()), "step 2: .* is nan, at other .* data"),
    (inner(lambda w, h, t: zeros(w).square().sum().sqrt()), "step 0: .*, 5 of 5: a root"),
    (inner(lambda w, h, t: 18 * (w + 0.3).sqrt().sum()), "step [0-9]: .* nan: a logar"),
    (inner(lambda w, h, t: abs(zeros(w)).pow(1.5).sum()), "second derivatives .* step 5"),
    ({"initial": torch.tensor([1, nan, 1, 1, 1]).double()}, r"initial weights .*\[1\], 1 of 5"),
    (rated(1e300), "at step .: .* lower the rate|at step 0; fixed point"),
    (rated(lambda h, t: bad(t, 2)), "step 2: the coefficient rate is not"),
    (outer(lambda w, h: (INPUTS * nan @ w).sum()), "the outer loss is nan although train"),
    (outer(lambda w, h: (0 * w).sum().sqrt()), "gradient of the outer loss is not"),
    (FLAT | {"optimizer": hg.Adam(0.1, epsilon=0.0)}, "step 0: .* use a larger epsilon"),
    (WAVES | rated(0.01, 0.5), "adjoints grew to .* shorten"),
]


def realtime(problem, hyper):
    return list(hg.realtime(problem, hyper, optimizer=hg.Adam(0.1), steps=5, every=4))


def alternate(solver):
    options = {"optimizer": hg.Adam(0.1), "steps": 5, "every": 4}
    return lambda problem, hyper: list(hg.alternate(solver, problem, hyper, **options))


REVERSE, IMPLICIT = hg.Reverse(), hg.Implicit(hg.DenseSolve())
ITERATED = hg.Implicit(hg.ConjugateGradient())
CUT_RIDGE = inner(lambda w, h, t: (w - cut(h[0])).square().sum() + h[1].exp() * w @ w)
STEEP = inner(lambda w, h, t: ((w - h[0]) ** 4).sum(), optimizer=hg.HeavyBall(5.0, 0.9))
STEEP_CAUSE = "outer step 1: .* the inner loss is inf, .* lower the"
HUGE = inner(lambda w, h, t: (w * w).sum() * h[0] * 1e300, hyper=[1e9, 0.1])
# one slope is infinite, as of example weights that a projection puts on zero
ROOT = inner(lambda w, h, t: h.sqrt() @ (w - 1).square() + w @ w, initial=ZEROS)
ROOT |= {"hyper": [0.3, 0.0, 0.2, 0.1, 0.4]}
ROOT_CAUSE = r"derivative of the inner loss by hyper\[1\].* root"
STOPS = [(solver, *row) for solver in catalogue.SOLVERS.values() for row in (*CUTS, *CAUSES)]
STOPS += [(realtime, *row) for row in CUTS]
STOPS += [  # solver, changes of the problem, words of the error
    *((solver, ROOT, ROOT_CAUSE) for solver in (REVERSE, IMPLICIT)),
    *((solver, CUT_RIDGE, CUT("inner_loss")) for solver in (IMPLICIT, alternate(IMPLICIT))),
    (REVERSE, HUGE, "is inf, with a hyperparameter beyond 1e6: lower the out"),
    (ITERATED, inner(lambda w, h, t: w @ w * bad(t, None)), "at the trained weights the"),
    (ITERATED, inner(lambda w, h, t: abs(zeros(w)).pow(1.5).sum()), "second derivatives"),
    (ITERATED, outer(lambda w, h: w.sum() * nan), "the outer loss is nan"),
    # in a later part of training, whose first weights are large already
    (realtime, STEEP, STEEP_CAUSE),
    *((alternate(way), STEEP, STEEP_CAUSE) for way in (REVERSE, hg.Implicit(hg.Identity()))),
]


@pytest.mark.parametrize("solver, changes, words", STOPS)
def test_solvers_name_what_is_wrong(solver, changes, words):
    with pytest.raises((ValueError, hg.Diverged), match=words), np.errstate(all="ignore"):
        solver(*bowl(**changes))


@pytest.mark.parametrize("solver", [IMPLICIT, alternate(IMPLICIT)])
def test_implicit_warns_of_what_it_leaves_out(solver):
    ridge = inner(lambda w, h, t: (w - 1).square().sum() + h[1].exp() * w @ w, initial=ZEROS)
    with pytest.warns(UserWarning, match=r"hyper\[0\] the derivative 0: .* not depend on rate"):
        solver(*bowl(**ridge | {"optimizer": hg.HeavyBall(lambda h, t: 0.1 * h[0].exp(), 0.9)}))


FLAT_AT_ZERO = [
    torch.relu,
    torch.square,
    torch.abs,
    lambda x: torch.relu(x - 4e-4) - torch.relu(-x - 5e-4),  # as of units that are off in a batch
    lambda x: 3 * torch.relu(x) - torch.relu(-x),  # up on both sides, but not as steeply
]


@pytest.mark.parametrize("solver", catalogue.SOLVERS.values(), ids=catalogue.SOLVERS)
@pytest.mark.parametrize("f", FLAT_AT_ZERO)
def test_zero_derivatives_that_are_right(solver, f):
    """At a kink, at a minimum, and for a constant."""
    loss = lambda w, h, t: (w * w).sum() * f(h[0] - 0.1) + h[1]  # noqa: E731
    assert not solver(*bowl(inner_loss=loss, initial=ONES)).grad.any()
