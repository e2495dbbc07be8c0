"""The hand-written derivatives of a dense net are those that torch derives from the plain one."""

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap
from threadpoolctl import threadpool_info

import hgcore as hg
from hgcore.fast import dense_net
from hgcore.nets import DenseNet

RNG = np.random.default_rng(0)
INPUTS, LABELS = torch.as_tensor(RNG.standard_normal((9, 4))), torch.full((9, 3), 1 / 3.0)
LOSSES = {
    "linear in the outputs": lambda log: -(log * LABELS.to(log.dtype)).sum(),
    "curved": lambda log: ((log.exp() - LABELS.to(log.dtype)) ** 2 * log).sum(),
}
NET, CURVED = DenseNet((4, 5, 3)), LOSSES["curved"]
START = torch.as_tensor(RNG.standard_normal(NET.layout.size))


def plain(weights, inputs, layout):
    """The net as torch sees it without this module."""
    return DenseNet.through(list(layout.split(weights).values()), inputs)


def derivatives(log_probabilities, net, loss, weights, direction):
    """Return value, gradient, and products with the derivatives by weights and a factor on them."""
    factor = torch.ones_like(weights).requires_grad_()
    leaf = weights.clone().requires_grad_()
    value = loss(log_probabilities(factor * leaf, INPUTS.to(leaf.dtype), net.layout))
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    products = torch.autograd.grad(gradient, (leaf, factor), direction)
    return value.detach(), gradient.detach(), *products


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-13), (torch.float32, 1e-4)])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (4, 6, 5, 6, 3)])
def test_derivatives_equal_those_of_torch(sizes, loss, dtype, error, monkeypatch):
    """Against float64. A few hundred roundings; tanh by NumPy and by torch, tensors as on a GPU."""
    net, rng = DenseNet(sizes), np.random.default_rng(1)
    point = torch.as_tensor(rng.standard_normal((2, net.layout.size)))
    expected = derivatives(plain, net, loss, *point)
    for name, change in (
        ("elementwise", lambda dtype: "numpy"),
        ("elementwise", lambda dtype: "torch"),
        ("numbers", torch.Tensor.detach),
    ):
        monkeypatch.setattr(dense_net, name, change)
        found = derivatives(dense_net.LogProbabilities.apply, net, loss, *point.to(dtype))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype and gap(ours, theirs) < error


def test_unsound_second_derivatives_are_refused():
    """A third one, and one at weights that changed in place, of which the node keeps views."""
    weights, linear = START.clone().requires_grad_(), LOSSES["linear in the outputs"]
    loss = linear(dense_net.LogProbabilities.apply(weights, INPUTS, NET.layout))
    (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
    given = gradient, weights, gradient.detach()
    with pytest.raises(RuntimeError, match="differentiated twice only"):
        torch.autograd.grad(*given, create_graph=True)
    with torch.no_grad():
        weights += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(*given)


def rows_by_vmap(weights):
    return torch.func.vmap(lambda row: NET(weights, row[None]))(INPUTS)[:, 0]


FORMS = {  # whether the hand-written net computes it
    "the net": (lambda w, h, t=None: h[0] * CURVED(NET(w, INPUTS)), True),
    "learned inputs": (lambda w, h, t=None: CURVED(NET(w, INPUTS * h[0])), False),
    "a transform of torch.func": (lambda w, h, t=None: h[0] * CURVED(rows_by_vmap(w)), False),
}


@pytest.mark.parametrize("loss, fits", FORMS.values(), ids=FORMS)
def test_backend_uses_the_net_where_it_fits(loss, fits, monkeypatch):
    used, fast = [], dense_net.LogProbabilities.forward
    record = staticmethod(lambda *args: used.append(0) or fast(*args))
    monkeypatch.setattr(dense_net.LogProbabilities, "forward", record)
    problem, hyper = catalogue.bowl(hg.Torch(), inner_loss=loss, initial=START)
    for verb in ("linearize", "pushforward"):
        used.clear()
        getattr(problem.backend, verb)(loss, START, problem.as_hyper(hyper))
        assert len(used) == fits
    assert gap(hg.Reverse()(problem, hyper).grad, hg.Forward()(problem, hyper).grad) < 1e-12


def test_blas_of_numpy_has_the_threads_of_torch():
    net, before = DenseNet((4, 3)), torch.get_num_threads()
    if not any(pool["user_api"] == "blas" for pool in threadpool_info()):
        pytest.skip("threadpoolctl does not know this BLAS")
    try:
        for threads in (2, 1, before):
            torch.set_num_threads(threads)
            dense_net.Forward(torch.zeros(net.layout.size), torch.ones(1, 4), net.layout)
            pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert {pool["num_threads"] for pool in pools} == {threads}
    finally:
        torch.set_num_threads(before)
