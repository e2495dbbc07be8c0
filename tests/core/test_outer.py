"""Outer loops: against loops written out, plain training, and themselves when resumed."""

import dataclasses
from functools import partial

import catalogue
import numpy as np
import pytest
import torch
from catalogue import gap

import hgcore as hg

STILL = hg.GradientDescent(0.0)
OPTIMIZERS = {
    "descent": hg.GradientDescent(0.05),
    "falling rate": hg.Momentum(lambda hyper, k: 0.05 / (k + 1), 0.8),
    "rmsprop": hg.RMSProp(0.02, decay=0.5),
    "adam": hg.Adam(0.05),
    "adamw": hg.AdamW([0.05] * 6, weight_decay=0.1),
    "fading adam": hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=1e-4),
}
LOOPS = ("descend", "realtime", "alternate")


def loops(backend, name, problem, hyper, **options):
    if name == "descend":
        return partial(hg.descend, hg.Reverse(), problem, hyper, **options)
    if name == "realtime":
        return partial(hg.realtime, problem, hyper, every=3, **options)
    solver = hg.Implicit(hg.Identity(0.1))
    return partial(hg.alternate, solver, problem, hyper, every=4, **options)


def regression_at(backend, k):
    problem, _ = catalogue.regression(backend, steps=3 + k)
    weigh = lambda w, h: (1 + 0.1 * k) * problem.outer_loss(w, h)  # noqa: E731
    return dataclasses.replace(problem, outer_loss=weigh)


BACKENDS = hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_loop_resumed_gives_the_same_bits(optimizer, name, tmp_path):
    for backend in BACKENDS:
        problem, hyper = partial(regression_at, backend), catalogue.regression(backend)[1]
        loop = loops(backend, name, problem, hyper, optimizer=optimizer, project=hg.box(-3.0, 0.0))
        whole = list(loop(steps=3))
        assert [step.k for step in whole] == list(range(3))
        for record in whole:
            hg.save(tmp_path / "new folder" / "step", record)
            rest = loop(steps=3, resume=hg.load(tmp_path / "new folder" / "step", backend))
            for ours, theirs in zip(rest, whole[record.k + 1 :], strict=True):
                pairs = zip(ours[:7], theirs[:7], strict=True)  # all but the carry
                assert all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", LOOPS)
def test_loop_keeps_to_the_allowed_set(name, backend):
    problem, hyper = catalogue.regression(backend, steps=5)
    loop = loops(backend, name, problem, hyper, project=hg.box(-3.0, 0.0))
    steps = list(loop(steps=5, optimizer=hg.GradientDescent(1000.0)))
    updated = np.array([backend.numpy(step.updated) for step in steps])
    assert (-3 <= updated).all() and (updated <= 0).all() and np.isin(updated[-1], (-3, 0)).any()


def test_descend_with_fading_adam_is_maclaurins(backend):
    """Their b1 = 0.1 and b2 = 0.01: the bias correction does not fade."""
    problem, hyper = catalogue.regression(backend, steps=5)
    optimizer, x, m, v = hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=0.5), hyper, 0, 0
    for i, step in enumerate(hg.descend(hg.Reverse(), problem, x, optimizer=optimizer, steps=8)):
        g, b1 = backend.numpy(step.grad), 1 - (1 - 0.1) * 0.5**i
        m, v = b1 * g + (1 - b1) * m, 0.01 * g**2 + (1 - 0.01) * v
        mhat, vhat = m / (1 - (1 - 0.1) ** (i + 1)), v / (1 - (1 - 0.01) ** (i + 1))
        x = x - 0.04 * mhat / (np.sqrt(vhat) + 1e-4)
        assert gap(step.updated, x) < 1e-13  # a few roundings a step


def test_descend_is_the_solver_at_each_step(backend):
    problem, hyper = partial(regression_at, backend), catalogue.regression(backend)[1]
    for step in hg.descend(hg.Reverse(), problem, hyper, optimizer=hg.Adam(0.05), steps=3):
        result = hg.Reverse()(problem(step.k), step.hyper)
        assert all(np.array_equal(a, b) for a, b in zip(step[2:6], result, strict=True))
        assert np.array_equal(step.hyper, hyper)
        hyper = step.updated


@pytest.mark.parametrize("every", [1, 2])
def test_loop_without_updates_is_plain_training(every, backend):
    problem, hyper = catalogue.everything(backend, "adamw", steps=4)
    options, implicit = {"optimizer": STILL, "every": every}, hg.Implicit(hg.Neumann(3, 0.01))
    realtime = list(hg.realtime(problem, hyper, steps=4 // every, **options))
    alternate = list(hg.alternate(implicit, problem, hyper, steps=4 // every, **options))
    for steps, solver in ((realtime, hg.Forward()), (alternate, implicit)):
        for last, length in ((steps[0], every), (steps[-1], 4)):
            whole = solver(dataclasses.replace(problem, steps=length), hyper)
            assert np.array_equal(last.state, whole.state) and np.array_equal(last.grad, whole.grad)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("strategy", [hg.Truncated(1), hg.Stored(), hg.Reversible()], ids=repr)
def test_alternate_unrolls_the_last_steps(strategy, name, backend):
    """At an outer rate of zero it is the truncated hypergradient of the whole run."""
    problem, hyper = catalogue.everything(backend, name, steps=4)
    solver = hg.Reverse(strategy)
    loop = partial(hg.alternate, solver, problem, hyper, optimizer=STILL, steps=2, every=2)
    first, last = loop()
    whole = hg.Reverse(hg.Truncated(getattr(strategy, "last", 2)))(problem, hyper)
    for ours, theirs in ((last.state, whole.state), (last.grad, whole.grad)):
        assert gap(ours, theirs) < 1e-11  # reversal rounds by 2**-53 a step
    (again,) = loop(resume=first)
    assert np.array_equal(again.state, last.state) and np.array_equal(again.grad, last.grad)


@pytest.mark.parametrize("name, step", [("descend", 1), ("realtime", 7), ("alternate", 9)])
def test_loop_names_both_steps_of_divergence(name, step, backend):
    """The gradient of outer step 2 is not a number from inner step 1, 7, 9 on."""

    def problem(k):
        factor = lambda t: float("nan") if k == 2 and t and t >= step else 1.0  # noqa: E731
        loss = lambda w, hyper, t: (w * w).sum() * factor(t)  # noqa: E731
        return catalogue.bowl(backend, steps=4, inner_loss=loss)[0]

    loop = loops(backend, name, problem, [0.0, 0.0], optimizer=hg.GradientDescent(0.1))
    with pytest.raises(hg.Diverged, match=f"outer step 2: training diverged at step {step}:"):
        list(loop(steps=5))


COLUMN = torch.full((6, 1), 0.1, dtype=torch.float64)  # would turn hyper into a matrix
NOT_PROJECTED = r"must return a Tensor of shape \(6,\) like its input"
WRONG_SHAPE = r"Momentum: rate must .* have shape \(6,\), got \(6, 1\)"
REFUSED = [  # arguments of a loop, words of the error
    ({"project": lambda hyper: hyper.numpy()}, NOT_PROJECTED),
    ({"project": lambda hyper: hyper[:1]}, NOT_PROJECTED),
    ({"optimizer": hg.Adam}, "optimizer must be an object .* got the class Adam"),
    ({"optimizer": hg.Momentum(COLUMN, 0.9)}, WRONG_SHAPE),
    ({"optimizer": hg.Momentum(0.1, 0.9, np.ones(6))}, "leave velocity out"),
    ({"optimizer": hg.Adam(0.1, beta2=1.0)}, "beta2 must lie in .*, got 1.0"),
    ({"optimizer": hg.Momentum(0.1, -0.5)}, "decay must lie in .*, got -0.5"),
    ({"resume": "step.npz"}, "resume must be .* hg.load.*, got str"),
    ({"steps": 2.5}, "steps must be a whole number of steps >= 0, got 2.5"),
    ({"every": 0}, "every must be a whole number of inner steps >= 1, got 0"),
]


@pytest.mark.parametrize("change, words", REFUSED)
def test_loop_refuses_wrong_arguments(change, words):
    backend = hg.Torch()
    for name in LOOPS[1:] if "every" in change else LOOPS:
        loop = loops(backend, name, *catalogue.regression(backend, steps=5), optimizer=STILL)
        with pytest.raises((TypeError, ValueError), match=words):
            list(loop(**{"steps": 1} | change))


@pytest.mark.parametrize("name", LOOPS)
def test_resume_takes_a_step_of_the_same_loop_only(name, backend):
    """With the same optimizers, precision and, where there is one, number of inner steps."""
    problem, hyper = catalogue.regression(backend, steps=5)
    loop = loops(backend, name, problem, hyper, optimizer=STILL)
    (step,) = loop(steps=1)
    assert next(loop(steps=2, resume=step)).k == 1
    inner = dataclasses.replace(problem, optimizer=hg.HeavyBall(0.1, 0.9))
    single = catalogue.regression(hg.Torch(dtype="float32"), steps=5)
    others = [loops(backend, x, problem, hyper, optimizer=STILL) for x in LOOPS if x != name]
    others.append(partial(loop, optimizer=hg.Momentum(0.1, 0.9)))
    others.append(loops(backend, name, inner, hyper, optimizer=STILL))
    others.append(loops(backend, name, *single, optimizer=STILL))
    others += [] if name == "descend" else [partial(loop, every=2)]
    for other in others:
        with pytest.raises(ValueError, match=f"resume is a step of {name}.* with .*, this is "):
            list(other(steps=2, resume=step))
    with pytest.raises(ValueError, match=f"resume has {len(hyper)} hyperparameters, the problem 1"):
        list(loops(backend, name, problem, [0.1], optimizer=STILL)(steps=2, resume=step))
    longer = dataclasses.replace(
        problem, initial=np.ones(len(problem.split_state(step.state)[0]) + 1)
    )
    if name != "descend":
        with pytest.raises(ValueError, match="resume has .* weights, the problem "):
            list(loops(backend, name, longer, hyper, optimizer=STILL)(steps=2, resume=step))


@pytest.mark.parametrize("solver", [hg.Reverse(), hg.Implicit(hg.Identity(0.1))])
def test_loop_keeps_what_the_caller_changes(solver):
    """A step's arrays are the caller's: writing into them changes no later step."""
    problem, hyper = catalogue.regression(hg.Torch(), steps=5)
    runs = []
    for touch in (lambda x: x, torch.Tensor.zero_):
        loop = hg.alternate(solver, problem, hyper, optimizer=hg.Adam(0.1), steps=4, every=3)
        values = []
        for step in loop:
            values.append(float(step.value))
            touch(step.updated), touch(step.state), touch(step.grad)
        runs.append(values)
    assert runs[0] == runs[1]
