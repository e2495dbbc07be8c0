"""Outer steps on disk: the same bits back, errors for what is no checkpoint, loops after a kill."""

import collections
import os
import subprocess
import sys
import time
from pathlib import Path

import catalogue
import numpy as np
import pytest

import hgcore as hg


def loop(backend, **options):
    problem, hyper = catalogue.bowl(backend)
    return hg.realtime(problem, hyper, every=3, optimizer=hg.Adam(0.1), **options)


def same(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours[:7], theirs[:7], strict=True))


@pytest.fixture
def saved(tmp_path):
    hg.save(tmp_path / "new folder" / "step", next(loop(hg.Torch(), steps=1)))
    return tmp_path / "new folder" / "step"


def test_load_names_a_damaged_file(saved):
    """Whatever byte is damaged: the error names the file, or the step is right."""
    whole, step, named = saved.read_bytes(), hg.load(saved, hg.Torch()), 0
    broken = [b"", b"not one", whole[: len(whole) // 2], whole[:-1]]
    for place in range(0, len(whole), 97):
        broken.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    for content in broken:
        saved.write_bytes(content)
        try:
            assert same(hg.load(saved, hg.Torch()), step)
        except ValueError as error:
            assert f"{saved} is damaged, or was not written by hgcore.save; delete" in str(error)
            named += 1
    assert named > len(broken) / 2


def test_load_refuses_other_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError):
        hg.load(saved.with_name("none"), hg.Torch())
    with pytest.raises(ValueError, match="holds float64, this backend is float32"):
        hg.load(saved, hg.Torch(dtype="float32"))
    for tree in ("3", "[]", "[1, 2, 3]", '[{"array": "array 9"}]', "{}"):
        for name in ("tree", "other"):
            np.savez(tmp_path / "other.npz", **{name: np.array(tree)})
            with pytest.raises(ValueError, match="was not written by hgcore.save"):
                hg.load(tmp_path / "other.npz", hg.Torch())


def test_carry_may_hold_numbers_and_vectors(backend, tmp_path):
    hyper = backend.array([1.0, 2.0])
    carry = 3, True, None, "slow", 0.1, hyper > 1, backend.xp.asarray([4, 5]), (hyper, ())
    step = hg.OuterStep(0, hyper, hyper[0], hyper, hyper, np.int64(8), hyper, carry)
    hg.save(tmp_path / "step", step)
    found = hg.load(tmp_path / "step", backend).carry
    assert found[:5] == carry[:5] and found[7][1] == ()
    for a, b in ((found[5], carry[5]), (found[6], carry[6]), (found[7][0], hyper)):
        assert type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)


def test_save_refuses_what_load_could_not_return(saved):
    """The file from before stays as it was."""
    before, step = saved.read_bytes(), hg.load(saved, hg.Torch())
    named = collections.namedtuple("Named", "speed")(1.0)
    for carry, words in (
        ((np.ones(2, np.float32),), "one precision, got float32 and float64"),
        (named, "plain tuples, numbers and vectors, got Named"),
        (({},), "plain tuples, numbers and vectors, got dict"),
    ):
        with pytest.raises(TypeError, match=words):
            hg.save(saved, step._replace(carry=carry))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


ENDLESS = """
import sys, catalogue, hgcore as hg
problem, hyper = catalogue.bowl(hg.Autograd())
for step in hg.realtime(problem, hyper, every=3, optimizer=hg.Adam(0.1), steps=10**9):
    hg.save(sys.argv[1], step)
"""


def test_loop_goes_on_after_a_kill(tmp_path):
    folders = Path(catalogue.__file__).parent, Path(hg.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    run = subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path / "step"], env=environment)
    limit = time.monotonic() + 120
    while not (tmp_path / "step").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.1)
    run.kill()
    run.wait()
    last = hg.load(tmp_path / "step", hg.Autograd())
    (resumed,) = loop(hg.Autograd(), steps=last.k + 2, resume=last)
    *_, whole = loop(hg.Autograd(), steps=last.k + 2)
    assert same(resumed, whole)
