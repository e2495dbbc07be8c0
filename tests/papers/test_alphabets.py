"""Omniglot as in the authors' file; font alphabets have the same form and need no file."""

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgcore import data
from hgcore.data import files
from hgcore.data.omniglot import cubic_weights, imresize

module = sys.modules["hgcore.data.omniglot"]  # its function hides it
MIRROR = os.environ.get("HGCORE_DATA_MIRROR")


@pytest.fixture
def keep(monkeypatch, tmp_path):
    """Put drawings into the data file of one alphabet of two characters."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    monkeypatch.setattr(files, "_used", {})
    for name, value in {
        "OMNIGLOT": {"Runes": 2, "Angelic": 1},
        "FIRST": {"Runes": 0, "Angelic": 2},
        "BACKGROUND": 2,
    }.items():
        monkeypatch.setattr(module, name, value)

    def write(ink):
        name, content = "omniglot/images_background.npz", io.BytesIO()
        np.savez_compressed(content, images=~ink)
        sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        monkeypatch.setitem(files.FILES, name, data.File(sha256, content.tell(), ("http://x/",)))
        (tmp_path / "omniglot").mkdir()
        (tmp_path / name).write_bytes(content.getvalue())

    return write


def test_omniglot_drawings(keep):
    """The first drawings, transposed; ink is 1; smaller pictures are clipped to 0..1."""
    ink = np.random.default_rng(0).random((2, 20, 105, 105)) < 0.1
    keep(ink)
    (full,) = data.omniglot(["Runes"], drawings=20, side=105)
    assert np.array_equal(full.reshape(ink.shape), ink.swapaxes(2, 3))
    (few,) = data.omniglot(["Runes"], drawings=3)
    expected = imresize(ink[:, :3].swapaxes(2, 3).astype(float), 28).reshape(2, 3, 784)
    assert np.array_equal(few, np.clip(expected, 0, 1)) and expected.min() < 0
    assert list(data.used()) == ["omniglot/images_background.npz"]


def test_imresize_closed_forms():
    """A constant stays; a ramp stays away from the frame; an outer product of signals factors."""
    assert np.allclose(imresize(np.full((105, 105), 0.3), 28), 0.3, rtol=0, atol=1e-15)
    ramp = cubic_weights(84, 21) @ np.arange(84.0)
    assert np.allclose(ramp[2:-2], 4 * np.arange(21.0)[2:-2] + 1.5, rtol=0, atol=1e-12)
    a, b = np.random.default_rng(0).random((2, 105))
    rows = cubic_weights(105, 28)
    assert np.allclose(imresize(np.outer(a, b), 28), np.outer(rows @ a, rows @ b), atol=1e-15)
    assert np.array_equal(cubic_weights(5, 5), np.eye(5))


def test_imresize_agrees_with_pillow():
    """Away from the frame; Pillow computes in float32."""
    picture = np.random.default_rng(0).random((105, 105))
    image = Image.fromarray(picture.astype(np.float32))
    pillow = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    assert abs(imresize(picture, 28) - pillow)[2:-2, 2:-2].max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 20, 105, 105), (2, 20, 30, 30)])
def test_omniglot_refuses_other_drawings(keep, shape):
    keep(np.ones(shape, bool))
    with pytest.raises(data.DataError, match=r"images_background.npz holds Runes as"):
        data.omniglot(["Runes"])


def test_alphabets_unknown(keep):
    with pytest.raises(ValueError, match="no alphabet 'Klingon'; has Runes, Angelic"):
        data.omniglot(["Runes", "Klingon"])
    with pytest.raises(ValueError, match="no font alphabet 'Klingon'; there are Latin, "):
        data.font_alphabets(["Klingon"])
    with pytest.raises(ValueError, match=r"drawings must lie in 1..20 .* got 21 and 28"):
        data.omniglot(["Runes"], drawings=21)


@pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")
def test_omniglot_equals_the_official_pictures(tmp_path, monkeypatch):
    """Pixel by pixel, for the five alphabets of images_background_small1.zip."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    names = ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]
    with zipfile.ZipFile(Path(MIRROR) / "omniglot/images_background_small1.zip") as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".png"))
        official = [np.asarray(Image.open(archive.open(name))) == 0 for name in members]
    ours = np.concatenate([a.ravel() for a in data.omniglot(names, drawings=20, side=105)])
    assert np.array_equal(ours.reshape(-1, 105, 105).swapaxes(1, 2), official)


def test_font_alphabets(monkeypatch):
    monkeypatch.setattr(files, "_used", {})
    alphabets = data.font_alphabets(list(data.FONT_ALPHABETS), drawings=13, side=14)
    assert [a.shape for a in alphabets] == [(n, 13, 196) for n in (26, 24, 32, 38, 33)]
    for alphabet in alphabets:
        assert np.allclose(np.round(alphabet * 9), alphabet * 9)  # nine samples to a pixel
        assert 0.03 < alphabet.mean(axis=-1).min() and alphabet.mean(axis=-1).max() < 0.45
        assert len(np.unique(alphabet.reshape(-1, 196), axis=0)) == alphabet[..., 0].size
    assert len(data.used()) == 5
    o = data.font_alphabets(["Latin"], drawings=1)[0][14, 0].reshape(28, 28)
    assert o[tuple(np.argwhere(o > 0).mean(axis=0).round().astype(int))] == 0
