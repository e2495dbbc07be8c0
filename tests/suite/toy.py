"""Tiny notebooks in a root of their own (they need matplotlib and hgcore, no torch and no solver), and a figure."""

import hashlib
import json

import matplotlib.pyplot as plt
import numpy as np

from hgcore.suite import claims, figures, notebook

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PARAMETERS = """profile: str = "quick"
backend: str = "torch"
device: str = "cpu"
seed: int = 0
overrides: dict = {}"""
SETUP = """import sys, types
sys.modules["seaborn"] = types.SimpleNamespace(set_theme=lambda **_: None)  # 2 s less for each kernel
from matplotlib.figure import Figure
from hgcore.suite import claims, figures, profiles
run = profiles.start("{name}", profile=profile, backend=backend, device=device, seed=seed, overrides=overrides,
                     quick=dict(steps=5, rate=0.1), paper=dict(steps=50, rate=0.1))"""
FIGURE = """fig = Figure()
fig.subplots().plot([1, 2], [3, 4])
figures.save(run, "{figure}", fig, {{"line": dict(x=[1, 2], y=[3, 4], xlabel="x", ylabel="y")}})"""
CLAIM = """- id: {figure}.small
  notebook: {name}
  figure: {figure}
  statement: "The loss $L_T$ of {figure} is small | always."
  place: "Section 1"
  paper: {{value: 0.5, known: "read off a plot"}}
  accept: {{quick: {{max: 1.0}}, paper: {{max: 1.0}}}}
"""


def root(folder):
    """An empty repository."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "toy"\nversion = "0"\n')
    (folder / "README.md").write_text("# Toy\n\n<!-- table -->\n<!-- /table -->\n\nThe end.\n")
    return folder


def cell(kind, name, source, tags=()):
    made = {
        "cell_type": kind,
        "id": name,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source,
    }
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def add(root, name, middle="x = 1"):
    """Write notebooks/<name>.ipynb, whose figure is called like it and whose one claim holds; `middle` is its compute cell."""
    figure = name.rpartition("/")[2]
    cells = [cell("markdown", "title", f"# Toy: $\\frac{{1}}{{2}}$ of {figure}"), cell("code", "parameters", PARAMETERS, ["parameters"]),
             cell("code", "setup", SETUP.format(name=name)), cell("code", "compute", middle),
             cell("code", "figure", FIGURE.format(figure=figure)), cell("code", "claims", f'claims.check(run, {{"{figure}.small": 0.25}})')]  # fmt: skip
    file = notebook.path(name, root)
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})
    )
    ledger = claims.ledger(name, root)
    if not claims.entries(name, root):
        ledger.write_text(
            (ledger.read_text() if ledger.exists() else "") + CLAIM.format(name=name, figure=figure)
        )


def edit(root, name, cell_id, source):
    file = notebook.path(name, root)
    nb = json.loads(file.read_text())
    next(cell for cell in nb["cells"] if cell["id"] == cell_id)["source"] = source
    file.write_text(json.dumps(nb))


def record(root, name, profile, verdict="HOLDS", measured=0.25):
    """Write the figure and the record that a run of a toy would leave, in no time."""
    figure = name.rpartition("/")[2]
    folder = notebook.destination(name, profile, {}, root)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        (folder / f"{figure}.{suffix}").write_bytes(b"picture")
    own = [{field: entry[field] for field in ("id", "statement", "place", "paper")} | {"accept": entry["accept"][profile], "note": None}
           for entry in claims.entries(name, root)]  # fmt: skip
    full = f"{notebook.paper(name)}/{figure}"
    made = {"figure": full, "siblings": [full], "notebook": name, "profile": profile, "backend": "torch", "device": "cpu", "device_name": "a chip",
            "dtype": "float64", "seed": 0, "overrides": {}, "seconds": 12.3, "key": notebook.key(name, profile, "torch", "cpu", 0, {}, root),
            "products": {suffix: hashlib.sha256(b"picture").hexdigest() for suffix in ("png", "pdf")},
            "claims": [claim | {"verdict": verdict, "measured": measured} for claim in own]}  # fmt: skip
    (folder / f"{figure}.json").write_text(json.dumps(made))


def drawn(noise=None):
    """A figure of one curve, over a picture of `noise` if given."""
    fig, axes = plt.subplots()
    axes.plot([0, 1, 2], [1.0, 0.5, 0.25], **figures.styles(1)[0], label="a curve")
    if noise is not None:
        axes.imshow(noise, extent=(0, 2, 0, 1), cmap="gray")
    axes.set(xlabel="step", ylabel="loss $x^2$")
    return fig


SERIES = {
    "curve": {
        "x": np.arange(3),
        "y": np.array([1, np.nan, 1 / 3]),
        "xlabel": "step",
        "ylabel": "loss",
    }
}
