"""Agreement: every exact solver, on both backends, with the unrolled loop and with each other."""

import functools

import catalogue
import numpy as np
import pytest

import hgcore as hg

BACKENDS = [hg.Autograd(), hg.Torch()]
CASES = {
    "scalar decay": catalogue.everything,
    "decay 0.99": functools.partial(catalogue.everything, decay=0.99),
    "decay 0.3": functools.partial(catalogue.everything, decay=0.3),
    "per coordinate": functools.partial(catalogue.everything, per_coordinate=True),
    "heavy ball": functools.partial(catalogue.everything, dynamics=hg.HeavyBall, decay=0.5),
    "one weight": functools.partial(catalogue.everything, n=1, per_coordinate=True),
    "no steps": functools.partial(catalogue.everything, steps=0),
    "one step": functools.partial(catalogue.everything, steps=1),
    "layers": catalogue.layered,
}
EXACT = {
    "stored": hg.Reverse(), "checkpointed": hg.Reverse(hg.checkpointed), "reversible": hg.Reverse(hg.reversible),
    "all of truncated": hg.Reverse(functools.partial(hg.truncated, last=99)), "forward": hg.Forward(),
}


def gap(a, b) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.max(np.abs(np.subtract(a, b))) / np.max(np.abs(b)))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_exact_solvers_equal_the_unrolled_loop(solver, case, backend):
    problem, hyper = case(backend)
    value, slope = catalogue.unrolled(problem, hyper)
    result = solver(problem, hyper)
    assert gap(backend.numpy(result.value), value) < 1e-12
    assert gap(backend.numpy(result.grad), slope) < 1e-11  # float64: T roundings of 1e-16, amplified some 1e3


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("solver", [hg.Reverse(), hg.Reverse(hg.checkpointed), hg.Forward()])
def test_plain_gradient_descent(solver, backend):
    problem, hyper = catalogue.plain(backend)
    assert gap(backend.numpy(solver(problem, hyper).grad), catalogue.unrolled(problem, hyper)[1]) < 1e-13
