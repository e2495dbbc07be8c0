"""What a Problem accepts: any vector of real numbers, copies, threads."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import catalogue
import numpy as np
import torch
from catalogue import SOLVERS

import hgcore as hg


def test_hyper_is_any_vector_and_stays_as_it_was(backend):
    problem = catalogue.bowl(backend)[0]
    for solver in SOLVERS.values():
        expected = solver(problem, backend.array([0.125, 0.25])).grad
        for kind in (list, tuple, np.asarray, np.float32, torch.tensor):
            hyper = kind([0.125, 0.25])
            assert np.array_equal(solver(problem, hyper).grad, expected)
            assert list(map(float, hyper)) == [0.125, 0.25]


def module_loss(w, hyper, t):
    return (w * w).sum() * hyper[0]


def module_outer(w, hyper):
    return (w**3).sum()


def test_problem_is_copied_pickled_and_shared(backend):
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
