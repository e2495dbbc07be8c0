"""A penalty per weight around any net: derivatives, and the one for all."""

import numpy as np
import pytest
import torch
from catalogue import unrolled

import hgcore as hg
from hgcore import data, papers

net = hg.nets.DenseNet((6, 4, 3))
rng = np.random.default_rng(0)
TRAIN, JUDGED = (
    data.Split(rng.standard_normal((20, 6)), np.eye(3)[rng.integers(3, size=20)]) for _ in range(2)
)
HYPER = rng.normal(-2, 0.3, net.layout.size)


def problem(backend, steps=7):
    train, judged = (split.on(backend) for split in (TRAIN, JUDGED))
    return papers.weight_decays(
        backend, net, papers.first_weights(net, (3, 1)), train, judged, steps=steps
    )


def test_derivatives_through_training(backend):
    made = problem(backend)
    value, slope = unrolled(made, made.as_hyper(HYPER))
    found = hg.Reverse()(made, HYPER)
    assert float(found.value) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(backend.numpy(found.grad), slope, rtol=1e-9, atol=1e-12)


def test_penalties_of_all_weights_add_up_to_the_single_one(backend):
    made = problem(backend)
    each, single = (
        hg.Implicit(hg.Identity())(made, np.full(m, -2.0)) for m in (net.layout.size, 1)
    )
    assert float(each.value) == pytest.approx(float(single.value), rel=1e-12)
    assert float(each.grad.sum()) == pytest.approx(float(single.grad[0]), rel=1e-9)


def test_at_the_optimum_implicit_is_reverse():
    made = problem(hg.Torch(), steps=3000)
    exact, implicit = hg.Reverse()(made, HYPER).grad, hg.Implicit(hg.DenseSolve())(made, HYPER).grad
    np.testing.assert_allclose(implicit.numpy(), exact.numpy(), rtol=1e-6, atol=1e-9)


def test_a_torch_module_is_taken_as_it_is():
    backend = hg.Torch()
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.LogSoftmax(1)
    ).double()
    start = papers.first_weights(net, (3, 1))
    blocks = list(net.layout.split(start).values())
    with torch.no_grad():
        for parameter, block in zip(module.parameters(), blocks, strict=True):
            parameter.copy_(
                torch.tensor(block.T.copy())
            )  # torch keeps a layer's matrix the other way round
    weights, function = hg.nets.functional(module)
    train, judged = (split.on(backend) for split in (TRAIN, JUDGED))
    made = papers.weight_decays(backend, function, weights, train, judged, steps=7)
    ours, theirs = (hg.Reverse()(p, [-2.0]) for p in (problem(backend), made))
    assert float(theirs.value) == pytest.approx(float(ours.value), rel=1e-12)
    assert float(theirs.grad[0]) == pytest.approx(float(ours.grad[0]), rel=1e-9)


def test_first_weights():
    wide = hg.nets.DenseNet((900, 40, 10))
    blocks = wide.layout.split(papers.first_weights(wide, (0, 0)))
    assert blocks["weights 1"].std() == pytest.approx(1 / 30, rel=0.02)
    assert blocks["weights 2"].std() == pytest.approx(40**-0.5, rel=0.1)
    assert not blocks["biases 1"].any() and not blocks["biases 2"].any()


def test_joined():
    both_splits = papers.joined(TRAIN, JUDGED)
    assert both_splits.images.shape == (40, 6) and (both_splits.labels[20:] == JUDGED.labels).all()
