"""Figures: the same bytes on every run, small pictures, numbers that JSON can hold."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from toy import SERIES, drawn

from hgcore.suite import figures

matplotlib.use("Agg")


@pytest.fixture
def run(tmp_path):
    figures.use()
    yield SimpleNamespace(destination=tmp_path / "figures" / "tour", figures={})
    plt.close("all")


def test_pictures_stand_with_their_checksums(run):
    figures.save(run, "fig01", drawn(), SERIES)
    for suffix, sha256 in run.figures["fig01"].products.items():
        assert (
            hashlib.sha256((run.destination / f"fig01.{suffix}").read_bytes()).hexdigest() == sha256
        )
    assert sorted(file.name for file in run.destination.iterdir()) == [
        "fig01.pdf",
        "fig01.png",
    ]  # and nothing half-written


SCRIPT = """
import matplotlib; matplotlib.use("Agg")
import sys, pathlib; sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from hgcore.suite import figures; from toy import drawn, SERIES
figures.use()
run = SimpleNamespace(destination=pathlib.Path(sys.argv[2]), figures={})
figures.save(run, "fig01", drawn(), SERIES)
print(run.figures["fig01"].products)
"""


def test_bytes_are_the_same_in_every_process(tmp_path):
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), tmp_path],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "SOURCE_DATE_EPOCH": hash_seed},
        ).stdout
        for hash_seed in "17"
    }
    assert len(outputs) == 1


def test_a_picture_stays_below_the_limit(run):
    noise = np.random.default_rng(0).random((900, 1500))
    figures.save(run, "noise", drawn(noise), {"noise": {"image": noise[:2, :2]}})
    assert (run.destination / "noise.png").stat().st_size < figures.LIMIT


def test_series_are_json_with_ten_digits_and_no_nan(run):
    figures.save(run, "fig01", drawn(), SERIES)
    kept = run.figures["fig01"].series["curve"]
    assert kept == {
        "x": [0, 1, 2],
        "y": [1.0, None, 0.3333333333],
        "xlabel": "step",
        "ylabel": "loss",
    }
    json.dumps(kept, allow_nan=False)


@pytest.mark.parametrize(
    "value, kept",
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([-0.0]), [0.0]),
        ([], []),
        (np.zeros((2, 0)), [[], []]),
        (["a", "b"], ["a", "b"]),
        ([1, None], [1.0, None]),
        (np.array([[np.inf, 1e-300]]), [[None, 1e-300]]),
        (True, True),
        (range(2), [0, 1]),
        ("log", "log"),
        (None, None),
    ],
)
def test_rounded(value, kept):
    assert figures.rounded(value) == kept


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"x": [1]}, "needs x and y"),
        ({"x": [1, 2], "y": [1]}, "as long as"),
        ({"image": [1, 2]}, "2-D"),
    ],
)
def test_a_series_of_no_form_is_refused_by_name_before_anything_is_written(run, fields, message):
    with pytest.raises(ValueError, match=f"'odd' of figure 'fig01'.*{message}"):
        figures.save(run, "fig01", drawn(), {"odd": fields})
    assert not run.destination.exists()


@pytest.mark.parametrize("name", ["a/b", "", "../x", "fig 1", ".hidden"])
def test_a_figure_cannot_leave_its_folder(run, name):
    with pytest.raises(ValueError, match="name"):
        figures.save(run, name, drawn(), SERIES)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    figures.write(tmp_path / "a.json", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="full"):
        figures.write(tmp_path / "a.json", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and (
        tmp_path / "a.json"
    ).read_bytes() == b"old"


def test_styles_differ_without_colour():
    kept = [(style["linestyle"], style["marker"]) for style in figures.styles(28)]
    assert len(set(kept)) == 28
    assert len({style["color"] for style in figures.styles(7)}) == 7
