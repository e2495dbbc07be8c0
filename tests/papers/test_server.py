"""The hyperparameter server: a lost worker changes no bit."""

import os
import signal
from functools import partial

import numpy as np
import pytest

import hgcore as hg
from hgcore.papers import drmad2016_server as server

pytest.importorskip("distributed")
TARGETS = np.random.default_rng(0).normal(size=(4, 6))


def client(task, hyper):
    """Return value and gradient of a function of the slice and of the outer step."""
    number, k = task
    change = np.sin(hyper) - TARGETS[number] - 0.3 * k
    return float(change @ change), 2 * change * np.cos(hyper)


def dies_once(marker, task, hyper):
    """As `client`, but the first process that has task (0, 1) is killed."""
    if task == (0, 1) and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return client(task, hyper)


def served(function=client, dask=None):
    """Return hyper, value and hypergradient of two outer steps."""
    rounds = lambda k: server.Round([(i, k) for i in range(4)])  # noqa: E731
    solver, outer = server.Server(function, dask), hg.GradientDescent(0.1)
    steps = hg.descend(solver, rounds, np.zeros(6), optimizer=outer, steps=2)
    return np.array([[*step.hyper, step.value, *step.grad] for step in steps])


def test_server_averages_the_clients():
    answers = [np.hstack(client((number, 0), np.zeros(6))) for number in range(4)]
    assert np.allclose(served()[0][6:], np.mean(answers, axis=0), rtol=1e-15)


def test_lost_worker_changes_no_bit(tmp_path):
    marker = tmp_path / "died"
    with server.cluster(2) as dask:
        assert np.array_equal(served(partial(dies_once, marker), dask), served())
    assert marker.exists()
