"""What torch differentiates twice wrongly or not at all is what hgcore says, sample by sample."""

import inspect

import catalogue
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_samples as samples
from torch import nn

import hgcore as hg
from hgcore.checks import second_derivatives
from hgcore.checks.second_derivatives import MISSING, WRONG

STEP = 1e-5
LISTED = {
    name: limit for limit in (*WRONG, *MISSING) for name in (*limit.modules, *limit.functions)
}
NOT_SLOPES = ("Gamma",)  # torch's gradients average over draws, here they are fixed
KINDS = {limit: "wrong" for limit in WRONG} | {limit: "missing" for limit in MISSING}


def tensors(outputs) -> list:
    """The real numbers among outputs."""
    if isinstance(outputs, (tuple, list)):
        return [x for part in outputs for x in tensors(part)]
    if outputs.is_complex():
        outputs = torch.view_as_real(outputs.resolve_conj())
    return [outputs.reshape(-1)] if outputs.is_floating_point() else []


def loss_of(name, dtype=torch.float64) -> tuple:
    """Return (a loss of one flat vector, the vector): the squares couple all numbers."""
    f, arguments = samples.build(name, dtype)
    shapes = [x.shape for x in arguments]

    def loss(vector, hyper=None):
        parts = vector.split([shape.numel() for shape in shapes])
        y = torch.cat(tensors(f(*(x.reshape(s) for x, s in zip(parts, shapes, strict=True)))))
        mixed = (torch.cos(torch.arange(len(y))) * y).mean()
        return mixed + mixed**2 + (y * y).mean()

    return loss, torch.cat([x.reshape(-1) for x in arguments])


def gradient(loss, at, **options):
    leaf = at.detach().requires_grad_()
    return leaf, *torch.autograd.grad(loss(leaf), leaf, **options)


def product(loss, at, direction):
    """Return H direction, zeros where torch finds no graph."""
    leaf, slope = gradient(loss, at, create_graph=True)
    if not slope.requires_grad:
        return 0 * direction
    return torch.autograd.grad(slope, leaf, direction, materialize_grads=True)[0]


def close(found, expected, tolerance) -> bool:
    return bool((found - expected).abs().max() <= tolerance * (1e-3 + expected.abs().max()))


def verdict(name, numerical, direction) -> str:
    """Return what torch does with a sample: right, wrong or missing; also in float32."""
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-2)):
        loss, at = loss_of(name, dtype)
        try:
            found = product(loss, at, direction.to(dtype)).double()
        except RuntimeError:
            return "missing"
        if not close(found, numerical, tolerance):
            return "wrong"
    return "right"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", samples.NAMES)
def test_second_derivative_is_right_or_listed(name):
    """By central differences of the gradient; what is not right, the backend refuses."""
    loss, at = loss_of(name)
    direction = torch.as_tensor(np.random.default_rng(0).standard_normal(len(at)))
    ahead, behind = (gradient(loss, at + sign * STEP * direction)[1] for sign in (1, -1))
    numerical = (ahead - behind) / (2 * STEP)
    found, limit = verdict(name, numerical, direction), LISTED.get(name.split()[0])
    expected = KINDS.get(limit, "right")
    assert found == expected, (
        f"torch {torch.__version__}: the second derivative of {name} is {found}, not {expected};"
        " change the lists of hgcore/checks/second_derivatives.py"
    )
    hvp = lambda: hg.Torch().linearize(loss, at, at[:1]).hvp(direction)  # noqa: E731
    if found == "right":
        assert close(hvp(), numerical, 1e-5)
    else:
        with pytest.raises(RuntimeError) as raised:
            hvp()
        assert limit.what in str(raised.value) and limit.instead in str(raised.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", samples.NAMES)
def test_jvp_is_right_or_an_error(name):
    """By central differences. What is not finite is reported as Diverged."""
    loss, at = loss_of(name)
    direction = torch.as_tensor(np.random.default_rng(0).standard_normal(len(at)))
    with torch.no_grad():
        ahead, behind = (loss(at + sign * STEP * direction) for sign in (1, -1))
    size = (gradient(loss, at)[1] * direction).abs().sum()
    try:
        (found,) = hg.Torch().jvp(lambda w: (loss(w),), at)[1](direction)
    except RuntimeError as error:
        assert name.split()[0] in LISTED, error
    else:
        near = abs(found - (ahead - behind) / (2 * STEP)) <= 1e-6 * size
        assert near or not found.isfinite() or name in NOT_SLOPES


def test_every_class_and_functional_has_a_sample():
    """A new one of torch needs a line in tests/torch_samples.py."""
    classes = [x for x in vars(nn).values() if isinstance(x, type) and issubclass(x, nn.Module)]
    names = {x.__name__ for x in classes if not x.__name__.startswith("Lazy")}
    names |= {n for n, x in vars(F).items() if n[0].islower() and inspect.isroutine(x)}

    def plain(name):
        name = name.lower().replace("_", "").removesuffix("withindices").removesuffix("loss")
        return name.removesuffix("eval")

    sampled = {name.split()[0] for name in samples.NAMES}
    known = {*map(plain, sampled), *map(plain, samples.WITHOUT_SAMPLE.split())}
    assert {name for name in names if plain(name) not in known} == set()
    assert set(LISTED) - sampled == {"OptimizedModule"}


@pytest.mark.parametrize("option", second_derivatives.EMBEDDING)
def test_options_of_embedding_change_its_gradient(option):
    """The row of padding_idx is harmless if it is zero, here it is not."""
    table = torch.arange(1.0, 13, dtype=torch.float64) / 10
    value = {"max_norm": 1.0, "padding_idx": 0}.get(option, True)

    def loss(w, **given):
        return torch.tanh(F.embedding(samples.TOKENS, w.reshape(3, 4) * 1, **given)).mean()

    if option == "sparse":
        with pytest.raises(RuntimeError, match="sparse tensors as often"):
            hg.Torch().linearize(lambda w, h: loss(w, sparse=True), table, table[:1])
        return
    ends = [loss(table + sign * STEP, **{option: value}) for sign in (1, -1)]
    slope = gradient(lambda w: loss(w, **{option: value}), table)[1].sum()
    assert abs(slope - (ends[0] - ends[1]) / (2 * STEP)) > 0.01 * abs(slope)


def test_padding_idx_with_a_row_of_zeros_is_right():
    """A penalty keeps the row at zero, too."""
    start, net = hg.nets.functional(nn.Embedding(3, 4, padding_idx=0, dtype=torch.float64))
    loss = lambda w: torch.tanh(net(w, samples.TOKENS).sum())  # noqa: E731
    parts = {"initial": start, "optimizer": hg.Momentum(lambda h, t: h[1], 0.9)}
    parts["inner_loss"] = lambda w, h, t: loss(w) + h[0] * (w * w).sum()
    problem, _ = catalogue.bowl(hg.Torch(), outer_loss=lambda w, h: loss(w) ** 2, **parts)
    report = hg.check(problem, [0.3, 0.1])  # by differences of the whole run:
    found = {finding.subject: finding.status for finding in report.findings}
    assert found["hyper[0]"] == found["hyper[1]"] == found["Stored, Reversible"] == "ok"


class Cube(torch.autograd.Function):
    """x**3, which torch can differentiate once in reverse mode, and in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return 3 * ctx.saved_tensors[0] ** 2 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


cube = Cube.apply


@pytest.mark.parametrize("f", [lambda y: y, torch.exp], ids=["linear", "exp"])
def test_once_differentiable_is_refused(f):
    """torch takes its second derivative as zero if it is asked for that by one argument."""
    at = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = lambda w, h=None: f(cube(w)).sum() + w @ w  # noqa: E731
    found, right = (product(x, at, at) for x in (loss, lambda w: f(w**3).sum() + w @ w))
    assert not close(found, right, 0.1)
    with pytest.raises(RuntimeError, match="Cube is marked @once_differentiable"):
        hg.Torch().linearize(loss, at, at)
    assert float(hg.Torch().gradients(loss, at)[0]) == float(loss(at))  # enough for an outer loss


def test_compiled_functions_are_refused():
    """torch takes the second derivative of this one as zero."""
    loss = torch.compile(lambda w: torch.tanh(w).sum(), backend="aot_eager")
    at = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert not product(loss, at, at).any()
    with pytest.raises(RuntimeError, match="torch.compile has compiled wrong; pass the module"):
        hg.Torch().linearize(lambda w, h: loss(w), at, at)


def test_jvp_of_what_torch_differentiates_once():
    """Terms of it, too, of which reverse mode would leave one out."""
    h, tangent = torch.tensor([[1.0, 0.7, -0.4], [1.0, -2.0, 0.5]], dtype=torch.float64)
    f = lambda h: (h.exp(), cube(h), cube(h) + h, cube(h[0]) * h[1], h.round())  # noqa: E731
    mixed = 3 * h[0] ** 2 * h[1] * tangent[0] + h[0] ** 3 * tangent[1]
    slope = 3 * h**2 * tangent
    expected = h.exp() * tangent, slope, slope + tangent, mixed, 0 * h
    for a, b in zip(hg.Torch().jvp(f, h)[1](tangent), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-14)


def test_jvp_notices_wrong_forward_mode():
    """torch.func.jvp of a product by scatter_reduce is zero."""
    at, where = torch.tensor([1.5, 2.0], dtype=torch.float64), torch.tensor([0, 0])

    def f(h):
        return (cube(h), torch.scatter_reduce(h, 0, where, h, "prod"))

    with pytest.raises(RuntimeError, match="gives another derivative"):
        hg.Torch().jvp(f, at)[1](at)


UNKNOWN = "derivative for aten::new_backward is not implemented."
RAISED = [
    ("out of memory", "^out of memory$"),
    ("a second time", "^a second time$"),
    (UNKNOWN, "an operation as often.*aten::new_backward is not.*; write it with other"),
]


@pytest.mark.parametrize("said, match", RAISED)
def test_errors_of_torch_are_explained_or_kept(said, match):
    with pytest.raises(RuntimeError, match=match), second_derivatives.explained():
        raise RuntimeError(said)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recurrent_nets_of_cudnn():
    """They have no second derivative; torch's own have one."""
    backend, module = hg.Torch("cuda"), nn.LSTM(3, 3).to("cuda", torch.float64)
    w, net = hg.nets.functional(module)
    x = torch.ones(4, 2, 3, dtype=torch.float64, device="cuda")
    loss = lambda w, h: net(w, x)[0].square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="cudnn.flags"):
        backend.linearize(loss, w, w[:1]).hvp(w)
    with torch.backends.cudnn.flags(enabled=False):
        assert backend.linearize(loss, w, w[:1]).hvp(w).any()
