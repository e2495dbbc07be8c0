"""The library as a whole: examples in docstrings, what importing it loads, how its files depend."""

import ast
import doctest
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hgcore as hg

FOLDER = Path(hg.__file__).parent
FILES = [
    *FOLDER.glob("[a-z]*.py"),
    *FOLDER.glob("checks/[a-z]*.py"),
    *FOLDER.glob("modules/[a-z]*.py"),
]
MODULES = {".".join(p.relative_to(FOLDER).with_suffix("").parts): p for p in FILES}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"hgcore.{name}")
    assert not doctest.testmod(module, extraglobs={"np": np, "hg": hg}).failed


def test_import_loads_the_library_alone():
    """In a new process; torch and autograd are imported when a backend is first used."""
    heavy = "torch autograd numba matplotlib seaborn yaml pooch papermill dask jax tqdm".split()
    code = f"import sys, hgcore; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_no_import_goes_in_circles_or_up():
    """At the top of a file."""
    graph = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("hgcore"):
                inside = node.module.removeprefix("hgcore").removeprefix(".")
                names = {f"{inside}.{alias.name}".removeprefix(".") for alias in node.names}
                graph[name] |= names & set(MODULES) or {inside or "hgcore"}
    needed = {need.split(".")[0] for needs in graph.values() for need in needs}
    assert not needed & {"fast", "suite", "data", "papers", "benchmarks"}
    graphlib.TopologicalSorter(graph).prepare()  # raises for a circle
