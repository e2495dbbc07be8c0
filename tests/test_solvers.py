"""Agreement: every exact solver, on both backends, with the unrolled loop and with each other."""

import catalogue
import numpy as np
import pytest
from catalogue import CASES, EXACT, gap

import hgcore as hg

BACKENDS = [hg.Autograd(), hg.Torch()]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_exact_solvers_equal_the_unrolled_loop(solver, case, backend):
    problem, hyper = case(backend)
    value, slope = catalogue.unrolled(problem, hyper)
    result = solver(problem, hyper)
    assert gap(backend.numpy(result.value), value) < 1e-12
    assert (
        gap(backend.numpy(result.grad), slope) < 1e-11
    )  # float64: T roundings of 1e-16, amplified some 1e3


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("solver", [hg.Reverse(), hg.Reverse(hg.checkpointed), hg.Forward()])
def test_plain_gradient_descent(solver, backend):
    problem, hyper = catalogue.plain(backend)
    assert (
        gap(backend.numpy(solver(problem, hyper).grad), catalogue.unrolled(problem, hyper)[1])
        < 1e-13
    )


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_forward_mode_of_hyperparameters_within_a_dense_net(backend):
    """On torch the net written out by hand has no third derivative: the slope by hyper is found another way."""
    net = hg.nets.Dense((3, 4, 2))
    x, y = (
        backend.array(np.random.default_rng(0).normal(size=(9, 3))),
        backend.array(np.eye(2)[np.arange(9) % 2]),
    )
    start = backend.array(np.random.default_rng(1).normal(size=net.layout.size))
    problem = hg.Problem(
        backend,
        inner=lambda w, h, t: (
            hg.nets.cross_entropy(net(w * net.layout.expand(backend.xp.exp(h)), x), y)
            + 0.01 * (w @ w)
        ),
        outer=lambda w, h: hg.nets.cross_entropy(net(w, x), y),
        initial=lambda h: start,
        steps=6,
        dynamics=hg.HeavyBall(rate=lambda h, t: 0.3, decay=lambda h, t: 0.8),
    )
    hyper = np.array([0.1, -0.2, 0.3, 0.0])
    assert (
        gap(
            *(backend.numpy(solver(problem, hyper).grad) for solver in (hg.Forward(), hg.Reverse()))
        )
        < 1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_forward_mode_of_a_hundred_hyperparameters_costs_no_hundred_calls(backend):
    calls = []

    def inner(w, hyper, t):
        calls.append(t)
        return backend.xp.sum(backend.xp.exp(hyper) * w**2)

    problem, _ = catalogue.bowl(
        backend, n=100, steps=3, inner=inner, initial=lambda hyper: hyper + 1
    )
    hyper = np.linspace(-2, 0, 100)
    found = hg.Forward()(problem, hyper).grad
    assert len(calls) <= 2 * problem.steps
    assert gap(found, catalogue.unrolled(problem, hyper)[1]) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize(
    "rate, decay",
    [
        (lambda h, x: 0.1, lambda h, x: 0.8),
        (lambda h, x: 0.1 + h[0], lambda h, x: 0.8),
        (lambda h, x: 0.1, lambda h, x: 0.8 + h[0] * x),
        (lambda h, x: 0.1 + h[0] * h[-1] * x, lambda h, x: 0.8 + h[-1]),
        (lambda h, x: 0.1 + 0 * h[0], lambda h, x: 0.8 + 0 * h[0]),
    ],
)
@pytest.mark.parametrize("count", [1, 9, 0])
@pytest.mark.parametrize("kind", [hg.Momentum, hg.HeavyBall, hg.GradientDescent])
def test_forward_mode_of_constant_scalar_and_vector_coefficients(kind, count, rate, decay, backend):
    """No hyperparameters at all: no tangents, and no look at hyper."""
    xp, ramp = backend.xp, backend.array(np.linspace(0, 1, 5))
    both = [lambda h, t, f=f: f(h, ramp) if count else 0.5 for f in (rate, decay)]
    problem = hg.Problem(
        backend,
        inner=lambda w, h, t: xp.sum(xp.exp(xp.sum(h)) * w**2 + xp.sin(w)),
        outer=lambda w, h: xp.sum((w - ramp) ** 2),
        initial=lambda h: ramp + 1,
        steps=5,
        dynamics=kind(both[0]) if kind is hg.GradientDescent else kind(*both),
    )
    forward, reverse = (
        backend.numpy(solver(problem, np.linspace(0.01, 0.02, count)).grad)
        for solver in (hg.Forward(), hg.Reverse())
    )
    assert forward.shape == (count,) and np.allclose(forward, reverse, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_finite_differences_agree_in_every_direction(solver, backend):
    """Central differences, error 1e-7; not for the decay, which is rounded to 2**-16."""
    problem, hyper = catalogue.everything(backend, steps=5)
    grad, slots = (
        backend.numpy(solver(problem, hyper).grad),
        [i for i in range(len(hyper)) if i != 5],
    )  # 5 is the decay
    for i in slots:
        step = 1e-5 * np.eye(len(hyper))[i]
        high, low = (float(hg.Reverse()(problem, hyper + s * step).value) for s in (1, -1))
        assert abs(grad[i] - (high - low) / 2e-5) < 1e-7 * max(1, abs(grad).max())


@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("per_coordinate", [False, True])
def test_both_backends_agree(solver, per_coordinate):
    """The same operations in another order: some 1e-16 a step."""
    numpy, torch = (
        solver(*catalogue.everything(b, per_coordinate=per_coordinate)) for b in BACKENDS
    )
    assert (
        all(gap(b, a) < 1e-12 for a, b in zip(numpy[:3], torch[:3], strict=True))
        and numpy.nbytes == torch.nbytes
    )


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_the_result_has_the_promised_shapes_and_types(solver, backend):
    problem, hyper = catalogue.everything(backend)
    result = solver(problem, hyper)
    assert (
        result.grad.shape == hyper.shape
        and result.state.shape == (8,)
        and np.shape(result.value) == ()
    )
    assert isinstance(result.nbytes, int) and not getattr(result.grad, "requires_grad", False)
    assert float(problem.outer(result.state[:4], backend.array(hyper))) == float(result.value)


def test_single_precision_meets_double_in_every_solver():
    """Twelve steps of 6e-8, amplified some 1e2."""
    expected = hg.Reverse()(*catalogue.everything(hg.Torch())).grad
    for solver in EXACT.values():
        found = solver(*catalogue.everything(hg.Torch(dtype="float32"))).grad
        assert str(found.dtype) == "torch.float32" and gap(found, expected) < 1e-5


@pytest.mark.parametrize("decay", [0.99998, 2.0**-16 + 1e-9])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_extreme_decays_and_long_runs(decay, backend):
    problem, hyper = catalogue.everything(backend, decay=decay, steps=80)
    hyper[:80] = -4.0
    expected = hg.Reverse()(problem, hyper).grad
    assert gap(hg.Reverse(hg.reversible)(problem, hyper).grad, expected) < 1e-9
    assert gap(expected, catalogue.unrolled(problem, hyper)[1]) < 1e-10
