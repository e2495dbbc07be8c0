"""The start of a notebook, and the record at its end."""

import json

import pytest
from matplotlib.figure import Figure

from hgcore import suite
from hgcore.suite import results, session

QUICK = {"steps": 5, "rate": 0.1, "sizes": [1], "label": None}
PAPER = {"steps": 50, "rate": 1.0, "sizes": [1], "label": "x"}
GIVEN = {"name": "toy/one", "profile": "quick", "backend": "torch", "device": "cpu", "seed": 0}
GIVEN |= {"overrides": {}, "quick": QUICK, "paper": PAPER}
WRONG = [
    (
        {"profile": "papper"},
        "profile must be one of quick, paper; got 'papper'; did you mean paper?",
    ),
    ({"profile": "reduced"}, "profile must be one of quick, paper"),
    ({"backend": "jax"}, "backend must be one of torch, autograd"),
    ({"device": "tpu"}, "device must be one of"),
    ({"name": "toy/two"}, "notebook must be one of toy/one"),
    ({"seed": -1}, "seed must be an integer >= 0"),
    ({"seed": True}, "seed must be an integer >= 0"),
    ({"overrides": {"step": 3}}, "override must be one of .* did you mean steps"),
    ({"overrides": {"steps": "3"}}, "override steps must be like 5, got '3'"),
    ({"overrides": {"steps": 2.5}}, "override steps must be like 5"),
    ({"overrides": {"sizes": 3}}, "override sizes must be like"),
    ({"overrides": {"sizes": []}}, "override sizes must be neither negative nor empty"),
    ({"overrides": {"steps": -5}}, "override steps must be neither .*, got -5"),
    ({"reduced": {"steps": 1}}, "reduced and quick differ in"),
    ({"quik": QUICK}, "table must be one of .* did you mean quick"),
]


@pytest.fixture
def start(toy, monkeypatch):
    """suite.start of the toy notebook; start.executed is what the kernel executed."""
    toy.add("one")
    inputs = ["seed: int = 0  # base", *session.notebooks.code("toy/one", toy.root)]
    executed = inputs[:2]
    monkeypatch.setattr(session, "inputs", lambda: executed)

    def begin(**changed):
        run = session.start(**GIVEN | changed)
        executed[2:] = inputs[2:]
        fig = Figure()
        fig.subplots().plot([1, 2])
        suite.save(run, "one", fig)
        return run

    begin.executed = executed
    return begin


@pytest.fixture
def record(toy):
    """The file of the record of a quick run."""
    return toy.root / "figures/quick/toy/one.json"


@pytest.mark.parametrize("changed, message", WRONG)
def test_start_errors(start, changed, message):
    with pytest.raises(ValueError, match=message):
        start(**changed)


def test_scale_and_backend(start, capsys):
    run = start(profile="paper", overrides={"rate": 2, "label": "y"})
    assert (run.scale.steps, run.scale.rate, run.scale.label) == (50, 2, "y")
    assert "steps  5      50     50" in capsys.readouterr().out
    assert [start(backend=name).backend.name for name in ("torch", "autograd")] == [
        "torch",
        "autograd",
    ]
    with pytest.raises(ValueError, match="use backend torch"):
        session.make_backend("autograd", "cuda")


def test_record_is_whole(start, record, capsys):
    suite.check(start(), {"one.small": 0.25})
    found = results.load(record)
    assert found["claims"] == [{"id": "one.small", "measured": 0.25, "verdict": "HOLDS"}]
    assert "HOLDS        one.small" in capsys.readouterr().out
    assert found["figures"]["one"]["series"] and found["commit"] and found["key"]
    nested = {"a": ["x  y", 1], "b": [[1, 2], [3]]}
    assert json.loads(session.signed(nested)) == nested | {"digest": session.digest(nested)}


def test_failing_claims(start, toy, record):
    """A failing claim of a paper is a result; a failing check of ours stops the notebook."""
    suite.check(start(), {"one.small": 2.0})
    text = toy.ledger.read_text().replace("kind: paper", "kind: suite")
    toy.ledger.write_text(text.replace('  paper: {value: 0.5, known: "read off a plot"}\n', ""))
    with pytest.raises(AssertionError, match="one.small: 2.0 is not"):
        suite.check(start(), {"one.small": 2.0})
    assert results.load(record)["claims"][0]["verdict"] == "FAILS"


def test_check_refuses_other_claims_or_no_figure(start, toy):
    run = start()
    with pytest.raises(ValueError, match=r"lacks the claims \['one.small'\]; the ledger lacks"):
        suite.check(run, {"one.smal": 0.25})
    run.figures.clear()
    with pytest.raises(ValueError, match="saved no figure"):
        suite.check(run, {"one.small": 0.25})
    assert not (toy.root / "figures").exists()


@pytest.mark.parametrize("edit", ["overrides", "seed", "changed", "added", "before", "no kernel"])
def test_own_runs_go_to_runs(start, toy, record, edit, monkeypatch, capsys):
    """Those with overrides, undecided; other settings; those whose cells are not the saved ones."""
    if edit == "no kernel":
        monkeypatch.setattr(session, "inputs", list)
    if edit == "before":
        start.executed[0] += "\nimport hgcore"
    run = start(overrides={"steps": 7} if edit == "overrides" else {}, seed=7 * (edit == "seed"))
    if edit == "changed":
        start.executed[2] = "value = 0.5"
    elif edit == "added":
        start.executed.insert(3, "value = 0.5")
    suite.check(run, {"one.small": 0.25})
    folder = "overrides" if edit in ("overrides", "seed") else "unsaved"
    assert not record.exists() and (toy.root / f"runs/{folder}/quick/toy/one.json").exists()
    assert ("NOT DECIDED" in capsys.readouterr().out) == (edit == "overrides")


def test_notebook_without_claims_prints_values(start, toy, capsys):
    toy.ledger.unlink()
    suite.check(start(), {"anything": 0.125})
    assert "0.125" in capsys.readouterr().out
