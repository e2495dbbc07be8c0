"""The start of a notebook, and the record at its end."""

import json

import pytest
from matplotlib.figure import Figure

from hgcore import suite
from hgcore.suite import results, session

GIVEN = {
    "name": "toy/one",
    "profile": "quick",
    "backend": "torch",
    "device": "cpu",
    "seed": 0,
    "overrides": {},
    "quick": {"steps": 5, "rate": 0.1, "sizes": [1], "label": None},
    "paper": {"steps": 50, "rate": 1.0, "sizes": [1], "label": "x"},
}


@pytest.fixture
def start(toy, monkeypatch):
    """suite.start of the toy notebook; monkeypatched `inputs` are what the kernel executed."""
    toy.add("one")
    inputs = ["parameters", *session.notebooks.code("toy/one", toy.root)]
    executed = inputs[:2]
    monkeypatch.setattr(session, "_inputs", lambda: executed)

    def begin(**changed):
        run = session.start(**GIVEN | changed)
        executed[2:] = inputs[2:]
        fig = Figure()
        fig.subplots().plot([1, 2])
        suite.save(run, "one", fig)
        return run

    begin.executed = executed
    return begin


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"profile": "papper"}, "profile must be one of quick, paper; got 'papper', meant paper?"),
        ({"profile": "reduced"}, "profile must be one of quick, paper"),
        ({"backend": "jax"}, "backend must be one of torch, autograd"),
        ({"device": "tpu"}, "device must be one of"),
        ({"name": "toy/two"}, "notebook must be one of toy/one"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seed": True}, "seed must be an integer >= 0"),
        ({"overrides": {"step": 3}}, "override must be one of .* meant steps"),
        ({"overrides": {"steps": "3"}}, "override steps must be like 5, got '3'"),
        ({"overrides": {"steps": 2.5}}, "override steps must be like 5"),
        ({"overrides": {"sizes": 3}}, "override sizes must be like"),
        ({"reduced": {"steps": 1}}, "reduced and quick differ in"),
    ],
)
def test_start_errors(start, changed, message):
    with pytest.raises(ValueError, match=message):
        start(**changed)


def test_scale_of_the_profile_with_overrides(start, capsys):
    run = start(profile="paper", overrides={"rate": 2, "label": "y"})
    assert (run.scale.steps, run.scale.rate, run.scale.label) == (50, 2, "y")
    assert "steps  5      50     50" in capsys.readouterr().out


def test_backend(start):
    assert start().backend.name == "torch" and start(backend="autograd").backend.name == "autograd"
    with pytest.raises(ValueError, match="use backend torch"):
        session.make_backend("autograd", "cuda")


def test_record_is_whole(start, toy, capsys):
    run = start()
    suite.check(run, {"one.small": 0.25})
    file = toy.root / "figures/quick/toy/one.json"
    record = results.load(file)
    assert record["claims"] == [{"id": "one.small", "measured": 0.25, "verdict": "HOLDS"}]
    assert "HOLDS        one.small" in capsys.readouterr().out
    assert record["figures"]["one"]["series"] and record["commit"] and record["key"]
    assert json.loads(session.as_text({"a": ["x  y", 1], "b": [[1, 2], [3]]})) == {
        "a": ["x  y", 1],
        "b": [[1, 2], [3]],
    }


def test_failing_claims(start, toy):
    """A failing claim of a paper is a result; a failing check of ours stops the notebook."""
    suite.check(start(), {"one.small": 2.0})
    toy.ledger.write_text(
        toy.ledger.read_text()
        .replace("kind: paper", "kind: suite")
        .replace('  paper: {value: 0.5, known: "read off a plot"}\n', "")
    )
    with pytest.raises(AssertionError, match="one.small: 2.0 is not"):
        suite.check(start(), {"one.small": 2.0})
    assert results.load(toy.root / "figures/quick/toy/one.json")["claims"][0]["verdict"] == "FAILS"


def test_measured_ids_must_be_those_of_the_ledger(start, toy):
    with pytest.raises(ValueError, match=r"lacks the claims \['one.small'\]; the ledger lacks"):
        suite.check(start(), {"one.smal": 0.25})
    assert not (toy.root / "figures").exists()


def test_overrides_go_to_runs_undecided(start, toy, capsys):
    suite.check(start(overrides={"steps": 7}), {"one.small": 0.25})
    assert not (toy.root / "figures").exists()
    assert (toy.root / "runs/overrides/quick/toy/one.png").exists()
    assert "NOT DECIDED" in capsys.readouterr().out


@pytest.mark.parametrize("edit", ["changed", "added", "no kernel"])
def test_unsaved_cells_go_to_runs(start, toy, edit, monkeypatch):
    run = start()
    if edit == "changed":
        start.executed[2] = "value = 0.5"
    elif edit == "added":
        start.executed.insert(3, "value = 0.5")
    else:
        monkeypatch.setattr(session, "_inputs", list)
        run = session.Run(**vars(run) | {"first_input": None})
    suite.check(run, {"one.small": 0.25})
    assert not (toy.root / "figures").exists()
    assert (toy.root / "runs/unsaved/quick/toy/one.json").exists()


def test_notebook_without_claims_prints_values(start, toy, capsys):
    toy.ledger.unlink()
    suite.check(start(), {"anything": 0.125})
    assert "0.125" in capsys.readouterr().out


def test_no_figure_is_an_error(start):
    run = start()
    run.figures.clear()
    with pytest.raises(ValueError, match="saved no figure"):
        suite.check(run, {"one.small": 0.25})
