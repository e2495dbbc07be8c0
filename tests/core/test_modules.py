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

functional = hg.nets.functional
SOLVERS = {
    "stored": hg.Reverse(),
    "reversible": hg.Reverse(hg.Reversible()),
    "forward": hg.Forward(),
}


def randn(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


class Block(nn.Module):
    """A residual block of ResNet18."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.short = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x):
        hidden = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(hidden)) + self.short(x))


def resnet18(width=2):
    widths = [width * 2 ** (i // 2) for i in range(8)]
    blocks = [Block([width, *widths][i], w, 1 + (i in (2, 4, 6))) for i, w in enumerate(widths)]
    first = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 3)
    return nn.Sequential(*first, *blocks, *last)


class Recurrent(nn.Module):
    """A language model: embedding tied to the output, two LSTM layers, dropout."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.out.weight = self.embedding.weight
        self.lstm, self.drop = nn.LSTM(3, 3, 2, dropout=0.3, batch_first=True), nn.Dropout(0.3)

    def forward(self, words):
        return self.out(self.drop(self.lstm(self.embedding(words))[0])).mean(1)


class Saving(nn.Module):
    """A net whose hidden layer is computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        body = lambda x: torch.tanh(self.hidden(x))  # noqa: E731
        return self.out(checkpoint(body, x, use_reentrant=False))


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


NETS = {
    "resnet18": (resnet18, randn(4, 1, 8, 8)),
    "lstm, dropout, tied": (Recurrent, torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 2], [4, 2, 3]])),
    "transformer, dropout": (transformer, randn(4, 3, 4)),
    "checkpointing": (Saving, randn(4, 4)),
    "complex": (Spectral, randn(4, 4)),
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        randn(4, 4),
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 3, 1),
            nn.InstanceNorm1d(3, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(15, 3),
        ),
        randn(4, 4, 5),
    ),  # fmt: skip
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
    for solver in SOLVERS.values():
        assert gap(solver(problem, hyper).grad, expected) < 1e-9  # float64, 3 steps


@pytest.mark.parametrize("name", NETS)
def test_threads_share_a_function(name):
    problem, hyper = trained(name, hg.AdamW, steps=2)
    hypers = [[x + 0.1 * i for x in hyper] for i in range(6)]
    alone = [hg.Reverse()(problem, h).grad for h in hypers]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda h: hg.Reverse()(problem, h).grad, hypers))
    assert all(map(torch.equal, alone, together))


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
    batches = [(randn(6, 4, seed=i),) for i in range(3)]
    tested = net.evaluation(2 * weights, iter(batches))
    hidden = torch.stack(
        [x @ (2 * weights[:12]).reshape(3, 4).T + 2 * weights[12:15] for (x,) in batches]
    )
    mean, var = hidden.mean((0, 1)), hidden.var(1).mean(0)
    hidden = (hidden[0] - mean) / (var + 1e-5).sqrt()
    expected = hidden * 2 * weights[15:18] + 2 * weights[18:]
    assert torch.allclose(tested(2 * weights, batches[0][0]), expected, rtol=1e-12)
    assert module.training and not module[1].running_mean.any()


def test_evaluation_in_a_loss_is_refused():
    """Its statistics are constants, so the gradient of the loss would be wrong."""
    weights, net = functional(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double())
    inputs = randn(6, 4)
    problem = hg.Problem(
        hg.Torch(), lambda w, h, t: net(w, inputs).square().sum() * h[0],
        lambda w, h: net.evaluation(w, [(inputs,)])(w, inputs).sum(), hg.Momentum(0.1, 0.9),
        weights, 2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="evaluation fixes the batch statistics"):
        hg.Reverse()(problem, [1.0])


def test_seed_names_the_draws():
    """The same numbers give the same mask; other draws of the process are not disturbed."""
    weights, net = functional(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    inputs = torch.ones(5, 4)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (net(weights, inputs, seed=seed) for seed in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"draws random numbers .* seed=\(t,\), or call eval"):
        net(weights, inputs)
    for seed in ((None,), -1, 0.5):
        with pytest.raises(ValueError, match="seed must be whole numbers"):
            net(weights, inputs, seed=seed)


def test_inputs_by_name_and_nested():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    weights, net = functional(attention)
    x = randn(3, 5, 8)
    found, none = net(weights, x, x, x, need_weights=False)
    assert none is None and torch.allclose(found, attention(x, x, x)[0], rtol=1e-12)
    lstm = nn.LSTM(3, 4).double()
    weights, net = functional(lstm)
    state = randn(1, 2, 4), randn(1, 2, 4, seed=1)
    assert torch.equal(net(weights, randn(5, 2, 3), state)[1][1], lstm(randn(5, 2, 3), state)[1][1])


def test_pruned_and_pickled_modules():
    module = nn.Linear(4, 3)
    prune.l1_unstructured(module, "weight", 5)
    weights, net = functional(module)
    copied = pickle.loads(pickle.dumps(net))
    inputs = torch.ones(2, 4)
    assert torch.equal(net(2 * weights, inputs), 2 * module(inputs))
    assert torch.equal(copied(2 * weights, inputs), 2 * module(inputs))
    tested = net.evaluation(weights, [(inputs,)])  # the pruned weights, which have a graph, too
    assert torch.equal(tested(2 * weights, inputs), 2 * module(inputs))


class Closure(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.function = lambda x: x @ self.weight

    def forward(self, x):
        return self.function(x)


class Counting(nn.Linear):
    """A buffer that moves, in place or not."""

    def __init__(self, in_place):
        super().__init__(3, 3)
        self.in_place = in_place
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return super().forward(x)


class Noise(nn.Module):
    def __init__(self, draw=lambda: torch.randn(())):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + float(self.draw())


def own_generator():
    generator = torch.Generator()
    return Noise(lambda: torch.randn((), generator=generator))


class Partial(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.function = functools.partial(F.linear, weight=self.weight)

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "make, words",
    [
        (Closure, "keeps a function of itself"),
        (lambda: Counting(True), "changes its buffer '1.count'"),
        (lambda: Counting(False), "changes its buffer '1.count'"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "changes its buffer '1.weight_u'"),
        (lambda: parametrizations.spectral_norm(nn.Linear(3, 3)), "changes its buffer"),
        (lambda: nn.Dropout(0.1), "draws random numbers"),
        (Noise, "draws random numbers"),
        (lambda: Noise(random.random), "draws random numbers"),
        (lambda: Noise(np.random.rand), "draws random numbers"),
        (own_generator, "gives another output when it is called again"),
        (Partial, "keeps a function of itself"),
        (nn.RReLU, "draws random numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_first_call_refuses(make, words):
    torch.manual_seed(0)  # RReLU draws for negative numbers only
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), make()))
    with pytest.raises(ValueError, match=f"Sequential {words}"):
        net(weights, torch.ones(2, 3))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_seed_of_other_generators(draw):
    """Stochastic depth often draws from `random` or NumPy; the process's draws go on as before."""
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), Noise(draw)))
    state = random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (net(weights, torch.ones(2, 3), seed=(t,)) for t in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())


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
    for length in (2, 5, 3):
        assert net(weights, torch.ones(length, 3)).shape == (length, 3)
    assert [name for name, _ in module.named_buffers()] == names
    assert torch.equal(net(weights, torch.ones(4, 3)), module(torch.ones(4, 3)))


def test_calls_of_the_wrong_form():
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match=r"are torch.float32, the weights torch.float64: call mod"):
        net(weights.double(), torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"weights must be a tensor \(n,\), got ndarray"):
        net(weights.numpy(), torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"tuples of inputs such as \(x,\), got Tensor"):
        net.evaluation(weights, [torch.ones(2, 3)])


def test_transforms_of_torch():
    """Of examples and weights."""
    inputs, scales = randn(4, 3), torch.tensor([1.0, 2.0], dtype=torch.float64)
    weights, net = functional(nn.Linear(3, 3).double())
    each = torch.func.vmap(lambda x: net(weights, x))(inputs)
    assert torch.allclose(each, net(weights, inputs), rtol=1e-12)
    weights, net = functional(nn.Linear(3, 3).double())
    slope = torch.func.grad(lambda w: net(w, inputs).square().sum())(weights)
    assert torch.allclose(slope @ weights, 2 * net(weights, inputs).square().sum(), rtol=1e-12)
    weights, net = functional(nn.Linear(3, 3).double())
    each = torch.func.vmap(lambda scale: net(scale * weights, inputs))(scales)
    assert torch.allclose(each[1], net(2 * weights, inputs), rtol=1e-12)


def hooked(kind):
    module = nn.Linear(3, 3)
    if kind == "parameter":
        module.weight.register_hook(lambda g: g)
    else:
        module.register_full_backward_hook(lambda *given: None)
    return module


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hooked("parameter"), "parameter 'weight' has a hook.*clip="),
        (lambda: hooked("module"), "has a backward hook"),
        (
            lambda: torch.compile(nn.Linear(3, 3), backend="eager"),
            "torch.compile has compiled|hg.fast.Compiled",
        ),
        (lambda: torch.jit.script(nn.Linear(3, 3)), "is a script"),
        (lambda: nn.LazyLinear(3), "has no shape yet"),
        (lambda: nn.Linear, "takes a torch.nn.Module, got type"),
        (lambda: nn.Linear(3, 3).half(), "float16; use one of float32"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()),
            "float32 and float64; use one",
        ),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 3)), "torch gets wrong; divide by the norm"),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "torch gets wrong; divide by"),
        (lambda: nn.EmbeddingBag(3, 4), "no second derivative in torch; use Embedding"),
        (lambda: nn.Embedding(3, 4, sparse=True), "has sparse=True, .* use sparse=False"),
        (lambda: nn.Embedding(3, 4, max_norm=0.1), "has max_norm=0.1"),
        (nn.Tanh, "Tanh has no parameters to train"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "Linear has no parameters to train"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_functional_refuses(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        functional(make())


def test_change_of_mode_is_noticed():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    weights, net = functional(module)
    net(weights, torch.ones(2, 3))
    module.eval()
    with pytest.raises(ValueError, match="changed the mode; call functional again"):
        net(weights, torch.ones(2, 3))


def test_threads_leave_the_kernels_of_attention():
    """torch has one choice for all threads: calls that overlap must not leave theirs."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()
    weights, net = functional(layer)
    before = torch.backends.cuda.flash_sdp_enabled()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: net(weights + i, randn(2, 3, 4)), range(40)))
    assert before and torch.backends.cuda.flash_sdp_enabled()
