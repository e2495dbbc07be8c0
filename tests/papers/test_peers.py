"""Other libraries compute what hgcore computes: a tiny net, a few steps. Speed is no test."""

import numpy as np
import pytest

import hgcore as hg
from hgcore.benchmarks import baselines, gpu, peers

pytest.importorskip("hgcore.fast", reason="the race uses losses of fast/")

TASK = baselines.Task((5, 4, 3), 6, 6)
ALL = peers.THEIRS | peers.OURS


@pytest.fixture(scope="module")
def expected():
    return np.asarray(ALL["plain torch loop"](TASK)())


def test_plain_loop_equals_finite_differences(expected):
    """Error of central differences: width squared, and rounding over the width."""
    problem, hyper = peers.as_problem(TASK)
    shift = problem.backend.array(np.random.default_rng(0).standard_normal(len(hyper)))
    ends = [
        float(problem.outer_gradients(hg.train(problem, h)[0], h)[0])
        for h in (hyper + 1e-5 * shift, hyper - 1e-5 * shift)
    ]
    assert abs((ends[0] - ends[1]) / 2e-5 - expected @ shift.numpy()) < 1e-8


@pytest.mark.parametrize("name", ALL)
def test_entrants_agree(name, expected):
    """Fixed point rounds at 2**-53 a step."""
    if library := peers.LIBRARIES.get(name.split(",")[0]):
        pytest.importorskip(library)
    assert peers.max_error({name: np.asarray(ALL[name](TASK)(), float)}, expected) < 1e-11


def test_race_measures_every_entrant(expected):
    race = peers.race({name: ALL[name] for name in ("plain torch loop", "Stored")}, TASK, rounds=2)
    assert {len(seconds) for seconds in race.seconds.values()} == {2}
    assert peers.max_error(race.grads, expected) < 1e-11
    assert race.times("Stored")["Stored"] == 1


def test_absent_libraries_are_left_out(monkeypatch):
    monkeypatch.setitem(peers.LIBRARIES, "higher", "no_such_library")
    names = set(peers.installed_entrants(compiled=False))
    assert names - {"TorchOpt"} == {"plain torch loop", *peers.OURS}


def test_peak_memory_of_reversible_is_small():
    task = baselines.Task((50, 30, 3), 40, 300)
    assert peers.peak_states("plain torch loop", task) > 3 * peers.peak_states("Reversible", task)


def test_gpu_measures_run_on_a_cpu():
    assert gpu.bandwidth(TASK.backend, 1000) > 0 and gpu.reversible_over_stored(TASK) > 0
    assert gpu.undone_nbytes(TASK) == TASK.state_nbytes * 7


@pytest.mark.parametrize("kernels, kind", [("SkylakeX", "AVX-512"), ("Zen", "no AVX-512")])
def test_machine_kind_is_that_of_numpy(monkeypatch, kernels, kind):
    mine = {"user_api": "blas", "architecture": kernels, "filepath": "numpy.libs/openblas.so"}
    other = mine | {"architecture": "Prescott", "filepath": "scipy.libs/openblas.so"}
    info = [{"user_api": "openmp"}, other, mine]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: info)
    assert peers.machine_kind() == kind
