"""Claims: every check can fail, nothing passes by accident, the record is written first."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from hgcore.suite import claims
from hgcore.suite.figures import Saved

BASE = {
    "id": "fig01.falls",
    "notebook": "some2015/fig01",
    "figure": "fig01",
    "statement": "The loss falls.",
    "place": "Figure 1",
    "paper": {"value": None, "known": "not in the paper"},
}
RULES = [
    {"max": 0.0},
    {"min": -1.5},
    {"min": 1, "max": 2},
    {"equals": 3},
    {"equals": "negative"},
    {"equals": [1, 2]},
    {"equals": True},
    {"equals": False},
    {"order": "increasing"},
    {"order": "decreasing", "margin": 0.5},
    {"true": True},
    {True: True},
]
PASSES = [
    -3,
    0.0,
    1.5,
    3,
    "negative",
    (1, 2),
    True,
    np.bool_(False),
    [1, 2, 3],
    np.array([3.0, 2.0, 1.0]),
    True,
    np.True_,
]


def entry(rule=None, **fields):
    return BASE | {"accept": {"quick": rule, "paper": None}} | fields


def ledger(root, *found, text=None):
    file = root / "notebooks" / "some2015" / "claims.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(list(found)) if text is None else text)
    return file


def started(root, figures=("fig01",), overrides=None):
    (root / "pyproject.toml").touch()
    return SimpleNamespace(
        name="some2015/fig01",
        profile="quick",
        root=root,
        overrides=overrides or {},
        destination=root / "out",
        clock=time.perf_counter(),
        figures={
            name: Saved({"png": "1", "pdf": "2"}, {"curve": {"x": [1], "y": [None]}})
            for name in figures
        },
        full=lambda figure: f"some2015/{figure}",
        facts=lambda: {"notebook": "some2015/fig01", "key": "k"},
    )


# ---- the verdict


@pytest.mark.parametrize("rule, value", list(zip(RULES, PASSES, strict=True)))
def test_holds_refutes_and_breaks(rule, value):
    assert claims.decide(entry(rule), "quick", value) == "HOLDS"
    assert claims.decide(entry(rule, refutes=True), "quick", value) == "REFUTED"
    assert claims.decide(entry(rule), "paper", value) == "NOT DECIDED"
    assert claims.decide({**entry(), "accept": {"paper": rule}}, "quick", value) == "NOT DECIDED"
    for refutes in (False, True):
        assert (
            claims.decide(
                entry(rule, refutes=refutes), "quick", claims.breaks(entry(rule), "quick")
            )
            == "FAILS"
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        None,
        np.nan,
        [],
        [math.nan],
        [1.0, None],
        "",
        {},
        object,
        1j,
        np.array([2.0, math.nan]),
        -math.inf,
        [[]],
        math.inf,
        [math.inf, -math.inf],
    ],
    ids=repr,
)
def test_what_is_no_measurement_fails(rule, value):
    assert claims.decide(entry(rule), "quick", value) == "FAILS"


@pytest.mark.parametrize(
    "rule, value",
    [
        ({"max": 0.0}, [-1, -2, 0.1]),
        ({"max": 5}, True),
        ({"max": 5}, "3"),
        ({"true": True}, 1),
        ({"true": True}, [True]),
        ({"equals": 1}, True),
        ({"equals": True}, 1),
        ({"order": "increasing"}, [1]),
        ({"order": "increasing"}, [1, 1]),
        ({"order": "increasing"}, 3),
        ({"min": 0}, [[1], [-1]]),
        ({"order": "increasing", "margin": 0.5}, [0, 0.4, 2]),
        ({"order": "increasing"}, [[1], [2]]),
        ({"order": "increasing"}, [False, True]),
    ],
)
def test_near_misses_fail(rule, value):
    assert claims.decide(entry(rule), "quick", value) == "FAILS"


def test_every_element_of_a_nested_list_counts():
    assert claims.decide(entry({"max": 0}), "quick", np.full((2, 3), -1.0)) == "HOLDS"


def test_what_is_not_decided_cannot_be_broken():
    with pytest.raises(ValueError, match="fig01.falls is not decided at profile paper"):
        claims.breaks(entry({"max": 0}), "paper")


# ---- the ledger


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"min": 2, "max": 1},
        {"min": None},
        {"min": None, "max": None},
        {"max": math.inf},
        {"min": math.nan},
        {"max": "1e-3"},
        {"max": True},
        {"margin": 1},
        {"order": "up"},
        {"order": "increasing", "margin": -1},
        {"true": False},
        {"false": True},
        {"equals": None},
        {"atmost": 3},
        [],
        "any",
        {"max": 1, "equals": 1},
    ],
    ids=repr,
)
def test_an_acceptance_that_cannot_decide_is_refused(tmp_path, rule):
    file = ledger(tmp_path, entry(rule))
    with pytest.raises(ValueError) as caught:
        claims.load(file)
    assert f"{file}: claim fig01.falls: accept quick: " in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"statement": None}, "statement must be text"),
        ({"extra": 1}, "unknown extra"),
        ({"accept": {}}, "accept must give"),
        ({"accept": None}, "accept must give"),
        ({"accept": {"quik": {"max": 1}}}, "profiles quick and paper"),
        ({"refutes": "yes"}, "refutes must be"),
        ({"note": 3}, "note must be text"),
        ({"paper": 3}, "paper must be"),
        ({"paper": {"value": 1}}, "paper must be"),
        ({"paper": {"value": 1, "known": "heard"}}, "known must be one of"),
        ({"paper": {"value": 1, "known": "not in the paper"}}, "value: null"),
        ({"notebook": "other2016/fig01"}, "beside this file"),
        ({"paper": {"value": math.nan, "known": "read off a plot"}}, "not JSON compliant"),
        ({"notebook": "fig01"}, "beside this file"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, message):
    file = ledger(tmp_path, entry({"max": 1}, id="good"), entry({"max": 1}) | change)
    with pytest.raises(ValueError) as caught:
        claims.load(file)
    assert f"{file}: claim fig01.falls: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("field", sorted(claims.REQUIRED))
def test_a_missing_field_is_named(tmp_path, field):
    file = ledger(
        tmp_path, {name: value for name, value in entry({"max": 1}).items() if name != field}
    )
    with pytest.raises(ValueError, match=f"claim (fig01.falls|number 1): missing {field}$"):
        claims.load(file)


def test_ids_are_unique(tmp_path):
    with pytest.raises(ValueError, match="claim fig01.falls: this id is used twice"):
        claims.load(ledger(tmp_path, entry({"max": 1}), entry({"max": 2})))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1", "a list of claims"),
        ("- 3", "claim number 1: an entry is a mapping"),
        ("- [", "no YAML"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        claims.load(ledger(tmp_path, text=text))


def test_no_file_no_entries(tmp_path):
    assert (
        claims.entries("some2015/fig01", tmp_path) == [] == claims.load(ledger(tmp_path, text=""))
    )


def test_the_contracts_example_loads(tmp_path):
    text = """
- id: fig04.all_negative
  notebook: some2015/fig04_initial_hypergradient
  figure: fig04_initial_hypergradient
  statement: "All four layers want larger steps: the hypergradient is negative throughout."
  place: "Section 3.1, Figure 4"
  paper: {value: "negative", known: "read off a plot", reading_error: 0.1}
  refutes: false
  accept:
    quick: {true: true}
    paper: {max: 0.0}
  note: why
"""
    (loaded,) = claims.load(ledger(tmp_path, text=text))
    assert loaded["accept"] == {"quick": {"true": True}, "paper": {"max": 0.0}}
    assert claims.entries("some2015/fig01", tmp_path) == []


def test_what_a_machine_cannot_measure_is_not_decided_and_the_record_says_why(tmp_path, capsys):
    ledger(tmp_path, entry({"max": 0}))
    claims.check(run := started(tmp_path), {"fig01.falls": claims.Undecided("no GPU")})
    assert capsys.readouterr().out.startswith("NOT DECIDED")
    (claim,) = json.loads((run.destination / "fig01.json").read_text())["claims"]
    assert (claim["measured"], claim["verdict"]) == ("no GPU", "NOT DECIDED")


# ---- the last cell


def test_check_prints_one_line_a_claim_without_digits(tmp_path, capsys):
    ledger(
        tmp_path,
        entry({"max": 0}, statement="The loss\n  falls."),
        entry(None, id="fig01.later"),
        entry({"true": True}, id="x", refutes=True),
    )
    claims.check(started(tmp_path), {"fig01.falls": -1.25, "fig01.later": None, "x": np.True_})
    assert capsys.readouterr().out == (
        "HOLDS        fig01.falls  The loss falls.\nNOT DECIDED  fig01.later  The loss falls.\n"
        "REFUTED      x            The loss falls.\n"
    )


def test_each_figure_has_its_record_before_a_fails_raises(tmp_path):
    ledger(
        tmp_path,
        entry({"max": 0}),
        entry({"max": 0}, id="second", figure="fig02"),
        entry({"max": 0}, id="table", figure="table1"),
    )
    message = r"2 of 3 claims of some2015/fig01 fail at profile quick:\n  fig01.falls: measured nan, accepted {'max': 0.*\n  second"
    with pytest.raises(claims.ClaimFailed, match=message):
        claims.check(
            started(tmp_path, ("fig01", "fig02")),
            {"fig01.falls": np.nan, "second": np.array([1, np.inf]), "table": -1},
        )
    one, two = (json.loads((tmp_path / "out" / f"fig0{i}.json").read_text()) for i in (1, 2))
    assert one["siblings"] == two["siblings"] == ["some2015/fig01", "some2015/fig02"]
    first, second = (
        [(claim["id"], claim["verdict"], claim["measured"]) for claim in record["claims"]]
        for record in (one, two)
    )
    assert first == [("fig01.falls", "FAILS", "nan"), ("table", "HOLDS", -1)] and second == [
        ("second", "FAILS", [1, "inf"])
    ]
    assert (
        one["key"] == "k"
        and one["products"] == {"png": "1", "pdf": "2"}
        and one["series"] == {"curve": {"x": [1], "y": [None]}}
    )
    text = (tmp_path / "out" / "fig01.json").read_text()
    assert (
        text.endswith("}\n")
        and list(one) == sorted(one)
        and '\n "siblings": ["some2015/fig01", "some2015/fig02"]\n' in text
    )


def test_the_users_own_experiment_does_not_raise(tmp_path, capsys):
    ledger(tmp_path, entry({"max": 0}))
    claims.check(started(tmp_path, overrides={"steps": 3}), {"fig01.falls": 1})
    assert capsys.readouterr().out.startswith("FAILS ")
    assert (
        json.loads((tmp_path / "out" / "fig01.json").read_text())["claims"][0]["verdict"] == "FAILS"
    )


@pytest.mark.parametrize(
    "value",
    [["a]", " [ b  c ]", "{\n\n}"], [[1, 2], [3]], [], [" "], "[\n 1\n]", [[], ["]"]]],
    ids=repr,
)
def test_lists_stand_on_one_line_and_read_back(tmp_path, value):
    ledger(tmp_path, entry(None))
    claims.check(started(tmp_path), {"fig01.falls": value})
    assert (
        json.loads((tmp_path / "out" / "fig01.json").read_text())["claims"][0]["measured"] == value
    )


def test_long_lists_are_summed_up(tmp_path):
    ledger(tmp_path, entry({"max": 100}))
    claims.check(started(tmp_path), {"fig01.falls": np.arange(51)})
    assert json.loads((tmp_path / "out" / "fig01.json").read_text())["claims"][0]["measured"] == {
        "min": 0,
        "max": 50,
        "len": 51,
    }


@pytest.mark.parametrize(
    "measured, message",
    [
        ({}, r"does not measure \['fig01.falls'\], which notebooks/some2015/claims.yml claims"),
        (
            {"fig01.falls": 1, "typo": 1},
            r"measures \['typo'\], of which notebooks/some2015/claims.yml has no entry",
        ),
    ],
)
def test_every_claim_is_measured_and_every_measurement_claimed(tmp_path, measured, message):
    ledger(tmp_path, entry({"max": 0}))
    with pytest.raises(ValueError, match=message):
        claims.check(started(tmp_path), measured)
    assert not Path(tmp_path / "out").exists()


def test_a_notebook_without_a_figure_cannot_be_recorded(tmp_path):
    with pytest.raises(ValueError, match="saved no figure"):
        claims.check(started(tmp_path, ()), {})


def test_a_field_that_is_given_twice_is_refused(tmp_path):
    """A forgotten dash would hide a claim."""
    file = tmp_path / "claims.yml"
    file.write_text("- id: a\n  note: one\n  id: b\n")
    with pytest.raises(
        ValueError, match=r"claims.yml: no YAML: field 'id' is given twice(.|\n)*line 1"
    ):
        claims.load(file)
    file.write_bytes(b"- id: \xff\n")
    with pytest.raises(ValueError, match="claims.yml: no YAML"):
        claims.load(file)
