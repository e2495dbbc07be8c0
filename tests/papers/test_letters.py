"""Omniglot is what its files say, in both forms; font alphabets have the same form and need no file."""

import io
import os
import sys
import zipfile
from itertools import product

import numpy as np
import pytest
from PIL import Image

from hgcore import data
from hgcore.data import files

letters = sys.modules["hgcore.data.omniglot"]  # its function hides it

MIRROR = os.environ.get("HGCORE_DATA_MIRROR")
real = pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    monkeypatch.setattr(files, "_used", {})
    return tmp_path


@pytest.fixture
def tiny(cache, monkeypatch):
    """An archive of one alphabet of two characters, and an npz of the same; the drawings as bool (2, 20, 105, 105)."""
    monkeypatch.setattr(letters, "OMNIGLOT", {"Runes": 2, "Angelic": 1})
    monkeypatch.setattr(letters, "FIRST", {"Runes": 0, "Angelic": 2})
    monkeypatch.setattr(letters, "BACKGROUND", ["Runes"])
    ink = np.random.default_rng(0).random((2, 20, 105, 105)) < 0.1
    keep(
        cache, monkeypatch, "omniglot/images_background.zip", archive({"Runes": ink, "Other": ~ink})
    )
    arrays = io.BytesIO()
    np.savez_compressed(arrays, images=~ink)
    keep(cache, monkeypatch, "omniglot/images_background.npz", arrays.getvalue())
    return ink


def keep(folder, monkeypatch, name, content):
    monkeypatch.setitem(
        files.FILES,
        name,
        data.File(
            files.hashlib.sha256(content).hexdigest(), len(content), ("http://one.invalid/",)
        ),
    )
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def archive(alphabets):
    """A zip of PNG pictures of one bit, black on white, laid out as Omniglot's; members in no order."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for (name, ink), c, d in product(alphabets.items(), (1, 0), reversed(range(20))):
            picture = io.BytesIO()
            Image.fromarray(~ink[c, d]).save(picture, "PNG")
            packed.writestr(
                f"images_background/{name}/character{c + 1:02}/{c + 1:04}_{d + 1:02}.png",
                picture.getvalue(),
            )
    return content.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_drawings_come_in_order_and_ink_is_one(tiny, packed):
    (full,) = data.omniglot(["Runes"], drawings=20, side=105, packed=packed)
    assert full.dtype == np.float64 and np.array_equal(full, tiny.reshape(2, 20, -1))
    (few,) = data.omniglot(["Runes"], drawings=3, side=28, packed=packed)
    assert few.shape == (2, 3, 784) and np.array_equal(few, letters.shrunk(tiny[:, :3], 28))
    assert list(data.used()) == [f"omniglot/images_background.{'npz' if packed else 'zip'}"]


def test_a_small_picture_is_the_mean_of_the_areas():
    ink = np.random.default_rng(1).random((5, 105, 105)) < 0.3
    fine = np.kron(
        ink, np.ones((4, 4))
    )  # 420 = 28 * 15: every new pixel is a whole number of these
    mean = fine.reshape(5, 28, 15, 28, 15).sum(axis=(2, 4)) / 225
    assert np.array_equal(letters.shrunk(ink, 28), mean.reshape(5, 784))
    assert np.array_equal(letters.shrunk(ink, 1), ink.sum(axis=(1, 2))[:, None] / 105**2)


def test_refusals_name_what_there_is(tiny, cache):
    with pytest.raises(ValueError, match="no alphabet 'Klingon'; it has Runes, Angelic"):
        data.omniglot(["Runes", "Klingon"])
    with pytest.raises(
        ValueError, match=r"drawings must lie in 1..20 and side in 1..105, got 21 and 28"
    ):
        data.omniglot(["Runes"], drawings=21)
    with pytest.raises(ValueError, match="no font alphabet 'Klingon'; there are Latin, "):
        data.font_alphabets(["Klingon"])
    path = cache / "omniglot/images_background.zip"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(data.DataError, match="is altered: expected .* bytes with sha256"):
        data.omniglot(["Runes"])


@pytest.mark.parametrize(
    "alphabets",
    [{"Other": np.zeros((2, 20, 105, 105), bool)}, {"Runes": np.zeros((2, 20, 30, 30), bool)}],
)
def test_an_archive_with_other_drawings_is_refused(tiny, cache, monkeypatch, alphabets):
    keep(cache, monkeypatch, "omniglot/images_background.zip", archive(alphabets))
    with pytest.raises(data.DataError, match="images_background.zip holds"):
        data.omniglot(["Runes"])


def test_the_smallest_file_with_an_alphabet_is_taken():
    found = {
        name: letters._part(name, packed=False) for name in ("Greek", "Tagalog", "Hebrew", "ULOG")
    }
    assert found == {
        "Greek": "background_small1",
        "Tagalog": "background_small2",
        "Hebrew": "background",
        "ULOG": "evaluation",
    }
    assert letters._part("Greek", packed=True) == "background"
    assert (len(letters.OMNIGLOT), sum(letters.OMNIGLOT.values()), letters.FIRST["Angelic"]) == (
        50,
        1623,
        964,
    )


@real
def test_both_forms_of_the_real_set_agree(cache):
    names = ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]
    zipped, packed = (data.omniglot(names, packed=form) for form in (False, True))
    assert [len(alphabet) for alphabet in zipped] == [24, 22, 24, 40, 26]
    assert all(np.array_equal(a, b) for a, b in zip(zipped, packed, strict=True))
    assert list(data.used()) == [
        "omniglot/images_background.npz",
        "omniglot/images_background_small1.zip",
    ]
    assert len(data.omniglot(["ULOG"], packed=True)[0]) == 26


def test_font_alphabets(cache):
    names = list(data.FONT_ALPHABETS)
    alphabets = data.font_alphabets(names, drawings=13, side=14)
    assert [alphabet.shape for alphabet in alphabets] == [
        (n, 13, 196) for n in (26, 24, 32, 38, 33)
    ]
    for alphabet in alphabets:
        assert np.array_equal(np.round(alphabet * 9), alphabet * 9)  # nine samples to a pixel
        assert 0.03 < alphabet.mean(axis=-1).min() and alphabet.mean(axis=-1).max() < 0.45
        assert (
            len(np.unique(alphabet.reshape(-1, 196), axis=0)) == alphabet[..., 0].size
        )  # no two drawings alike
    assert np.array_equal(
        data.font_alphabets(["Greek"], drawings=2, side=14)[0], alphabets[1][:, :2]
    )
    assert len(data.used()) == 6


def test_a_letter_has_its_holes():
    picture = data.font_alphabets(["Latin"], drawings=1, side=28)[0][
        "abcdefghijklmnopqrstuvwxyz".index("o"), 0
    ].reshape(28, 28)
    inside = np.argwhere(picture > 0).mean(axis=0).round().astype(int)
    assert picture[tuple(inside)] == 0 and picture.sum(axis=0).max() > 2
