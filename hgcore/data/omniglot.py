"""Omniglot: the letters of fifty alphabets, each drawn by twenty people (Lake, Salakhutdinov and
Tenenbaum 2015).
"""

import io
import zipfile
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from hgcore.data.files import FILES, DataError, File, fetch

_LAKE = (
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    "https://github.com/brendenlake/omniglot/raw/master/python/",
)
_PACKED = (
    "https://raw.githubusercontent.com/bitsandscraps/omniglot/9514cfd6780ed78e96a4d88bae8c85f3ee31359e/",
)
FILES.update(
    {
        "omniglot/images_background_small1.zip": File(
            "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4", 1319022, _LAKE
        ),
        "omniglot/images_background_small2.zip": File(
            "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f", 1580917, _LAKE
        ),
        "omniglot/images_background.zip": File(
            "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640", 9464212, _LAKE
        ),
        "omniglot/images_evaluation.zip": File(
            "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee", 6462886, _LAKE
        ),
        "omniglot/images_background.npz": File(
            "8bf84167413cd00beacdce3fe582f780ab538d8dbef043a6d688f2527bbce199", 3340794, _PACKED
        ),
        "omniglot/images_evaluation.npz": File(
            "0b84c7ffd94c4841c0040e529c86a82eaaccb986d8eadad5673f7991b7475276", 2415269, _PACKED
        ),
    }
)
SIDE, DRAWINGS = 105, 20
# Characters of each alphabet, in the order of the original numbers: thirty alphabets "background",
# then twenty "evaluation".
OMNIGLOT = {
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Syriac_(Estrangelo)": 23,
    "Anglo-Saxon_Futhorc": 29,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Japanese_(hiragana)": 52,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Malay_(Jawi_-_Arabic)": 40,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Alphabet_of_the_Magi": 20,
    "Mkhedruli_(Georgian)": 41,
    "Burmese_(Myanmar)": 34,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Tagalog": 17,
    "Tifinagh": 55,
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Syriac_(Serto)": 23,
    "Sylheti": 28,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
FIRST = dict(
    zip(OMNIGLOT, accumulate(OMNIGLOT.values(), initial=0), strict=False)
)  # the number of its first character, from 0
BACKGROUND = list(OMNIGLOT)[:30]
SMALL = {
    "small1": ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"],
    "small2": ["Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"],
}


def omniglot(
    alphabets: Sequence[str], drawings: int = 15, side: int = 28, packed: bool = False
) -> list[np.ndarray]:
    """One array (characters, drawings, side * side) float64 per alphabet: ink 1, paper 0, the first
    `drawings` of 20.

    The originals, 105 x 105 of one bit, are averaged over the areas of the new pixels: each is a
    whole number of parts of ink, divided once, the same on every machine. packed reads the same
    pixels from the npz files instead of the official zips.
    """
    if unknown := [name for name in alphabets if name not in OMNIGLOT]:
        raise ValueError(
            f"Omniglot has no alphabet {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(OMNIGLOT)}"
        )
    if not 1 <= drawings <= DRAWINGS or not 1 <= side <= SIDE:
        raise ValueError(
            f"drawings must lie in 1..{DRAWINGS} and side in 1..{SIDE}, got {drawings} and {side}"
        )
    return [shrunk(_inked(name, packed)[:, :drawings], side) for name in alphabets]


def shrunk(ink: np.ndarray, side: int) -> np.ndarray:
    """Pictures (..., n, n) of ones and zeros as (..., side * side), every new pixel the mean of the
    area it covers.
    """
    n = ink.shape[-1]
    old, new = (
        np.arange(n) * side,
        np.arange(side) * n,
    )  # in units of 1/(n side) of the picture's width
    overlaps = np.minimum(old + side, new[:, None] + n) - np.maximum(old, new[:, None])
    parts = np.maximum(overlaps, 0).astype(
        float
    )  # (side, n) whole numbers: sums are exact in any order
    return (parts @ ink.astype(float) @ parts.T / n**2).reshape(*ink.shape[:-2], side * side)


def _inked(alphabet: str, packed: bool) -> np.ndarray:
    """The alphabet as bool (characters, 20, 105, 105), True where there is ink."""
    name = f"omniglot/images_{_part(alphabet, packed)}.{'npz' if packed else 'zip'}"
    try:
        ink = (_from_npz if packed else _from_zip)(fetch(name), alphabet)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} holds no drawings of {alphabet} ({error})") from error
    if ink.shape != (OMNIGLOT[alphabet], DRAWINGS, SIDE, SIDE):
        raise DataError(
            f"{name} holds {alphabet} as {ink.shape}, "
            f"expected {(OMNIGLOT[alphabet], DRAWINGS, SIDE, SIDE)}"
        )
    return ink


def _part(alphabet: str, packed: bool) -> str:
    """The smallest file with this alphabet: background_small1, background_small2, background or
    evaluation.
    """
    if alphabet not in BACKGROUND:
        return "evaluation"
    small = [
        f"background_{part}" for part, names in SMALL.items() if alphabet in names and not packed
    ]
    return (small or ["background"])[0]


def _from_zip(content: bytes, alphabet: str) -> np.ndarray:
    from matplotlib.image import imread

    with zipfile.ZipFile(
        io.BytesIO(content)
    ) as archive:  # <set>/<alphabet>/character<k>/<number>_<drawing>.png: both padded
        names = sorted(
            name
            for name in archive.namelist()
            if name.split("/")[1] == alphabet and name.endswith(".png")
        )
        pictures = [imread(io.BytesIO(archive.read(name)), format="png") == 0 for name in names]
    return np.array(pictures).reshape(-1, DRAWINGS, SIDE, SIDE)


def _from_npz(content: bytes, alphabet: str) -> np.ndarray:
    first = FIRST[alphabet] - (0 if alphabet in BACKGROUND else FIRST["Angelic"])
    with np.load(io.BytesIO(content)) as arrays:  # 213 MB for a moment
        return ~arrays["images"][first : first + OMNIGLOT[alphabet]]
