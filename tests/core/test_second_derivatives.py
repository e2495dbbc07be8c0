"""What torch differentiates twice wrongly or not at all is what hgcore says, sample by sample."""

import contextlib
import inspect
import re

import catalogue
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_samples as samples
from torch import nn

import hgcore as hg
from hgcore.checks.second_derivatives import MISSING, WRONG, explained

STEP = 1e-5
LISTED = {name: limit for limit in (*WRONG, *MISSING) for name in limit.names.split()}
NOT_SLOPES = ("Gamma",)  # torch's gradients average over draws, here they are fixed
NOT_FINITE = ("logcumsumexp",)  # torch's, in its vjp by the cotangent
NEWER = ("aminmax", "grid_sample")  # torch 2.11 does not differentiate them twice, and says so
LATER = ("cdist", "pdist")  # torch 2.14 differentiates them twice


def gradient(loss, at, **options):
    leaf = at.detach().requires_grad_()
    value = loss(leaf)
    return leaf, value.detach(), *torch.autograd.grad(value, leaf, **options)


def product(loss, at, direction):
    leaf, _, slope = gradient(loss, at, create_graph=True)
    if not slope.requires_grad:
        return 0 * direction
    return torch.autograd.grad(slope, leaf, direction, materialize_grads=True)[0]


def close(found, expected, tolerance) -> bool:
    return bool((found - expected).abs().max() <= tolerance * (1e-3 + expected.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", samples.NAMES)
def test_derivatives_are_right_or_refused(name):
    """By central differences; if not, the lists of hgcore need a change for this torch."""
    (loss, at), kind = samples.loss_of(name, torch.float64), samples.kind_of(name)
    limit, direction = LISTED.get(kind), np.random.default_rng(0).standard_normal(len(at))
    words = [limit.what, limit.instead] if limit else []
    along = torch.as_tensor(direction)
    if kind in NEWER and torch.__version__ < "2.12":
        words = ["torch cannot differentiate"]
        if kind == "aminmax":  # not even once
            with pytest.raises(RuntimeError, match=words[0]):
                hg.Torch().linearize(loss, at, at[:1]).hvp(along)
            return
    ends = [gradient(loss, at + sign * STEP * along) for sign in (-1, 1)]
    (_, low, behind), (_, high, ahead) = ends
    numerical = (ahead - behind) / (2 * STEP)
    for backend, tolerance in ((hg.Torch(), 1e-5), (hg.Torch(dtype="float32"), 1e-2)):
        loss, at = samples.loss_of(name, getattr(torch, backend.dtype))
        try:
            found = backend.linearize(loss, at, at[:1]).hvp(backend.array(direction))
        except RuntimeError as error:
            assert words and all(part in str(error) for part in words)
            with contextlib.suppress(RuntimeError):
                found = product(loss, at, backend.array(direction))
                assert not close(found, numerical, tolerance), "torch can do it now"
        else:
            assert not words or kind in LATER and torch.__version__ >= "2.14"
            assert close(found, numerical, tolerance)
    loss, at = samples.loss_of(name, torch.float64)
    try:
        (slope,) = hg.Torch().jvp(lambda w: (loss(w),), at)[1](along)
    except RuntimeError:
        assert words
    else:
        near = abs(slope - (high - low) / (2 * STEP)) <= 1e-6 * abs(ahead * along).sum()
        assert near or kind in (NOT_SLOPES if slope.isfinite() else NOT_FINITE)


def test_every_class_and_functional_has_a_sample():
    """A new one of torch needs a line in tests/torch_samples.py."""
    classes = [x for x in vars(nn).values() if isinstance(x, type) and issubclass(x, nn.Module)]
    names = {x.__name__ for x in classes if not x.__name__.startswith("Lazy")}
    names |= {n for n, x in vars(F).items() if n[0].islower() and inspect.isroutine(x)}
    ends = re.compile("(withindices)?(loss)?(eval)?$")
    plain = lambda name: ends.sub("", name.lower().replace("_", ""))  # noqa: E731
    sampled = set(map(samples.kind_of, samples.NAMES))
    known = {*map(plain, sampled), *map(plain, samples.WITHOUT_SAMPLE.split())}
    assert {name for name in names if plain(name) not in known} == set()
    assert set(LISTED) - sampled == {"OptimizedModule"}


def test_padding_idx_with_a_row_of_zeros_is_right():
    """A penalty keeps the row at zero, too. By differences of the whole run."""
    start, net = hg.nets.functional(nn.Embedding(3, 4, padding_idx=0, dtype=torch.float64))
    outer_loss = lambda w, h: torch.tanh(net(w, samples.TOKENS).sum()) ** 2  # noqa: E731
    loss = lambda w, h, t: outer_loss(w, h) + h[0] * (w @ w)  # noqa: E731
    parts = {"inner_loss": loss, "outer_loss": outer_loss, "initial": start}
    report = hg.check(*catalogue.bowl(hg.Torch(), **parts))
    found = {finding.subject: finding.status for finding in report.findings}
    assert found["hyper[0]"] == found["Stored, Reversible"] == "ok"


class Cube(torch.autograd.Function):
    """x**3, which torch can differentiate once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return 3 * ctx.saved_tensors[0] ** 2 * cotangent


cube = Cube.apply
FAULTS = [  # a loss, words of the error
    (lambda w, h=None: cube(w).exp().sum() + w @ w, "Cube is marked @once_differentiable"),
    (torch.compile(lambda w, h=None: w.tanh().sum(), backend="aot_eager"), "compiled wrong; pass"),
]
if hasattr(nn.modules, "linear_cross_entropy_options"):  # torch 2.13
    options = nn.modules.linear_cross_entropy_options.LinearCrossEntropyOptions()
    inputs, labels = (
        torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64),
        torch.tensor([0, 1, 1]),
    )
    chunked = lambda w, h=None: F.linear_cross_entropy(inputs, w[:, None], labels, options=options)  # noqa: E731
    FAULTS.append((chunked, "of linear_cross_entropy with options wrong; leave"))


@pytest.mark.parametrize("loss, words", FAULTS)
def test_wrong_second_derivative_is_refused(loss, words):
    """torch takes it as zero if it is asked for that by one argument."""
    at, backend = torch.tensor([0.5, 1.0], dtype=torch.float64), hg.Torch()
    found = product(loss, at, at)
    behind, ahead = (gradient(loss, (1 + sign * STEP) * at)[2] for sign in (-1, 1))
    assert not close(found, (ahead - behind) / (2 * STEP), 0.1)
    with pytest.raises(RuntimeError, match=words):
        backend.linearize(loss, at, at)
    with pytest.raises(RuntimeError, match=words):
        backend.jvp(lambda w: (loss(w),), at)
    assert float(backend.gradients(loss, at)[0]) == float(loss(at))  # enough for an outer loss


class WithoutGraph(Cube):
    @staticmethod
    def backward(ctx, cotangent):
        with torch.no_grad():
            return 3 * ctx.saved_tensors[0] ** 2 * cotangent


CUT = {  # where forward mode would leave out the derivative of WithoutGraph, or a part of it
    "inner_loss": {"inner_loss": lambda w, h, t: (w @ w) * (2 * h + WithoutGraph.apply(h)).sum()},
    "a coefficient": {"optimizer": hg.HeavyBall(0.1, lambda h, t: WithoutGraph.apply(h[0]))},
    "initial": {"initial": lambda h: torch.cat([h, WithoutGraph.apply(h), h[:1]])},
}


@pytest.mark.parametrize("where", CUT)
def test_forward_refuses_what_has_no_graph(where):
    problem, hyper = catalogue.bowl(hg.Torch(), **CUT[where])[0], [0.3, 0.4]
    assert hg.Reverse()(problem, hyper).grad.all()
    for solve in hg.Forward(), lambda *at: next(hg.realtime(*at, optimizer=hg.Adam(0), steps=1)):
        with pytest.raises(ValueError, match=f"forward mode .* derivative of {where} than"):
            solve(problem, hyper)


def test_errors_of_torch_are_explained_or_kept():
    unknown = "derivative for aten::new is not implemented."
    words = "an operation as often.*aten::new is not.*; write it with other"
    for said, match in (("out of memory", "^out of memory$"), (unknown, words)):
        with pytest.raises(RuntimeError, match=match), explained():
            raise RuntimeError(said)
