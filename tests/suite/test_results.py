"""Records that are damaged or forged, and what is written from whole ones."""

import io
import json
import os

import pytest
from matplotlib.image import imsave

from hgcore import suite
from hgcore.suite import notebooks, results, session
from hgcore.suite.claims import ledger


def edit(file, old, new, sign=False):
    """Forge a file; sign: and sign it as the suite does."""
    text = file.read_text()
    assert old in text
    text = text.replace(old, new)
    file.write_text(session.signed(json.loads(text)) if sign else text)


@pytest.fixture
def file(toy, run):
    """The record of a toy notebook; RESULTS.md and README.md are up to date."""
    toy.add("one")
    made = toy.record("one")
    assert run("report")[0] == run("report", "--check")[0] == 0
    return made


FORGED = [  # what was done to (the record f, the toy repository), message
    (lambda f, toy: edit(f, "0.25", "0.125"), "the digest does not fit"),
    (lambda f, toy: edit(f, "2.0", "2.5"), "the digest does not fit"),
    (lambda f, toy: edit(f, "0.25", "2.5", sign=True), "has HOLDS, the ledger gives FAILS"),
    (lambda f, toy: edit(f, '"paper"', '"quick"', sign=True), "it belongs to another run"),
    (lambda f, toy: edit(f, '"seed": 0', '"seed": 7', sign=True), "it belongs to another run"),
    (lambda f, toy: f.unlink() or os.mkfifo(f), "it is not a file"),
    (lambda f, toy: f.write_text("[" * 100_000), "not JSON"),
    (lambda f, toy: toy.add("one", compute="value = 0.5"), "RESULTS.md does not match"),
    (lambda f, toy: edit(f, '"seed": 0,', ""), "'seed' is a required property"),
    (lambda f, toy: edit(f, '"paper"', '"poster"'), "is not one of"),
    (lambda f, toy: f.write_text(f.read_text()[:99]), "not JSON"),
    (lambda f, toy: f.with_suffix(".png").write_bytes(b"x"), "not the picture of the run"),
    (lambda f, toy: f.with_suffix(".pdf").unlink(), "not the picture of the run"),
    (lambda f, toy: f.rename(f.with_name("two.json")), "two.json belongs to no record"),
    (lambda f, toy: edit(toy.ledger, "max: 1.0", "max: 0.1"), "HOLDS, the ledger gives FAILS"),
    (lambda f, toy: edit(toy.ledger, "one.small", "one.tiny"), "have different claims"),
    (lambda f, toy: edit(toy.ledger, "figure: one", "figure: two"), "has no figure two"),
    (lambda f, toy: edit(toy.root / "RESULTS.md", "1 hold", "2 hold"), "RESULTS.md does not match"),
    (lambda f, toy: edit(toy.root / "README.md", "end of", "end"), "needs the lines"),
]


@pytest.mark.parametrize("forge, message", FORGED)
def test_check_refuses(file, toy, forge, message, run):
    forge(file, toy)
    status, text = run("report", "--check")
    assert status in (1, 2) and message in text


def test_results_text(toy):
    for name, measured in (("one", 0.25), ("two", 3.0), ("three", 0.25), ("four", None)):
        toy.add(name)
        if name == "one":
            edit(toy.ledger, "read off a plot", "second-hand")
            change = 'changed: [{date: "2026-01-01", what: setting, reason: "a longer run"}]'
            edit(toy.ledger, "  accept:", f"  {change}\n  accept:")
        if measured:
            toy.record(name, "reduced" if name == "three" else "paper", measured=measured)
    toy.add("five")
    known = '  paper: {value: 0.5, known: "read off a plot"}\n'
    start, own = toy.ledger.read_text().split("- id: five")
    own = own.replace(known, "").replace("kind: paper", "kind: suite")
    toy.ledger.write_text(f"{start}- id: five{own}")
    with pytest.raises(AssertionError):
        toy.record("five", measured=3.0)
    text = results.summary(toy.root)[1]["RESULTS.md"]
    for part in (
        "Of 4 claims of the papers 1 hold, 1 fail, 1 are not decided, 0 are errata and 1 were not"
        " run. 1 of 4 notebooks ran at a reduced scale; 1 of the claims belong to them. 1 of the"
        " papers' values are remembered or second-hand. 1 claims and checks were changed after a"
        " run, 1 of them claims of the papers that hold. Of 1 checks of our own 1 fail.",
        "| [toy/four](notebooks/toy/four.ipynb) | | not run | | |",
        "[one](figures/toy/one.png) | 1 of 1 | paper | 1.5 |",
        "[three](figures/reduced/toy/three.png) | 0 of 1 | reduced | 1.5 |",
        "- **toy/two**: The loss $L_T$ of two is at most one | always. (Section 1) Measured: 3.",
    ):
        assert part in text


def test_brief_values():
    values = 1 / 3, [1, 2.0], list(range(9)), {"undecided": "no GPU"}, [1, "nan"] * 4, ["a"] * 7
    shown = ["0.3333", "1, 2", "9 numbers from 0 to 8", "nothing: no GPU"]
    shown += ["1, nan, 1, nan, 1, nan, 1, nan", "a, a, a, a, a, a, a"]
    assert list(map(results.brief, values)) == shown


def test_copies_do_not_count(file, toy, run):
    """A copy has a name of its own; neither its record nor its claims change the results."""
    own = notebooks.path("own/mine", toy.root)
    assert run("copy", "one", "mine") == (0, f"{own}\n")
    assert "own/mine" in notebooks.code("own/mine", toy.root)[0]
    record = session.Job("own/mine", "paper").record(toy.root)
    assert record.is_relative_to(toy.root / "runs")
    record.parent.mkdir(parents=True)
    record.write_text("no record")
    text = toy.ledger.read_text().replace("toy/one", "own/mine").replace("one.small", "mine.small")
    own.with_name("claims.yml").write_text(text)
    assert run("report", "--check") == (0, "")
    status, text = run("copy", "one", "mine")
    assert status == 2 and "exists" in text
    assert run("copy", "one", "../x")[0] == run("copy", "one", "_mine")[0] == 2


def test_differences(toy):
    """Of the same run, then of one series, claim or picture changed."""
    toy.add("one")
    entries = ledger(toy.root)["toy/one"]

    def found(shade=1, **changed):
        files = []
        for profile, corner, options in (("paper", 1, {}), ("quick", shade, changed)):
            imsave(png := io.BytesIO(), [[0, 1], [corner, 0]], vmin=0, vmax=1)
            files.append(toy.record("one", profile, png=png.getvalue(), **options))
        return list(results.differences(*files, entries))

    assert found() == [] and found(line={"x": [1], "y": [2.000001]}) == []
    assert "line differs by 5e-05" in found(line={"x": [1], "y": [2.0001]})[0]
    for odd in ({"x": [1], "y": [2.0, 3.0]}, {"x": [1], "y": [None]}, {"x": [1]}, [1], "text"):
        assert "differs by inf" in found(line=odd)[0]
    assert "series ['more']" in found(more=1)[0]
    assert "pictures differ" in found(shade=0.5)[0]
    assert "one.small: HOLDS, now FAILS" in found(measured=3.0)[0]
    assert found(measured=0.25000001) == [] and "measured differs" in found(measured=0.26)[0]
    again = toy.record("one", "quick", measured=0.26, line={"x": [1], "y": [3.0]})
    edit(again, '"rtol": 1e-06', '"rtol": null', sign=True)
    assert list(results.differences(toy.record("one"), again, entries)) == []
    undecided = suite.Undecided("by chance")
    assert "one.small: HOLDS, now NOT DECIDED" in found(measured=undecided)[0]
    entries[0]["confidence"] = 0.95
    assert found(measured=0.26) == found(measured=undecided) == []
    assert "one.small: HOLDS, now FAILS" in found(measured=3.0)[0]
    again = toy.record("one", "quick")
    edit(again, '"figures": {\n  "one"', '"figures": {\n  "two"', sign=True)
    for kind in ("png", "pdf"):
        again.with_name(f"one.{kind}").rename(again.with_name(f"two.{kind}"))
    odd = results.differences(toy.record("one"), again, entries)
    assert list(odd) == ["figures: ['one'], now ['two']"]
