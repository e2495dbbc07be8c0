"""Omniglot: the characters of fifty alphabets, each drawn by twenty people (Lake et al. 2015).

In the form of the data file of Maclaurin et al. (2015).
"""

import io
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from hgcore.data.files import fetch

SIDE, DRAWINGS = 105, 20
# Characters of each alphabet, in the order of the original numbers: thirty alphabets "background",
# then twenty "evaluation".
_CHARACTERS = """
Arcadian=26  Armenian=41  Asomtavruli_(Georgian)=40  Balinese=24  Bengali=46
Blackfoot_(Canadian_Aboriginal_Syllabics)=14  Braille=26  Cyrillic=33  Early_Aramaic=22
Syriac_(Estrangelo)=23  Anglo-Saxon_Futhorc=29  Futurama=26  Grantha=43  Greek=24  Gujarati=48
Hebrew=22  Japanese_(hiragana)=52  Inuktitut_(Canadian_Aboriginal_Syllabics)=16
Malay_(Jawi_-_Arabic)=40  Japanese_(katakana)=47  Korean=40  Latin=26  Alphabet_of_the_Magi=20
Mkhedruli_(Georgian)=41  Burmese_(Myanmar)=34  N_Ko=33
Ojibwe_(Canadian_Aboriginal_Syllabics)=14  Sanskrit=42  Tagalog=17  Tifinagh=55  Angelic=20
Atemayar_Qelisayer=26  Atlantean=26  Aurek-Besh=26  Avesta=26  Ge_ez=26  Glagolitic=45
Gurmukhi=45  Kannada=41  Keble=26  Malayalam=47  Manipuri=40  Mongolian=30
Old_Church_Slavonic_(Cyrillic)=45  Oriya=46  Syriac_(Serto)=23  Sylheti=28  Tengwar=25
Tibetan=42  ULOG=26
"""
OMNIGLOT = {name: int(n) for name, n in (pair.split("=") for pair in _CHARACTERS.split())}
FIRST = dict(zip(OMNIGLOT, accumulate(OMNIGLOT.values(), initial=0), strict=False))
BACKGROUND = FIRST["Angelic"]  # characters in the first file


def omniglot(alphabets: Sequence[str], drawings: int = 15, side: int = 28) -> list[np.ndarray]:
    """Return an array (characters, drawings, side * side) per alphabet: ink 1, paper 0.

    The first `drawings` of 20, transposed, made smaller by `imresize` and clipped to 0..1: so are
    the pictures of chardata.mat (15 drawings, 28 x 28), the file of Maclaurin et al. (2015).
    """
    if unknown := [name for name in alphabets if name not in OMNIGLOT]:
        raise ValueError(f"Omniglot has no alphabet {unknown}; it has {', '.join(OMNIGLOT)}")
    if not 1 <= drawings <= DRAWINGS or not 1 <= side <= SIDE:
        given = f"got {drawings} and {side}"
        raise ValueError(f"drawings must lie in 1..{DRAWINGS} and side in 1..{SIDE}, {given}")
    inks = [_ink(name)[:, :drawings].swapaxes(2, 3).astype(float) for name in alphabets]
    return [np.clip(imresize(ink, side), 0, 1).reshape(*ink.shape[:2], -1) for ink in inks]


def imresize(pictures: np.ndarray, side: int) -> np.ndarray:
    """Return pictures (..., n, n) as (..., side, side), as MATLAB's imresize: bicubic, antialiased.

    Pillow's BICUBIC differs near the frame, where MATLAB mirrors the picture.
    """
    rows = cubic_weights(pictures.shape[-1], side)
    return rows @ pictures @ rows.T


def cubic_weights(n: int, side: int) -> np.ndarray:
    """Return the matrix (side, n) of `imresize`: Keys' cubic, a = -1/2, n / side >= 1 wide."""
    scale = n / side
    centers = (np.arange(side) + 0.5) * scale - 0.5
    first = np.floor(centers - 2 * scale).astype(int)
    near = first[:, None] + np.arange(int(np.ceil(4 * scale)) + 2)
    x = abs(centers[:, None] - near) / scale
    inner, outer = 1 + x**2 * (1.5 * x - 2.5), 2 + x * (-4 + x * (2.5 - 0.5 * x))
    weights = np.where(x <= 1, inner, np.where(x <= 2, outer, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    period = near % (2 * n)  # mirrored beyond the frame, the outermost pixel twice
    matrix = np.zeros((side, n))
    np.add.at(matrix, (np.arange(side)[:, None], np.minimum(period, 2 * n - 1 - period)), weights)
    return matrix


def _ink(alphabet: str) -> np.ndarray:
    """Return the alphabet as bool (characters, 20, 105, 105), True where there is ink."""
    first, size = FIRST[alphabet], OMNIGLOT[alphabet]
    part, offset = ("background", 0) if first < BACKGROUND else ("evaluation", BACKGROUND)
    name = f"omniglot/images_{part}.npz"
    with np.load(io.BytesIO(fetch(name))) as arrays:  # 213 MB for a moment
        return ~arrays["images"][first - offset : first - offset + size]
