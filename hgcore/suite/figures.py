"""How figures look, and how they are kept: PNG and PDF with the same bytes on every run, and the
numbers that were drawn.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgcore.checkpoint import write_atomically

COLUMN, PAGE = 3.25, 6.75  # inches: one column, the full page
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI, LIMIT = 200, 200_000  # of a PNG: dots an inch, bytes
FORMS = ({"x", "y"}, {"image"}, {"values"})

RC = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
    "figure.figsize": (COLUMN, 2.4),
    "savefig.dpi": DPI,
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same letters on every machine
    "pdf.fonttype": 42,
    "svg.hashsalt": "hgcore",
}


class Saved(NamedTuple):
    """A figure on disk: sha256 by suffix, and the series as they stand in the record."""

    products: dict[str, str]
    series: dict[str, dict]


def write(path: Path, data: bytes) -> str:
    """Put `data` at `path`, whole or not at all, folders made; return its sha256."""
    write_atomically(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def use() -> None:
    """Set the suite's style for every figure made from here on."""
    import matplotlib
    import seaborn  # 2 s: only here

    seaborn.set_theme(context="paper", style="ticks", palette=list(PALETTE))
    matplotlib.rcParams.update(RC)


def styles(n: int) -> list[dict[str, str]]:
    """n keyword sets for `plot`: told apart by colour, and without colour by dash and marker.

    All differ for n <= 28.

    For long curves add `markevery`, so that the markers stay few.
    """
    return [
        dict(color=PALETTE[i % 7], linestyle=LINESTYLES[i % 4], marker=MARKERS[i % 7])
        for i in range(n)
    ]


def save(run, figure: str, fig, series: dict[str, dict]) -> None:
    """Write figure.png and figure.pdf to run.destination; keep `series`, the plotted numbers, for
    the record.

    A series is {x, y}, {image} (2-D) or {values}, with labels and further arrays as needed.
    claims.check writes the record.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", figure):
        raise ValueError(
            f"a figure's name is letters, digits, _ and -, without its paper: got {figure!r}"
        )
    kept = {
        name: _entry(f"series {name!r} of figure {figure!r}", fields)
        for name, fields in series.items()
    }
    products = {
        "png": write(run.destination / f"{figure}.png", _png(fig)),
        "pdf": write(run.destination / f"{figure}.pdf", _pdf(fig)),
    }
    run.figures[figure] = Saved(products, kept)


def _png(fig) -> bytes:
    dpi = DPI
    while (
        len(
            data := _render(
                fig,
                format="png",
                dpi=dpi,
                metadata={"Software": None},
                pil_kwargs={"optimize": True},
            )
        )
        >= LIMIT
    ):
        dpi *= 0.8
    return data


def _pdf(fig) -> bytes:
    return _render(
        fig, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None}
    )


def _render(fig, **options) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, **options)
    return buffer.getvalue()


def _entry(where: str, fields: dict) -> dict:
    form = next((form for form in FORMS if form <= set(fields)), None)
    if form is None:
        raise ValueError(f"{where} needs x and y, or image, or values; got {sorted(fields)}")
    kept = {name: rounded(value) for name, value in fields.items()}
    if form == {"x", "y"} and np.shape(fields["x"])[:1] != np.shape(fields["y"])[:1]:
        raise ValueError(
            f"{where}: x and y must be as long as each other, "
            f"got shapes {np.shape(fields['x'])} and {np.shape(fields['y'])}"
        )
    if form == {"image"} and np.ndim(fields["image"]) != 2:
        raise ValueError(
            f"{where}: an image is 2-D, got shape {np.shape(fields['image'])}; "
            "give several images as several series"
        )
    return kept


def rounded(value):
    """`value` (number, text, array of either) as JSON can hold it: floats to 10 significant digits,
    NaN and infinities as None.
    """
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "biuU":
        return array.tolist()
    flat = [_digits(number) for number in array.astype(float).ravel().tolist()]
    return np.array([*flat, None], dtype=object)[:-1].reshape(array.shape).tolist()


def _digits(number: float) -> float | None:
    return float(f"{number:.10g}") + 0.0 if np.isfinite(number) else None  # + 0.0: no signed zero
