"""What a Problem accepts: any vector, losses that ignore an argument, copies, threads."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import catalogue
import numpy as np
import pytest
import torch
from catalogue import SOLVERS, gap

import hgcore as hg

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
ODD = [
    {"outer_loss": lambda w, h: (h**2).sum()},
    {"outer_loss": lambda w, h: w[0]},
    {"inner_loss": lambda w, h, t: w.sum() + 0 * h[0]},
    {"inner_loss": lambda w, h, t: (w**2).sum(), "initial": np.ones(5)},
    {"steps": np.int64(6)},
]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_complex_numbers_are_refused(backend, kind):
    """Their imaginary parts would be dropped."""
    ones = backend.xp.asarray([1 + 1j] * 5)
    for change, hyper in (
        ({}, kind([0.1 + 1j, 0.3])),
        ({"initial": ones}, [0.1, 0.3]),
        ({"inner_loss": lambda w, h, t: ones[0]}, [0.1, 0.3]),
    ):
        with pytest.raises((TypeError, ValueError), match="must be real, got complex"):
            hg.Reverse()(catalogue.bowl(backend, **change)[0], hyper)


@solvers
@pytest.mark.parametrize("kind", [list, tuple, np.asarray, np.float32, torch.tensor])
def test_hyper_is_any_vector_and_stays_as_it_was(backend, solver, kind):
    hyper = kind([0.125, 0.25])
    problem = catalogue.bowl(backend)[0]
    expected = catalogue.unrolled(problem, [0.125, 0.25])[1]
    assert gap(backend.numpy(solver(problem, hyper).grad), expected) < 1e-12
    assert list(map(float, hyper)) == [0.125, 0.25]


@solvers
@pytest.mark.parametrize("change", ODD)
def test_losses_may_ignore_an_argument(backend, solver, change):
    problem, hyper = catalogue.bowl(backend, **change)
    expected = hg.Reverse()(problem, hyper).grad
    assert gap(backend.numpy(solver(problem, hyper).grad), expected) < 1e-12


def module_loss(w, hyper, t):
    """A loss that can be pickled."""
    return (w * w).sum() * hyper[0]


def module_outer(w, hyper):
    """An outer loss that can be pickled."""
    return (w**3).sum()


def test_problem_is_copied_pickled_and_shared(backend):
    """By threads too: the same bits as alone."""
    optimizer, start, solver = hg.AdamW(0.1), np.linspace(1, 2, 5), hg.Reverse(hg.Reversible())
    problem = hg.Problem(backend, module_loss, module_outer, optimizer, start, 20)
    hypers = [[0.1 * i] for i in range(1, 9)]
    alone = [backend.numpy(solver(problem, h).grad) for h in hypers]
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert np.array_equal(solver(copied, hypers[0]).grad, alone[0])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places inside one gradient
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda h: solver(problem, h).grad, hypers))
    finally:
        sys.setswitchinterval(before)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
