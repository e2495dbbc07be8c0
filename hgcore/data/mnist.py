"""MNIST as published, and the part of it that a Python package carries."""

import gzip
import math
from typing import NamedTuple

import numpy as np

from hgcore.data.files import FILES, DataError, File, fetch, packaged

# The official folder stands last: it often refuses or hangs, and the checksum makes every copy as
# good.
_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
for _name, _size, _sha256 in (
    (
        "train-images-idx3",
        9912422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    (
        "train-labels-idx1",
        28881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    (
        "t10k-images-idx3",
        1648877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    ("t10k-labels-idx1", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
):
    FILES[f"mnist/{_name}-ubyte.gz"] = File(_sha256, _size, _MNIST)
# of the (5000, 785) uint8 array, label last, in the package's order
MNIST_SMALL = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def idx(name: str, content: bytes, axes: int) -> np.ndarray:
    """Parse a gzipped IDX file of unsigned bytes with `axes` axes (read-only).

    Magic number, sizes and length must agree.
    """
    raw = gzip.decompress(content)
    start = 4 * (1 + axes)
    magic, *shape = np.frombuffer(raw[:start].ljust(start, b"\0"), ">u4").tolist()
    expected = start + math.prod(shape)
    if magic != 0x800 + axes or len(raw) != expected:
        raise DataError(
            f"{name} is no IDX file of {axes} axes: magic number {magic} (expected {0x800 + axes}),"
            f" sizes {shape}, {len(raw):,} bytes (expected {expected:,})"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


class Images(NamedTuple):
    """images (N, 784) float64 in 0..1, labels (N,) int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def mnist_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (70000, 784) uint8, labels (70000,), 60000: the first so many are for training."""
    names = [f"mnist/{part}-{{}}-ubyte.gz" for part in ("train", "t10k")]
    images, labels = (
        [idx(name.format(kind), fetch(name.format(kind)), axes) for name in names]
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
    )
    pixels = np.concatenate(images).reshape(-1, 784)
    return pixels, np.concatenate(labels).astype(np.int64), len(images[0])


def _table(packed: bytes) -> np.ndarray:
    return np.loadtxt(gzip.decompress(packed).decode("ascii").splitlines(), np.uint8, delimiter=",")


def mnist_small_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (5000, 784) uint8, labels (5000,), 5000: all of them are MNIST training images."""
    table = packaged("mnist_small", "data/data/mnist_5k.csv.gz", _table, MNIST_SMALL)
    table = np.random.default_rng(0).permutation(table)  # the package sorts them by class
    return table[:, :-1], table[:, -1].astype(np.int64), len(table)


def mnist() -> Images:
    """MNIST as published, 60,000 training and 10,000 test images: 440 MB.

    `splits` converts no more than it returns.
    """
    pixels, labels, n = mnist_pixels()
    return Images(pixels[:n] / 255, labels[:n], pixels[n:] / 255, labels[n:])


def mnist_small() -> tuple[np.ndarray, np.ndarray]:
    """images (5000, 784) float64 in 0..1 and labels (5000,) int64, in one fixed random order."""
    pixels, labels, _ = mnist_small_pixels()
    return pixels / 255, labels
