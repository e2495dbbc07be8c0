"""A toy repository: notebooks that need matplotlib and hgcore, no torch and no solver."""

import hashlib
import json
import time

import pytest

from hgcore import suite
from hgcore.suite import cli, notebooks, session

CELLS = {
    "parameters": """profile: str = "quick"
backend: str = "torch"
device: str = "cpu"
seed: int = 0
overrides: dict = {}""",
    "setup": """from matplotlib.figure import Figure
from hgcore import suite
run = suite.start("toy/NAME", profile, backend, device, seed, overrides,
                  quick=dict(steps=5, sizes=[1, 2]), paper=dict(steps=50, sizes=[1, 2]))""",
    "compute": "value = 0.25",
    "figure": """fig = Figure()
fig.subplots().plot([1, 2], [3, value], label="line")
suite.save(run, "NAME", fig)""",
    "claims": 'suite.check(run, {"NAME.small": value})',
}
CLAIM = """- id: NAME.small
  kind: paper
  notebook: toy/NAME
  figure: NAME
  statement: "The loss $L_T$ of NAME is at most one | always."
  place: "Section 1"
  paper: {value: 0.5, known: "read off a plot"}
  accept: {quick: {max: 1.0}, paper: {max: 1.0}}
"""


class Toy:
    """A repository in `root` and what tests do to it."""

    cells = CELLS

    def __init__(self, root):
        self.root = root
        (root / "notebooks/toy").mkdir(parents=True)
        (root / "pyproject.toml").write_text("")
        (root / "README.md").write_text("# Toy\n<!-- results -->\n<!-- end of results -->\nEnd.\n")
        self.ledger = root / "notebooks/toy/claims.yml"

    def add(self, name, **cells):
        """Write a notebook, with other cells where they are given, and its claim."""
        made, code = [], {"outputs": [], "execution_count": None, "cell_type": "code"}
        for kind, source in (CELLS | cells).items():
            source, metadata = source.replace("NAME", name), {"tags": [kind]}
            made.append(code | {"id": kind, "metadata": metadata, "source": source})
        nb = {"cells": made, "metadata": notebooks.METADATA, "nbformat": 4, "nbformat_minor": 5}
        notebooks.path(f"toy/{name}", self.root).write_text(json.dumps(nb))
        text = self.ledger.read_text() if self.ledger.exists() else ""
        if f"id: {name}.small" not in text:
            self.ledger.write_text(text + CLAIM.replace("NAME", name))

    def finish(self, run, measured=0.25, png=b"picture", **series):
        """Give a run its figure, check its claim; return the file of its record in figures/."""
        name, files = run.name.removeprefix("toy/"), {"png": png, "pdf": b"picture"}
        entry = {kind: hashlib.sha256(content).hexdigest() for kind, content in files.items()}
        entry |= {"rtol": 1e-6, "series": {"line": {"x": [1], "y": [2.0]}} | series}
        run.figures[name] = files, entry
        suite.check(run, {f"{name}.small": measured})
        return session.Job(run.name, run.profile).record(self.root)

    def record(self, name, profile="paper", **options):
        """Write the record and pictures that a run of 90 s leaves; return its file."""
        given = {"scale": None, "root": self.root, "clock": time.perf_counter() - 90}
        return self.finish(session.Run(f"toy/{name}", profile, **given, first_input=0), **options)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty toy repository in a path with a space and an umlaut, found as the root."""
    root = tmp_path / "töy root"
    monkeypatch.setenv("HGCORE_ROOT", str(root))
    return Toy(root)


@pytest.fixture
def run(capsys):
    """Return (status, what was printed) of a command line."""

    def call(*arguments):
        capsys.readouterr()
        status = cli.main(arguments)
        return status, "".join(capsys.readouterr())

    return call


@pytest.fixture
def start(toy, monkeypatch):
    """suite.start of the toy notebook; start.executed is what the kernel executed in the end."""
    given = {"name": "toy/one", "profile": "quick", "backend": "torch", "device": "cpu", "seed": 0}
    given |= {"overrides": {}, "quick": {"steps": 5, "rate": 0.1, "sizes": [1], "label": None}}
    given |= {"paper": {"steps": 50, "rate": 1.0, "sizes": [1], "label": "x"}}

    def call(**changed):
        monkeypatch.setattr(session, "inputs", lambda: call.executed[:2])
        run = session.start(**given | changed)
        monkeypatch.setattr(session, "inputs", lambda: call.executed)
        return run

    toy.add("one")
    call.executed = ["seed: int = 0  # base", *notebooks.code("toy/one", toy.root)]
    return call
