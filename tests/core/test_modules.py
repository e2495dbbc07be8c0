"""Torch modules as functions: batch statistics, seeds, copies, and what is refused."""

import functools
import pickle
import random
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import hgcore as hg
from hgcore.modules.draws import generators

functional = hg.nets.functional
SOLVERS = hg.Reverse(), hg.Reverse(hg.Reversible()), hg.Forward()


def randn(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


class Recurrent(nn.Module):
    """A language model: embedding tied to the output, two LSTM layers, dropout."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.out.weight = self.embedding.weight
        self.lstm, self.drop = nn.LSTM(3, 3, 2, dropout=0.3, batch_first=True), nn.Dropout(0.3)

    def forward(self, words):
        return self.out(self.drop(self.lstm(self.embedding(words))[0])).mean(1)


class Saving(nn.Sequential):
    """A net whose hidden layer is computed again in the backward pass."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        return self[2](checkpoint(lambda x: self[1](self[0](x)), x, use_reentrant=False))


class Spectral(nn.Module):
    """A net with complex weights."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)[:, :3]


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))


def convolutional():
    first = nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.GroupNorm(1, 2)
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


def normed():
    over_time = nn.InstanceNorm1d(3, track_running_stats=True)
    return nn.Sequential(nn.Conv1d(4, 3, 1), over_time, nn.Flatten(), nn.Linear(15, 3), nn.GELU())


NETS = {
    "batch norm": (convolutional, randn(4, 1, 8, 8)),
    "instance norm": (normed, randn(4, 4, 5)),
    "lstm, dropout, tied": (Recurrent, torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 2], [4, 2, 3]])),
    "transformer, dropout": (transformer, randn(4, 3, 4)),
    "checkpointing": (Saving, randn(4, 4)),
    "complex": (Spectral, randn(4, 4)),
}


def build(name):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    return make().to(torch.float64) if name != "complex" else make(), inputs


def trained(name, optimizer, steps=3):
    """A weight for each example, the rate and a penalty are learned."""
    module, inputs = build(name)
    start, net = functional(module)
    labels = torch.tensor([0, 1, 2, 0])

    def inner_loss(w, h, t):
        losses = F.cross_entropy(net(w, inputs, seed=(t,)), labels, reduction="none")
        return (h[:4].exp() * losses).mean() + h[4].exp() * (w @ w)

    return hg.Problem(
        hg.Torch(), inner_loss,
        lambda w, h: F.cross_entropy(net(w, inputs, seed=(99,)), labels.flip(0)),
        optimizer(lambda h, t: h[5].exp()), lambda h: start + 0 * h[0], steps,
    ), [0.1, -0.2, 0.0, 0.3, -4.0, -3.0]  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("optimizer", [lambda rate: hg.Momentum(rate, 0.9), hg.AdamW])
def test_solvers_equal_unrolled(name, optimizer):
    problem, hyper = trained(name, optimizer)
    expected = catalogue.unrolled(problem, hyper)[1]
    for solver in SOLVERS:
        assert gap(solver(problem, hyper).grad, expected) < 1e-9  # float64, 3 steps


@pytest.mark.parametrize("name", NETS)
def test_threads_share_a_function(name):
    """torch has one choice of attention's kernel for all of them: it is as before."""
    problem, hyper = trained(name, hg.AdamW, steps=2)
    hypers = [[x + 0.1 * i for x in hyper] for i in range(6)]
    alone = [hg.Reverse()(problem, h).grad for h in hypers]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda h: hg.Reverse()(problem, h).grad, hypers))
    assert all(map(torch.equal, alone, together)) and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("name", NETS)
def test_functional_is_the_module(name):
    """Values, derivatives, names; the module's own attention and LSTM are other kernels."""
    module, inputs = build(name)
    weights, net = functional(module.eval())
    leaf = weights.clone().requires_grad_()
    found, expected = net(leaf, inputs), module(inputs)
    assert weights.ndim == 1 and torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    (slope,) = torch.autograd.grad(found.square().sum(), leaf)
    slopes = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    parts = [torch.view_as_real(x) if x.is_complex() else x for x in slopes]
    assert torch.allclose(slope, torch.cat([x.reshape(-1) for x in parts]), rtol=1e-11, atol=1e-13)
    blocks = net.layout.split(weights)
    assert list(blocks) == [name for name, _ in module.named_parameters()]


def test_functional_leaves_frozen_parameters():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    module[0].requires_grad_(False)
    weights, net = functional(module)
    assert list(net.layout.shapes) == ["2.weight", "2.bias"] and len(weights) == 12
    change = net(weights + 1, torch.ones(3, 4)) - net(weights, torch.ones(3, 4))
    expected = 1 + module[:2](torch.ones(3, 4)).sum(1, keepdim=True).expand(3, 2)
    assert torch.allclose(change, expected, atol=1e-6)


def test_batch_statistics_are_those_of_the_batch():
    """As the module in training mode; running averages and the module's mode stay."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    weights, net = functional(module)
    inputs, others = randn(6, 4), randn(9, 4, seed=1) + 2
    before = {name: x.clone() for name, x in module.state_dict().items()}
    found = net(weights, inputs), net(weights, others)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert torch.equal(found[0], module(inputs)) and torch.equal(found[1], module(others))


def test_evaluation_uses_means_over_batches():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    weights, net = functional(module)
    matrix, bias, scale, shift = (2 * weights).split((12, 3, 3, 3))
    batches = [(randn(6, 4, seed=i),) for i in range(3)]
    tested = net.evaluation(2 * weights, iter(batches))
    hidden = torch.stack([x @ matrix.reshape(3, 4).T + bias for (x,) in batches])
    mean, var = hidden.mean((0, 1)), hidden.var(1).mean(0)
    expected = (hidden[0] - mean) / (var + 1e-5).sqrt() * scale + shift
    assert torch.allclose(tested(2 * weights, batches[0][0]), expected, rtol=1e-12)
    assert module.training and not module[1].running_mean.any()


def test_evaluation_in_a_loss_is_refused():
    """Its statistics are constants, so the gradient of the loss would be wrong."""
    weights, net = functional(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double())
    inputs = randn(6, 4)
    outer_loss = lambda w, h: net.evaluation(w, [(inputs,)])(w, inputs).sum()  # noqa: E731
    problem = catalogue.bowl(hg.Torch(), n=len(weights), initial=weights, outer_loss=outer_loss)
    with pytest.raises(ValueError, match="evaluation fixes the batch statistics"):
        hg.Reverse()(*problem)


def test_inputs_by_name_and_nested():
    attention, lstm, x = (
        nn.MultiheadAttention(8, 2).double(),
        nn.LSTM(8, 4).double(),
        randn(3, 5, 8),
    )
    weights, net = functional(attention)
    found, none = net(weights, x, x, x, need_weights=False)
    assert none is None and torch.allclose(found, attention(x, x, x)[0], rtol=1e-12)
    weights, net = functional(lstm)
    state = randn(1, 5, 4), randn(1, 5, 4, seed=1)
    assert torch.equal(net(weights, x, state)[1][1], lstm(x, state)[1][1])


def test_pruned_and_pickled_modules():
    module, inputs = nn.Linear(4, 3), torch.ones(2, 4)
    prune.l1_unstructured(module, "weight", 5)
    weights, net = functional(module)
    tested = net.evaluation(weights, [(inputs,)])  # the pruned weights, which have a graph, too
    for function in (net, pickle.loads(pickle.dumps(net)), tested):
        assert torch.equal(function(2 * weights, inputs), 2 * module(inputs))


class Closure(nn.Linear):
    def __init__(self, close):
        super().__init__(3, 3)
        self.function = close(self)

    def forward(self, x):
        return self.function(x)


class Counting(nn.Linear):
    """A buffer that moves, in place or not."""

    def __init__(self, in_place):
        super().__init__(3, 3)
        self.in_place = in_place
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count = self.count.add_(1) if self.in_place else self.count + 1
        return super().forward(x)


class Noise(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + float(self.draw())


OWN = functools.partial(torch.randn, (), generator=torch.Generator())
CLOSURE = lambda module: lambda x: x @ module.weight  # noqa: E731
PARTIAL = lambda module: functools.partial(F.linear, weight=module.weight)  # noqa: E731
DRAWS = [lambda: torch.randn(()), random.random, np.random.rand]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Closure(CLOSURE), "keeps a function of itself"),
        (lambda: Closure(PARTIAL), "keeps a function of itself"),
        (lambda: Counting(True), "changes its buffer '1.count'"),
        (lambda: Counting(False), "changes its buffer '1.count'"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "changes its buffer '1.weight_u'"),
        (lambda: parametrizations.spectral_norm(nn.Linear(3, 3)), "changes its buffer"),
        (lambda: nn.Dropout(0.1), r"draws random numbers .* seed=\(t,\), or call eval"),
        (nn.RReLU, "draws random numbers"),
        *((lambda draw=draw: Noise(draw), "draws random numbers") for draw in DRAWS),
        (lambda: Noise(OWN), "gives another output when it is called again"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_first_call_refuses(make, words):
    torch.manual_seed(0)  # RReLU draws for negative numbers only
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), make()))
    with pytest.raises(ValueError, match=f"Sequential {words}"):
        net(weights, torch.ones(2, 3))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), *map(Noise, DRAWS)])
def test_seed_names_the_draws(layer):
    """The same numbers give the same draws; the process's own go on as before."""
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), layer))
    before = generators(weights)
    first, again, other = (net(weights, torch.ones(2, 3), seed=t) for t in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert before == generators(weights)
    for seed in ((None,), -1, 0.5):
        with pytest.raises(ValueError, match="seed must be whole numbers"):
            net(weights, torch.ones(2, 3), seed=seed)


class Nested(nn.Module):
    """Layers and weights held by containers of the module, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.stages, self.weights = {"first": [(self.layer,)]}, [self.layer.weight]
        self.named = OrderedDict(layer=self.layer)

    def forward(self, x):
        self.named.move_to_end("layer")
        return self.stages["first"][0][0](x) + self.named["layer"](x) @ self.weights[0]


def test_layers_in_containers():
    module = Nested()
    weights, net = functional(module)
    found = net(2 * weights, torch.ones(2, 3))
    with torch.no_grad():
        for p in module.parameters():
            p *= 2
    assert torch.equal(found, module(torch.ones(2, 3)))


class Keeping(nn.Linear):
    """Keeps its scaled weights, as some do until the mode changes, and an auxiliary loss."""

    scaled = auxiliary = None

    def forward(self, x):
        if self.scaled is None:
            self.scaled = self.weight / self.weight.norm()
        self.auxiliary = self.weight.square().mean()
        return F.linear(x, self.scaled)


def test_calls_leave_nothing_on_the_module():
    module = Keeping(3, 3)
    weights, net = functional(module)
    found = [net(scale * weights, torch.eye(3)) for scale in (1, -1)]
    assert torch.equal(found[0], -found[1])
    assert module.scaled is None and module.auxiliary is None
    assert torch.equal(weights, functional(module)[0])


class Rotary(nn.Linear):
    """Makes its table, a buffer that is not saved, again for longer inputs."""

    def __init__(self, early):
        super().__init__(3, 3)
        self.length = 0
        if early:
            self.register_buffer("table", torch.ones(1, 1), persistent=False)

    def forward(self, x):
        if len(x) > self.length:
            self.length, table = len(x), torch.cos(torch.arange(len(x)))[:, None]
            self.register_buffer("table", table, persistent=False)
        return super().forward(x) * self.table[: len(x)]


@pytest.mark.parametrize("early", [False, True])
def test_buffers_made_in_a_call(early):
    module = Rotary(early)
    weights, net = functional(module)
    names = [name for name, _ in module.named_buffers()]
    found = [net(weights, torch.ones(length, 3)) for length in (2, 5, 3)]
    assert [name for name, _ in module.named_buffers()] == names
    assert torch.equal(found[1], module(torch.ones(5, 3)))


def test_calls_of_the_wrong_form():
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match=r"are torch.float32, the weights torch.float64: call mod"):
        net(weights.double(), torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"weights must be a tensor \(n,\), got ndarray"):
        net(weights.numpy(), torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"tuples of inputs such as \(x,\), got Tensor"):
        net.evaluation(weights, [torch.ones(2, 3)])
    net.module.eval()
    with pytest.raises(ValueError, match="changed the mode; call functional again"):
        net(weights, torch.ones(2, 3))


def test_transforms_of_torch():
    """Of examples and weights."""
    inputs, scales = randn(4, 3), torch.tensor([1.0, 2.0], dtype=torch.float64)

    def squares(w):
        return net(w, inputs).square().sum()

    weights, net = functional(nn.Linear(3, 3).double())
    each = torch.func.vmap(lambda x: net(weights, x))(inputs)  # the first call, too
    assert torch.allclose(each, net(weights, inputs), rtol=1e-12)
    assert torch.allclose(torch.func.grad(squares)(weights) @ weights, 2 * squares(weights))
    each = torch.func.vmap(lambda scale: squares(scale * weights))(scales)
    assert torch.allclose(each[1], squares(2 * weights), rtol=1e-12)


def hooked(register):
    module = nn.Linear(3, 3)
    register(module)
    return module


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hooked(lambda m: m.weight.register_hook(abs)), "'weight' has a hook.*clip="),
        (lambda: hooked(lambda m: m.register_full_backward_hook(abs)), "has a backward hook"),
        (lambda: torch.compile(nn.Linear(3, 3), backend="eager"), "compiled|hg.fast.Compiled"),
        (lambda: torch.jit.script(nn.Linear(3, 3)), "is a script"),
        (lambda: nn.LazyLinear(3), "has no shape yet"),
        (lambda: nn.Linear, "takes a torch.nn.Module, got type"),
        (lambda: nn.Linear(3, 3).half(), "float16; use one of float32"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()), "32 and float64; use"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 3)), "torch gets wrong; divide by the norm"),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "torch gets wrong; divide by"),
        (lambda: nn.EmbeddingBag(3, 4), "no second derivative in torch; use Embedding"),
        (lambda: nn.Embedding(3, 4, sparse=True), "has sparse=True, .* use sparse=False"),
        (lambda: nn.Embedding(3, 4, max_norm=0.1), "has max_norm=0.1"),
        (nn.Tanh, "Tanh has no parameters to train"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "Linear has no parameters to train"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_functional_refuses(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        functional(make())


class Caching(nn.Module):
    """Keeps what it computes from its weights in a dictionary that its parts share."""

    def __init__(self):
        super().__init__()
        self.first, self.cache = nn.Linear(4, 3), {}
        self.first.cache = self.cache

    def forward(self, x):
        if "weight" not in self.cache:
            self.cache["weight"] = self.first.weight.t().exp()
        return x @ self.first.cache["weight"]


def test_a_cache_is_filled_for_each_call():
    """It would keep the first weights; the module's own stays empty, and shared among parts."""
    module, inputs = Caching().to(torch.float64), randn(5, 4)
    weights, net = functional(module)
    for factor in (1, 2):
        leaf = (factor * weights).requires_grad_()
        expected = inputs @ net.layout.split(leaf)["first.weight"].t().exp()
        found = net(leaf, inputs)
        assert torch.allclose(found, expected, rtol=1e-12)
        slopes = [torch.autograd.grad(y.sum(), leaf)[0] for y in (found, expected)]
        assert torch.allclose(*slopes, rtol=1e-12)
    assert module.cache == {} and module.first.cache is module.cache
