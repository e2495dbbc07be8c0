"""The same on a GPU: agreement with the CPU, and exact reversal with the integers on the device."""

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
@pytest.mark.parametrize("solver", catalogue.SOLVERS.values(), ids=catalogue.SOLVERS)
def test_gpu_equals_cpu(solver, name):
    """Other sums in another order: 12 steps of 1e-16, amplified some 1e4 times."""
    problem, hyper = catalogue.everything(hg.Torch("cuda"), name, per_weight=True)
    if "Reversible" not in repr(solver) or problem.optimizer.reversible:
        expected = hg.Reverse()(*catalogue.everything(hg.Torch(), name, per_weight=True))
        assert gap(solver(problem, hyper).grad.cpu(), expected.grad) < 1e-10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", [hg.Momentum(0.1, 0.9), hg.AdamW(1e-3, weight_decay=30.0)])
def test_gpu_undoes_a_thousand_steps(optimizer, dtype):
    """close() compares every bit with the true start and raises otherwise."""
    backend = hg.Torch("cuda", dtype)
    target = backend.array(np.random.default_rng(0).standard_normal((7, 300_000)))
    problem = hg.Problem(
        backend,
        inner_loss=lambda w, h, t: ((w - target[t % 7]) ** 2).sum(),
        outer_loss=lambda w, h: (0 * w).sum() + h[0],
        optimizer=optimizer,
        initial=0 * target[0] + 1,
        steps=1000,
    )
    assert float(hg.Reverse(hg.Reversible())(problem, [1.0]).grad[0]) == 1


def test_gpu_buffer_has_the_bits_of_the_cpu():
    rng = np.random.default_rng(0)
    start, kicks = rng.standard_normal(1000), rng.standard_normal((7, 1000))
    decays = [0.9, 0.5, 1.0, 0.98, rng.uniform(0.3, 1, 1000), 0.1, 0.999]
    ends = []
    for place in (np.asarray, lambda x: torch.as_tensor(x, device="cuda")):
        value, buffer = hg.FixedPoint(place(start)), hg.ReversalBuffer()
        for t in range(500):
            decay = decays[t % 7]
            decay = decay if np.ndim(decay) == 0 else place(decay)
            value.bits = buffer.multiply(value.bits, decay)
            value.add(place(kicks[t % 7]))
        ends.append(np.asarray(torch.as_tensor(value.bits).cpu()))
    assert (ends[0] == ends[1]).all()
