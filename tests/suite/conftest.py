"""A toy repository: notebooks that need matplotlib and hgcore, no torch and no solver."""

import hashlib
import json

import pytest

from hgcore.suite import cli, notebooks, session
from hgcore.suite.claims import decide, ledger

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

    def __init__(self, root):
        self.root = root
        (root / "notebooks/toy").mkdir(parents=True)
        (root / "pyproject.toml").write_text("")
        (root / "README.md").write_text("# Toy\n<!-- results -->\n<!-- end of results -->\nEnd.\n")
        self.ledger = root / "notebooks/toy/claims.yml"

    def add(self, name, claim=CLAIM, **cells):
        """Write a notebook, with other cells where they are given, and its claim."""
        made, code = [], {"outputs": [], "execution_count": None, "cell_type": "code"}
        for kind, source in (CELLS | cells).items():
            tags = {"tags": ["parameters"]} if kind == "parameters" else {}
            cell = {"id": kind, "metadata": tags, "source": source.replace("NAME", name)}
            made.append(code | cell)
        nb = {"cells": made, "metadata": notebooks.METADATA, "nbformat": 4, "nbformat_minor": 5}
        notebooks.path(f"toy/{name}", self.root).write_text(json.dumps(nb))
        text = self.ledger.read_text() if self.ledger.exists() else ""
        if f"id: {name}.small" not in text:
            self.ledger.write_text(text + claim.replace("NAME", name))

    def record(self, name, profile="paper", measured=0.25):
        """Write the record and pictures that a run of a toy notebook leaves; return its file."""
        job = session.Job(f"toy/{name}", profile)
        file, (entry,) = job.record(self.root), ledger(self.root)[job.name]
        file.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "pdf"):
            file.with_name(f"{name}.{suffix}").write_bytes(b"picture")
        claim = {"id": entry["id"], "measured": measured}
        claim["verdict"] = decide(entry, profile, measured)
        hashes = dict.fromkeys(("png", "pdf"), hashlib.sha256(b"picture").hexdigest())
        series = {"rtol": 1e-6, "series": {"line": {"x": [1], "y": [2.0]}}}
        key = notebooks.key(job.name, job.parameters, {}, self.root)
        record = {"notebook": job.name, **job.parameters, "key": key, "data": {}, "commit": "abc"}
        record |= {"seconds": 90.0, "device_name": "a chip", "threads": {}, "claims": [claim]}
        record |= {
            "versions": {"hgcore": "0.2.0", "numpy": "2"},
            "figures": {name: hashes | series},
        }
        file.write_text(session.signed(record))
        return file


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
