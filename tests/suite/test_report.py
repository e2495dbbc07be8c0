"""The page and the README's table say what the records say, without a network or a script."""

import json
import re

import pytest
import toy

from hgcore.suite import jobs, notebook, pages, readme, report


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three notebooks: one with both records, one with a quick record only, one never run."""
    root = toy.root(tmp_path / "r")
    monkeypatch.setenv("HGCORE_ROOT", str(root))
    for name in ("00_tour", "maclaurin2015/fig1", "maclaurin2015/fig2"):
        toy.add(root, name)
    toy.record(root, "maclaurin2015/fig1", "paper", verdict="REFUTED", measured=0.123456)
    toy.record(root, "maclaurin2015/fig1", "quick")
    toy.record(root, "maclaurin2015/fig2", "quick", measured=[-1.5, 1.0])
    return root


def text(html):
    return " ".join(
        re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).split()
    )


def test_page_shows_every_figure_with_its_claims(root):
    html = report.build(root).read_text()
    for source in re.findall(r'(?:src|href)="([^"#]+)"', html):
        if not source.endswith(".json"):
            assert (root / "figures" / source).exists(), source
    assert html.count("<img") == 2
    assert 'src="maclaurin2015/fig1.png"' in html and 'src="quick/maclaurin2015/fig2.png"' in html
    said = text(html)
    assert "profile paper · 12 s · cpu (a chip) · torch, float64 · seed 0" in said
    assert "refuted Section 1" in said and "At profile quick, 12 s: 1 held." in said
    assert "Measured 0.1235 accepted: at most 1 Paper 0.5 read off a plot" in said
    assert "Measured \u22121.5, 1 accepted: at most 1" in said
    assert "Not run yet: python -m hgcore run 00_tour" in said
    assert "0 of 3 claims hold at profile paper; 1 refuted; 0 not decided; 2 not run." in said
    assert "Stale" not in said


def test_page_says_what_is_stale(root):
    toy.edit(root, "maclaurin2015/fig1", "compute", "x = 2")
    assert text(report.build(root).read_text()).count("Stale: ") == 1
    assert report.states("maclaurin2015/fig1", report.latest(root), root) == ("stale", "stale")
    assert report.states("maclaurin2015/fig2", report.latest(root), root) == ("done 12 s", "-")
    (root / "figures/quick/maclaurin2015/fig2.png").write_bytes(b"another picture")
    assert report.states("maclaurin2015/fig2", report.latest(root), root) == ("stale", "-")


def test_pages_need_no_network_and_no_script(root):
    report.build(root)
    found = list((root / "figures").rglob("*.html"))
    assert len(found) == 4
    for file in found:
        html = file.read_text()
        assert (
            "http" not in html
            and "<script" not in html
            and "<link" not in html
            and "$" not in text(html).replace("$L_T$", "")
        )
    page = (root / "figures/pages/maclaurin2015/fig1.html").read_text()
    assert (
        "<mfrac>" in page
        and 'href="../../index.html"' in page
        and "Outputs of profile quick, as committed" in page
    )


def test_page_shows_the_outputs_of_the_paper_run(root):
    nb = notebook.read("maclaurin2015/fig1", root)
    for count, cell in enumerate((cell for cell in nb["cells"] if cell["cell_type"] == "code"), 1):
        cell.update(
            execution_count=count,
            outputs=[
                {"output_type": "stream", "name": "stdout", "text": [f"paper {count}\n", "two\n"]}
            ],
        )
    target = root / "runs/paper/maclaurin2015/fig1.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(nb))
    report.build(root)
    assert (
        "as committed" in (root / "figures/pages/maclaurin2015/fig1.html").read_text()
    )  # of what code it is, nobody knows
    jobs.sign(jobs.Job("maclaurin2015/fig1", "paper"), root)
    report.build(root)
    said = text((root / "figures/pages/maclaurin2015/fig1.html").read_text())
    assert "Outputs of profile paper" in said and "paper 5 two" in said
    target.write_text(target.read_text()[:-40])  # cut short by a kill
    report.build(root)
    assert "as committed" in (root / "figures/pages/maclaurin2015/fig1.html").read_text()


def test_readme_table_follows_the_records(root):
    before, after = readme.revised(root)
    assert before != after
    readme.write(root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Toy\n") and text.endswith("\nThe end.\n")
    fig1 = "| [fig1](figures/maclaurin2015/fig1.png) | [maclaurin2015/fig1](notebooks/maclaurin2015/fig1.ipynb) "
    assert fig1 + "| The loss $L_T$ of fig1 is small \\| always. | REFUTED |" in text
    assert (
        "| fig2 | [maclaurin2015/fig2](notebooks/maclaurin2015/fig2.ipynb) | The loss $L_T$ of fig2 is small \\| always. | NOT RUN |"
        in text
    )
    assert (
        "| [maclaurin2015/fig1](notebooks/maclaurin2015/fig1.ipynb) | [fig1](figures/maclaurin2015/fig1.png) | 1 REFUTED |"
        in text
    )
    assert (
        "| [maclaurin2015/fig1](notebooks/maclaurin2015/fig1.ipynb) | The loss $L_T$ of fig1 is small \\| always. | REFUTED |"
        in text
    )
    assert len(set(readme.revised(root))) == 1
    toy.record(root, "maclaurin2015/fig1", "paper", verdict="HOLDS")
    assert len(set(readme.revised(root))) == 2


def test_check_writes_nothing(root, capsys):
    from hgcore.suite.cli import main

    assert main(["report", "--check"]) == 1
    assert "out of date" in capsys.readouterr().err and not (root / "figures/index.html").exists()
    assert main(["report"]) == 0
    assert "0 of 3 claims hold at profile paper; 1 refuted" in capsys.readouterr().out
    assert main(["report", "--check"]) == 0
    (root / "README.md").write_text("no markers")
    assert main(["report", "--check"]) == 2
    assert "needs the lines <!-- table -->" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage, told",
    [
        (
            lambda text: text.replace("0.123456", "5.0"),
            "fig1.small is said to be REFUTED, measured 5.0, accepted {'max': 1.0}",
        ),
        (
            lambda text: text.replace('"REFUTED"', '"FAILS"'),
            "fig1.small is said to be FAILS, measured 0.123456",
        ),
        (lambda text: "<<<<<<< HEAD\n" + text, "figures/maclaurin2015/fig1.json cannot be read"),
    ],
)
def test_records_that_cannot_be_right_are_named(root, damage, told, capsys):
    from hgcore.suite.cli import main

    readme.write(root)
    before, record = (root / "README.md").read_text(), root / "figures/maclaurin2015/fig1.json"
    record.write_text(damage(record.read_text()))
    for asked in (["report", "--check"], ["report"]):
        assert (
            main(asked) == 1
            and told in capsys.readouterr().err
            and (root / "README.md").read_text() == before
        )


def test_code_that_changed_since_is_told(root):
    readme.write(root)
    toy.edit(root, "maclaurin2015/fig1", "compute", "x = 2")
    assert (
        "[maclaurin2015/fig1](notebooks/maclaurin2015/fig1.ipynb) (changed since) | [fig1]"
        in readme.revised(root)[1]
    )


def test_a_figure_that_is_drawn_no_more_says_nothing(root):
    """Its record is of an older run of the notebook."""
    old = json.loads((root / "figures/quick/maclaurin2015/fig2.json").read_text())
    toy.edit(root, "maclaurin2015/fig2", "compute", "x = 2")
    toy.record(root, "maclaurin2015/fig2", "quick", verdict="FAILS", measured=3.0)
    renamed = old | {"figure": "maclaurin2015/aa", "siblings": ["maclaurin2015/aa"]}
    (root / "figures/quick/maclaurin2015/aa.json").write_text(json.dumps(renamed))
    assert [
        verdict
        for name, _, verdict in report.verdicts(root, "quick")
        if name == "maclaurin2015/fig2"
    ] == ["FAILS"]
    assert report.states("maclaurin2015/fig2", report.latest(root), root) == ("FAILS", "-")


def test_fails_shows(root):
    toy.record(root, "maclaurin2015/fig2", "paper", verdict="FAILS", measured="nan")
    assert report.states("maclaurin2015/fig2", report.latest(root), root) == ("done 12 s", "FAILS")
    assert "fails Section 1" in text(report.build(root).read_text())
    assert (
        report.tally(report.verdicts(root, "paper"))
        == "0 of 3 claims hold at profile paper; 1 failed; 1 refuted; 0 not decided; 1 not run."
    )


@pytest.mark.parametrize("value, shown", [
    (0.000123456, "0.0001235"), (-3.0, "\u22123"), (12, "12"), (True, "yes"), (None, "none"), ("nan", "nan"), ([1, 2], "1, 2"),
    (list(range(20)), "0, 1, 2, … 19 (20 values)"), ({"min": 0.1, "max": 2.0, "len": 99}, "0.1 to 2 (99 values)"), ([[1.0, 2.0], [3.0]], "1, 2, 3"),
])  # fmt: skip
def test_values_are_short(value, shown):
    assert report._shown(value) == shown


@pytest.mark.parametrize("rule, words", [
    (None, ""), ({"min": 1, "max": 2.5}, "1 to 2.5"), ({"max": 0}, "at most 0"), ({"min": 3}, "at least 3"), ({"equals": 4}, "exactly 4"),
    ({"order": "increasing"}, "increasing"), ({"order": "decreasing", "margin": 0.1}, "decreasing, by at least 0.1"), ({"true": True}, "yes"),
])  # fmt: skip
def test_acceptances_in_words(rule, words):
    assert report.accepted(rule) == words


@pytest.mark.parametrize("source, formulas", [
    ("$a_1*b*c_2$ and $x$", 2), ("$$\\frac{a}{b}$$", 1), ("over\n$$\na\n$$\nlines", 1), ("\\begin{align}\na &= b\n\\end{align}", 1), ("$a$: $b$, ($c$)", 3),
    ("`$a$` and ```\n$b$\n```", 0), ("it costs $5 and $6", 0), ("\\$a$ b", 0), ("$ a $", 0), ("$$\\begin{aligned}a &= b\\\\ c &= d\\end{aligned}$$", 1),
])  # fmt: skip
def test_formulas_are_found(source, formulas):
    html = str(pages.inline(source))
    assert html.count("<math") == formulas and "<mi>&" not in html


def test_a_formula_that_cannot_be_set_stays_readable():
    assert pages.mathml("a<_") == "<code>a&lt;_</code>"


def test_text_is_escaped():
    assert pages.inline("a < b & `c<d` $x<y$").startswith(
        "a &lt; b &amp; <code>c&lt;d</code> <math"
    )
