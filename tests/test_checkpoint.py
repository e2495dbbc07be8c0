"""Outer steps on disk: the same bits back, clear errors for what is no checkpoint, loops that go on after a kill."""

import collections
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from catalogue import RULES, loops

import hgcore as hg
from hgcore.outer import OuterStep

both = pytest.mark.parametrize(
    "backend", [hg.Autograd(), hg.Torch()], ids=lambda backend: backend.name
)


@both
@pytest.mark.parametrize("loop", loops(hg.Autograd()))
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loop_goes_on_from_a_file_with_the_same_bits(backend, loop, rule, tmp_path):
    loop = loops(backend)[loop]
    whole = list(loop(steps=5, rule=rule))
    hg.save(tmp_path / "step", whole[2])
    loaded = hg.load(tmp_path / "step", backend)
    assert loaded.k == 2 and all(
        np.array_equal(a, b) for a, b in zip(loaded[1:7], whole[2][1:7], strict=True)
    )
    for ours, theirs in zip(loop(steps=5, rule=rule, resume=loaded), whole[3:], strict=True):
        assert all(
            np.array_equal(a, b) and type(a) is type(b)
            for a, b in zip(ours[:7], theirs[:7], strict=True)
        )


@pytest.fixture
def saved(tmp_path):
    hg.save(tmp_path / "step", next(loops(hg.Torch())["alternate"](steps=1, rule=hg.Adam(0.1))))
    return tmp_path / "step"


def test_a_damaged_file_is_named(saved):
    whole = saved.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for broken in (b"", b"not one", whole[: len(whole) // 2], whole[:-1] + b"", bytes(flipped)):
        saved.write_bytes(broken)
        with pytest.raises(
            ValueError, match="step is damaged, or was not written by hgcore.save; delete it"
        ):
            hg.load(saved, hg.Torch())
    with pytest.raises(FileNotFoundError):
        hg.load(saved.with_name("none"), hg.Torch())


def test_a_file_of_other_arrays_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="was not written by hgcore.save"):
        hg.load(tmp_path / "other.npz", hg.Torch())


def test_another_precision_is_refused(saved):
    with pytest.raises(ValueError, match="holds float64, this backend is float32"):
        hg.load(saved, hg.Torch(dtype="float32"))


@pytest.mark.parametrize("backend", [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")], ids=str)
def test_a_rule_may_remember_numbers_and_vectors_of_any_kind(backend, tmp_path):
    hyper = backend.array([1.0, 2.0])
    memory = (
        3,
        True,
        None,
        "slow",
        np.float64(0.1),
        np.int64(7),
        hyper > 1,
        backend.xp.asarray([4, 5]),
        (hyper, (hyper,)),
    )
    hg.save(tmp_path / "step", OuterStep(0, hyper, hyper[0], hyper, hyper, 8, hyper, memory))
    loaded = hg.load(tmp_path / "step", backend).carry
    assert (
        loaded[:6] == (3, True, None, "slow", 0.1, 7)
        and (loaded[6] == (hyper > 1)).all()
        and loaded[7].tolist() == [4, 5]
    )
    assert (
        loaded[6].dtype == (hyper > 1).dtype
        and loaded[8][1][0].dtype == hyper.dtype
        and (loaded[8][0] == hyper).all()
    )


def test_a_step_that_could_not_be_loaded_is_not_saved(saved):
    step = hg.load(saved, hg.Torch())
    with pytest.raises(TypeError, match="one precision, got float32 and float64"):
        hg.save(saved, step._replace(carry=(np.ones(2, np.float32),)))
    with pytest.raises(TypeError, match="plain tuples, numbers and vectors, got Memory"):
        hg.save(saved, step._replace(carry=(collections.namedtuple("Memory", "speed")(1.0),)))


def test_whatever_byte_is_damaged_the_file_is_named_or_the_step_is_right(saved):
    whole, step = saved.read_bytes(), hg.load(saved, hg.Torch())
    for place in range(0, len(whole), 41):
        broken = bytearray(whole)
        broken[place] ^= 255
        saved.write_bytes(bytes(broken))
        try:
            found = hg.load(saved, hg.Torch())
        except ValueError as error:
            assert "damaged" in str(error) and str(saved) in str(error)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(found[:7], step[:7], strict=True))


@pytest.mark.parametrize("tree", ["3", "[]", "[1, 2, 3]", '[{"array": "array 9"}]', "{}"])
def test_a_tree_of_another_kind_is_no_checkpoint(tree, tmp_path):
    np.savez(tmp_path / "other.npz", tree=np.array(tree))
    with pytest.raises(ValueError, match="was not written by hgcore.save"):
        hg.load(tmp_path / "other.npz", hg.Torch())


def test_what_cannot_be_kept_is_named_and_nothing_is_lost(saved):
    before, step = saved.read_bytes(), hg.load(saved, hg.Torch())
    with pytest.raises(TypeError, match="tuples, numbers and vectors, got dict"):
        hg.save(saved, step._replace(carry=({},)))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


ENDLESS = """
import sys, hgcore as hg
from catalogue import loops
for step in loops(hg.Torch())["realtime"](steps=10**9, rule=hg.Adam(1e-9)):
    hg.save(sys.argv[1], step)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
        ),
    }
    run = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path / "step")], env=environment)
    limit = time.monotonic() + 120
    while not (tmp_path / "step").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.2)
    run.send_signal(signal.SIGKILL)
    run.wait()
    last, loop = hg.load(tmp_path / "step", hg.Torch()), loops(hg.Torch())["realtime"]
    (on,) = loop(steps=last.k + 2, rule=hg.Adam(1e-9), resume=last)
    *_, whole = loop(steps=last.k + 2, rule=hg.Adam(1e-9))
    assert all(np.array_equal(a, b) for a, b in zip(on[:7], whole[:7], strict=True))
