"""The start of a notebook, and the record at its end."""

import json

import pytest

from hgcore import suite
from hgcore.suite import results, session

WRONG = [
    (
        {"profile": "papper"},
        "profile must be one of quick, paper; got 'papper'; did you mean paper",
    ),
    ({"backend": "jax"}, "backend must be one of torch, autograd"),
    ({"device": "tpu"}, "device must be one of"),
    ({"name": "toy/two"}, "notebook must be one of toy/one"),
    ({"seed": -1}, "seed must be an integer >= 0"),
    ({"seed": True}, "seed must be an integer >= 0"),
    ({"overrides": {"step": 3}}, "override must be one of .* did you mean steps"),
    ({"overrides": {"steps": "3"}}, "override steps must be like 5, got '3'"),
    ({"overrides": {"steps": 2.5}}, "override steps must be like 5"),
    ({"overrides": {"sizes": []}}, "override sizes must be neither negative nor empty"),
    ({"overrides": {"steps": -5}}, "override steps must be neither .*, got -5"),
    ({"reduced": {"steps": 1}}, "reduced and quick differ in"),
    ({"quik": {}}, "table must be one of .* did you mean quick"),
]
OWN = [  # what start is given, which executed cells differ, the folder in runs/
    ({"overrides": {"steps": 7}}, slice(0), [], "overrides"),
    ({"seed": 7}, slice(0), [], "overrides"),
    ({}, slice(0, 1), ["seed = 0\nimport hgcore"], "unsaved"),
    ({}, slice(2, 3), ["value = 0.5"], "unsaved"),
    ({}, slice(3, 3), ["value = 0.5"], "unsaved"),
    ({}, slice(None), [], "unsaved"),  # there is no kernel
]


@pytest.mark.parametrize("changed, message", WRONG)
def test_start_errors(start, changed, message):
    with pytest.raises(ValueError, match=message):
        start(**changed)


def test_start_makes_scale_and_backend(start, capsys):
    run = start(profile="paper", overrides={"rate": 2, "label": "y"})
    assert vars(run.scale) == {"steps": 50, "rate": 2, "sizes": [1], "label": "y"}
    assert "steps  5      50     50" in capsys.readouterr().out
    assert all(start(backend=name).backend.name == name for name in ("torch", "autograd"))
    with pytest.raises(ValueError, match="use backend torch"):
        session.make_backend("autograd", "cuda")


def test_signed_keeps_text_and_lists():
    nested = {"a": ["x  y", 1], "b": [[1, 2], [3]]}
    assert json.loads(session.signed(nested)) == nested | {"digest": session.digest(nested)}


def test_check_of_failing_claims(start, toy, capsys):
    """A failing claim of a paper is a result; a failing check of ours stops the notebook."""
    record = toy.finish(start(), 2.0)
    assert "FAILS        one.small" in capsys.readouterr().out and results.load(record)["commit"]
    text = toy.ledger.read_text().replace("kind: paper", "kind: suite")
    toy.ledger.write_text(text.replace('  paper: {value: 0.5, known: "read off a plot"}\n', ""))
    with pytest.raises(AssertionError, match="one.small: 3.0 is not"):
        toy.finish(start(), 3.0)
    claim = {"id": "one.small", "measured": 3.0, "verdict": "FAILS"}
    assert results.load(record)["claims"] == [claim]


def test_check_refuses_other_claims_or_no_figure(start, toy):
    run = start()
    with pytest.raises(ValueError, match=r"lacks the claims \['one.small'\]; the ledger lacks"):
        suite.check(run, {"one.smal": 0.25})
    with pytest.raises(ValueError, match="saved no figure"):
        suite.check(run, {"one.small": 0.25})
    assert not (toy.root / "figures").exists()


@pytest.mark.parametrize("given, where, cells, folder", OWN)
def test_own_runs_go_to_runs(start, toy, given, where, cells, folder, capsys):
    """Other settings, undecided if overridden; runs whose cells are not the saved ones."""
    start.executed[where] = cells
    assert not toy.finish(start(**given)).exists()
    assert (toy.root / f"runs/{folder}/quick/toy/one.json").exists()
    assert ("NOT DECIDED" in capsys.readouterr().out) == ("overrides" in given)


def test_check_without_claims_prints_values(start, toy, capsys):
    toy.ledger.write_text("")
    toy.finish(start(), 0.125)
    assert "one.small: 0.125" in capsys.readouterr().out


def test_copies_and_devices_have_their_own_folders(tmp_path):
    one, other = (session.Job(f"own/{name}").folder(tmp_path) for name in ("one", "other"))
    assert one != other
    assert session.Job("toy/one", device="cuda").folder(tmp_path).is_relative_to(tmp_path / "runs")
