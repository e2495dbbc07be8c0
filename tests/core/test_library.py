"""The library as a whole: examples in docstrings, what importing it loads, how its files depend."""

import doctest
import importlib
import re
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


def test_the_library_imports_nothing_above_it():
    above = re.compile(r"^(from|import) hgcore\.(fast|suite|data|papers|benchmarks)", re.MULTILINE)
    assert not [path for path in FILES if above.search(path.read_text())]
