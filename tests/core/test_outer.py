"""Outer loops: against loops written out, plain training, themselves when resumed."""

from dataclasses import replace
from functools import partial

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap, same_bits

import hgcore as hg

STILL = hg.GradientDescent(0.0)
OPTIMIZERS = {
    "descent": hg.GradientDescent(1000.0),  # out of the allowed set
    "falling rate": hg.Momentum(lambda hyper, k: 0.05 / (k + 1), 0.8),
    "rmsprop": hg.RMSProp(0.02, decay=0.5),
    "adam": hg.Adam(0.05),
    "adamw": hg.AdamW([0.05] * 6, weight_decay=0.1),
    "fading adam": hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=1e-4),
}
LOOPS = {
    "descend": partial(hg.descend, hg.Reverse()),
    "realtime": partial(hg.realtime, every=3),
    "alternate": partial(hg.alternate, hg.Implicit(hg.Identity(0.1)), every=4),
    "alternate, unrolled": partial(hg.alternate, hg.Reverse(), every=4),
}


def regression_at(backend, k):
    problem, _ = catalogue.regression(backend, steps=3 + k)
    return replace(problem, outer_loss=lambda w, h: (1 + 0.1 * k) * problem.outer_loss(w, h))


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_loop_resumed_gives_the_same_bits(optimizer, loop, tmp_path):
    """And keeps to the allowed set."""
    for backend in (hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")):
        problem, hyper = partial(regression_at, backend), catalogue.regression(backend)[1]
        run = partial(loop, problem, hyper, optimizer=optimizer, steps=3, project=hg.box(-3.0, 0.0))
        whole = list(run())
        assert [step.k for step in whole] == [0, 1, 2]
        for step in whole:
            assert (-3 <= step.updated).all() and (step.updated <= 0).all()
            hg.save(tmp_path / "new folder" / "step", step)
            rest = run(resume=hg.load(tmp_path / "new folder" / "step", backend))
            for ours, theirs in zip(rest, whole[step.k + 1 :], strict=True):
                assert same_bits(ours[:7], theirs[:7])  # all but the carry
                assert list(map(type, ours)) == list(map(type, theirs))


def test_descend_with_fading_adam_is_maclaurins(backend):
    """Their b1 = 0.1 and b2 = 0.01: the bias correction does not fade."""
    problem, x = partial(regression_at, backend), catalogue.regression(backend)[1]
    optimizer, m, v = hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=0.5), 0, 0
    for i, step in enumerate(hg.descend(hg.Reverse(), problem, x, optimizer=optimizer, steps=8)):
        assert same_bits(step[2:6], hg.Reverse()(problem(i), step.hyper))
        g, b1 = backend.numpy(step.grad), 1 - (1 - 0.1) * 0.5**i
        m, v = b1 * g + (1 - b1) * m, 0.01 * g**2 + (1 - 0.01) * v
        mhat, vhat = m / (1 - (1 - 0.1) ** (i + 1)), v / (1 - (1 - 0.01) ** (i + 1))
        before, x = x, x - 0.04 * mhat / (np.sqrt(vhat) + 1e-4)
        assert gap(step.hyper, before) < 1e-13 and gap(step.updated, x) < 1e-13  # roundings


IMPLICIT, DIRECT = hg.Implicit(hg.Neumann(3, 0.01)), hg.Implicit(hg.Identity(0.0))
ONE, TWO = hg.Reverse(hg.Truncated(1)), hg.Reverse(hg.Truncated(2))
WHOLE = [  # a loop of two steps at a time, the solver that gives the same in one run, error
    (hg.realtime, hg.Forward(), 0),
    (partial(hg.alternate, IMPLICIT), IMPLICIT, 0),
    (partial(hg.alternate, DIRECT), hg.Reverse(hg.Truncated(0)), 0),
    (partial(hg.alternate, ONE), ONE, 1e-12),
    (partial(hg.alternate, hg.Reverse()), TWO, 1e-12),
    (partial(hg.alternate, hg.Reverse(hg.Reversible())), TWO, 1e-11),  # rounds by 2**-53
]


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("loop, solver, error", WHOLE)
def test_loop_without_updates_is_one_run(loop, solver, error, name, backend):
    problem, hyper = catalogue.everything(backend, name, steps=6)
    *_, last = loop(problem, hyper, optimizer=STILL, steps=3, every=2)
    whole = solver(problem, hyper)
    assert gap(last.state, whole.state) <= error and gap(last.grad, whole.grad) <= error


class Known:
    """An inner loss that is known by its derivatives only."""

    def __init__(self, problem):
        self.objective = lambda backend, hyper: problem.objective(hyper)

    def __call__(self, weights, hyper, t):
        raise AssertionError("differentiated by the backend")


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_loop_uses_derivatives_of_the_loss(loop, backend):
    problem, hyper = catalogue.everything(backend, steps=8)
    known = replace(problem, inner_loss=Known(problem))
    *_, ours = loop(known, hyper, optimizer=STILL, steps=2)
    *_, theirs = loop(problem, hyper, optimizer=STILL, steps=2)
    assert same_bits(ours.grad, theirs.grad)


DIVERGED = [  # a loop, the inner step from which on outer step 2 is not finite, words of the error
    ("descend", 1, "training diverged at step 1:"),
    ("realtime", 7, "training diverged at step 7:"),
    ("alternate", 9, "training diverged at step 9:"),
    ("alternate, unrolled", 9, "counted from inner step 8: training diverged at step 1:"),
]


@pytest.mark.parametrize("name, first, words", DIVERGED)
def test_loop_names_both_steps_of_divergence(name, first, words, backend):
    def problem(k):
        factor = lambda t: float("nan") if k == 2 and t and t >= first else 1.0  # noqa: E731
        loss = lambda w, hyper, t: (w * w).sum() * factor(t)  # noqa: E731
        return catalogue.bowl(backend, steps=4, inner_loss=loss)[0]

    with pytest.raises(hg.Diverged, match=f"outer step 2: {words}"):
        list(LOOPS[name](problem, [0.0, 0.0], optimizer=hg.GradientDescent(0.1), steps=5))


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_loop_names_the_step_of_a_wrong_decay(loop, backend):
    problem, hyper = catalogue.regression(backend, steps=8)
    problem = replace(problem, optimizer=hg.Momentum(0.1, lambda h, t: 0.9 if t < 6 else 1.5))
    with pytest.raises(ValueError, match="decay must lie in .*, got 1.5 at step 6;"):
        list(loop(problem, hyper, optimizer=STILL, steps=3))


@pytest.mark.parametrize("name", LOOPS)
def test_resume_takes_a_step_of_the_same_loop_only(name, backend):
    """With the same optimizers, precision, sizes and, where there is one, count of inner steps."""
    (problem, hyper), this, kind = catalogue.regression(backend), LOOPS[name], name.split(",")[0]
    parts = {"problem": problem, "hyper": hyper, "optimizer": STILL, "steps": 2}
    step, _ = this(**parts)
    whose = f"resume is a step of {kind}.* with .*, this is "
    cases = [(loop, {}, whose) for key, loop in LOOPS.items() if not key.startswith(kind)]
    cases += [
        (this, {"optimizer": hg.Momentum(0.1, 0.9)}, whose),
        (this, {"problem": replace(problem, optimizer=hg.HeavyBall(0.1, 0.9))}, whose),
        (this, {"problem": catalogue.regression(hg.Torch(dtype="float32"))[0]}, whose),
        (this, {"hyper": [0.1]}, "resume has 6 hyperparameters, the problem 1"),
    ]
    if name != "descend":
        longer = {"problem": replace(problem, initial=np.ones(7))}
        cases += [(this, longer, "has 6 weights, the problem 7"), (this, {"every": 2}, whose)]
    for loop, change, words in cases:
        with pytest.raises(ValueError, match=words):
            next(loop(**parts | change, resume=step))


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_loop_keeps_what_the_caller_changes(loop):
    """A step's arrays are the caller's: writing into them changes no later step."""
    runs = []
    for touch in (lambda x: x, torch.Tensor.zero_):
        values = []
        for step in loop(*catalogue.regression(hg.Torch(), 5), optimizer=hg.Adam(0.1), steps=4):
            values.append(float(step.value))
            touch(step.updated), touch(step.state), touch(step.grad)
        runs.append(values)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", [list, np.float64, torch.Tensor.double])
def test_projection_may_be_of_another_kind(kind):
    """It gets the precision of the backend, so that the step can be saved and resumed."""
    problem, hyper = catalogue.bowl(hg.Torch(dtype="float32"))
    step = next(hg.descend(hg.Reverse(), problem, hyper, optimizer=STILL, steps=1, project=kind))
    assert torch.equal(step.updated, step.hyper) and step.updated.dtype == torch.float32
