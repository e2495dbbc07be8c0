"""Inner losses that know their derivatives, against the same losses as plain closures."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import catalogue
import pytest
import torch
from catalogue import gap

import hgcore as hg
from hgcore import fast

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
EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def parts(backend):
    """Return (problem with a penalized closure, hyper, what it is made of)."""
    return *catalogue.net(backend, steps=STEPS), catalogue.net_parts(backend, STEPS)


FORMS = {
    "cross-entropy": lambda p: fast.CrossEntropy(p.dense, p.batch, p.strength),
    "penalized closure": lambda p: fast.Penalized(p.bare, p.dense.layout, p.strength),
    "penalized cross-entropy": lambda p: fast.Penalized(
        fast.CrossEntropy(p.dense, p.batch), p.dense.layout, p.strength
    ),
}


def assert_same_hypergradient(solver, hyper, ours, theirs, error=1e-11):
    """Some thousand roundings."""
    ours, theirs = solver(ours, hyper), solver(theirs, hyper)
    assert gap(ours.grad, theirs.grad) < error and gap(ours.value, theirs.value) < error
    assert ours.grad.dtype == theirs.grad.dtype


@EVERY_SOLVER
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_known_loss_equals_its_closure(form, solver, backend):
    problem, hyper, p = parts(backend)
    known = dataclasses.replace(problem, inner_loss=form(p))
    assert_same_hypergradient(solver, hyper, known, problem)


@EVERY_SOLVER
def test_cross_entropy_without_penalty(solver, backend):
    """hyper has no part in it: its derivatives by hyper are zero."""
    problem, hyper, p = parts(backend)
    closure = dataclasses.replace(problem, inner_loss=p.bare)
    known = dataclasses.replace(problem, inner_loss=fast.CrossEntropy(p.dense, p.batch))
    assert_same_hypergradient(solver, hyper, known, closure)
    assert not p.layout.split(solver(known, hyper).grad)["penalty"].any()


@pytest.mark.parametrize("solver", [hg.Reverse(), hg.Forward()], ids=["reverse", "forward"])
def test_constant_penalty_has_no_derivative(solver, backend):
    """strength may be a function that does not use hyper."""
    problem, hyper, p = parts(backend)
    constant = p.strength(backend.array(hyper))
    known = fast.CrossEntropy(p.dense, p.batch, lambda hyper: constant)
    found = solver(dataclasses.replace(problem, inner_loss=known), hyper).grad
    found, expected = map(p.layout.split, (found, solver(problem, hyper).grad))
    assert gap(found["rate"], expected["rate"]) < 1e-11 and not found["penalty"].any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_known_loss_in_single_precision(form):
    """6 steps of 6e-8, amplified some 1e3 times."""
    problem, hyper, p = parts(hg.Torch(dtype="float32"))
    known = dataclasses.replace(problem, inner_loss=form(p))
    assert_same_hypergradient(SOLVERS["reversible"], hyper, known, problem, error=1e-4)


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


@pytest.mark.parametrize("name", ["reversible", "forward"])
@pytest.mark.parametrize("form", [*FORMS.values(), None], ids=[*FORMS, "closure"])
def test_problem_used_by_four_threads(form, name):
    """One problem, another hyper in each: the same bits as alone."""
    problem, hyper, p = parts(hg.Torch())
    problem = dataclasses.replace(problem, inner_loss=form(p) if form else problem.inner_loss)
    hypers = [hyper + 0.5 * i for i in range(5)] * 3
    alone = [SOLVERS[name](problem, hyper).grad for hyper in hypers[:5]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda hyper: SOLVERS[name](problem, hyper).grad, hypers))
    assert all(torch.equal(a, b) for a, b in zip(alone * 3, together, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_equals_its_closure(compiler):
    """Inside of Penalized, which adds its own; implicit asks for t = None."""
    problem, hyper, p = parts(hg.Torch())
    known = fast.Penalized(fast.Compiled(p.bare), p.dense.layout, p.strength)
    known = dataclasses.replace(problem, inner_loss=known)
    for name in ("stored", "reversible", "forward", "identity"):
        assert_same_hypergradient(SOLVERS[name], hyper, known, problem)
    bare = dataclasses.replace(problem, inner_loss=fast.Compiled(problem.inner_loss))
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
