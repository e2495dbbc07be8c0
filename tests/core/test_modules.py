"""Torch modules as functions: agreement, seeds, batch statistics, copies, and what is refused."""

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
from hgcore.modules.draws import drawn_from, generators

functional = hg.nets.functional
ONES = torch.ones(2, 3)


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


def normed():
    frozen = nn.Conv2d(1, 2, 3, 2, 1).requires_grad_(False)
    norms = nn.BatchNorm2d(2), nn.GELU(), nn.InstanceNorm2d(2, track_running_stats=True)
    return nn.Sequential(frozen, *norms, nn.Flatten(), nn.Linear(8, 3))


def recurrent():
    """A language model: embedding tied to the output, two LSTM layers, dropout."""
    parts = {"embedding": nn.Embedding(5, 3), "out": nn.Linear(3, 5), "drop": nn.Dropout(0.3)}
    parts["out"].weight = parts["embedding"].weight
    lstm = nn.LSTM(3, 3, 2, dropout=0.3, batch_first=True)
    forward = lambda m, x: m.out(m.drop(m.lstm(m.embedding(x))[0])).mean(1)  # noqa: E731
    return Custom(forward, **parts, lstm=lstm)


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 3))


def spectral():
    """A complex filter, and a hidden layer that is computed again in the backward pass."""

    def forward(m, x):
        filtered = torch.fft.irfft(torch.fft.rfft(x) * m.filter, n=4)
        return m.second(checkpoint(lambda x: m.first(x).tanh(), filtered, use_reentrant=False))

    weights = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    # 49 weights: those of a state with slots begin at odd places, too
    return Custom(forward, filter=weights, first=nn.Linear(4, 5), second=nn.Linear(5, 3))


def containers():
    """Layers and weights in attributes that torch does not look into."""

    def forward(m, x):
        m.named.move_to_end("layer")
        return m.stages["first"][0][0](x) + m.call(m.named["layer"](x)) @ m.weights[0]

    part = layer()
    held = {"stages": {"first": [(part,)]}, "weights": [part.weight], "call": part.forward}
    return Custom(forward, layer=part, **held, named=OrderedDict(layer=part))


def keeping():
    """Keeps what it computes from its weights, itself and in a dictionary that its parts share."""

    def forward(m, x):
        if m.scaled is None:
            m.scaled = m.first.weight / m.first.weight.norm()
            m.cache["weight"] = m.first.weight.exp()
        return m.first(x) @ m.scaled + x @ m.first.cache["weight"]

    module = Custom(forward, first=layer(), cache={}, scaled=None)
    module.first.cache = module.cache
    return module


def pruned():
    return prune.l1_unstructured(layer(), "weight", 5)


TOKENS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 2], [4, 2, 3]])
NETS = {  # module, inputs: four examples of three classes
    "batch norm, frozen": (normed, [randn(4, 1, 4, 4)]),
    "lstm, dropout, tied": (recurrent, [TOKENS]),
    "transformer, dropout": (transformer, [randn(4, 3, 4)]),
    "checkpointing, complex": (spectral, [randn(4, 4)]),
}
HEADS, STATE = randn(3, 5, 8), (randn(1, 5, 4), randn(1, 5, 4, seed=1))
MODULES = NETS | {
    "containers": (containers, [randn(5, 3)]),
    "keeping": (keeping, [randn(5, 3)]),
    "pruned": (pruned, [randn(5, 3)]),
    "several inputs": (lambda: nn.MultiheadAttention(8, 2), [HEADS] * 3 + [None, False]),
    "nested inputs": (lambda: nn.LSTM(8, 4), [HEADS, STATE]),
}


def build(name):
    torch.manual_seed(0)
    make, inputs = MODULES[name]
    return make().double(), inputs


def trained(name):
    module, inputs = build(name)
    start, net = functional(module)
    labels = torch.tensor([0, 1, 2, 0])

    def inner_loss(w, h, t):
        losses = F.cross_entropy(net(w, *inputs, seed=(t,)), labels, reduction="none")
        return (h[:4].exp() * losses).mean() + h[4].exp() * (w @ w)

    outer_loss = lambda w, h: F.cross_entropy(net(w, *inputs, seed=9), labels.flip(0))  # noqa: E731
    optimizer = hg.AdamW(lambda h, t: h[5].exp())
    problem = hg.Problem(hg.Torch(), inner_loss, outer_loss, optimizer, start, 3)
    return problem, [0.1, -0.2, 0.0, 0.3, -4.0, -3.0]


@pytest.mark.parametrize("name", NETS)
def test_solvers_equal_unrolled(name):
    """Side by side, in threads that share one function; torch's choice of kernels is as before."""
    problem, hyper = trained(name)
    expected = catalogue.unrolled(problem, hyper)[1]
    solvers = 2 * [hg.Reverse(), hg.Reverse(hg.Reversible()), hg.Forward()]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda solver: solver(problem, hyper).grad, solvers):
            assert gap(found, expected) < 1e-9  # float64, 3 steps
    assert torch.backends.cuda.flash_sdp_enabled()


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_functional_is_the_module(name, training):
    """At other weights, with slopes and draws. The module itself keeps nothing of the calls."""
    module, inputs = build(name)
    weights, net = functional(module.train(training))
    before = [str(vars(part)) for part in module.modules()], pickle.dumps(module.state_dict())
    for factor in (1, -2):
        leaf = (factor * weights).requires_grad_()
        found = first(net(leaf, *inputs, seed=3))
        own = build(name)[0].train(training)
        parts = {key: p for key, p in own.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for p in parts.values():
                p *= factor
        with drawn_from(3):
            expected = first(own(*inputs))
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
        (slope,) = torch.autograd.grad(found.square().sum(), leaf)
        slopes = torch.autograd.grad(expected.square().sum(), list(parts.values()))
        slopes = [torch.view_as_real(x) if x.is_complex() else x for x in slopes]
        expected = torch.cat([x.reshape(-1) for x in slopes])
        assert torch.allclose(slope, expected, rtol=1e-11, atol=1e-13)
    assert list(net.layout.shapes) == list(parts)
    after = [str(vars(part)) for part in module.modules()], pickle.dumps(module.state_dict())
    assert before == after and torch.equal(weights, functional(module)[0])


def test_evaluation_takes_means_over_batches():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    weights, net = functional(module)
    batches = [(randn(6, 4, seed=i) + i,) for i in range(3)]
    tested = net.evaluation(2 * weights, iter(batches))
    matrix, bias, scale, shift = (2 * weights).split((12, 3, 3, 3))
    hidden = torch.stack([x @ matrix.reshape(3, 4).T + bias for (x,) in batches])
    mean, var = hidden.mean((0, 1)), hidden.var(1).mean(0)
    expected = (hidden[0] - mean) / (var + 1e-5).sqrt() * scale + shift
    assert torch.allclose(tested(2 * weights, *batches[0]), expected, rtol=1e-12)
    assert module.training and not module[1].running_mean.any()


def test_functions_are_pickled_and_called_by_name():
    weights, net = functional(pruned())
    tested = net.evaluation(weights, [(ONES,)])  # the pruned weights, which have a graph, too
    for function in (pickle.loads(pickle.dumps(net)), tested):
        assert torch.equal(function(2 * weights, input=ONES), net(2 * weights, ONES))


def test_buffers_made_in_a_call():
    """A table, a buffer that is not saved, is made again for longer inputs."""

    def rotary(m, x):
        if len(x) > m.length:
            m.length, table = len(x), torch.cos(torch.arange(len(x)))[:, None]
            m.register_buffer("table", table, persistent=False)
        return m.layer(x) * m.table[: len(x)]

    early, late = (Custom(rotary, layer=layer(), length=0) for _ in range(2))
    early.register_buffer("table", torch.ones(1, 1), persistent=False)
    for module in (early, late):
        weights, net = functional(module)
        names = list(dict(module.named_buffers()))
        found = [net(weights, torch.ones(length, 3)) for length in (2, 5, 3)]
        assert list(dict(module.named_buffers())) == names
        assert torch.equal(found[1], module(torch.ones(5, 3)))


def test_transforms_of_torch():
    weights, net = functional(nn.Linear(3, 3).double())
    inputs, squares = randn(4, 3), lambda w: net(w, inputs).square().sum()
    each = torch.func.vmap(lambda x: net(weights, x))(inputs)  # the first call, too
    assert torch.allclose(each, net(weights, inputs), rtol=1e-12)
    assert torch.allclose(torch.func.grad(squares)(weights) @ weights, 2 * squares(weights))


def noise(draw):
    return Custom(lambda m, x: x + float(draw()))


DRAWS = [lambda: torch.randn(()), random.random, np.random.rand]
OWN = functools.partial(torch.randn, (), generator=torch.Generator())


@pytest.mark.parametrize("part", [nn.Dropout(0.5), *map(noise, DRAWS)])
def test_seed_names_the_draws(part):
    """The same numbers give the same draws; the process's own go on as before."""
    weights, net = functional(nn.Sequential(layer(), part))
    before = generators(weights)
    once, again, other = (net(weights, ONES, seed=t) for t in ((0, 1), (0, 1), (1, 0)))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert before == generators(weights)


def closure():
    module = Custom(lambda m, x: m.kept(x), layer=layer())
    module.kept = lambda x: module.layer(x)
    return module


def counting(count):
    module = Custom(lambda m, x: count(m) + m.layer(x), layer=layer())
    module.register_buffer("count", torch.zeros(()))
    return module


FIRST_CALLS = [  # a part of a module, words of the error of its first call
    (closure, "keeps a function of itself"),
    (lambda: counting(lambda m: m.count.add_(1)), "changes its buffer 'net.1.count'"),
    (lambda: counting(lambda m: setattr(m, "count", m.count + 1) or 0), "changes its buffer"),
    (lambda: parametrizations.spectral_norm(layer()), "changes its buffer"),
    (lambda: nn.Dropout(0.1), r"draws random numbers .* seed=\(t,\), or call eval"),
    *((lambda draw=draw: noise(draw), "draws random numbers") for draw in DRAWS),
    (lambda: noise(OWN), "gives another output when it is called again"),
]
OUTPUTS = [lambda m, x: m.net(x), lambda m, x: {"y": m.net(x)}, lambda m, x: (x, [m.net(x)])]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("make, words", FIRST_CALLS)
def test_first_call_refuses(make, words, output):
    weights, net = functional(Custom(output, net=nn.Sequential(layer(), make())))
    with pytest.raises(ValueError, match=f"Custom {words}"):
        net(weights, ONES)


CALLS = [  # a call of a function with batch norm, words of its error
    (lambda w, f: f(w.double(), ONES.double()), "are torch.float32, .* torch.float64: call mod"),
    (lambda w, f: f(w.numpy(), ONES), r"weights must be a tensor \(18,\), got ndarray \(18,\)"),
    (lambda w, f: f(ONES), r"Tensor \(2, 3\); call it as function\(weights, \*inputs\)"),
    (lambda w, f: f(w, ONES, seed=(None,)), "seed must be whole numbers"),
    (lambda w, f: f(w, ONES, seed=-1), "seed must be whole numbers"),
    (lambda w, f: f(w, ONES, seed=0.5), "seed must be whole numbers"),
    (lambda w, f: f.module.eval() and f(w, ONES), "changed the mode; call functional again"),
    (lambda w, f: f.evaluation(w, [ONES]), r"tuples of inputs such as \(x,\), got Tensor"),
    # the statistics would be those of a module that has seen nothing
    (lambda w, f: f.evaluation(w, []), "has batch statistics: give batches"),
    # in a loss its slope would be wrong
    (lambda w, f: f.evaluation(w.requires_grad_(), [(ONES,)]), "fixes the batch statistics"),
]


@pytest.mark.parametrize("call, words", CALLS)
def test_function_refuses(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(*functional(nn.Sequential(layer(), nn.BatchNorm1d(3))))


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
