"""Alphabets without a download, in the form of `omniglot`: letters of matplotlib's fonts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hgcore.data.files import note

FONT_ALPHABETS = {
    "Latin": "abcdefghijklmnopqrstuvwxyz",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "Armenian": "".join(map(chr, range(ord("ա"), ord("ֆ") + 1))),
    "Georgian": "".join(map(chr, range(ord("ა"), ord("ჰ") + 1))),
}
FACES = [
    f"DejaVu{family}{style}.ttf"
    for family, slant in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", f"-{slant}", "-Bold", f"-Bold{slant}")
]
GRAIN = 3  # samples to a side of a pixel


def font_alphabets(alphabets: Sequence[str], drawings=15, side=28) -> list[np.ndarray]:
    """One array (characters, drawings, side * side) float64 per alphabet: ink 1, paper 0.

    Drawing d has face d modulo 12, and its own turn, slant, size and place. Outlines
    are taken in whole font units, unhinted, so that no version of FreeType matters. A sample that
    falls on an outline may still differ between machines. `used()` tells what was drawn.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    if unknown := [name for name in alphabets if name not in FONT_ALPHABETS]:
        raise ValueError(f"no font alphabet {unknown}; there are {', '.join(FONT_ALPHABETS)}")
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    fonts = [FT2Font(str(folder / face)) for face in FACES[:drawings]]
    return [_drawn(name, fonts, drawings, side) for name in alphabets]


def _drawn(name: str, fonts: list, drawings: int, side: int) -> np.ndarray:
    number, characters = list(FONT_ALPHABETS).index(name), FONT_ALPHABETS[name]
    ink = np.empty((len(characters), drawings, GRAIN * side, GRAIN * side), bool)
    for c, d in np.ndindex(ink.shape[:2]):
        rng = np.random.default_rng([number, c, d])
        ink[c, d] = _ink(fonts[d % len(fonts)], characters[c], rng, GRAIN * side)
    sha256 = hashlib.sha256(np.packbits(ink).tobytes()).hexdigest()
    note(f"font alphabet {name} {ink.shape}", sha256)
    samples = ink.reshape(*ink.shape[:2], side, GRAIN, side, GRAIN)
    return samples.mean(axis=(3, 5)).reshape(*ink.shape[:2], side * side)


def _ink(font, character: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """The letter on n x n samples, turned and slanted by up to 0.25, 0.55 to 0.8 of the picture
    long, off the middle by up to 0.06.
    """
    from matplotlib.ft2font import LoadFlags
    from matplotlib.path import Path as Outline

    font.load_char(ord(character), flags=LoadFlags.NO_SCALE)
    vertices, codes = font.get_path()
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2) / (high - low).max()
    turn, slant, size = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(0.55, 0.8)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    spun = rotation @ np.array([[1, slant], [0, 1]])
    place = 0.5 + rng.uniform(-0.06, 0.06, 2)
    # in units of samples, in which matplotlib follows curves closely enough; rows count downwards,
    # fonts upwards
    contours = Outline((vertices @ (size * spun * [[1], [-1]]).T + place) * n, codes).to_polygons()
    samples = np.stack(np.meshgrid(*2 * [np.arange(n) + 0.5]), axis=-1).reshape(-1, 2)
    crossed = sum(Outline(contour).contains_points(samples).astype(int) for contour in contours)
    return (crossed % 2 == 1).reshape(n, n)  # a hole lies inside two
