"""A step's vector-Jacobian product by one loop equals that of the formulas, by autograd."""

from dataclasses import replace

import pytest
import torch

import hgcore as hg

steps = pytest.importorskip("hgcore.fast.steps")
N = 1003
# relative to the largest cotangent of its kind: both round each operation, some twenty of them
RTOL = {"float64": 1e-14, "float32": 1e-5}
LIMITS = {"rate": (0.01, 0.1), "decay": (0.5, 0.99), "beta1": (0.5, 0.95)}
LIMITS |= {"beta2": (0.9, 0.999), "epsilon": (1e-8, 1e-2), "weight_decay": (0.01, 0.1)}
OPTIMIZERS = {
    hg.Momentum: ("rate", "decay"),
    hg.HeavyBall: ("rate", "decay"),
    hg.Adam: ("rate", "beta1", "beta2", "epsilon"),
    hg.AdamW: ("rate", "beta1", "beta2", "epsilon", "weight_decay"),
}


def coefficient(i: int, kind: str, low: float, high: float):
    """Return a number, or a function of hyper that gives one, or (n,), between low and high."""

    def between(hyper, t):
        spread = torch.linspace(-1, 1, N, dtype=hyper.dtype) if kind == "vector" else 1
        return low + (high - low) * torch.sigmoid(spread * hyper[i] + 0.1 * t)

    return (low + high) / 2 if kind == "number" else between


def step(optimizer: hg.optimizers.Optimizer, dtype: str) -> tuple:
    """Return (problem, state, gradient, hyper, adjoint of the state after the step)."""
    backend, rng = hg.Torch(dtype=dtype), torch.Generator().manual_seed(0)

    def random(size=N):
        return torch.randn(size, generator=rng, dtype=torch.float64).to(getattr(torch, dtype))

    problem = hg.Problem(backend, lambda w, h, t: w @ w, lambda w, h: w @ w, optimizer, random(), 9)
    slots = [random() ** 2 if slot.square else random() for slot in optimizer.slots]
    gradient, adjoint = random(), tuple(random() for _ in range(1 + len(slots)))
    gradient[:9] = 0
    for slot in slots:
        slot[:9] = 0  # a second moment of zero: its root has derivative zero
    return problem, (random(), *slots), gradient, random(6), adjoint


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("kinds", ["vector", "scalar", "number", "mixed"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_pull_step(optimizer, kinds, dtype):
    mixed = ("vector", "number", "scalar", "vector", "scalar")
    names = OPTIMIZERS[optimizer]
    each = mixed if kinds == "mixed" else (kinds,) * len(names)
    given = {
        name: coefficient(i, kind, *LIMITS[name])
        for i, (name, kind) in enumerate(zip(names, each, strict=False))
    }
    problem, before, gradient, hyper, adjoint = step(optimizer(**given), dtype)
    ones = torch.ones((), dtype=gradient.dtype).expand(N)  # one number in memory
    for t, after in ((0, adjoint), (7, adjoint), (7, (ones, *adjoint[1:]))):
        plain = problem.backend.vjp(problem._step_at(t), hyper, gradient, *before)[1](after)
        fast = steps.pull_step(problem, before, gradient, hyper, t, after)
        for found, expected in zip(fast, plain, strict=True):
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert abs(found - expected).max() <= RTOL[dtype] * max(1, abs(expected).max())


def test_what_it_takes():
    """Only the optimizers that it knows, as they are, on a CPU; all others take a graph."""
    backend, adam = hg.Torch(), hg.Adam(0.1)
    assert steps.fits(adam, backend) and not steps.fits(adam, hg.Autograd())
    own = type("Own", (hg.Adam,), {"drift": lambda self, c, gradient, mean, square: -c.rate * mean})
    for optimizer in (own(0.1), replace(adam, clip=1.0), hg.Adam(0.1, fade=0.9), hg.RMSProp(0.1)):
        assert not steps.fits(optimizer, backend)
