"""How figures look, and how they are kept: PNG and PDF, and the numbers that were drawn."""

import hashlib
import io
import re
from pathlib import Path

import numpy as np

COLUMN, PAGE = 3.25, 6.75  # inches: one column, the full page
PALETTE = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()  # Okabe and Ito
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI, LIMIT = 200, 400_000  # of a PNG: dots an inch, bytes
DIGITS = 7  # of the series in a record


def use_style() -> None:
    """Set the style of the suite for every figure made from here on."""
    import matplotlib.style

    matplotlib.style.use(Path(__file__).with_suffix(".mplstyle"))


def styles(n: int) -> list[dict[str, str]]:
    """Return n keyword sets for `plot`, all different in color or marker for n <= 49."""
    return [
        dict(color=PALETTE[i % 7], linestyle=LINESTYLES[i % 4], marker=MARKERS[(i + i // 7) % 7])
        for i in range(n)
    ]


def save(run, figure: str, fig, *, extra: dict | None = None, rtol: float | None = 1e-6) -> None:
    """Keep a figure and the series that it draws, for the record that suite.check writes.

    extra: {name: numbers} that are not drawn. rtol: to which part of its largest magnitude a series
    is the same in a second run on another machine; None for measured times and chaotic runs.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", figure):
        raise ValueError(f"the name of a figure has letters, digits, _ and -, got {figure!r}")
    files = {"png": _png(fig), "pdf": _bytes(fig, "pdf", "CreationDate", "Creator", "Producer")}
    series = drawn(fig) | {name: rounded(x) for name, x in (extra or {}).items()}
    hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}
    run.figures[figure] = files, {**hashes, "rtol": rtol, "series": series}


def drawn(fig) -> dict:
    """Return {"axes: artist": {coordinate: numbers}} of all lines, points, bars and images."""
    found = {}
    for number, axes in enumerate(fig.axes, 1):
        place = axes.get_title() or axes.get_ylabel() or f"axes {number}"
        for artist in axes.get_children():
            label = str(artist.get_label())
            if numbers := _numbers(artist):
                name = f"{place}: {'' if label.startswith('_') else label}".rstrip(": ")
                names = [name, *(f"{name} ({i})" for i in range(2, len(found) + 3))]
                found[next(x for x in names if x not in found)] = numbers
    return found


def _numbers(artist) -> dict:
    if hasattr(artist, "get_data_3d"):
        return dict(zip("xyz", map(rounded, artist.get_data_3d()), strict=True))
    if hasattr(artist, "get_xdata"):
        return {"x": rounded(artist.get_xdata()), "y": rounded(artist.get_ydata())}
    if hasattr(artist, "get_height") and artist.get_label() != "" and hasattr(artist, "get_xy"):
        return {"x": rounded(artist.get_x()), "y": rounded(artist.get_height())}
    if np.ndim(array := getattr(artist, "get_array", lambda: None)()) in (2, 3):
        return {"image": rounded(array)}
    if hasattr(artist, "get_offsets") and len(points := np.atleast_2d(artist.get_offsets())) > 1:
        return {"x": rounded(points[:, 0]), "y": rounded(points[:, 1])}
    return {}


def _png(fig) -> bytes:
    options = {"dpi": DPI, "pil_kwargs": {"optimize": True}}
    while len(content := _bytes(fig, "png", "Software", **options)) >= LIMIT:
        options["dpi"] *= 0.8
    return content


def _bytes(fig, kind: str, *without: str, **options) -> bytes:
    """Return a figure as the bytes of a file, the same each time: `without` changing metadata."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, metadata=dict.fromkeys(without), **options)
    return buffer.getvalue()


def rounded(values):
    """Return numbers, text or an array of either as JSON has it; what is not finite as None."""
    array = np.ma.filled(values, np.nan)
    if array.dtype.kind != "f":
        return array.tolist() if array.dtype.kind in "biuU" else array.astype(str).tolist()
    return np.asarray(np.frompyfunc(_short, 1, 1)(array)).tolist()


def _short(number):
    return float(f"{number:.{DIGITS}g}") + 0.0 if np.isfinite(number) else None  # no signed zero
