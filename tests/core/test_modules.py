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


def randn(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


class Custom(nn.Module):
    def __init__(self, own_forward, **attributes):
        super().__init__()
        self.own_forward = own_forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.own_forward(self, x)


def layer():
    return nn.Linear(3, 3)


def recurrent():
    """A language model: embedding tied to the output, two LSTM layers, dropout."""
    parts = {"embedding": nn.Embedding(5, 3), "out": nn.Linear(3, 5), "drop": nn.Dropout(0.3)}
    parts["out"].weight = parts["embedding"].weight
    lstm = nn.LSTM(3, 3, 2, dropout=0.3, batch_first=True)
    forward = lambda m, x: m.out(m.drop(m.lstm(m.embedding(x))[0])).mean(1)  # noqa: E731
    return Custom(forward, **parts, lstm=lstm)


def saving():
    """A net whose hidden layer is computed again in the backward pass."""

    def forward(m, x):
        return m.second(checkpoint(lambda x: m.first(x).tanh(), x, use_reentrant=False))

    return Custom(forward, first=nn.Linear(4, 5), second=nn.Linear(5, 3))


def spectral():
    weights = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    forward = lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * m.filter, n=4)[:, :3]  # noqa: E731
    return Custom(forward, filter=weights)


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 3))


def normed():
    frozen = nn.Conv2d(1, 2, 3, 2, 1).requires_grad_(False)
    first = frozen, nn.BatchNorm2d(2), nn.ReLU(), nn.GroupNorm(1, 2)
    second = nn.InstanceNorm2d(2, track_running_stats=True), nn.GELU(), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(8, 3))


NETS = {
    "batch norm, frozen": (normed, randn(4, 1, 4, 4)),
    "lstm, dropout, tied": (recurrent, torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 2], [4, 2, 3]])),
    "transformer, dropout": (transformer, randn(4, 3, 4)),
    "checkpointing": (saving, randn(4, 4)),
    "complex": (spectral, randn(4, 4)),
}


def build(name):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    return make().double(), inputs


def trained(name, steps=3):
    module, inputs = build(name)
    start, net = functional(module)
    labels = torch.tensor([0, 1, 2, 0])

    scores = lambda w, t: net(w, inputs, seed=(t,))  # noqa: E731

    def inner_loss(w, h, t):
        losses = F.cross_entropy(scores(w, t), labels, reduction="none")
        return (h[:4].exp() * losses).mean() + h[4].exp() * (w @ w)

    outer_loss = lambda w, h: F.cross_entropy(scores(w, 99), labels.flip(0))  # noqa: E731
    optimizer = hg.AdamW(lambda h, t: h[5].exp())
    problem = hg.Problem(hg.Torch(), inner_loss, outer_loss, optimizer, start, steps)
    return problem, [0.1, -0.2, 0.0, 0.3, -4.0, -3.0]


@pytest.mark.parametrize("name", NETS)
def test_solvers_equal_unrolled(name):
    problem, hyper = trained(name)
    expected = catalogue.unrolled(problem, hyper)[1]
    for solver in (hg.Reverse(), hg.Reverse(hg.Reversible()), hg.Forward()):
        assert gap(solver(problem, hyper).grad, expected) < 1e-9  # float64, 3 steps


@pytest.mark.parametrize("name", NETS)
def test_threads_share_a_function(name):
    """torch has one choice of attention's kernel for all of them: it is as before."""
    problem, hyper = trained(name, steps=2)
    hypers = [[x + 0.1 * i for x in hyper] for i in range(4)]
    alone = [hg.Reverse()(problem, h).grad for h in hypers]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda h: hg.Reverse()(problem, h).grad, hypers))
    assert all(map(torch.equal, alone, together)) and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("name", NETS)
def test_functional_is_the_module(name):
    module, inputs = build(name)
    weights, net = functional(module.eval())
    leaf = weights.clone().requires_grad_()
    found, expected = net(leaf, inputs), module(inputs)
    assert weights.ndim == 1 and torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    (slope,) = torch.autograd.grad(found.square().sum(), leaf)
    slopes = torch.autograd.grad(expected.square().sum(), list(trained.values()))
    parts = [torch.view_as_real(x) if x.is_complex() else x for x in slopes]
    assert torch.allclose(slope, torch.cat([x.reshape(-1) for x in parts]), rtol=1e-11, atol=1e-13)
    assert list(net.layout.shapes) == list(trained)


def test_batch_statistics():
    """In training those of the batch; running averages stay. In evaluation means over batches."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    module[2].eval()
    weights, net = functional(module)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    batches = [(randn(6, 4, seed=i) + i,) for i in range(3)]
    found, tested = [net(weights, *x) for x in batches], net.evaluation(2 * weights, iter(batches))
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert all(map(torch.equal, found, (module(*x) for x in batches))) and module.training
    matrix, bias, scale, shift = (2 * weights).split((12, 3, 3, 3))
    hidden = torch.stack([x @ matrix.reshape(3, 4).T + bias for (x,) in batches])
    mean, var = hidden.mean((0, 1)), hidden.var(1).mean(0)
    expected = (hidden[0] - mean) / (var + 1e-5).sqrt() * scale + shift
    assert torch.allclose(tested(2 * weights, *batches[0]), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="has batch statistics: give batches"):
        net.evaluation(weights, [])  # would be those of a module that has seen nothing
    with pytest.raises(ValueError, match="evaluation fixes the batch statistics"):
        net.evaluation(weights.requires_grad_(), batches)  # in a loss its slope would be wrong


def test_inputs_by_name_and_nested():
    attention, lstm = nn.MultiheadAttention(8, 2).double(), nn.LSTM(8, 4).double()
    x, state = randn(3, 5, 8), (randn(1, 5, 4), randn(1, 5, 4, seed=1))
    (weights, net), (others, recurrent) = functional(attention), functional(lstm)
    found, none = net(weights, x, x, x, need_weights=False)
    assert none is None and torch.allclose(found, attention(x, x, x)[0], rtol=1e-12)
    assert torch.equal(recurrent(others, x, state)[1][1], lstm(x, state)[1][1])


def test_pruned_and_pickled_modules():
    module, inputs = nn.Linear(4, 3), torch.ones(2, 4)
    prune.l1_unstructured(module, "weight", 5)
    weights, net = functional(module)
    tested = net.evaluation(weights, [(inputs,)])  # the pruned weights, which have a graph, too
    for function in (net, pickle.loads(pickle.dumps(net)), tested):
        assert torch.equal(function(2 * weights, inputs), 2 * module(inputs))


def closure():
    module = Custom(lambda m, x: m.kept(x), layer=layer())
    module.kept = lambda x: module.layer(x)
    return module


def counting(count):
    module = Custom(lambda m, x: count(m) + m.layer(x), layer=layer())
    module.register_buffer("count", torch.zeros(()))
    return module


def noise(draw):
    return Custom(lambda m, x: x + float(draw()))


OWN = functools.partial(torch.randn, (), generator=torch.Generator())
DRAWS = [lambda: torch.randn(()), random.random, np.random.rand]


CALLS = [  # a part of a module, words of the error of its first call
    (closure, "keeps a function of itself"),
    (lambda: counting(lambda m: m.count.add_(1)), "changes its buffer '1.count'"),
    (lambda: counting(lambda m: setattr(m, "count", m.count + 1) or 0), "changes its buffer"),
    (lambda: parametrizations.spectral_norm(layer()), "changes its buffer"),
    (lambda: nn.Dropout(0.1), r"draws random numbers .* seed=\(t,\), or call eval"),
    *((lambda draw=draw: noise(draw), "draws random numbers") for draw in DRAWS),
    (lambda: noise(OWN), "gives another output when it is called again"),
]


@pytest.mark.parametrize("make, words", CALLS)
def test_first_call_refuses(make, words):
    weights, net = functional(nn.Sequential(layer(), make()))
    with pytest.raises(ValueError, match=f"Sequential {words}"):
        net(weights, torch.ones(2, 3))


@pytest.mark.parametrize("part", [nn.Dropout(0.5), *map(noise, DRAWS)])
def test_seed_names_the_draws(part):
    """The same numbers give the same draws; the process's own go on as before."""
    weights, net = functional(nn.Sequential(layer(), part))
    before = generators(weights)
    first, again, other = (net(weights, torch.ones(2, 3), seed=t) for t in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert before == generators(weights)
    for seed in ((None,), -1, 0.5):
        with pytest.raises(ValueError, match="seed must be whole numbers"):
            net(weights, torch.ones(2, 3), seed=seed)


def nested(m, x):
    m.named.move_to_end("layer")
    return m.stages["first"][0][0](x) + m.named["layer"](x) @ m.weights[0]


def test_layers_in_containers():
    part = layer()
    held = {"stages": {"first": [(part,)]}, "weights": [part.weight]}
    module = Custom(nested, layer=part, **held, named=OrderedDict(layer=part))
    weights, net = functional(module)
    found = net(2 * weights, torch.ones(2, 3))
    with torch.no_grad():
        for p in module.parameters():
            p *= 2
    assert torch.equal(found, module(torch.ones(2, 3)))


def keeping(m, x):
    """Keeps what it computes from its weights, itself and in a dictionary that its parts share."""
    if m.scaled is None:
        m.scaled = m.first.weight / m.first.weight.norm()
        m.cache["weight"] = m.first.weight.exp()
    return x @ m.scaled + x @ m.first.cache["weight"]


def test_calls_leave_nothing_on_the_module():
    module, inputs = Custom(keeping, first=layer(), cache={}, scaled=None).double(), randn(5, 3)
    module.first.cache = module.cache
    weights, net = functional(module)
    for factor in (1, -1):
        leaf = (factor * weights).requires_grad_()
        matrix = net.layout.split(leaf)["first.weight"]
        expected, found = inputs @ (matrix / matrix.norm() + matrix.exp()), net(leaf, inputs)
        slopes = [torch.autograd.grad(y.sum(), leaf)[0] for y in (found, expected)]
        assert torch.allclose(found, expected) and torch.allclose(*slopes)
    assert module.scaled is None and module.cache == {} and module.first.cache is module.cache
    assert torch.equal(weights, functional(module)[0])


def rotary(m, x):
    if len(x) > m.length:
        m.length, table = len(x), torch.cos(torch.arange(len(x)))[:, None]
        m.register_buffer("table", table, persistent=False)
    return m.layer(x) * m.table[: len(x)]


def test_buffers_made_in_a_call():
    """A table, a buffer that is not saved, is made again for longer inputs."""
    early, late = (Custom(rotary, layer=layer(), length=0) for _ in range(2))
    early.register_buffer("table", torch.ones(1, 1), persistent=False)
    for module in (early, late):
        weights, net = functional(module)
        names = list(dict(module.named_buffers()))
        found = [net(weights, torch.ones(length, 3)) for length in (2, 5, 3)]
        assert list(dict(module.named_buffers())) == names
        assert torch.equal(found[1], module(torch.ones(5, 3)))


def test_calls_of_the_wrong_form():
    weights, net = functional(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match=r"are torch.float32, the weights torch.float64: call mod"):
        net(weights.double(), torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"weights must be a tensor \(18,\), got ndarray \(18,\)"):
        net(weights.numpy(), torch.ones(2, 3))
    with pytest.raises(
        TypeError, match=r"got Tensor \(2, 3\); call it as function\(weights, \*inputs\)"
    ):
        net(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"tuples of inputs such as \(x,\), got Tensor"):
        net.evaluation(weights, [torch.ones(2, 3)])
    net.module.eval()
    with pytest.raises(ValueError, match="changed the mode; call functional again"):
        net(weights, torch.ones(2, 3))


def test_transforms_of_torch():
    weights, net = functional(nn.Linear(3, 3).double())
    inputs, squares = randn(4, 3), lambda w: net(w, inputs).square().sum()
    each = torch.func.vmap(lambda x: net(weights, x))(inputs)  # the first call, too
    assert torch.allclose(each, net(weights, inputs), rtol=1e-12)
    assert torch.allclose(torch.func.grad(squares)(weights) @ weights, 2 * squares(weights))


PADDED = nn.Embedding.from_pretrained(torch.ones(3, 4), freeze=False, padding_idx=0)
REFUSED = [  # a module, words
    (lambda: (m := layer()).weight.register_hook(abs) and m, "'weight' has a hook.*clip="),
    (lambda: (m := layer()).register_full_backward_hook(abs) and m, "has a backward hook"),
    (lambda: torch.compile(layer(), backend="eager"), "compiled|hg.fast.Compiled"),
    (lambda: torch.jit.script(layer()), "is a script"),
    (lambda: nn.LazyLinear(3), "has no shape yet"),
    (lambda: nn.Linear, "takes a torch.nn.Module, got type"),
    (lambda: layer().half(), "float16; use one of float32"),
    (lambda: nn.Sequential(layer(), layer().double()), "32 and float64; use"),
    (lambda: nn.utils.weight_norm(layer()), "torch gets wrong; divide by the norm"),
    (lambda: parametrizations.weight_norm(layer()), "torch gets wrong; divide by"),
    (lambda: nn.EmbeddingBag(3, 4), "no second derivative in torch; use Embedding"),
    (lambda: nn.Embedding(3, 4, sparse=True), "has sparse=True, .* use sparse=False"),
    (lambda: nn.Embedding(3, 4, max_norm=0.1), "has max_norm=0.1"),
    (lambda: nn.Embedding(3, 4, scale_grad_by_freq=True), "has scale_grad_by_freq=True"),
    (lambda: PADDED, "has padding_idx=0, .* set that row to zero"),
    (lambda: layer().requires_grad_(False), "Linear has no parameters to train"),
]


@pytest.mark.parametrize("make, words", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_functional_refuses(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        functional(make())
