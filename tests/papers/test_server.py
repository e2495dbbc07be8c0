"""The hyperparameter server: who computes a slice, and whether a worker dies meanwhile, changes no bit."""

import os
import time

import numpy as np
import pytest

import hgcore as hg
from hgcore.papers import drmad2016_server as server

pytest.importorskip("distributed")
STEPS, CLIENTS, TARGETS = 3, 4, np.random.default_rng(0).normal(size=(4, 6))


def client(task, hyper):
    """A tiny DrMAD hypergradient: a quadratic per slice, a penalty per weight; slow enough to be hit."""
    number, k = task
    backend = hg.Torch()
    target = backend.array(TARGETS[number])
    problem = hg.Problem(
        backend,
        inner_loss=lambda w, h, t: ((w - target) ** 2).sum() + (h.exp() * w**2).sum(),
        outer_loss=lambda w, h: ((w - target - 0.3 * k) ** 2).sum(),
        optimizer=hg.Momentum(rate=0.1, decay=0.5),
        initial=lambda h: 0 * target,
        steps=10,
    )
    result = hg.Reverse(hg.Shortcut())(problem, hyper)
    time.sleep(0.1)
    return float(result.value), backend.numpy(result.grad)


def served(function=client, dask=None):
    """All bits of a run: hyper, value and hypergradient of every outer step."""
    steps = hg.descend(
        server.Server(function, dask),
        lambda k: server.Round([(i, k) for i in range(CLIENTS)]),
        np.zeros(6),
        optimizer=hg.GradientDescent(0.1),
        steps=STEPS,
    )
    return np.array([[*step.hyper, step.value, *step.grad] for step in steps])


@pytest.fixture(scope="module")
def dask():
    with server.cluster(2) as client:
        yield client


def test_the_average_is_taken_in_the_order_of_the_slices():
    answers = [client((number, 0), np.zeros(6)) for number in range(CLIENTS)]
    step = served()[0]
    assert step[6] == (((answers[0][0] + answers[1][0]) + answers[2][0]) + answers[3][0]) / 4
    assert (
        step[7:] == (((answers[0][1] + answers[1][1]) + answers[2][1]) + answers[3][1]) / 4
    ).all()


def test_a_killed_worker_changes_no_bit(dask):
    alone = served()
    assert np.array_equal(served(dask=dask), alone)
    tasks, pids = len(server.begun(dask)), set(dask.run(os.getpid).values())
    victim = server.kill(dask, (0, 1))
    assert np.array_equal(served(dask=dask), alone)
    assert victim.result()["pid"] in pids
    assert victim.result()["pid"] not in dask.run(os.getpid).values()
    assert len(server.begun(dask)) - tasks > CLIENTS * STEPS  # what was lost was begun again


def test_an_error_of_a_task_is_the_caller_s(dask):
    def fails(task, hyper):
        raise ArithmeticError(f"slice {task[0]}")

    with pytest.raises(ArithmeticError, match="slice"):
        served(fails, dask)
