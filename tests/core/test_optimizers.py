"""Optimizers: values of training equal those of torch.optim."""

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg

DECAY, BETA2 = 0.875, 1 - 2.0**-10  # multiples of 2**-16: nothing is rounded
TORCH = {
    "momentum": lambda w: torch.optim.SGD(w, 0.01 * (1 - DECAY), momentum=DECAY),
    "heavy ball": lambda w: torch.optim.SGD(w, 0.01, momentum=DECAY),
    "descent": lambda w: torch.optim.SGD(w, 0.01),
    "rmsprop": lambda w: torch.optim.RMSprop(w, 0.01, alpha=BETA2, eps=1e-8, momentum=DECAY),
    "adam": lambda w: torch.optim.Adam(w, 0.01, (DECAY, BETA2), 1e-8),
    "adamw": lambda w: torch.optim.AdamW(w, 0.01, (DECAY, BETA2), 1e-8, weight_decay=0.1),
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", TORCH)
def test_training_equals_torch_optim(backend, name, clip):
    """1e-9 for the sums in another order; torch's clipping adds 1e-6 to the norm it divides by."""
    loss = lambda w, h, t: ((w - 0.5) ** 4).sum() + (w[::2] ** 2).sum() * (1 + t % 3)  # noqa: E731
    ours = catalogue.optimizer(name, 0.01, DECAY, BETA2, 1e-8, clip=clip)
    parts = {"inner_loss": loss, "optimizer": ours, "initial": np.linspace(-2, 2, 20)}
    problem, _ = catalogue.bowl(backend, steps=40, **parts)
    w = torch.tensor(parts["initial"], requires_grad=True)
    theirs = TORCH[name]([w])
    for t in range(problem.steps):
        theirs.zero_grad()
        loss(w, None, t).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([w], clip)
        theirs.step()
    for strategy in [hg.Stored(), hg.Reversible()][: 1 + ours.reversible]:
        found = backend.numpy(strategy.train(problem, backend.array([])).final[0])
        assert gap(found, w.detach()) < (1e-5 if clip else 1e-9)


def test_adam_in_float32_with_the_largest_beta():
    """1 - beta**(t + 1) without cancellation."""
    ends = []
    for dtype in ("float32", "float64"):
        optimizer = hg.Adam(0.1, 0.5, 1 - 2.0**-16)
        ends.append(hg.train(*catalogue.bowl(hg.Torch(dtype=dtype), 3, optimizer=optimizer))[0])
    assert gap(*ends) < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_zero_gradients_give_no_nan(name, dtype, clip):
    """Of a weight that never moves, moves late, stops; with clip, of all."""

    def inner_loss(w, h, t):
        late, early = ((w[1] - 1) ** 2 if t > 2 else 0), ((w[2] - 1) ** 2 if t < 2 else 0)
        return 0 * w.sum() + (0 if clip else late + early + h[0] * (w[3] ** 2))

    rates = (lambda h, t: h[1]), 0.9, 0.999, (lambda h, t: h[2])
    start = lambda h: h[:1] * torch.tensor([0.5, 0.5, 0.5, 0.0], dtype=h.dtype)  # noqa: E731
    parts = {"inner_loss": inner_loss, "initial": start}
    parts["optimizer"] = catalogue.optimizer(name, *rates, clip=clip)
    problem, _ = catalogue.bowl(hg.Torch(dtype=dtype), **parts)
    for strategy in (hg.Stored(), hg.Checkpointed(), hg.Reversible()):
        result = hg.Reverse(strategy)(problem, [1.0, 0.01, 1e-8])
        assert result.state.isfinite().all() and result.grad.isfinite().all()
