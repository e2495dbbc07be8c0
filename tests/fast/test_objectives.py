"""Inner losses that know their derivatives, against the same losses as plain closures."""

import dataclasses

import catalogue
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import fast

STEPS, TORCH = 6, hg.Torch()
SOLVERS = {
    "stored": hg.Reverse(),
    "stored, all graphs": hg.Reverse(hg.Stored(graphs=99)),
    "reversible": hg.Reverse(hg.Reversible()),
    "reversible, graphs": hg.Reverse(hg.Reversible(graphs=3)),
    "shortcut": hg.Reverse(hg.Shortcut()),
    "forward": hg.Forward(),
    "Neumann": hg.Implicit(hg.Neumann(5, rate=0.1)),
    "Nystrom": hg.Implicit(hg.Nystrom(5, rho=1.0)),
    "identity": hg.Implicit(hg.Identity()),
}


def parts(backend):
    """Return (problem with a penalized closure, hyper, what it is made of)."""
    problem, hyper = catalogue.net(backend, steps=STEPS)
    made_of = catalogue.net_parts(backend, STEPS)
    made_of.constant = made_of.strength(backend.array(hyper))
    return problem, hyper, made_of


def penalized(p):
    return fast.Penalized(fast.CrossEntropy(p.dense, p.batch), p.dense.layout, p.strength)


def constant_penalty(p):
    squares = p.dense.layout.expand(p.constant)
    return lambda w, h, t: p.bare(w, h, t) + (squares * w * w).sum()


def scaled(p):
    """A loss that depends on hyper by itself."""
    return lambda w, h, t: (1 + h[0] ** 2) * p.bare(w, h, t)


def penalized_scaled(p):
    loss, expand = scaled(p), p.dense.layout.expand
    return lambda w, h, t: loss(w, h, t) + (expand(p.strength(h)) * w * w).sum()


KNOWN = {
    "cross-entropy": lambda p: fast.CrossEntropy(p.dense, p.batch, p.strength),
    "penalized closure": lambda p: fast.Penalized(p.bare, p.dense.layout, p.strength),
    "penalized cross-entropy": penalized,
    "no penalty": lambda p: fast.CrossEntropy(p.dense, p.batch),
    "constant penalty": lambda p: fast.CrossEntropy(p.dense, p.batch, lambda h: p.constant),
    "loss of hyper": lambda p: fast.Penalized(scaled(p), p.dense.layout, p.strength),
}
CLOSURES = {
    "no penalty": lambda p: p.bare,
    "constant penalty": constant_penalty,
    "loss of hyper": penalized_scaled,
}


def assert_same_hypergradient(solver, hyper, ours, theirs):
    """Some thousand roundings."""
    error = 1e-11 if ours.backend.dtype == "float64" else 1e-4
    ours, theirs = solver(ours, hyper), solver(theirs, hyper)
    assert gap(ours.grad, theirs.grad) < error and gap(ours.value, theirs.value) < error
    assert ours.grad.dtype == theirs.grad.dtype


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("backend", [hg.Autograd(), TORCH, hg.Torch(dtype="float32")], ids=repr)
def test_known_loss_equals_its_closure(backend, name, solver):
    problem, hyper, p = parts(backend)
    known = dataclasses.replace(problem, inner_loss=KNOWN[name](p))
    if name in CLOSURES:
        problem = dataclasses.replace(problem, inner_loss=CLOSURES[name](p))
    assert_same_hypergradient(solver, hyper, known, problem)


def of_layout(p, size):
    return fast.Penalized(p.bare, hg.Layout({"all": (size,)}), lambda hyper: hyper[:1])


def of_batch(p, change):
    return fast.CrossEntropy(p.dense, lambda t: change(*p.batch(t)))


BLOCKS = r"layout must name all blocks of the weights, \(53,\); it has {} numbers".format
LIKE_WEIGHTS = r"batch\(0\) must give tensors like the weights.*{}.*backend.array".format
SHAPES = r"batch\(0\) must give inputs \(examples, .*, got "
REFUSED = [  # a loss that does not fit the net or its weights, words of its error
    (lambda p: of_layout(p, 9), BLOCKS(9)),
    (lambda p: of_layout(p, 10**3), BLOCKS(1000)),
    (lambda p: of_batch(p, lambda x, y: (x.float(), y)), LIKE_WEIGHTS("inputs are torch.float32")),
    (lambda p: of_batch(p, lambda x, y: (x.numpy(), y)), LIKE_WEIGHTS("inputs are float64")),
    (lambda p: of_batch(p, lambda x, y: (x, y[:1])), SHAPES),  # which NumPy would repeat
    (lambda p: of_batch(p, lambda x, y: (x, y[:, 0])), SHAPES),
    (lambda p: of_batch(p, lambda x, y: (x[:, 1:], y)), SHAPES),
    (lambda p: of_batch(p, lambda x, y: (x[:0], y[:0])), SHAPES),
]


@pytest.mark.parametrize("solver", [hg.Reverse(), hg.Forward()], ids=["reverse", "forward"])
@pytest.mark.parametrize("loss, words", REFUSED)
def test_known_loss_must_fit_the_net(loss, words, solver):
    problem, hyper, p = parts(TORCH)
    with pytest.raises((TypeError, ValueError), match=words):
        solver(dataclasses.replace(problem, inner_loss=loss(p)), hyper)


@pytest.mark.parametrize("known", [True, False], ids=["known loss", "closure"])
def test_a_reused_buffer_is_noticed(known):
    """The gradient and its product of one step must see the same inputs."""
    problem, hyper, p = parts(TORCH)
    buffer = p.batch(0)[0].clone()
    loss = of_batch(p, lambda x, y: (buffer.copy_(x), y))
    loss = loss if known else loss.__call__  # a bound method: not known
    with pytest.raises(RuntimeError, match="were changed: give other tensors|inplace operation"):
        hg.Reverse(hg.Stored(graphs=2))(dataclasses.replace(problem, inner_loss=loss), hyper)


@pytest.mark.parametrize("name", ["reversible", "forward"])
def test_known_loss_is_shared_by_threads(name):
    problem, hyper, p = parts(TORCH)
    problem = dataclasses.replace(problem, inner_loss=penalized(p))
    hypers = [hyper + 0.5 * i for i in range(4)] * 2
    assert catalogue.same_in_threads(lambda hyper: SOLVERS[name](problem, hyper).grad, hypers)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_equals_its_closure(compiler):
    """Inside of Penalized, which adds its own; implicit asks for t = None."""
    problem, hyper, p = parts(TORCH)
    known = fast.Penalized(fast.Compiled(p.bare), p.dense.layout, p.strength)
    known = dataclasses.replace(problem, inner_loss=known)
    for name in ("stored", "reversible", "forward", "identity"):
        assert_same_hypergradient(SOLVERS[name], hyper, known, problem)
    bare = dataclasses.replace(problem, inner_loss=fast.Compiled(problem.inner_loss))
    with torch._dynamo.config.patch(recompile_limit=2):  # a limit for each loss, not for all
        assert_same_hypergradient(SOLVERS["stored"], hyper, bare, problem)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_loss_with_a_wrong_second_derivative():
    """Refused before it is compiled, as the plain loss is."""

    def loss(w, h, t):
        return h[0] * torch._weight_norm(w[:4].reshape(2, 2), w[4:].reshape(2, 1), 0).sum()

    problem = catalogue.bowl(TORCH, inner_loss=fast.Compiled(loss), initial=torch.ones(6).double())
    with pytest.raises(RuntimeError, match="weight_norm wrong"):
        hg.Reverse()(*problem)
