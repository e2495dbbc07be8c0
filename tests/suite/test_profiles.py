"""The start of a notebook: what may be asked for, and what the run then is."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import toy
import yaml

from hgcore.suite import claims, figures, notebook, profiles

NAME = "some2015/fig01"
QUICK = dict(steps=3, rate=0.5, label="a", sizes=[1, 2], flag=False, best=None)
PAPER = dict(steps=50, rate=0.25, label="b", sizes=[3], flag=True, best=2)
ASKED = dict(
    profile="quick", backend="torch", device="cpu", seed=0, overrides={}, quick=QUICK, paper=PAPER
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.add(toy.root(tmp_path), NAME)
    monkeypatch.setenv("HGCORE_ROOT", str(tmp_path))
    return tmp_path.resolve()


def started(**asked):
    return profiles.start(NAME, **ASKED | asked)


def test_a_run_is_what_was_asked_for(root, capsys):
    run = started(overrides={"steps": 7})
    assert (run.name, run.profile, run.backend_name, run.device, run.dtype, run.seed) == (
        NAME,
        "quick",
        "torch",
        "cpu",
        "float64",
        0,
    )
    assert (
        vars(run.scale) == {**QUICK, "steps": 7}
        and run.overrides == {"steps": 7}
        and run.figures == {}
        and run.root == root
    )
    assert run.key == notebook.key(NAME, "quick", "torch", "cpu", 0, {"steps": 7}, root)
    assert run.threads["torch"] >= 1 and set(profiles.THREADS) < set(run.threads)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 3
    assert capsys.readouterr().out == (
        "name   quick   paper  this run\nsteps  3       50     7\nrate   0.5     0.25   0.5\nlabel  a       b      a\n"
        "sizes  [1, 2]  [3]    [1, 2]\nflag   False   True   False\nbest   None    2      None\n"
    )


@pytest.mark.parametrize(
    "asked, folder",
    [
        ({}, "figures/quick/some2015"),
        ({"profile": "paper"}, "figures/some2015"),
        ({"overrides": {"steps": 1}}, "runs/overrides/quick/some2015"),
    ],
)
def test_figures_go_where_they_belong(root, asked, folder):
    assert started(**asked).destination == root / folder


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"profile": "papper"}, "profile must be one of quick, paper; got 'papper', meant paper?"),
        ({"backend": "jax"}, "backend must be one of torch, autograd; got 'jax'"),
        ({"device": "tpu"}, "device must be one of cpu, cuda; got 'tpu'"),
        ({"device": "cuda", "backend": "autograd"}, "cpu only"),
        ({"seed": -1}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"overrides": None}, "must be a dict"),
        (
            {"overrides": {"stepz": 1}},
            "override must be one of best, flag, label, rate, sizes, steps; got 'stepz', meant steps",
        ),
        ({"overrides": {"sizes": [1, "many"]}}, "override sizes must be like its default"),
        ({"overrides": {"dtype": "float32"}}, "override must be one of"),
        ({"paper": {}}, "same names"),
        (
            {"quick": {"dtype": "float16"}, "paper": {"dtype": "float64"}},
            "dtype must be one of float64, float32; got 'float16'",
        ),
    ],
)
def test_what_is_not_there_is_refused(root, asked, message, capsys):
    with pytest.raises(ValueError) as caught:
        started(**asked)
    assert message in str(caught.value) and capsys.readouterr().out == ""


def test_a_name_that_is_no_notebook_is_refused(root):
    with pytest.raises(
        ValueError,
        match="notebook must be one of some2015/fig01; got 'some2015/fig1', meant some2015/fig01",
    ):
        profiles.start("some2015/fig1", **ASKED)


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 4),
        ("rate", 1),
        ("rate", 0.1),
        ("label", "z"),
        ("sizes", []),
        ("sizes", (1,)),
        ("flag", True),
        ("best", 3),
        ("best", None),
        ("best", "x"),
    ],
)
def test_overrides_of_the_right_kind(name, value):
    assert profiles.apply({"quick": QUICK, "paper": PAPER}, "paper", {name: value}) == {
        **PAPER,
        name: value,
    }


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 4.0),
        ("steps", True),
        ("steps", "4"),
        ("steps", None),
        ("rate", "1"),
        ("rate", True),
        ("label", 3),
        ("sizes", 3),
        ("flag", 1),
    ],
)
def test_overrides_of_the_wrong_kind(name, value):
    with pytest.raises(ValueError, match=f"override {name} must be like its default"):
        profiles.apply({"quick": QUICK, "paper": PAPER}, "quick", {name: value})


def test_a_default_that_was_not_read_takes_any_kind():
    assert profiles.apply({"quick": {"a": ...}, "paper": {"a": ...}}, "quick", {"a": "x"}) == {
        "a": "x"
    }


def test_dtype_is_a_name_of_the_table(root):
    assert started(quick={"dtype": "float32"}, paper={"dtype": "float64"}).dtype == "float32"
    assert (
        started(
            quick={"dtype": "float32"}, paper={"dtype": "float64"}, overrides={"dtype": "float64"}
        ).dtype
        == "float64"
    )


def test_a_broken_ledger_is_found_before_the_work(root):
    (root / "notebooks" / "some2015" / "claims.yml").write_text("- id: a\n")
    with pytest.raises(ValueError, match="claims.yml: claim a: missing"):
        started()


@pytest.mark.parametrize("backend", ["torch", "autograd"])
def test_the_backend_is_made_once(root, backend):
    run = started(backend=backend)
    assert run.backend is run.backend and run.backend.name == backend


def test_from_start_to_done(root):
    entry = {
        "id": "a",
        "notebook": NAME,
        "figure": "fig01",
        "statement": "s",
        "place": "p",
        "paper": {"value": 1, "known": "read off a plot"},
        "accept": {"quick": {"max": 1}},
    }
    (root / "notebooks" / "some2015" / "claims.yml").write_text(yaml.safe_dump([entry]))
    run = started()
    fig, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    figures.save(run, "fig01", fig, {"curve": {"x": [1, 2], "y": np.array([3, np.nan])}})
    plt.close(fig)
    asked = {name: ASKED[name] for name in ("profile", "backend", "device", "seed", "overrides")}
    assert not notebook.done(NAME, **asked, root=root)
    claims.check(run, {"a": np.float64(0.1)})
    assert notebook.done(NAME, **asked, root=root)
    (record,) = notebook.records(root)
    assert record == json.loads((run.destination / "fig01.json").read_text()) and notebook.fresh(
        record, root
    )
    assert (
        record["figure"] == "some2015/fig01"
        and record["claims"][0]["measured"] == 0.1
        and record["seconds"] >= 0
        and record["device_name"]
    )
    assert set(record) == {
        "figure",
        "notebook",
        "siblings",
        "profile",
        "backend",
        "device",
        "device_name",
        "dtype",
        "seed",
        "overrides",
        "seconds",
        "versions",
        "threads",
        "data",
        "key",
        "products",
        "series",
        "claims",
    }
    assert (
        set(record["versions"]) == {"python", "numpy", "torch", "autograd", "matplotlib", "hgcore"}
        and record["versions"]["hgcore"] == "0"
    )
