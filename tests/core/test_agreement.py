"""Agreement: every exact solver, backend and precision with the unrolled loop."""

import functools
from functools import partial

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap, same_bits

import hgcore as hg

KINDS = {"scalars": {}, "per weight": {"per_weight": True}, "clipped": {"clip": 6.5}}
CASES = {
    f"{name}, {kind}": partial(catalogue.everything, name=name, **options)
    for name in catalogue.OPTIMIZERS
    for kind, options in KINDS.items()
}
CASES |= {
    "momentum, net": partial(catalogue.net, name="momentum"),
    "rmsprop, net": partial(catalogue.net, name="rmsprop", rate=0.01),
    "adamw, net": partial(catalogue.net, name="adamw", rate=0.01),
    "adam, fading": partial(catalogue.everything, name="adam", fade=0.8),
    "decay 0.3": partial(catalogue.everything, decay=0.3),
    "one weight": partial(catalogue.everything, name="adamw", n=1, per_weight=True),
    "no steps": partial(catalogue.everything, steps=0),
    "one step": partial(catalogue.everything, name="adam", steps=1),
}
ODD = {
    "outer loss of hyper": {"outer_loss": lambda w, h: (h**2).sum()},
    "outer loss of a weight": {"outer_loss": lambda w, h: w[0]},
    "linear inner loss": {"inner_loss": lambda w, h, t: w.sum() + 0 * h[0]},
    "no loss of hyper": {"inner_loss": lambda w, h, t: (w**2).sum(), "initial": np.ones(5)},
    "steps of NumPy": {"steps": np.int64(6)},
    "lists": {"optimizer": hg.AdamW([0.1, 0.2, 0.3, 0.2, 0.1], [0.8, 0.9, 0.8, 0.9, 0.8])},
}
CASES |= {name: partial(catalogue.bowl, **changes) for name, changes in ODD.items()}
NONE = partial(catalogue.bowl, inner_loss=lambda w, h, t: (w**4).sum(), initial=np.ones(5))
CASES |= {"no hyperparameters": lambda backend: (NONE(backend)[0], [])}
SINGLE = hg.Torch(dtype="float32")
MATRIX = [(name, backend) for name in CASES for backend in (hg.Autograd(), hg.Torch())]
MATRIX += [(f"{name}, scalars", SINGLE) for name in catalogue.OPTIMIZERS]
WAYS = hg.Stored(graphs=2), hg.Checkpointed(states=2), hg.Reversible(graphs=2), hg.Truncated(99)


@functools.cache
def reference(name) -> tuple:
    return catalogue.unrolled(*CASES[name](hg.Torch()))


@pytest.mark.parametrize("name, backend", MATRIX, ids=str)
def test_solvers_equal_unrolled(name, backend):
    """T roundings of 1e-16 or 6e-8, amplified 1e3 times or, by Adam's root, 1e5 times."""
    problem, hyper = CASES[name](backend)
    value, slope = reference(name)
    options = map(hg.Reverse, WAYS if backend.name == "torch" and "scalars" in name else ())
    for solver in (*catalogue.SOLVERS.values(), *options):
        reversible = isinstance(getattr(solver, "trajectory", None), hg.Reversible)
        if reversible and not problem.optimizer.reversible:
            continue
        # with epsilon = 1e-8, the unit of its second moments counts
        wide = reversible and getattr(problem.optimizer, "epsilon", 1) == 1e-8
        errors = (1e-9, 1e-7) if wide else (1e-11, 1e-10)  # of value, of hypergradient
        errors = (1e-4, 1e-4) if backend == SINGLE else errors
        result = solver(problem, hyper)
        assert gap(backend.numpy(result.value), value) < errors[0], solver
        assert gap(backend.numpy(result.grad), slope) < errors[1], solver


def test_hyper_is_any_vector_and_stays_as_it_was(backend):
    """And another call gives the same bits."""
    problem, hyper = catalogue.everything(backend, "adamw")
    given = hyper.astype("float32").tolist()
    for solver in catalogue.SOLVERS.values():
        expected = solver(problem, backend.array(given))
        for kind in (list, tuple, np.asarray, np.float32, torch.tensor):
            hyper = kind(given)
            assert same_bits(solver(problem, hyper), expected)
            assert list(map(float, hyper)) == given


def test_forward_calls_the_loss_once_a_step(backend):
    """A hundred hyperparameters share the graph of one gradient; two more calls look at step 0."""
    loss, start = (lambda w, h, t: (backend.xp.exp(h) * w**2).sum()), (lambda hyper: hyper + 1)
    problem, _ = catalogue.bowl(backend, n=100, steps=3, inner_loss=loss, initial=start)
    counted, calls = catalogue.counted(problem)
    hyper = np.linspace(-2, 0, 100)
    found = hg.Forward()(counted, hyper).grad
    assert calls == [0, 0, 0, 1, 2]
    assert gap(found, hg.Reverse()(problem, hyper).grad) < 1e-13
