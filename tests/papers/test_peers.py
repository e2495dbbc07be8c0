"""The peers compute what hgcore computes: a tiny net, a few steps. Who is faster is no matter for a test."""

import functools
import platform

import numpy as np
import pytest

import hgcore as hg
from hgcore import benchmarks
from hgcore.suite import claims, meter

pytest.importorskip("hgcore.fast", reason="the race has losses of fast/ in it")

TASK = benchmarks.peers.Task((5, 4, 3), 6, 6)
ALL = benchmarks.peers.PEERS | benchmarks.peers.OURS
SYSTEMS = {
    "sum": benchmarks.peers_implicit.neumann(3),
    "conjugate": benchmarks.peers_implicit.conjugates(3),
}


def grad(entrants, name, task=TASK):
    library = benchmarks.peers.LIBRARIES.get(name.split(",")[0])
    if library:
        pytest.importorskip(library)
    return np.asarray(entrants[name](task)(), float)


@pytest.fixture(scope="module")
def true():
    return grad(ALL, "plain torch loop")


def test_the_loop_is_the_slope_of_what_training_ends_at(true):
    problem, hyper = benchmarks.peers.posed(TASK, "known")
    shift = problem.backend.array(np.random.default_rng(0).standard_normal(len(hyper)))
    ends = [
        float(problem.outer_gradients(hg.train(problem, h)[0], h)[0])
        for h in (hyper + 1e-5 * shift, hyper - 1e-5 * shift)
    ]
    assert (
        abs((ends[0] - ends[1]) / 2e-5 - true @ shift.numpy()) < 1e-8
    )  # width squared, and rounding over the width


@pytest.mark.parametrize("name", benchmarks.peers.present(ALL, compiled=False))
def test_every_exact_way_gives_the_hypergradient_of_the_loop(name, true):
    assert (
        benchmarks.peers.apart({name: grad(ALL, name)}, true) < 1e-11
    )  # fixed point rounds at 2**-53 a step


@pytest.mark.parametrize(
    "name", ["jax, scan", "jax, checkpoint every step", "jax, checkpoint every root of T"]
)
def test_so_do_the_compiled_ones(name, true):
    assert benchmarks.peers.apart({name: grad(ALL, name)}, true) < 1e-12


@pytest.mark.parametrize(
    "name",
    ["fixed point, as hypertorch", "jax, linearize", "Implicit, hg.nets", "Implicit, any module"],
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_way_to_a_system_gives_one_answer(system, name):
    if name not in SYSTEMS[system]:
        pytest.skip("hypertorch's fixed point is a Neumann sum")
    assert (
        benchmarks.peers.apart(
            {name: grad(SYSTEMS[system], name)}, grad(SYSTEMS[system], "plain torch loop")
        )
        < 1e-10
    )


@pytest.mark.parametrize(
    "name", ["torch, vmap of jvp", "jax, vmap of jvp", "Forward, closure", "Forward, CrossEntropy"]
)
@pytest.mark.parametrize("count", [1, 5])
def test_every_forward_mode_gives_what_reverse_mode_gives(count, name):
    ways = benchmarks.peers_forward.forward(count)
    assert benchmarks.peers.apart({name: grad(ways, name)}, grad(ways, "reverse mode")) < 1e-12


@pytest.mark.parametrize("name", benchmarks.peers_buffer.BUFFERS)
def test_every_buffer_gives_back_what_it_took(name):
    assert benchmarks.peers_buffer.undone(name, 20, 9).exact


def test_what_is_raced_is_measured_and_what_is_no_hypergradient_has_none():
    raced = benchmarks.peers.raced(
        {"plain torch loop": ALL["plain torch loop"]} | benchmarks.peers.PARTS, TASK, rounds=2
    )
    assert {len(times) for times in raced.seconds.values()} == {2} and list(raced.grads) == [
        "plain torch loop"
    ]


def test_a_race_may_be_held_to_the_kernels_of_another_processor(true):
    found = benchmarks.peers.held("Haswell", ["Reverse(Reversible())"], TASK, rounds=1)
    assert benchmarks.peers.apart(found.race.grads, true) < 1e-11
    if platform.machine() == "x86_64" and "openblas" in found.kernels:
        assert found.kernels.endswith("Haswell")


def test_what_is_absent_is_left_out(monkeypatch):
    monkeypatch.setitem(benchmarks.peers.LIBRARIES, "higher", "no_such_library")
    assert "higher" not in benchmarks.peers.present(
        ALL
    ) and "plain torch loop" in benchmarks.peers.present(ALL)
    assert benchmarks.peers.versions()["higher"] == "absent"
    assert not [
        name
        for name in benchmarks.peers.present(ALL, compiled=False)
        if "jax" in name or "compiled" in name
    ]


def test_memory_is_that_of_a_process_of_its_own():
    task = benchmarks.peers.Task((50, 30, 3), 40, 300)
    peaks = [
        meter.fresh(
            *(
                functools.partial(f, name, task)
                for f in (benchmarks.peers.alone, benchmarks.peers.ready)
            )
        ).peak
        for name in ("plain torch loop", "Reverse(Reversible())")
    ]
    assert peaks[0] > 3 * peaks[1]


def test_what_is_measured_on_a_gpu_can_be_measured_elsewhere():
    on = benchmarks.peers_gpu
    assert on.share(TASK.backend, 1000) > 0 and on.slower(TASK) > 0
    assert on.undone(TASK) == TASK.state * 7


@pytest.mark.skipif(hg.Torch().xp.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_about_it_is_decided():
    task = benchmarks.peers.Task((5, 4, 3), 6, 6, "float32", "cuda")
    assert set(benchmarks.peers_gpu.on_card(task)) == {claims.Undecided("torch sees no GPU")}


def test_there_is_no_race_without_torch():
    with pytest.raises(ValueError, match="backend must be 'torch'"):
        benchmarks.peers.only_torch(hg.Autograd())


def test_the_record_says_whose_products_numpy_has(monkeypatch):
    mine = {
        "user_api": "blas",
        "internal_api": "openblas",
        "version": "0.3.31",
        "architecture": "Zen",
        "filepath": "numpy.libs/openblas.so",
    }
    others = mine | {"version": "0.3.30", "filepath": "scipy.libs/openblas.so"}
    monkeypatch.setattr(
        "threadpoolctl.threadpool_info", lambda: [{"user_api": "openmp"}, others, mine]
    )
    assert benchmarks.peers.kernels() == "openblas 0.3.31 Zen"
    monkeypatch.setattr("threadpoolctl.threadpool_info", list)
    assert benchmarks.peers.kernels() == "unknown"
