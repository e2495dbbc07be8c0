"""What a Problem accepts, what it refuses, and how it says so."""

import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg

torch = pytest.importorskip("torch")

SOLVERS = {
    "stored": hg.Reverse(),
    "checkpointed": hg.Reverse(hg.Checkpointed()),
    "reversible": hg.Reverse(hg.Reversible()),
    "forward": hg.Forward(),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"steps": -1}, ValueError, "steps must be a whole number >= 0, got -1"),
        ({"steps": 2.5}, ValueError, "got 2.5"),
        ({"inner_loss": 1.0}, TypeError, "inner_loss must be a function, got float"),
        ({"outer_loss": None}, TypeError, "outer_loss must be a function"),
        ({"optimizer": hg.Momentum}, TypeError, "got the class Momentum"),
        ({"optimizer": torch.optim.Adam([torch.zeros(1)])}, TypeError, "such as .*, got Adam"),
        ({"optimizer": 0.1}, TypeError, r"such as hg.Momentum\(0.1, 0.9\), got float"),
    ],
)
def test_problem_of_the_wrong_form_raises(change, error, words):
    with pytest.raises(error, match=words):
        catalogue.bowl(hg.Autograd(), **change)


def test_backend_must_be_an_object():
    with pytest.raises(TypeError, match=r"backend must be hg.Torch\(\) or hg.Autograd\(\)"):
        catalogue.bowl(hg.Torch())[0].__class__(
            hg.Torch, lambda w, h, t: 0, lambda w, h: 0, hg.GradientDescent(0.1), [1.0], 1
        )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hg.Reverse(hg.Reversible), "trajectory must be an object such as"),
        (lambda: hg.Reverse(3), "trajectory must be an object"),
        (lambda: hg.Implicit(hg.ConjugateGradient), "got the class ConjugateGradient"),
        (lambda: hg.Layout({"w": 3}), "shape of block 'w' must be a tuple, got 3"),
    ],
)
def test_class_in_place_of_an_object_raises(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize(
    "change", [{"optimizer": torch.optim.Adam([torch.zeros(1)])}, {"solver": hg.Reverse}]
)
def test_loop_arguments_are_checked(backend, change):
    problem, hyper = catalogue.bowl(backend)
    parts = {"solver": hg.Reverse(), "optimizer": hg.Adam(0.1)} | change
    with pytest.raises(TypeError, match="must be an object such as"):
        solver = parts.pop("solver")
        list(hg.descend(solver, problem, hyper, steps=1, **parts))


@pytest.mark.parametrize("hyper", [[[0.1, 0.3]], 0.1, np.zeros((2, 1))])
def test_hyper_must_be_flat(backend, hyper):
    with pytest.raises(ValueError, match=r"flat vector \(m,\), got shape .*Layout.join"):
        hg.Reverse()(catalogue.bowl(backend)[0], hyper)
    with pytest.raises(TypeError, match="got dict; use Layout.join"):
        hg.Reverse()(catalogue.bowl(backend)[0], {"rate": 0.1})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_hyper_must_be_finite(backend, bad):
    with pytest.raises(hg.Diverged, match="hyper holds"):
        hg.Reverse()(catalogue.bowl(backend)[0], [0.1, bad])


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_complex_numbers_are_refused(backend, kind):
    """Their imaginary parts would be dropped."""
    problem, hyper = catalogue.bowl(backend)
    with pytest.raises(TypeError, match="numbers must be real, got complex"):
        hg.Reverse()(problem, kind([0.1 + 1j, 0.3]))
    if backend.name == "torch" or kind is np.asarray:
        problem, hyper = catalogue.bowl(backend, initial=kind([1 + 1j] * 5))
        with pytest.raises(TypeError, match="numbers must be real, got complex"):
            hg.Reverse()(problem, hyper)


@solvers
@pytest.mark.parametrize("kind", [list, tuple, np.asarray, np.float32, torch.tensor])
def test_hyper_is_any_vector_and_stays_as_it_was(backend, solver, kind):
    hyper = kind([0.125, 0.25])
    problem = catalogue.bowl(backend)[0]
    expected = catalogue.unrolled(problem, [0.125, 0.25])[1]
    assert gap(backend.numpy(solver(problem, hyper).grad), expected) < 1e-12
    assert list(map(float, hyper)) == [0.125, 0.25]


@solvers
@pytest.mark.parametrize("name", ["rate", "decay"])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("first", [0, 2])
def test_coefficient_of_the_wrong_shape_raises(backend, solver, name, shape, first):
    def value(h, t):
        return backend.array(np.full(shape if t >= first else (), 0.5))

    parts = {"rate": 0.1, "decay": 0.9} | {name: value}
    problem, hyper = catalogue.bowl(backend, optimizer=hg.Momentum(**parts))
    words = rf"{name} must be a scalar or have shape \(5,\), got .* at step {first}"
    with pytest.raises(ValueError, match=words):
        solver(problem, hyper)


@solvers
@pytest.mark.parametrize("decay", [0.0, 1.5, -0.1, math.nan, 1e-6, 1 + 1e-9])
def test_decay_out_of_range_raises_with_its_step(backend, solver, decay):
    optimizer = hg.HeavyBall(0.1, lambda h, t: decay if t == 4 else 0.9)
    words = r"decay must lie in \[2\*\*-16, 1\], got .* at step 4; use GradientDescent"
    with pytest.raises(ValueError, match=words):
        solver(*catalogue.bowl(backend, optimizer=optimizer))


@solvers
@pytest.mark.parametrize(
    "change, words",
    [
        ({"inner_loss": lambda w, h, t: w * h[0]}, r"must return a scalar of shape \(\), got .*5"),
        ({"outer_loss": lambda w, h: w * h[0]}, r"must return a scalar of shape \(\), got .*5"),
        ({"initial": lambda h: h[0]}, r"must have one shape \(n,\)"),
        ({"initial": lambda h: h[:0]}, r"must have one shape \(n,\)"),
        ({"optimizer": hg.Momentum(0.1, 0.9, lambda h: h)}, r"shape \(n,\).*\(5,\), \(2,\)"),
    ],
)
def test_function_of_the_wrong_shape_is_named(backend, solver, change, words):
    with pytest.raises(ValueError, match=words):
        solver(*catalogue.bowl(backend, **change))


@solvers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_gradient_not_finite_names_its_step(backend, solver, bad, at):
    def inner_loss(w, hyper, t):
        return (w * (bad if t == at else 1.0)).sum()

    with pytest.raises(hg.Diverged, match=f"at step {at}:"):
        solver(*catalogue.bowl(backend, inner_loss=inner_loss))


@solvers
def test_start_not_finite_raises(backend, solver):
    start = lambda h: backend.array(np.full(5, math.nan)) + h[0]  # noqa: E731
    with pytest.raises(hg.Diverged):
        solver(*catalogue.bowl(backend, initial=start))


@solvers
def test_outer_loss_not_finite_raises(backend, solver):
    """Its gradient may well be finite, as that of a logarithm is below zero."""
    outer_loss = lambda w, h: backend.xp.sum(backend.xp.log(w - 100))  # noqa: E731
    with np.errstate(all="ignore"), pytest.raises(hg.Diverged, match="outer loss"):
        solver(*catalogue.bowl(backend, outer_loss=outer_loss))


@solvers
@pytest.mark.parametrize(
    "change",
    [
        {"outer_loss": lambda w, h: (h**2).sum()},
        {"outer_loss": lambda w, h: w[0]},
        {"inner_loss": lambda w, h, t: w.sum() + 0 * h[0]},
        {"steps": np.int64(6)},
    ],
)
def test_losses_may_ignore_an_argument(backend, solver, change):
    problem, hyper = catalogue.bowl(backend, **change)
    assert (
        gap(backend.numpy(solver(problem, hyper).grad), hg.Reverse()(problem, hyper).grad) < 1e-12
    )


@solvers
def test_no_hyperparameters_give_an_empty_gradient(backend, solver):
    problem, _ = catalogue.bowl(
        backend, inner_loss=lambda w, h, t: (w**2).sum(), initial=np.ones(5)
    )
    result = solver(problem, [])
    assert backend.numpy(result.grad).shape == (0,) and math.isfinite(float(result.value))


@pytest.mark.parametrize("cut", [float, torch.Tensor.item, torch.Tensor.detach])
def test_function_cut_from_the_graph_raises(cut):
    """Its hypergradient would be zero, and descend would stand still without a word."""
    rate = hg.GradientDescent(lambda h, t: cut(h[0]))
    with pytest.raises(ValueError, match="rate changes with hyper but its derivative is cut off"):
        hg.Reverse()(*catalogue.bowl(hg.Torch(), optimizer=rate))
    with pytest.raises(ValueError, match="initial changes with hyper"):
        hg.Reverse()(*catalogue.bowl(hg.Torch(), initial=lambda h: torch.ones(5) * cut(h[0])))


def test_data_of_another_precision_is_named():
    x = torch.randn(5, 3)
    problem = hg.Problem(
        hg.Torch(), lambda w, h, t: (x @ w).mean(), lambda w, h: w @ w, hg.Momentum(0.1, 0.9),
        torch.ones(3), 2,
    )  # fmt: skip
    words = "takes float32 weights but not float64 ones.*use hg.Torch.*'float32'"
    with pytest.raises(TypeError, match=words):
        hg.Reverse()(problem, [0.1])


def test_loss_that_does_not_take_none_is_named(backend):
    def inner_loss(w, h, t):
        return ((w - t % 4) ** 2).sum() * h[0]

    problem, hyper = catalogue.bowl(backend, inner_loss=inner_loss)
    with pytest.raises(TypeError, match="Implicit differentiates inner_loss.*None stands for all"):
        hg.Implicit(hg.ConjugateGradient())(problem, hyper)


def module_loss(w, hyper, t):
    """A loss that can be pickled."""
    return (w * w).sum() * hyper[0]


def module_outer(w, hyper):
    """An outer loss that can be pickled."""
    return (w**3).sum()


def test_problem_is_copied_pickled_and_shared(backend):
    """By threads too: the same bits as alone."""
    problem = hg.Problem(
        backend, module_loss, module_outer, hg.AdamW(0.1), np.linspace(1, 2, 5), 20
    )
    hypers = [[0.1 * i] for i in range(1, 9)]
    alone = [backend.numpy(hg.Reverse(hg.Reversible())(problem, h).grad) for h in hypers]
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert np.array_equal(hg.Reverse(hg.Reversible())(copied, hypers[0]).grad, alone[0])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places inside one gradient
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(
                pool.map(lambda h: hg.Reverse(hg.Reversible())(problem, h).grad, hypers)
            )
    finally:
        sys.setswitchinterval(before)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
