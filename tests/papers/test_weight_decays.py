"""A penalty for each weight of any net (Lorraine et al. 2020)."""

import numpy as np
import pytest
import torch
from catalogue import unrolled

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((6, 4, 3))
rng = np.random.default_rng(0)
TRAIN, VALID = (
    data.Split(rng.standard_normal((20, 6)), np.eye(3)[rng.integers(3, size=20)]) for _ in range(2)
)
HYPER = rng.normal(-2, 0.3, NET.layout.size)
START = papers.initial_weights(NET, (3, 1))


def problem(backend, net=NET, start=START, steps=7):
    train, valid = (split.on(backend) for split in (TRAIN, VALID))
    return papers.weight_decays(backend, net, start, train, valid, steps=steps)


def test_hypergradient_equals_the_unrolled_loop(backend):
    case = problem(backend)
    value, slope = unrolled(case, case.as_hyper(HYPER))
    found = hg.Reverse()(case, HYPER)
    assert float(found.value) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(backend.numpy(found.grad), slope, rtol=1e-9, atol=1e-12)


def test_penalties_of_all_weights_add_up_to_the_single_one(backend):
    solver, sizes = hg.Implicit(hg.Identity()), (NET.layout.size, 1)
    each, single = (solver(problem(backend), np.full(m, -2.0)) for m in sizes)
    assert float(each.value) == pytest.approx(float(single.value), rel=1e-12)
    assert float(each.grad.sum()) == pytest.approx(float(single.grad[0]), rel=1e-9)


def test_a_torch_module_is_the_same_net():
    layers = torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.LogSoftmax(1)
    module, blocks = torch.nn.Sequential(*layers).double(), NET.layout.split(START).values()
    with torch.no_grad():
        for parameter, block in zip(module.parameters(), blocks, strict=True):
            parameter.copy_(torch.tensor(block.T.copy()))  # torch stores a matrix transposed
    weights, function = hg.nets.functional(module)
    backend = hg.Torch()
    cases = problem(backend), problem(backend, function, weights)
    ours, theirs = (hg.Reverse()(case, [-2.0]) for case in cases)
    assert float(theirs.value) == pytest.approx(float(ours.value), rel=1e-12)
    assert float(theirs.grad[0]) == pytest.approx(float(ours.grad[0]), rel=1e-9)
