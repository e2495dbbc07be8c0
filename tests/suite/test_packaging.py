"""One source of truth for what is installed, and the rules that every notebook of the suite keeps."""

import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from hgcore.suite import claims, notebook

ROOT = Path(__file__).parents[2]
CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
NAMES = notebook.discover(ROOT)
PAPERS = sorted({claims.ledger(name, ROOT) for name in NAMES})


def requirements(*without: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line
        for name, extra in project["optional-dependencies"].items()
        if name not in without
        for line in extra
    ]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines)


def test_conda_gets_what_pip_gets():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(
        entry.split(" >=") for entry in entries if isinstance(entry, str) and ">=" in entry
    )
    assert (
        conda.pop("python")
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"][2:]
    )
    assert conda == {
        CONDA.get(name, name): bound for name, bound in requirements("peers").items()
    }  # those come by pip


def test_constraints_pin_every_requirement_exactly_and_portably():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {name.lower().replace("_", "-") for name in pins}
    assert set(requirements()) <= pinned
    assert not [
        version for version in pins.values() if "+" in version
    ]  # no index but PyTorch's own has local versions


def test_every_sanitizing_rule_is_seen_by_nbval():
    from nbval.plugin import get_sanitize_patterns

    assert len(get_sanitize_patterns((ROOT / "nbval_sanitize.cfg").read_text())) == 8


@pytest.mark.parametrize("name", NAMES)
class TestNotebook:
    def load(self, name):
        return json.loads(notebook.path(name, ROOT).read_text())

    def code(self, name):
        return [cell for cell in self.load(name)["cells"] if cell["cell_type"] == "code"]

    def test_is_normalised(self, name):
        nb = nbformat.read(notebook.path(name, ROOT), as_version=4)
        assert notebook.normalise(nb) == nb

    def test_was_executed_in_order_without_errors(self, name):
        cells = self.code(name)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert not [
            output
            for cell in cells
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]

    def test_takes_the_parameters_that_all_take(self, name):
        assert notebook.parameters(notebook.read(name, ROOT)) == {
            "profile": "quick",
            "backend": "torch",
            "device": "cpu",
            "seed": 0,
            "overrides": {},
        }

    def test_has_word_like_unique_ids(self, name):
        ids = [cell["id"] for cell in self.load(name)["cells"]]
        assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]+", i) for i in ids)

    def test_names_no_place_on_a_machine(self, name):
        assert not re.search(
            r"(?<![\w.:/])/(home|root|work|tmp|Users|usr|opt)/|[A-Z]:\\\\",
            notebook.path(name, ROOT).read_text(),
        )

    def test_is_small_and_shows_a_figure(self, name):
        assert notebook.path(name, ROOT).stat().st_size < 1_000_000
        assert any(
            "image/png" in output.get("data", {})
            for cell in self.code(name)
            for output in cell["outputs"]
        )

    def test_has_claims(self, name):
        assert claims.entries(name, ROOT)


@pytest.mark.parametrize("ledger", PAPERS, ids=lambda path: path.parent.name)
def test_only_what_a_paper_says_is_refuted(ledger):
    assert not [
        entry["id"]
        for entry in claims.load(ledger)
        if entry.get("refutes") and entry["paper"]["known"] == "not in the paper"
    ]


@pytest.mark.parametrize("ledger", PAPERS, ids=lambda path: path.parent.name)
def test_every_claim_belongs_to_a_notebook_and_can_fail(ledger):
    for entry in claims.load(ledger):
        assert entry["notebook"] in NAMES
        decided = [profile for profile, rule in entry["accept"].items() if rule is not None]
        assert decided or entry.get("note")  # what nothing decides says why
        for profile in decided:
            assert claims.decide(entry, profile, claims.breaks(entry, profile)) == "FAILS"


def test_no_figure_is_saved_by_two_notebooks():
    owners = {}
    for record in notebook.records(ROOT):
        assert (
            owners.setdefault((record["figure"], record["profile"]), record["notebook"])
            == record["notebook"]
        )
