"""Networks of a flat weight vector, against networks written by hand in torch, and inside a Problem."""

import functools

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import nets

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
RNG = np.random.default_rng(0)


@both
@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (784, 50, 50, 50, 10)])
def test_a_dense_net_is_the_one_written_in_torch(backend, sizes):
    net = nets.Dense(sizes)
    weights, inputs = RNG.standard_normal(net.layout.size) * 0.3, RNG.standard_normal((7, sizes[0]))
    layers = []
    for rows, columns in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [torch.nn.Linear(rows, columns, dtype=torch.float64), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1], torch.nn.LogSoftmax(dim=-1))
    blocks = net.layout.split(torch.as_tensor(weights))
    for i, layer in enumerate(layers[::2], start=1):
        layer.weight.data, layer.bias.data = blocks[f"weights {i}"].T, blocks[f"biases {i}"]
    expected = model(torch.as_tensor(inputs)).detach().numpy()
    assert np.allclose(
        backend.numpy(net(backend.array(weights), backend.array(inputs))),
        expected,
        rtol=1e-12,
        atol=1e-12,
    )


@both
def test_the_loss_is_that_of_torch(backend):
    scores, labels = RNG.standard_normal((9, 5)) * 3, RNG.integers(5, size=9)
    log, hot = nets.log_softmax(backend.array(scores)), backend.array(np.eye(5)[labels])
    expected = torch.nn.functional.cross_entropy(torch.as_tensor(scores), torch.as_tensor(labels))
    assert abs(float(nets.cross_entropy(log, hot)) - float(expected)) < 1e-14
    assert nets.error_rate(log, hot) == pytest.approx(
        np.mean(scores.argmax(1) != labels), abs=1e-15
    )


@both
def test_large_scores_neither_overflow_nor_lose_the_gradient(backend):
    f = lambda scores: nets.log_softmax(scores)[0, 0]  # noqa: E731
    value, gradient = backend.gradients(f, backend.array([[1e4, -1e4, 0.0]]))
    assert float(value) == 0 and np.isfinite(backend.numpy(gradient)).all()


LOSSES = {
    "linear in the outputs": lambda log: -(log * LABELS).sum(),
    "not linear": lambda log: ((log.exp() - LABELS) ** 2).sum(),
}
LABELS = torch.softmax(torch.as_tensor(RNG.standard_normal((9, 3))), -1)


def derivatives(net, loss, weights, inputs, direction):
    """Value, gradient, Hessian times direction, mixed derivative with a factor on the weights times direction."""
    factor = torch.ones_like(weights).requires_grad_()
    weights = weights.clone().requires_grad_()
    value = loss(net(factor * weights, inputs))
    (gradient,) = torch.autograd.grad(value, weights, create_graph=True)
    return (
        value.detach(),
        gradient.detach(),
        *torch.autograd.grad(gradient, (weights, factor), direction),
    )


@pytest.mark.parametrize(
    "dtype, most", [(torch.float64, 1e-13), (torch.float32, 1e-4)]
)  # some hundred roundings
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (4, 6, 5, 6, 3)])
def test_derivatives_written_out_are_those_that_torch_derives(
    sizes, loss, dtype, most, monkeypatch
):
    net = nets.Dense(sizes)
    weights, direction = torch.as_tensor(RNG.standard_normal((2, net.layout.size)))
    inputs = torch.as_tensor(RNG.standard_normal((9, 4)))
    written = derivatives(net, loss, *(x.to(dtype) for x in (weights, inputs, direction)))
    monkeypatch.setattr(nets, "in_reverse", lambda *_: False)
    for found, derived in zip(
        written, derivatives(net, loss, weights, inputs, direction), strict=True
    ):
        assert gap(found.double(), derived) < most


def test_a_third_derivative_is_refused_and_not_wrong():
    net = nets.Dense((4, 5, 3))
    weights = torch.as_tensor(RNG.standard_normal(net.layout.size)).requires_grad_()
    (gradient,) = torch.autograd.grad(
        LOSSES["not linear"](net(weights, torch.ones(9, 4, dtype=torch.float64))),
        weights,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(gradient, weights, torch.ones_like(weights), create_graph=True)


def test_weights_written_to_between_gradient_and_product_are_noticed():
    net = nets.Dense((4, 5, 3))
    weights = torch.as_tensor(RNG.standard_normal(net.layout.size)).requires_grad_()
    (gradient,) = torch.autograd.grad(
        LOSSES["not linear"](net(weights, torch.ones(9, 4, dtype=torch.float64))),
        weights,
        create_graph=True,
    )
    with torch.no_grad():
        weights += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(gradient, weights, torch.ones_like(weights))


class Tied(torch.nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self):
        super().__init__()
        self.there, self.back = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.back(torch.tanh(self.there(x)))


def conv():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1),
        torch.nn.GroupNorm(1, 3),
        torch.nn.Tanh(),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 2),
    )


MODULES = {
    "mlp": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)),
        (6, 4),
    ),
    "conv": (conv, (6, 1, 4, 4)),
    "tied": (Tied, (6, 4)),
    "layernorm": (
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.GELU(), torch.nn.Linear(5, 2)
        ),
        (6, 4),
    ),
    "dropout at rest": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)).eval(),
        (6, 4),
    ),
    "dropout of nothing": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.0)),
        (6, 4),
    ),
    "attention": (
        lambda: torch.nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        (2, 3, 4),
    ),
    "batch norm at rest": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2)).eval(),
        (6, 4),
    ),
}


def built(name, dtype=torch.float64):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    return make().to(dtype), torch.as_tensor(
        np.random.default_rng(1).standard_normal(shape), dtype=dtype
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_module_as_a_function_is_the_module(name):
    module, inputs = built(name)
    weights, function = nets.functional(module)
    same = (
        functools.partial(torch.allclose, rtol=1e-13, atol=1e-14)
        if name == "attention"
        else torch.equal
    )  # the module's own is fused
    assert (
        weights.ndim == 1
        and not weights.requires_grad
        and same(function(weights, inputs), module(inputs))
    )
    leaf = weights.clone().requires_grad_()
    (found,) = torch.autograd.grad((function(leaf, inputs) ** 2).sum(), leaf)
    (module(inputs) ** 2).sum().backward()
    assert torch.allclose(
        found, torch.cat([p.grad.reshape(-1) for p in module.parameters()]), rtol=1e-12, atol=1e-13
    )
    assert torch.equal(nets.functional(module)[0], weights)  # the module is as it was
    blocks = function.layout.split(weights)
    assert all(
        torch.equal(blocks[name], parameter) for name, parameter in module.named_parameters()
    )


def test_tied_weights_are_one_block():
    assert len(nets.functional(Tied())[0]) == 16 + 4


@pytest.mark.parametrize(
    "part",
    [
        torch.nn.BatchNorm1d(3),
        torch.nn.BatchNorm1d(3, track_running_stats=False),
        torch.nn.BatchNorm1d(3, track_running_stats=False).eval(),
        torch.nn.Dropout(0.1),
        torch.nn.AlphaDropout(0.1),
        torch.nn.InstanceNorm1d(3, track_running_stats=True),
        torch.nn.RReLU(),
        torch.nn.FractionalMaxPool2d(2, output_size=2),
        torch.nn.MultiheadAttention(4, 2, dropout=0.1),
        torch.nn.LSTM(3, 3, 2, dropout=0.1),
    ],
    ids=lambda p: type(p).__name__,
)
def test_modules_that_change_while_they_run_are_refused_by_name(part):
    with pytest.raises(
        ValueError, match=rf"module '1' \({type(part).__name__}\) gives other results"
    ):
        nets.functional(torch.nn.Sequential(torch.nn.Linear(3, 3), part))


@pytest.mark.parametrize(
    "norm", [torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_spectral_norm_is_taken_at_rest_only(norm):
    module = norm(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="gives other results"):
        nets.functional(module)
    nets.functional(module.eval())


@pytest.mark.parametrize(
    "norm", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_torch_differentiates_wrongly_is_refused(norm):
    with pytest.raises(ValueError, match="second derivatives that torch gets wrong"):
        nets.functional(norm(torch.nn.Linear(3, 3)))


def test_frozen_parameters_stay_as_they_are():
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    module[0].requires_grad_(False)
    weights, function = nets.functional(module)
    assert list(function.layout.shapes) == ["2.weight", "2.bias"] and len(weights) == 12
    inputs = torch.ones(3, 4)
    assert torch.allclose(
        function(weights + 1, inputs) - function(weights, inputs),
        1 + module[:2](inputs).sum(1, keepdim=True).expand(3, 2),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "module",
    [torch.nn.Tanh(), torch.nn.Linear(2, 2).requires_grad_(False)],
    ids=["no parameters", "all frozen"],
)
def test_a_module_with_nothing_to_train_is_refused(module):
    with pytest.raises(ValueError, match=f"{type(module).__name__} has no parameters to train"):
        nets.functional(module)


def trained(name, dtype="float64"):
    """A module trained with momentum; hyper is the logarithm of the rate, of a penalty, and the logit of the decay."""
    backend = hg.Torch(dtype=dtype)
    module, inputs = built(name, getattr(torch, dtype))
    start, function = nets.functional(module)
    target = function(start, inputs).detach() * 0.5 + 0.1
    loss = lambda w: ((function(w, inputs) - target) ** 2).mean()  # noqa: E731
    problem = hg.Problem(
        backend,
        inner=lambda w, hyper, t: loss(w) + torch.exp(hyper[1]) * (w * w).sum(),
        outer=lambda w, hyper: loss(w),
        steps=10,
        dynamics=hg.Momentum(
            rate=lambda hyper, t: torch.exp(hyper[0]),
            decay=lambda hyper, t: torch.sigmoid(hyper[2]),
        ),
        initial=lambda hyper: start + 0 * hyper[0],
    )
    return problem, np.array([-1.0, -5.0, 1.0])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "solver",
    [hg.Reverse(), hg.Reverse(hg.reversible), hg.Forward()],
    ids=["stored", "reversible", "forward"],
)
def test_every_solver_works_through_a_module(name, solver):
    problem, hyper = trained(name)
    assert gap(solver(problem, hyper).grad, catalogue.unrolled(problem, hyper)[1]) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_module_in_single_precision_reverses_exactly(name):
    problem, hyper = trained(name, "float32")
    exact, stored = (hg.Reverse(r)(problem, hyper).grad for r in (hg.reversible, hg.stored))
    assert gap(exact, stored) < 1e-4 and gap(stored, catalogue.unrolled(*trained(name))[1]) < 1e-3
