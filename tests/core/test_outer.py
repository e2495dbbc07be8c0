"""Outer loops: against loops written out, plain training, and themselves when resumed."""

import dataclasses
import itertools
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
    "clipped": hg.GradientDescent(0.05, clip=0.01),
    "falling rate": hg.Momentum(lambda hyper, k: 0.05 / (k + 1), 0.8),
    "rmsprop": hg.RMSProp(0.02, decay=0.5),
    "adam": hg.Adam(0.05),
    "adamw": hg.AdamW([0.05] * 6, weight_decay=0.1),
    "fading adam": hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=1e-4),
}
TORCH_ADAM = torch.optim.Adam([torch.zeros(1)])
LOOPS = ("descend", "realtime", "alternate")


def loops(backend, name, problem, hyper, **options):
    """Return one of LOOPS as a function of steps=, optimizer= and resume=."""
    if name == "descend":
        return partial(hg.descend, hg.Reverse(), problem, hyper, **options)
    if name == "realtime":
        return partial(hg.realtime, problem, hyper, every=3, **options)
    solver = hg.Implicit(hg.Identity(0.1))
    return partial(hg.alternate, solver, problem, hyper, every=4, **options)


def ridge_at(backend, k):
    """Return a small ridge problem of its own for outer step k."""
    problem, _ = catalogue.ridge(backend, steps=3 + k)
    weigh = lambda w, h: (1 + 0.1 * k) * problem.outer_loss(w, h)  # noqa: E731
    return dataclasses.replace(problem, outer_loss=weigh)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("changing", [False, True], ids=["one problem", "new problems"])
def test_loop_resumed_gives_the_same_bits(changing, optimizer, name, backend, tmp_path):
    """From a file of any step, for every optimizer."""
    problem, hyper = catalogue.ridge(backend, steps=5)
    if changing:
        problem = partial(ridge_at, backend)
    loop = loops(backend, name, problem, hyper, optimizer=optimizer, project=hg.box(-3.0, 0.0))
    whole = list(loop(steps=3))
    assert [step.k for step in whole] == list(range(3))
    for record in whole:
        hg.save(tmp_path / "step", record)
        rest = list(loop(steps=3, resume=hg.load(tmp_path / "step", backend)))
        for ours, theirs in zip(rest, whole[record.k + 1 :], strict=True):
            pairs = zip(ours[:7], theirs[:7], strict=True)  # all but the carry
            assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", LOOPS)
def test_loop_keeps_to_the_allowed_set(name, backend):
    problem, hyper = catalogue.ridge(backend, steps=5)
    loop = loops(backend, name, problem, hyper, project=hg.box(-3.0, 0.0))
    steps = list(loop(steps=5, optimizer=hg.GradientDescent(100.0)))
    for before, after in itertools.pairwise(steps):
        assert np.array_equal(before.updated, after.hyper)
    updated = np.array([backend.numpy(step.updated) for step in steps])
    assert (-3 <= updated).all() and (updated <= 0).all() and np.isin(updated[-1], (-3, 0)).any()
    assert all(s.grad.shape == s.state.shape == (6,) and s.nbytes > 0 for s in steps)


def test_descend_with_fading_adam_is_maclaurins(backend):
    """hypergrad/optimizers.py, their b1 = 0.1 and b2 = 0.01: the bias correction does not fade."""
    problem, hyper = catalogue.ridge(backend, steps=5)
    optimizer, x, m, v = hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=0.5), hyper, 0, 0
    for i, step in enumerate(hg.descend(hg.Reverse(), problem, x, optimizer=optimizer, steps=20)):
        g, b1 = backend.numpy(step.grad), 1 - (1 - 0.1) * 0.5**i
        m, v = b1 * g + (1 - b1) * m, 0.01 * g**2 + (1 - 0.01) * v
        mhat, vhat = m / (1 - (1 - 0.1) ** (i + 1)), v / (1 - (1 - 0.01) ** (i + 1))
        x = x - 0.04 * mhat / (np.sqrt(vhat) + 1e-4)
        assert gap(step.updated, x) < 1e-13  # a few roundings a step


def test_descend_is_the_solver_at_each_step(backend):
    """Of the problem of step k, at the hyperparameters that step k - 1 left."""
    problem, hyper = partial(ridge_at, backend), catalogue.ridge(backend)[1]
    for step in hg.descend(hg.Reverse(), problem, hyper, optimizer=hg.Adam(0.05), steps=3):
        result = hg.Reverse()(problem(step.k), step.hyper)
        assert all(np.array_equal(a, b) for a, b in zip(step[2:6], result, strict=True))
        assert np.array_equal(step.hyper, hyper)
        hyper = step.updated


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("every", [1, 3])
def test_loop_without_updates_is_plain_training(every, name, backend):
    """At an outer rate of zero: the same bits, after few steps and all."""
    problem, hyper = catalogue.everything(backend, name, steps=6)
    options, implicit = {"optimizer": STILL, "every": every}, hg.Implicit(hg.Neumann(3, 0.01))
    realtime = list(hg.realtime(problem, hyper, steps=6 // every, **options))
    alternate = list(hg.alternate(implicit, problem, hyper, steps=6 // every, **options))
    for steps, solver in ((realtime, hg.Forward()), (alternate, implicit)):
        for last, length in ((steps[0], every), (steps[-1], 6)):
            whole = solver(dataclasses.replace(problem, steps=length), hyper)
            assert np.array_equal(last.state, whole.state) and np.array_equal(last.grad, whole.grad)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("strategy", [hg.Truncated(2), hg.Stored(), hg.Reversible()], ids=repr)
def test_alternate_unrolls_the_last_steps(strategy, name, backend):
    """At an outer rate of zero it is the truncated hypergradient of the whole run."""
    problem, hyper = catalogue.everything(backend, name, steps=6)
    solver = hg.Reverse(strategy)
    loop = partial(hg.alternate, solver, problem, hyper, optimizer=STILL, steps=2, every=3)
    first, last = loop()
    whole = hg.Reverse(hg.Truncated(getattr(strategy, "last", 3)))(problem, hyper)
    for ours, theirs in ((last.state, whole.state), (last.grad, whole.grad)):
        assert gap(ours, theirs) < 1e-11  # reversal rounds by 2**-53 a step
    (again,) = loop(resume=first)
    assert np.array_equal(again.state, last.state) and np.array_equal(again.grad, last.grad)


@pytest.mark.parametrize("name, step", [("descend", 1), ("realtime", 7), ("alternate", 9)])
def test_loop_names_both_steps_of_divergence(name, step, backend):
    """The gradient of outer step 2 is not a number from inner step 1, 7, 9 on."""
    xp = backend.xp

    def problem(k):
        def inner_loss(w, hyper, t):
            return xp.sum(w * w) * (float("nan") if k == 2 and t and t >= step else 1.0)

        return catalogue.bowl(backend, steps=4, inner_loss=inner_loss)[0]

    loop = loops(backend, name, problem, [0.0, 0.0], optimizer=hg.GradientDescent(0.1))
    with pytest.raises(hg.Diverged, match=f"outer step 2: training diverged at step {step}:"):
        list(loop(steps=5))
    infinite = catalogue.bowl(backend, outer_loss=lambda w, h: xp.sum(xp.log(w - 100)))
    with pytest.raises(hg.Diverged, match="outer step 0: the outer loss (is nan|or the hyper)"):
        list(loops(backend, name, *infinite, optimizer=STILL)(steps=2))


@pytest.mark.parametrize("name", LOOPS)
def test_loop_refuses_wrong_arguments(name):
    """A column (6, 1) would turn hyper into a matrix."""
    backend = hg.Torch()
    loop = loops(backend, name, *catalogue.ridge(backend, steps=5), optimizer=STILL, steps=1)
    column = hg.Momentum(backend.array(np.full((6, 1), 0.1)), 0.9)
    wrong_shape = r"Momentum: rate must .* have shape \(6,\), got \(6, 1\)"
    not_projected = r"must return a Tensor of shape \(6,\) like its input"
    for change, error, words in (
        ({"project": lambda hyper: hyper.numpy()}, TypeError, not_projected),
        ({"project": lambda hyper: hyper[:1]}, TypeError, not_projected),
        ({"project": lambda hyper: None}, TypeError, not_projected),
        ({"optimizer": hg.Adam}, TypeError, "optimizer must be an object .* got the class Adam"),
        ({"optimizer": TORCH_ADAM}, TypeError, "optimizer must be an object such as"),
        ({"optimizer": column}, ValueError, wrong_shape),
        ({"optimizer": hg.Momentum(0.1, 0.9, np.ones(6))}, ValueError, "leave velocity out"),
        ({"optimizer": hg.Adam(0.1, beta2=1.0)}, ValueError, "beta2 must lie in .*, got 1.0"),
        ({"optimizer": hg.Momentum(0.1, -0.5)}, ValueError, "decay must lie in .*, got -0.5"),
        ({"resume": "step.npz"}, TypeError, "resume must be .* hg.load.*, got str"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number of steps >= 0, got 2.5"),
        ({"every": 0}, ValueError, "every must be a whole number of inner steps >= 1, got 0"),
    ):
        if name != "descend" or "every" not in change:
            with pytest.raises(error, match=words):
                list(loop(**change))
    with pytest.raises(TypeError, match=r"solver must be .* hg.Forward\(\), got Reverse"):
        list(hg.realtime(*catalogue.ridge(backend), optimizer=STILL, steps=1, solver=hg.Reverse()))
    with pytest.raises(TypeError, match="must be an object such as"):
        list(hg.descend(hg.Reverse, *catalogue.ridge(backend), optimizer=STILL, steps=1))


@pytest.mark.parametrize("name", LOOPS)
def test_resume_takes_a_step_of_the_same_loop_only(name, backend):
    """With the same optimizers, precision and, where there is one, number of inner steps."""
    given = backend, name, *catalogue.ridge(backend, steps=5)
    loop = loops(*given, optimizer=STILL)
    (step,) = loop(steps=1)
    assert next(loop(steps=2, resume=step)).k == 1
    others = [
        loops(backend, other, *given[2:], optimizer=STILL) for other in LOOPS if other != name
    ]
    others.append(loops(*given, optimizer=hg.Momentum(0.1, 0.9)))
    inner = dataclasses.replace(given[2], optimizer=hg.HeavyBall(0.1, 0.9))
    others.append(loops(backend, name, inner, given[3], optimizer=STILL))
    single = catalogue.ridge(hg.Torch(dtype="float32"), steps=5)
    others.append(loops(backend, name, *single, optimizer=STILL))
    others.extend([] if name == "descend" else [partial(loop, every=2)])
    for other in others:
        with pytest.raises(ValueError, match=f"resume is a step of {name}.* with .*, this is "):
            list(other(steps=2, resume=step))
