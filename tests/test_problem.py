"""What a Problem accepts, what it refuses, and how it says so."""

import math
from functools import partial

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg

BACKENDS = [hg.Autograd(), hg.Torch()]
SOLVERS = {
    "stored": hg.Reverse(),
    "checkpointed": hg.Reverse(hg.checkpointed),
    "reversible": hg.Reverse(hg.reversible),
    "forward": hg.Forward(),
}
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"steps": -1}, ValueError, "steps must be a whole number >= 0, got -1"),
        ({"steps": 2.5}, ValueError, "got 2.5"),
        ({"steps": None}, ValueError, "steps must be"),
        ({"initial": np.zeros(3)}, TypeError, "initial must be a function, got ndarray"),
        ({"inner": 1.0}, TypeError, "inner must be a function"),
        ({"outer": None}, TypeError, "outer must be a function"),
    ],
)
def test_a_problem_of_the_wrong_form_is_refused_when_it_is_made(change, error, words):
    with pytest.raises(error, match=words):
        catalogue.bowl(hg.Autograd(), **change)


@both
@pytest.mark.parametrize("hyper", [[[0.1, 0.3]], 0.1, np.zeros((2, 1))])
def test_hyper_must_be_flat(backend, hyper):
    with pytest.raises(ValueError, match=r"flat vector \(m,\), got shape .*Layout.join"):
        hg.Reverse()(catalogue.bowl(backend)[0], hyper)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_hyper_must_be_finite(backend, bad):
    with pytest.raises(hg.Diverged, match="hyper holds"):
        hg.Reverse()(catalogue.bowl(backend)[0], [0.1, bad])


@both
@solvers
@pytest.mark.parametrize("kind", [list, tuple, np.asarray, np.float32, torch.tensor])
def test_hyper_comes_as_any_kind_of_vector_and_stays_as_it_was(backend, solver, kind):
    hyper = kind([0.125, 0.25])
    result = solver(catalogue.bowl(backend)[0], hyper)
    assert (
        gap(
            backend.numpy(result.grad),
            catalogue.unrolled(catalogue.bowl(backend)[0], [0.125, 0.25])[1],
        )
        < 1e-12
    )
    assert list(map(float, hyper)) == [0.125, 0.25]


@both
@solvers
@pytest.mark.parametrize(
    "make",
    [
        float,
        np.float64,
        np.asarray,
        lambda x: np.full(5, x),
        torch.tensor,
        lambda x: torch.full((5,), x),
    ],
)
def test_coefficients_come_as_any_kind_of_number_or_vector(backend, solver, make):
    problem, hyper = catalogue.bowl(
        backend, dynamics=catalogue.momentum(rate=make(0.125), decay=make(0.875))
    )
    assert (
        gap(
            backend.numpy(solver(problem, hyper).grad),
            catalogue.unrolled(
                *catalogue.bowl(backend, dynamics=catalogue.momentum(rate=0.125, decay=0.875))
            )[1],
        )
        < 1e-12
    )


@both
@solvers
@pytest.mark.parametrize("name", ["rate", "decay"])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("from_step", [0, 2])
def test_a_coefficient_of_the_wrong_shape_is_refused_with_its_step(
    backend, solver, name, shape, from_step
):
    """From a later step on, kernels that do not look at shapes once read beyond the end: a wrong number without a word."""
    value = lambda t: backend.array(np.full(shape if t >= from_step else (), 0.5))  # noqa: E731
    problem, hyper = catalogue.bowl(backend, dynamics=catalogue.momentum(**{name: value}))
    with pytest.raises(
        ValueError,
        match=rf"{name} must be a scalar or have shape \(5,\), got .* at step {from_step}",
    ):
        solver(problem, hyper)


@both
@solvers
@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
@pytest.mark.parametrize("decay", [0.0, 1.5, -0.1, math.nan, 1e-6, 1 + 1e-9])
def test_a_decay_out_of_range_is_refused_with_its_step(backend, solver, kind, decay):
    dynamics = catalogue.momentum(decay=lambda t: decay if t == 4 else 0.9, kind=kind)
    with pytest.raises(
        ValueError,
        match=r"decay must lie in \[2\*\*-16, 1\], got .* at step 4; use GradientDescent",
    ):
        solver(*catalogue.bowl(backend, dynamics=dynamics))


@both
@solvers
@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall])
@pytest.mark.parametrize("decay", [1.0, 2.0**-16, 0.99998])
def test_the_ends_of_the_range_of_decays_are_allowed(backend, solver, kind, decay):
    problem, hyper = catalogue.bowl(backend, dynamics=catalogue.momentum(decay=decay, kind=kind))
    value, slope = catalogue.unrolled(problem, hyper)
    result = solver(problem, hyper)
    assert gap(backend.numpy(result.value), value) < 1e-12
    assert float(np.max(np.abs(backend.numpy(result.grad) - slope))) < 1e-12


@both
@solvers
@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"inner": lambda w, hyper, t: w * hyper[0]},
            r"must return a scalar of shape \(\), got .*5",
        ),
        ({"outer": lambda w, hyper: w * hyper[0]}, r"must return a scalar of shape \(\), got .*5"),
        ({"initial": lambda hyper: hyper[0]}, r"must have one shape \(n,\)"),
        ({"initial": lambda hyper: hyper[:0]}, r"must have one shape \(n,\)"),
        (
            {"dynamics": catalogue.momentum(velocity=lambda hyper: hyper)},
            r"must have one shape \(n,\).*\(5,\), \(2,\)",
        ),
        (
            {"dynamics": catalogue.momentum(velocity=lambda hyper: hyper[0])},
            r"must have one shape \(n,\)",
        ),
    ],
)
def test_functions_that_return_the_wrong_shape_are_named(backend, solver, change, words):
    with pytest.raises(ValueError, match=words):
        solver(*catalogue.bowl(backend, **change))


BAD_GRADIENTS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@both
@solvers
@pytest.mark.parametrize("bad", BAD_GRADIENTS.values(), ids=BAD_GRADIENTS)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_gradient_that_is_not_finite_names_its_step(backend, solver, bad, at):
    problem, hyper = catalogue.bowl(
        backend, inner=lambda w, hyper, t: (w * (bad if t == at else 1.0)).sum()
    )
    with pytest.raises(hg.Diverged, match=f"at step {at}:"):
        solver(problem, hyper)


@both
@solvers
def test_training_that_explodes_is_reported(backend, solver):
    quartic = lambda w, hyper, t: ((w - 1) ** 4).sum()  # noqa: E731
    with pytest.raises(hg.Diverged, match="at step"):
        solver(
            *catalogue.bowl(backend, inner=quartic, steps=60, dynamics=catalogue.momentum(rate=1e3))
        )


@both
@solvers
@pytest.mark.parametrize("start", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_start_that_is_not_finite_is_reported(backend, solver, start, steps):
    with pytest.raises(hg.Diverged):
        solver(
            *catalogue.bowl(
                backend,
                steps=steps,
                initial=lambda hyper: backend.array(np.full(5, start)) + hyper[0],
            )
        )


@both
@pytest.mark.parametrize("where", ["initial", "velocity"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_start_out_of_the_range_of_fixed_point_is_reported_and_stored_can_do_it(
    backend, where, steps
):
    far = lambda hyper: backend.array(np.linspace(0, -3000, 5)) + hyper[0]  # noqa: E731
    change = (
        {"initial": far} if where == "initial" else {"dynamics": catalogue.momentum(velocity=far)}
    )
    problem, hyper = catalogue.bowl(backend, steps=steps, **change)
    with pytest.raises(
        hg.Diverged,
        match="reached 3000 before step 0; fixed point holds magnitudes below 2048.*`stored`",
    ):
        hg.Reverse(hg.reversible)(problem, hyper)
    assert (
        gap(backend.numpy(hg.Reverse()(problem, hyper).grad), catalogue.unrolled(problem, hyper)[1])
        < 1e-12
    )


@both
def test_leaving_the_range_on_the_way_is_reported_with_its_step(backend):
    problem, hyper = catalogue.bowl(
        backend,
        steps=50,
        inner=lambda w, hyper, t: -100 * w.sum(),
        dynamics=catalogue.momentum(1.0),
    )
    with pytest.raises(hg.Diverged, match=r"at step \d+; fixed point"):
        hg.Reverse(hg.reversible)(problem, hyper)
    hg.Reverse()(problem, hyper)


@both
@solvers
@pytest.mark.parametrize(
    "outer", [lambda w, hyper: (hyper**2).sum(), lambda w, hyper: w.sum(), lambda w, hyper: w[0]]
)
def test_an_outer_objective_may_ignore_weights_or_hyper(backend, solver, outer):
    problem, hyper = catalogue.bowl(backend, outer=outer)
    assert (
        gap(backend.numpy(solver(problem, hyper).grad), catalogue.unrolled(problem, hyper)[1])
        < 1e-12
    )


@both
@solvers
@pytest.mark.parametrize(
    "inner",
    [
        lambda w, hyper, t: (w**2).sum(),
        lambda w, hyper, t: w.sum(),
        lambda w, hyper, t: (hyper**2).sum(),
    ],
)
def test_an_inner_objective_may_ignore_hyper_or_weights_or_be_linear(backend, solver, inner):
    """One hyperparameter moves the start, the other nothing: its derivative is zero."""
    problem, hyper = catalogue.bowl(backend, inner=inner, outer=lambda w, hyper: (w**3).sum())
    grad, step = backend.numpy(solver(problem, hyper).grad), np.array([0, 1e-6])
    values = [float(hg.Reverse()(problem, hyper + s * step).value) for s in (1, -1)]
    assert grad[0] == 0 and abs(grad[1] - (values[0] - values[1]) / 2e-6) < 1e-8


@both
@solvers
def test_an_outer_objective_that_is_not_finite_is_reported(backend, solver):
    """Its gradient may well be finite, as that of a logarithm is below zero."""
    with np.errstate(all="ignore"), pytest.raises(hg.Diverged, match="outer objective"):
        solver(
            *catalogue.bowl(backend, outer=lambda w, hyper: backend.xp.sum(backend.xp.log(w - 100)))
        )


@both
@solvers
def test_steps_may_be_a_numpy_integer(backend, solver):
    assert float(solver(*catalogue.bowl(backend, steps=np.int64(6))).value) == float(
        solver(*catalogue.bowl(backend)).value
    )


@both
@solvers
def test_no_hyperparameters_give_an_empty_hypergradient(backend, solver):
    problem, _ = catalogue.bowl(
        backend,
        inner=lambda w, hyper, t: (w**2).sum(),
        initial=lambda hyper: backend.array(np.ones(5)),
    )
    result = solver(problem, [])
    assert backend.numpy(result.grad).shape == (0,) and math.isfinite(float(result.value))


@both
def test_gradient_descent_cannot_be_reversed_and_says_what_can(backend):
    with pytest.raises(
        ValueError, match="GradientDescent cannot be run backwards: use Momentum or HeavyBall"
    ):
        hg.Reverse(hg.reversible)(*catalogue.plain(backend))


@both
@pytest.mark.parametrize(
    "remember",
    [
        partial(hg.checkpointed, every=0),
        partial(hg.checkpointed, every=-2),
        partial(hg.truncated, last=-1),
    ],
)
def test_counts_that_make_no_sense_are_refused(backend, remember):
    with pytest.raises(ValueError, match="must be a number of steps"):
        hg.Reverse(remember)(*catalogue.bowl(backend))
