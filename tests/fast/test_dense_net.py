"""The hand-written derivatives of a dense net are those that torch derives from the plain one."""

import itertools

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
    net = DenseNet(sizes)
    point = torch.as_tensor(RNG.standard_normal((2, net.layout.size)))
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


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def gradient_graph(request):
    """(weights, the gradient of a loss there, with its graph)."""
    net = DenseNet((4, 5, 3))
    weights = torch.as_tensor(RNG.standard_normal(net.layout.size)).requires_grad_()
    loss = request.param(dense_net.LogProbabilities.apply(weights, INPUTS, net.layout))
    return weights, torch.autograd.grad(loss, weights, create_graph=True)[0]


def test_third_derivative_is_refused(gradient_graph):
    weights, gradient = gradient_graph
    with pytest.raises(RuntimeError, match="differentiated twice only"):
        torch.autograd.grad(gradient, weights, gradient.detach(), create_graph=True)


def test_weights_changed_in_place_are_noticed(gradient_graph):
    """Between gradient and product: the node keeps views of them."""
    weights, gradient = gradient_graph
    with torch.no_grad():
        weights += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(gradient, weights, gradient.detach())


def test_backend_uses_them_where_they_fit(monkeypatch):
    """In linearize and pushforward; not for inputs that need a gradient."""
    used, fast = [], dense_net.LogProbabilities.forward
    record = staticmethod(lambda *args: used.append(0) or fast(*args))
    monkeypatch.setattr(dense_net.LogProbabilities, "forward", record)
    net, backend = DenseNet((4, 5, 3)), hg.Torch()
    weights, hyper = backend.array(RNG.standard_normal(net.layout.size)), backend.array([1.0])

    def loss(w, h):
        return LOSSES["curved"](net(w, INPUTS)) * h[0]

    def loss_of_learned_inputs(w, h):
        return LOSSES["curved"](net(w, INPUTS * h[0]))

    counts = []
    for f, verb in itertools.product((loss, loss_of_learned_inputs), ("linearize", "pushforward")):
        used.clear()
        getattr(backend, verb)(f, weights, hyper)
        counts.append(len(used))
    assert counts == [1, 1, 0, 0]
    linearized, (gradient, push) = (
        getattr(backend, verb)(loss_of_learned_inputs, weights, hyper)
        for verb in ("linearize", "pushforward")
    )
    joint = weights @ push(0 * weights, hyper)
    assert gap(linearized.mixed(weights), [joint]) < 1e-12


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


def test_a_loss_may_use_transforms():
    """A vmap of torch.func over the net: the plain one runs."""
    net = DenseNet((4, 3))

    def loss(weights, net):
        each = torch.func.vmap(lambda row: net(weights, row[None]))(INPUTS)
        return (each[:, 0] * LABELS).sum()

    problem, hyper = catalogue.bowl(
        hg.Torch(),
        inner_loss=lambda w, h, t: h[0] * loss(w, net),
        initial=torch.as_tensor(RNG.standard_normal(net.layout.size)),
    )
    assert gap(hg.Reverse()(problem, hyper).grad, hg.Forward()(problem, hyper).grad) < 1e-12
