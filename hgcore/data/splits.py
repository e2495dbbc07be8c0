"""Splits of the image sets by name: consecutive slices, centered on the training images."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hgcore.data.cifar import cifar10_pixels, cifar100_pixels
from hgcore.data.files import DataError
from hgcore.data.mnist import mnist_pixels, mnist_small_pixels


class Source(NamedTuple):
    """load() -> pixels (N, features) uint8, labels (N,) int64, the number of training images."""

    load: Callable
    total: int
    classes: int


SOURCES = {
    "mnist": Source(mnist_pixels, 70_000, 10),
    "mnist_small": Source(mnist_small_pixels, 5_000, 10),
    "cifar10": Source(cifar10_pixels, 60_000, 10),
    "cifar100": Source(cifar100_pixels, 60_000, 100),
}


class Split(NamedTuple):
    """images (N, features) and labels (N, classes) one-hot, floating point.

    features: 784 of MNIST; 3,072 of CIFAR, by channel, row, column.
    """

    images: np.ndarray
    labels: np.ndarray

    def on(self, backend) -> "Split":
        """Return the same as arrays of the backend."""
        return Split(*map(backend.array, self))


def splits(source: str, sizes: Sequence[int], centre=True, dtype="float64") -> list[Split]:
    """Return consecutive slices of `sizes` images of a set: its training images, then test images.

    As in the released code of Maclaurin et al. 2015: train, valid, test are the first N1, the next
    N2, the next N3. source: a name in SOURCES. centre: subtract the mean image of all training
    images (60,000 of mnist, 5,000 of mnist_small), whatever the sizes. Raises ValueError for an
    unknown source or sizes that do not fit, DataError if the files found have too few images.
    """
    known = ", ".join(f"{name} ({entry.total:,} images)" for name, entry in SOURCES.items())
    if source not in SOURCES:
        raise ValueError(f"there is no data set {source!r}; take one of {known}")
    load, total, classes = SOURCES[source]
    if sum(sizes) > total or any(size < 0 for size in sizes):
        rule = f"sizes, none negative, must add up to at most {total:,}"
        raise ValueError(f"{rule}, got {list(sizes)} of {source}; sets: {known}")
    pixels, labels, n = load()
    if sum(sizes) > len(pixels):
        raise DataError(
            f"sizes {list(sizes)} add to {sum(sizes):,}, the files of {source} found here have"
            f" {len(pixels):,} images: put the official archive there, see data/README.md"
        )
    # whole numbers until the division
    mean = pixels[:n].sum(axis=0, dtype=np.int64) / (255 * n) if centre else np.zeros(())
    mean, scale, one_hot = mean.astype(dtype), np.array(255, dtype), np.eye(classes, dtype=dtype)
    slices = [slice(a, b) for a, b in pairwise(np.cumsum([0, *sizes]))]
    return [Split(pixels[part] / scale - mean, one_hot[labels[part]]) for part in slices]
