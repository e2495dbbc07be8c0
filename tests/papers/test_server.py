"""The hyperparameter server: who computes a slice, or a lost worker, changes no bit."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import hgcore as hg
from hgcore.papers import drmad2016_server as server

pytest.importorskip("distributed")
STEPS, CLIENTS, TARGETS = 3, 4, np.random.default_rng(0).normal(size=(4, 6))


def client(task, hyper):
    """Return value and DrMAD hypergradient of a quadratic with a penalty per weight."""
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
    return float(result.value), backend.numpy(result.grad)


def dies_once(marker, task, hyper):
    """As `client`, but the first process that has task (0, 1) is killed."""
    if task == (0, 1) and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return client(task, hyper)


def served(function=client, dask=None):
    """Return hyper, value and hypergradient of every outer step."""
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


def test_server_averages_the_clients():
    answers = [client((number, 0), np.zeros(6)) for number in range(CLIENTS)]
    mean = [sum(parts) / CLIENTS for parts in zip(*answers, strict=True)]
    assert np.array_equal(served()[0][6:], np.hstack(mean))


def test_lost_worker_changes_no_bit(dask, tmp_path):
    alone, marker = served(), tmp_path / "died"
    assert np.array_equal(served(dask=dask), alone)
    assert np.array_equal(served(partial(dies_once, str(marker)), dask), alone)
    assert marker.exists()


def test_error_of_a_task_reaches_the_caller(dask):
    def fails(task, hyper):
        raise ArithmeticError(f"slice {task[0]}")

    with pytest.raises(ArithmeticError, match="slice"):
        served(fails, dask)
