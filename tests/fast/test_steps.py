"""A step's vector-Jacobian product by one loop equals that of the formulas, by autograd."""

from dataclasses import replace

import catalogue
import pytest
import torch

import hgcore as hg

steps = pytest.importorskip("hgcore.fast.steps")
N, AUTOGRAD = 1003, hg.Autograd()
# relative to the largest cotangent of its kind: both round each operation, some twenty of them
RTOL = {"float64": 1e-14, "float32": 1e-5}


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("kind", ["vectors", "scalars", "mixed"])
@pytest.mark.parametrize("name", ["momentum", "heavy ball", "adam", "adamw"])
def test_pull_step_equals_that_of_a_graph(name, kind, dtype):
    """mixed: the rate is a number, all other coefficients are vectors that hyper gives."""
    backend, rng = hg.Torch(dtype=dtype), torch.Generator().manual_seed(0)
    problem, hyper = catalogue.everything(backend, name, per_weight=kind != "scalars", steps=8, n=N)
    if kind == "mixed":
        problem = replace(problem, optimizer=replace(problem.optimizer, rate=0.05))
    assert steps.fits(problem.optimizer, backend) and not steps.fits(problem.optimizer, AUTOGRAD)
    slots, hyper = problem.optimizer.slots, problem.as_hyper(hyper)
    shape = 3 + 2 * len(slots), N
    weights, gradient, *vectors = torch.randn(shape, generator=rng, dtype=hyper.dtype)
    before = weights, *(x**2 if slot.square else x for slot, x in zip(slots, vectors, strict=False))
    after = tuple(vectors[len(slots) :])
    for vector in (gradient, *before[1:]):
        vector[:9] = 0  # a second moment of zero: its root has derivative zero
    ones = torch.ones((), dtype=hyper.dtype).expand(N)  # one number in memory
    for t, adjoint in ((0, after), (7, after), (7, (ones, *after[1:]))):
        plain = backend.vjp(problem._step_at(t), hyper, gradient, *before)[1](adjoint)
        fast = steps.pull_step(problem, before, gradient, hyper, t, adjoint)
        for found, expected in zip(fast, plain, strict=True):
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert abs(found - expected).max() <= RTOL[dtype] * max(1, abs(expected).max())
