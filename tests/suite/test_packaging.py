"""One source of truth for what is installed, and the rules that every notebook keeps."""

import ast
import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from hgcore.suite import claims, notebooks

ROOT = Path(__file__).parents[2]
CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
NAMES = [name for name in notebooks.discover(ROOT) if not name.startswith("own/")]
LEDGER = claims.ledger(ROOT)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|Users|usr|opt)/|[A-Z]:\\\\")
PARAMETERS = """profile: str = "quick"
backend: str = "torch"
device: str = "cpu"
seed: int = 0
overrides: dict = {}"""


def requirements(*without: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [x for name, x in project["optional-dependencies"].items() if name not in without]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines)


def test_conda_and_pip_agree():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [entry for entry in entries if isinstance(entry, str) and ">=" in entry]
    conda = dict(entry.split(" >=") for entry in lines)
    conda.pop("python")
    pip = requirements("peers", "docs").items()  # those come by pip
    assert conda == {CONDA.get(name, name): bound for name, bound in pip}


def test_constraints_pin_every_requirement():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert set(requirements()) <= {name.lower().replace("_", "-") for name in pins}
    assert not [version for version in pins.values() if "+" in version]  # of PyTorch's index only


def test_nbval_sees_every_rule():
    from nbval.plugin import get_sanitize_patterns

    assert len(get_sanitize_patterns((ROOT / "nbval_sanitize.cfg").read_text())) == 8


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_committed_whole(name):
    """Normalized, valid, executed in order without errors, small, with a figure and claims."""
    file = notebooks.path(name, ROOT)
    nb = notebooks.read(name, ROOT)
    nbformat.validate(nbformat.from_dict(nb))
    assert notebooks.normalized(nb) == nb
    cells = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert file.stat().st_size < 1_000_000 and not MACHINE_PATH.search(file.read_text())
    assert LEDGER[name]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_form(name):
    """The same parameters, ids that differ, no long line."""
    nb = json.loads(notebooks.path(name, ROOT).read_text())
    first = next(c for c in nb["cells"] if "parameters" in notebooks.tags(c))
    assert re.sub(" *#.*", "", "".join(first["source"])) == PARAMETERS
    ids = [cell["id"] for cell in nb["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]+", i) for i in ids)
    for source in notebooks.code(name, ROOT):
        assert max(map(len, source.splitlines())) <= 100


def test_notebook_functions_are_short():
    """At most ten lines; eight older ones are longer."""
    long = []
    for name in NAMES:
        for node in ast.walk(ast.parse("\n".join(notebooks.code(name, ROOT)))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 10:
                long.append((name, node.name))
    assert len(long) <= 8, long


def test_suite_checks_are_few():
    kinds = [entry["kind"] for entries in LEDGER.values() for entry in entries]
    assert kinds.count("suite") <= 60


def test_undecided_claims_say_why():
    for entries in LEDGER.values():
        for entry in entries:
            assert any(entry["accept"].values()) or entry.get("note"), entry["id"]
