"""Inner losses that know their derivatives, against the same losses as plain closures."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import catalogue
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import fast
from hgcore.nets import cross_entropy

STEPS = 6
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
BACKENDS = [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")]


def parts(backend):
    """Return (problem with a penalized closure, hyper, what it is made of)."""
    problem, hyper = catalogue.net(backend, steps=STEPS)
    made_of = catalogue.net_parts(backend, STEPS)
    made_of.constant = made_of.strength(backend.array(hyper))
    return problem, hyper, made_of


def penalized(p):
    return fast.Penalized(fast.CrossEntropy(p.dense, p.batch), p.dense.layout, p.strength)


FORMS = {
    "cross-entropy": lambda p: fast.CrossEntropy(p.dense, p.batch, p.strength),
    "penalized closure": lambda p: fast.Penalized(p.bare, p.dense.layout, p.strength),
    "penalized cross-entropy": penalized,
}
OTHERS = {  # of which hyper is no part: the known loss, the closure
    "no penalty": (lambda p: fast.CrossEntropy(p.dense, p.batch), lambda p: p.bare),
    "constant penalty": (
        lambda p: fast.CrossEntropy(p.dense, p.batch, lambda h: p.constant),
        lambda p: (
            lambda w, h, t: p.bare(w, h, t) + (p.dense.layout.expand(p.constant) * w * w).sum()
        ),
    ),
}


def assert_same_hypergradient(solver, hyper, ours, theirs):
    """Some thousand roundings."""
    error = 1e-11 if ours.backend.dtype == "float64" else 1e-4
    ours, theirs = solver(ours, hyper), solver(theirs, hyper)
    assert gap(ours.grad, theirs.grad) < error and gap(ours.value, theirs.value) < error
    assert ours.grad.dtype == theirs.grad.dtype


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("name", [*FORMS, *OTHERS])
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_known_loss_equals_its_closure(backend, name, solver):
    problem, hyper, p = parts(backend)
    form, closure = OTHERS.get(name) or (FORMS[name], lambda p: problem.inner_loss)
    known, plain = (dataclasses.replace(problem, inner_loss=f(p)) for f in (form, closure))
    assert_same_hypergradient(solver, hyper, known, plain)


@pytest.mark.parametrize("size", [9, 10**3])
def test_penalized_refuses_another_layout(size, backend):
    problem, hyper, p = parts(backend)
    other = hg.Layout({"all": (size,)})
    short = fast.Penalized(p.bare, other, lambda hyper: backend.xp.exp(hyper[:1]))
    match = rf"all blocks of the weights, \({p.dense.layout.size},\); it has {size} numbers"
    for solver in (hg.Reverse(), hg.Forward()):
        with pytest.raises(ValueError, match=match):
            solver(dataclasses.replace(problem, inner_loss=short), hyper)


@pytest.mark.parametrize(
    "convert, message",
    [
        (lambda x: x.float(), "inputs are torch.float32"),
        (lambda x: x.numpy(), "inputs are float64"),
    ],
    ids=["float32", "NumPy"],
)
def test_cross_entropy_refuses_another_type(convert, message):
    """A batch that is not like the weights, with the way out."""
    problem, hyper, p = parts(hg.Torch())
    known = fast.CrossEntropy(p.dense, lambda t: (convert(p.batch(t)[0]), p.batch(t)[1]))
    match = rf"batch\(0\) must give tensors like the weights.*{message}.*backend.array"
    with pytest.raises(TypeError, match=match):
        hg.Reverse()(dataclasses.replace(problem, inner_loss=known), hyper)


def test_cross_entropy_refuses_other_shapes():
    """Also labels of one row, which NumPy would repeat."""
    problem, hyper, p = parts(hg.Torch())
    inputs, labels = p.batch(0)
    batches = (inputs, labels[:1]), (inputs[:, 1:], labels), (inputs[:0], labels[:0])
    for batch in (*batches, (inputs, labels[:, 0])):
        known = fast.CrossEntropy(p.dense, lambda t, batch=batch: batch)
        with pytest.raises(ValueError, match=r"batch\(0\) must give inputs \(examples, .*, got "):
            hg.Reverse()(dataclasses.replace(problem, inner_loss=known), hyper)


@pytest.mark.parametrize("form", [None, "net"])
def test_a_reused_buffer_is_noticed(form):
    """The gradient and its product of one step must see the same inputs."""
    problem, hyper, p = parts(hg.Torch())
    buffer = p.batch(0)[0].clone()
    batch = lambda t: (buffer.copy_(p.batch(t)[0]), p.batch(t)[1])  # noqa: E731
    loss = fast.CrossEntropy(p.dense, batch)
    if form == "net":
        loss = lambda w, h, t: cross_entropy(p.dense(w, batch(t)[0]), batch(t)[1])  # noqa: E731
    with pytest.raises(RuntimeError, match="were changed: give other tensors|inplace operation"):
        hg.Reverse(hg.Stored(graphs=2))(dataclasses.replace(problem, inner_loss=loss), hyper)


@pytest.mark.parametrize("name", ["reversible", "forward"])
@pytest.mark.parametrize("form", [penalized, None], ids=["known loss", "closure"])
def test_problem_used_by_four_threads(form, name):
    """One problem, another hyper in each: the same bits as alone."""
    problem, hyper, p = parts(hg.Torch())
    problem = dataclasses.replace(problem, inner_loss=form(p) if form else problem.inner_loss)
    hypers = [hyper + 0.5 * i for i in range(4)] * 2
    alone = [SOLVERS[name](problem, hyper).grad for hyper in hypers[:4]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda hyper: SOLVERS[name](problem, hyper).grad, hypers))
    assert all(torch.equal(a, b) for a, b in zip(alone * 2, together, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_equals_its_closure(compiler):
    """Inside of Penalized, which adds its own; implicit asks for t = None."""
    problem, hyper, p = parts(hg.Torch())
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
        return h[0] * torch._weight_norm(w[:4].reshape(2, 2), w[4:6].reshape(2, 1), 0).sum()

    problem = catalogue.bowl(
        hg.Torch(), inner_loss=fast.Compiled(loss), initial=torch.ones(6).double()
    )
    with pytest.raises(RuntimeError, match="weight_norm wrong"):
        hg.Reverse()(*problem)
