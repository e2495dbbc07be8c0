"""A step written to disk comes back with the same bits, or the file is refused."""

import collections
import os
from pathlib import Path

import catalogue
import numpy as np
import pytest
from catalogue import same_bits

import hgcore as hg


@pytest.fixture
def saved(tmp_path):
    path, problem = tmp_path / "new folder" / "step", catalogue.bowl(hg.Torch())
    hg.save(path, next(hg.realtime(*problem, every=3, optimizer=hg.Adam(0.1), steps=1)))
    return path


def test_load_names_a_damaged_file(saved):
    """Whatever byte is damaged: the error names the file, or the step is right."""
    whole, step, named = saved.read_bytes(), hg.load(saved, hg.Torch()), 0
    broken = [b"", b"not one", whole[: len(whole) // 2], whole[:-1]]
    for place in range(0, len(whole), 97):
        broken.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    for content in broken:
        saved.write_bytes(content)
        try:
            assert same_bits(hg.load(saved, hg.Torch())[:7], step[:7])
        except ValueError as error:
            assert f"{saved} is damaged, or was not written by hgcore.save; delete" in str(error)
            named += 1
    assert named > len(broken) / 2


def test_load_refuses_other_files(saved):
    with pytest.raises(FileNotFoundError):
        hg.load(saved.with_name("none"), hg.Torch())
    with pytest.raises(ValueError, match="holds float64, this backend is float32"):
        hg.load(saved, hg.Torch(dtype="float32"))
    for tree in ("3", "[]", "[1, 2, 3]", '[{"array": "array 9"}]', "{}"):
        for name in ("tree", "other"):
            np.savez(saved.with_name("other.npz"), **{name: np.array(tree)})
            with pytest.raises(ValueError, match="was not written by hgcore.save"):
                hg.load(saved.with_name("other.npz"), hg.Torch())


def test_carry_may_hold_numbers_and_vectors(backend, tmp_path):
    hyper = backend.array([1.0, 2.0])
    carry = 3, True, None, "slow", 0.1, hyper > 1, backend.xp.asarray([4, 5]), (hyper, ())
    step = hg.OuterStep(0, hyper, hyper[0], hyper, hyper, np.int64(8), hyper, carry)
    hg.save(tmp_path / "step", step)
    found = hg.load(tmp_path / "step", backend).carry
    assert found[:5] == carry[:5] and found[7][1] == ()
    for a, b in ((found[5], carry[5]), (found[6], carry[6]), (found[7][0], hyper)):
        assert type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)


NAMED = collections.namedtuple("Named", "speed")(1.0)
REFUSED = [  # a carry, words of the error
    ((np.ones(2, np.float32),), "one precision, got float32 and float64"),
    (NAMED, "plain tuples, numbers and vectors, got Named"),
    (({},), "plain tuples, numbers and vectors, got dict"),
]


@pytest.mark.parametrize("carry, words", REFUSED)
def test_save_refuses_what_load_could_not_return(saved, carry, words):
    with pytest.raises(TypeError, match=words):
        hg.save(saved, hg.load(saved, hg.Torch())._replace(carry=carry))


def test_save_writes_whole_or_not_at_all(saved, monkeypatch):
    """A disk that is full half way: the file from before stays as it was."""
    before, step, write = saved.read_bytes(), hg.load(saved, hg.Torch()), Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match=f"cannot write: No space left on device: '{saved}'"):
        hg.save(saved, step)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
