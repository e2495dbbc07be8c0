"""The library as a whole: examples in docstrings, what importing it loads, how its files depend."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hgcore as hg

FOLDER = Path(hg.__file__).parent
INSIDE = FOLDER, FOLDER / "checks", FOLDER / "modules"
FILES = [p for folder in INSIDE for p in folder.glob("*.py") if not p.stem.startswith("__")]
MODULES = sorted(".".join(p.relative_to(FOLDER).with_suffix("").parts) for p in FILES)
ABOVE = {"fast", "suite", "data", "papers", "benchmarks"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"hgcore.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "hg": hg})
    assert found.failed == 0


def test_import_loads_the_library_alone():
    """In a new process; torch and autograd are imported when a backend is first used."""
    heavy = "torch autograd numba matplotlib seaborn yaml pooch papermill dask jax tqdm".split()
    code = f"import sys, hgcore; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def imports(name: str) -> set[str]:
    """Return the modules of the library that a module imports at its top."""
    found = set()
    for node in ast.parse((FOLDER / f"{name.replace('.', '/')}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hgcore"):
            inside = node.module.removeprefix("hgcore").removeprefix(".")
            names = {f"{inside}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= names & set(MODULES) or {inside or "hgcore"}
    return found


def test_no_import_goes_in_circles_or_up():
    graph = {name: imports(name) for name in MODULES}
    assert not [name for name in MODULES if {x.split(".")[0] for x in graph[name]} & ABOVE]
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}
