"""Networks of a flat weight vector: the same nets in torch, alone and inside a Problem."""

import functools

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap
from torch import nn

import hgcore as hg
from hgcore import nets

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (784, 50, 50, 50, 10)])
def test_dense_net_is_that_of_torch(sizes, backend):
    """With a tanh between linear layers, and log-softmax at the end."""
    net = nets.DenseNet(sizes)
    weights, inputs = RNG.standard_normal(net.layout.size) * 0.3, RNG.standard_normal((7, sizes[0]))
    layers, blocks = [], net.layout.split(torch.as_tensor(weights))
    for i, (rows, columns) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=1):
        layer = nn.Linear(rows, columns, dtype=torch.float64)
        layer.weight.data, layer.bias.data = blocks[f"weights {i}"].T, blocks[f"biases {i}"]
        layers += [layer, nn.Tanh()]
    expected = nn.Sequential(*layers[:-1], nn.LogSoftmax(-1))(torch.as_tensor(inputs)).detach()
    found = backend.numpy(net(backend.array(weights), backend.array(inputs)))
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_initial_weights_have_variance_1_by_inputs():
    """Within 4 standard errors of 40,000 numbers."""
    net, rng = nets.DenseNet((100, 400, 3)), np.random.default_rng(0)
    weights = net.initial_weights(lambda *shape: rng.standard_normal(shape))
    blocks = net.layout.split(weights)
    assert abs(100 * blocks["weights 1"].var() - 1) < 4 * (2 / 40_000) ** 0.5
    assert not blocks["biases 1"].any() and not blocks["biases 2"].any()


def test_cross_entropy_is_that_of_torch(backend):
    scores, labels = RNG.standard_normal((9, 5)) * 3, RNG.integers(5, size=9)
    log, hot = nets.log_softmax(backend.array(scores)), backend.array(np.eye(5)[labels])
    expected = nn.functional.cross_entropy(torch.as_tensor(scores), torch.as_tensor(labels))
    assert abs(float(nets.cross_entropy(log, hot)) - float(expected)) < 1e-14
    wrong = np.mean(scores.argmax(1) != labels)
    assert nets.error_rate(log, hot) == pytest.approx(wrong, abs=1e-15)


def test_log_softmax_of_large_scores(backend):
    """No overflow, and a finite gradient."""
    scores = backend.array([[1e4, -1e4, 0.0]])
    value, gradient = backend.gradients(lambda scores: nets.log_softmax(scores)[0, 0], scores)
    assert float(value) == 0 and np.isfinite(backend.numpy(gradient)).all()


# ---- torch modules


class Tied(nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(torch.tanh(self.there(x)))


def convolutional():
    first = nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(), nn.AvgPool2d(2)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *first, nn.Flatten(), nn.Linear(3, 2))


def perceptron(*between):
    return nn.Sequential(nn.Linear(4, 5), *between, nn.Linear(5, 2))


MODULES = {  # of inputs (6, 4)
    "perceptron": lambda: perceptron(nn.Tanh()),
    "convolutional": convolutional,
    "tied": Tied,
    "layer norm": lambda: perceptron(nn.LayerNorm(5), nn.GELU()),
    "dropout in eval": lambda: perceptron(nn.Dropout(0.5)).eval(),
    "dropout of 0": lambda: perceptron(nn.Dropout(0.0)),
    "batch norm in eval": lambda: perceptron(nn.BatchNorm1d(5)).eval(),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0),
}


def built(name, dtype):
    """Return (module, inputs) by name."""
    torch.manual_seed(0)
    inputs = torch.as_tensor(np.random.default_rng(1).standard_normal((6, 4)), dtype=dtype)
    return MODULES[name]().to(dtype), inputs


def trained(name, dtype="float64"):
    """A module trained with momentum; hyper: log rate, log penalty, logit of the decay."""
    module, inputs = built(name, getattr(torch, dtype))
    start, function = nets.functional(module)
    target = function(start, inputs).detach() * 0.5 + 0.1

    def loss(w, hyper):
        return ((function(w, inputs) - target) ** 2).mean()

    rate, decay = (lambda h, t: torch.exp(h[0])), (lambda h, t: torch.sigmoid(h[2]))
    problem = hg.Problem(
        hg.Torch(dtype=dtype),
        inner_loss=lambda w, h, t: loss(w, h) + torch.exp(h[1]) * (w * w).sum(),
        outer_loss=loss,
        optimizer=hg.Momentum(rate, decay),
        initial=lambda h: start + 0 * h[0],
        steps=10,
    )
    return problem, np.array([-1.0, -5.0, 1.0])


@pytest.mark.parametrize("name", MODULES)
def test_functional_is_the_module(name):
    """Values, derivatives, names; the module stays as it was. Attention's own kernel is fused."""
    module, inputs = built(name, torch.float64)
    weights, function = nets.functional(module)
    near = functools.partial(torch.allclose, rtol=1e-12, atol=1e-13)
    same = near if name == "attention" else torch.equal
    assert weights.ndim == 1 and same(function(weights, inputs), module(inputs))
    leaf = weights.clone().requires_grad_()
    (found,) = torch.autograd.grad((function(leaf, inputs) ** 2).sum(), leaf)
    (module(inputs) ** 2).sum().backward()
    assert near(found, torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    blocks = function.layout.split(weights)
    assert all(torch.equal(blocks[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize("name", MODULES)
def test_solver_through_a_module_equals_unrolled(name):
    """In float64, and within float32's 6e-8 a step, amplified 1e3 times."""
    problem, hyper = trained(name)
    expected = catalogue.unrolled(problem, hyper)[1]
    for solver in catalogue.SOLVERS.values():
        assert gap(solver(problem, hyper).grad, expected) < 1e-10
        assert gap(solver(*trained(name, "float32")).grad, expected) < 1e-3


def test_functional_leaves_frozen_parameters():
    module = perceptron(nn.Tanh())
    module[0].requires_grad_(False)
    weights, function = nets.functional(module)
    assert list(function.layout.shapes) == ["2.weight", "2.bias"] and len(weights) == 12
    inputs = torch.ones(3, 4)
    change = function(weights + 1, inputs) - function(weights, inputs)
    expected = 1 + module[:2](inputs).sum(1, keepdim=True).expand(3, 2)
    assert torch.allclose(change, expected, atol=1e-6)
    for nothing in (nn.Tanh(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ValueError, match=f"{type(nothing).__name__} has no parameters to"):
            nets.functional(nothing)


# ---- labels


def test_labels_are_classes_or_shares(backend):
    """Numbers of classes give what one-hot labels give; also where batch and classes are equal."""
    scores, classes = nets.log_softmax(backend.array(RNG.standard_normal((4, 4)))), [2, 0, 3, 3]
    for given in (np.array(classes), torch.tensor(classes), torch.tensor(classes).int()):
        if isinstance(given, np.ndarray) and backend.name == "torch":
            continue
        hot = backend.array(np.eye(4)[classes])
        found, expected = (nets.cross_entropy(scores, labels) for labels in (given, hot))
        assert abs(float(found) - float(expected)) < 1e-15
        assert nets.error_rate(scores, given) == nets.error_rate(scores, hot)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (3, 3), (1, 3), ()])
def test_labels_of_another_shape_are_refused(backend, shape):
    scores, labels = backend.array(np.zeros((4, 3))), backend.array(np.zeros(shape))
    for function in (nets.cross_entropy, nets.error_rate):
        with pytest.raises(ValueError, match=r"whole numbers of shape \(4,\) or of shape \(4, 3\)"):
            function(scores, labels)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(backend, label):
    labels = np.array([0, label])
    labels = torch.as_tensor(labels) if backend.name == "torch" else labels
    with pytest.raises(IndexError if label > 0 else (ValueError, IndexError)):
        nets.cross_entropy(backend.array(np.zeros((2, 3))), labels)
