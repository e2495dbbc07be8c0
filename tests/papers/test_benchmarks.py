"""The race: other libraries compute what hgcore computes. The atlas: it counts what is spent."""

from dataclasses import replace

import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore.benchmarks import atlas, baselines, gpu, peers

pytest.importorskip("hgcore.fast", reason="the race uses losses of fast/")

TASK = baselines.Task((5, 4, 3), 6, 6)
ALL = peers.THEIRS | peers.OURS
COSTS = [  # solver, gradients, products
    (hg.Reverse(), 12, 6),
    (hg.Reverse(hg.Stored(graphs=6)), 6, 6),
    (hg.Reverse(hg.Shortcut()), 12, 6),
    (hg.Forward(), 6, 12),
    (hg.Reverse(hg.Truncated(last=2)), 8, 2),
    (hg.Implicit(hg.Neumann(3, 0.01)), 7, 4),
]


@pytest.fixture(scope="module")
def expected():
    return np.asarray(ALL["plain torch loop"](TASK)())


@pytest.mark.parametrize("name", ALL)
def test_entrants_agree(name, expected):
    """Fixed point rounds at 2**-53 a step."""
    if library := peers.LIBRARIES.get(name.split(",")[0]):
        pytest.importorskip(library)
    race = peers.race({name: ALL[name], "Stored": ALL["Stored"]}, TASK, rounds=2)
    assert {len(seconds) for seconds in race.seconds.values()} == {2}
    assert race.times("Stored")["Stored"] == 1
    assert peers.max_error(race.grads, expected) < 1e-11


def test_absent_libraries_are_left_out(monkeypatch):
    monkeypatch.setitem(peers.LIBRARIES, "higher", "no_such_library")
    names = set(peers.installed_entrants(compiled=False))
    assert names - {"TorchOpt"} == {"plain torch loop", *peers.OURS}


def test_peak_memory_of_reversible_is_small():
    task = baselines.Task((50, 30, 3), 40, 300)
    assert peers.peak_states("plain torch loop", task) > 3 * peers.peak_states("Reversible", task)


def test_gpu_measures_run_on_a_cpu():
    assert gpu.bandwidth("cpu", 1000) > 0 and gpu.reversible_over_stored(TASK) > 0
    assert gpu.undone_nbytes(TASK) == TASK.state_nbytes * 7


@pytest.mark.parametrize("kernels, kind", [("SkylakeX", "AVX-512"), ("Zen", "no AVX-512")])
def test_machine_kind_is_that_of_numpy(monkeypatch, kernels, kind):
    mine = {"user_api": "blas", "architecture": kernels, "filepath": "numpy.libs/openblas.so"}
    other = mine | {"architecture": "Prescott", "filepath": "scipy.libs/openblas.so"}
    info = [{"user_api": "openmp"}, other, mine]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: info)
    assert peers.machine_kind() == kind


# ---- the atlas


def trained(problem, steps, decay=0.5):
    optimizer = hg.HeavyBall(problem.optimizer.rate, problem.backend.array(decay))
    return replace(problem, steps=steps, optimizer=optimizer)


def test_features_have_the_variances_asked_for():
    images = np.random.default_rng(0).standard_normal((2, 40, 7)) * np.arange(1, 8)
    first, second = atlas.pca_features(images, 4, 100)
    scales = np.geomspace(1, 0.1, 4)
    assert (first[:, 0] == 1).all() and second.shape == (40, 4)
    assert gap(first[:, 1:].T @ first[:, 1:] / 40, np.diag(scales[1:] ** 2)) < 1e-12


@pytest.mark.parametrize("solver, gradients, products", COSTS, ids=repr)
def test_counts_are_those_of_the_algorithm(backend, solver, gradients, products):
    problem, hyper = atlas.regression(backend, [60, 40], 5, 1, 10)
    problem = trained(problem, 6)
    cost = atlas.cost_of(solver, problem, hyper)
    assert (cost.gradients, cost.products) == (gradients, products)
    assert np.array_equal(cost.grad, backend.numpy(solver(problem, hyper).grad))


def test_conditioned_problem_is_at_an_optimum(backend):
    easy, hard = (atlas.conditioned_problem(backend, [60, 40], 5, 2, x) for x in (3, 300))
    assert hard.condition > 20 * easy.condition
    for found in (easy, hard):
        objective = found.problem.objective(found.problem.as_hyper(found.hyper))
        assert abs(backend.numpy(objective.gradient(found.optimum, None))).max() < 1e-12
        assert np.exp(found.hyper[-1]) * found.curvatures[-1] == pytest.approx(1)
        assert found.hypergradient[-1] == 0
    unrolled = hg.Reverse()(trained(easy.problem, 400), easy.hyper).grad
    assert gap(backend.numpy(unrolled), easy.hypergradient) < 1e-9
