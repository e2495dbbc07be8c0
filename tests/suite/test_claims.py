"""Verdicts, and what a ledger must look like."""

import math

import numpy as np
import pytest

from hgcore.suite import claims
from hgcore.suite.claims import ERRATUM, FAILS, HOLDS, NOT_DECIDED

RULES = [  # rule, values that hold, values that fail
    ({"max": 1.0}, [1, -3.0, [[0], [1]]], [1.1, [0.5, 1.1], -math.inf, True, "0", None, []]),
    ({"min": 0, "max": 1}, [0, 1.0, [0.5]], [-0.1, [1, 2], "nan", "inf", [0.5, "nan"]]),
    ({"equals": 3}, [3, 3.0], [4, "3", True, [3], None]),
    ({"equals": True}, [True], [1, "True", None, [True]]),
    ({"equals": ["a", "b"]}, [["a", "b"]], [["b", "a"], "ab"]),
    ({"order": "increasing"}, [[1, 2, 3]], [[1, 1], [2, 1], [1], [], 1, [1, "nan"]]),
    ({"order": "decreasing", "margin": 0.5}, [[2, 1.5, 1]], [[2, 1.6]]),
]
WRONG = [  # in the toy's ledger: old, new, message; ALL is the whole of it
    ("kind: paper", "kind: ours", "claim one.small: "),
    ("  figure: one\n", "", "'figure' is a required property"),
    ("toy/one", "toy/two", "there is no notebook toy/two"),
    ("max: 1.0", "min: 2, max: 1.0", "min not above max"),
    ("max: 1.0", "max: .inf", "must be finite"),
    ("max: 1.0", "most: 1", "not valid"),
    ("max: 1.0", "max: 1e-3", "'1e-3' is not of type 'number'"),  # YAML reads that as text
    ('known: "read off a plot"', 'known: "somewhere"', "is not one of"),
    ("  place:", "  erratum: yes please\n  place:", "True was expected"),
    ("kind: paper", "kind: suite", "should not be valid"),
    ("  place:", "  figure: two\n  place:", "field 'figure' is given twice"),
    ("ALL", "ALLALL", "used twice"),
    ("ALL", "a: 1", "is not of type 'array'"),
    ("ALL", "- [", "not YAML"),
    ("ALL", "- {[1]: 2}", "not YAML"),
    ("ALL", "- 3", "is not of type 'object'"),
]


def verdict(rule, value, profile="paper", **more):
    return claims.decide({"accept": {"paper": rule}} | more, profile, value)


@pytest.mark.parametrize("rule, holds, fails", RULES)
def test_decide_rules(rule, holds, fails):
    assert {verdict(rule, value) for value in holds} == {HOLDS}
    assert {verdict(rule, value) for value in fails} == {FAILS}


def test_decide_without_a_rule_or_value():
    rule, undecided = {"max": 1}, claims.plain(claims.Undecided("no GPU"))
    assert verdict(rule, 0, "quick") == verdict(rule, undecided) == NOT_DECIDED
    assert [verdict(rule, x, erratum=True) for x in (0, 2)] == [ERRATUM, FAILS]


def test_decide_by_an_interval():
    """Student's interval of five outcomes 1..5 at 95 % is 3 +- 1.963 (a table's 2.776 / sqrt 2)."""
    values, sure = [1.0, 2, 3, 4, 5], {"confidence": 0.95}
    assert claims.interval(values, 0.95) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-4)
    rules = {"min": 1.0}, {"min": 2.0}, {"min": 5.0}, {"min": 2, "max": 4}
    found = [verdict(rule, values, **sure) for rule in rules]
    assert found == [HOLDS, NOT_DECIDED, FAILS, NOT_DECIDED]
    assert verdict({"min": 0}, values[:4], **sure) == NOT_DECIDED
    assert verdict({"min": 0}, ["nan"] * 5, **sure) == FAILS


def test_plain_values_are_json():
    found = claims.plain([np.float64(1 / 3), np.arange(2), math.nan, -math.inf, None, True, "x"])
    assert found == [0.3333333333, [0, 1], "nan", "-inf", None, True, "x"]
    assert claims.plain(np.float32(0.1)) == pytest.approx(0.1) and claims.plain({1}) == "{1}"


@pytest.mark.parametrize("old, new, message", WRONG)
def test_ledger_errors(toy, old, new, message):
    toy.add("one")
    text = toy.ledger.read_text()
    toy.ledger.write_text(text.replace(text if old == "ALL" else old, new.replace("ALL", text)))
    with pytest.raises(ValueError, match=rf"toy/claims\.yml: .*{message}"):
        claims.load(toy.ledger)
