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
FILES = [file for part in (".", "checks", "modules") for file in FOLDER.glob(f"{part}/[a-z]*.py")]
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


def test_no_import_goes_up():
    """At the top of a file."""
    folders = "fast|suite|data|papers|benchmarks"
    up = re.compile(rf"^(from|import) hgcore(\.| import .*\b)({folders})\b", re.M)
    assert not [name for name, path in MODULES.items() if up.search(path.read_text())]
