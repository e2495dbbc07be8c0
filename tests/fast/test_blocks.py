"""Layout.expand and Layout.sums as nodes of torch's graph are the plain ones."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import hgcore as hg
from hgcore.backend import nodes_allowed

blocks = pytest.importorskip("hgcore.fast.blocks")
LAYOUT = hg.Layout({"matrix": (300, 70), "number": (), "vector": (4,)})
RNG = np.random.default_rng(0)


@pytest.fixture
def allowed():
    token = nodes_allowed.set(True)
    yield
    nodes_allowed.reset(token)


@pytest.mark.parametrize("name, size", [("expand", len(LAYOUT)), ("sums", LAYOUT.size)])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_nodes_equal_plain_operations(name, size, dtype, rtol, allowed):
    """Value, gradient and second derivatives, to the rounding of 21,000 sums, against float64."""
    given = torch.as_tensor(RNG.standard_normal((2, size)))

    def derivatives(function, point, direction) -> list:
        leaf = point.clone().requires_grad_()
        value = function(leaf**2)
        (slope,) = torch.autograd.grad((value**3).sum(), leaf, create_graph=True)
        return [value, slope, *torch.autograd.grad(slope, leaf, direction)]

    function = getattr(LAYOUT, name)
    found = derivatives(function, *given.to(dtype))
    assert type(found[0].grad_fn).__name__ == name.title() + "Backward"
    nodes_allowed.set(False)
    for ours, theirs in zip(found, derivatives(function, *given), strict=True):
        assert ours.dtype == dtype
        assert abs(ours - theirs).max() <= rtol * abs(theirs).max()


def test_nodes_keep_out_of_transforms(allowed):
    """An empty block, whole numbers, torch.func and torch.compile take plain operations."""
    vector = torch.arange(11.0)
    assert hg.Layout({"none": (0,), "all": (11,)}).sums(vector).tolist() == [0, 55]
    assert hg.Layout({"all": (11,)}).sums(vector > 3).tolist() == [7]
    pair = hg.Layout({"first": (5,), "second": (6,)})
    both = torch.stack([vector, 2 * vector])
    assert torch.func.vmap(pair.sums)(both).tolist() == [[10, 45], [20, 90]]
    assert torch.func.jacfwd(pair.expand)(torch.ones(2)).sum(0).tolist() == [5, 6]
    assert torch.func.hessian(lambda w: pair.sums(w * w).sum())(vector).trace() == 22


def test_nodes_keep_out_of_other_transforms(allowed):
    """Forward mode, batched gradients of a graph with nodes, tracing, a negative bit."""
    vector, pair = torch.arange(11.0), hg.Layout({"first": (5,), "second": (6,)})
    f, units = (lambda w: pair.sums(w * w)), torch.eye(2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(vector, torch.ones(11))
        tangent = torch.autograd.forward_ad.unpack_dual(f(dual)).tangent
    leaf = vector.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(f(leaf), leaf, units, is_grads_batched=True)
    value = f(leaf)
    pull = lambda v: torch.autograd.grad(value, leaf, v, create_graph=True)[0]  # noqa: E731
    for rows in slopes, torch.vmap(pull)(units):
        assert tangent.tolist() == rows.sum(1).tolist() == [20, 90]
    assert make_fx(f)(vector)(2 * vector).tolist() == [120, 1420]
    assert pair.sums(torch.complex(vector, vector).conj().imag).tolist() == [-10, -45]


def test_nodes_in_a_compiled_loss(allowed, compiler):
    pair = hg.Layout({"first": (5,), "second": (6,)})
    sums = torch.compile(pair.sums, fullgraph=True)
    assert sums(torch.arange(11.0)).tolist() == [10, 45]
