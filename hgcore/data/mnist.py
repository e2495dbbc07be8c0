"""MNIST as published, and the part of it that a Python package carries."""

import gzip
from functools import partial

import numpy as np

from hgcore.data.files import fetch, packaged, refusing

# of the (5000, 785) uint8 array, label last, in the package's order
MNIST_SMALL = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def idx(name: str, content: bytes, axes: int) -> np.ndarray:
    """Parse a gzipped IDX file of unsigned bytes with `axes` axes (read-only).

    Magic number, sizes and length must agree.
    """
    with refusing(f"{name} is no IDX file of {axes} axes"):
        raw = gzip.decompress(content)
        magic, *shape = np.frombuffer(raw, ">u4", 1 + axes).tolist()
        if magic != 0x800 + axes:
            raise ValueError(f"magic number {magic}, expected {0x800 + axes}")
        return np.frombuffer(raw, np.uint8, offset=4 * (1 + axes)).reshape(shape)


def mnist_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (70000, 784) uint8, labels (70000,), 60000: the first so many are for training."""
    names = [f"mnist/{part}-{{}}-ubyte.gz" for part in ("train", "t10k")]
    images, labels = (
        [idx(name.format(kind), fetch(name.format(kind)), axes) for name in names]
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
    )
    pixels = np.concatenate(images).reshape(-1, 784)
    return pixels, np.concatenate(labels).astype(np.int64), len(images[0])


def mnist_small_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (5000, 784) uint8, labels (5000,), 5000: all of them are MNIST training images."""
    read = partial(np.loadtxt, dtype=np.uint8, delimiter=",")
    table = packaged("mnist_small", "data/data/mnist_5k.csv.gz", read, MNIST_SMALL)
    table = np.random.default_rng(0).permutation(table)  # the package sorts them by class
    return table[:, :-1], table[:, -1].astype(np.int64), len(table)
