"""A Problem is copied, pickled and shared by threads."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from catalogue import same_bits

import hgcore as hg


def inner_loss(w, hyper, t):
    return (w * w).sum() * hyper[0]


def outer_loss(w, hyper):
    return (w**3).sum()


def test_problem_is_copied_pickled_and_shared(backend):
    start, solver = np.linspace(1, 2, 5), hg.Reverse(hg.Reversible())
    problem = hg.Problem(backend, inner_loss, outer_loss, hg.AdamW(0.1), start, 20)
    hypers = [[0.1 * i] for i in range(1, 9)]
    alone = [backend.numpy(solver(problem, h).grad) for h in hypers]
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert np.array_equal(solver(copied, hypers[0]).grad, alone[0])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places inside one gradient
    try:
        with ThreadPoolExecutor(4) as pool:
            assert same_bits(pool.map(lambda h: solver(problem, h).grad, hypers), alone)
    finally:
        sys.setswitchinterval(before)
