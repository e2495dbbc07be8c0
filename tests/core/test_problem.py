"""A Problem is copied, pickled and shared by threads."""

import copy
import pickle

import numpy as np
import pytest
from catalogue import SOLVERS, same_in_threads

import hgcore as hg


def inner_loss(w, hyper, t):
    return (w * w).sum() * hyper[0]


def outer_loss(w, hyper):
    return (w**3).sum()


@pytest.mark.parametrize("name", ["reversible", "forward"])
def test_problem_is_copied_pickled_and_shared(name, backend):
    start, solver = np.linspace(1, 2, 5), SOLVERS[name]
    problem = hg.Problem(backend, inner_loss, outer_loss, hg.AdamW(0.1), start, 20)
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert np.array_equal(solver(copied, [0.1]).grad, solver(problem, [0.1]).grad)
    hypers = [[0.1 * i] for i in range(1, 17)]
    assert same_in_threads(lambda hyper: solver(problem, hyper).grad, hypers)
