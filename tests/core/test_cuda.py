"""The same on a GPU: agreement with the CPU, and exact reversal with the integers on the device."""

import catalogue
import numpy as np
import pytest
import torch

import hgcore as hg

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
@pytest.mark.parametrize("solver", catalogue.SOLVERS.values(), ids=catalogue.SOLVERS)
def test_gpu_equals_cpu(solver, name):
    """Other sums in another order: 8 steps of 1e-16, amplified some 1e4 times."""
    problem, hyper = catalogue.everything(hg.Torch("cuda"), name, per_weight=True)
    if "Reversible" not in repr(solver) or problem.optimizer.reversible:
        expected = hg.Reverse()(*catalogue.everything(hg.Torch(), name, per_weight=True))
        assert catalogue.gap(solver(problem, hyper).grad.cpu(), expected.grad) < 1e-10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", [hg.Momentum(0.1, 0.9), hg.AdamW(1e-3, weight_decay=30.0)])
def test_gpu_undoes_a_thousand_steps(optimizer, dtype):
    """close() compares every bit with the true start and raises otherwise."""
    problem = catalogue.noisy(hg.Torch("cuda", dtype), optimizer, steps=1000, n=300_000)
    assert float(hg.Reverse(hg.Reversible())(problem, [1.0]).grad[0]) == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("n, steps", [(1000, 500), (2**17 + 3, 20)], ids=["plain", "compiled"])
def test_gpu_buffer_has_the_bits_of_the_cpu(n, steps):
    """Kernels are compiled for long vectors, and warn if they have other bits."""
    decays = [0.9, 0.5, 1.0, 0.98, np.random.default_rng(1).uniform(0.3, 1, n), 0.1, 0.999]
    places = np.asarray, lambda x: torch.as_tensor(x, device="cuda")
    ours, theirs = (catalogue.there_and_back(place, decays, steps, n) for place in places)
    assert catalogue.same_bits(ours, theirs)


def test_recurrent_nets_do_without_cudnn():
    """It has no second derivative; torch's own kernels, which functional selects, have one."""
    backend, module = hg.Torch("cuda"), torch.nn.LSTM(3, 3).to("cuda", torch.float64)
    w, net = hg.nets.functional(module)
    x = torch.ones(4, 2, 3, dtype=torch.float64, device="cuda")
    call, split = torch.func.functional_call, net.layout.split
    itself = lambda w, x: call(module, split(w), (x,))  # noqa: E731
    loss = lambda f: lambda w, h: f(w, x)[0].square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="cudnn.flags"):
        backend.linearize(loss(itself), w, w[:1]).hvp(w)
    assert backend.linearize(loss(net), w, w[:1]).hvp(w).any()
