"""A sample notebook and a sample figure."""

import matplotlib.pyplot as plt
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from hgcore.suite import figures, notebook

NAME = "some2015/fig01"
PARAMETERS = 'profile: str = "quick"  # quick or paper\nseed: int = 0  # base random seed\noverrides: dict = {}  # any name of the table'
SETUP = (
    'import hgcore as hg\nfrom hgcore import suite\nrun = suite.profiles.start("some2015/fig01", profile=profile, seed=seed, overrides=overrides,\n'
    '    quick=dict(steps=3, rate=2**-3, names=["a"]), paper={"steps": 50, "rate": -0.5, "names": ["a", "b"]})'
)


def made(*sources, parameters=PARAMETERS):
    cells = [
        new_markdown_cell("# Title", id="title"),
        new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
    ]
    return new_notebook(
        cells=cells + [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    )


def put(nb, root, name=NAME):
    notebook.write(nb, notebook.path(name, root))


def drawn(noise=None):
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
