"""Splits of the image sets by name: consecutive slices, centered on the training images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hgcore.data.cifar import cifar10_pixels, cifar100_pixels
from hgcore.data.mnist import mnist_pixels, mnist_small_pixels

SOURCES = {  # () -> pixels (N, features) uint8, labels (N,) int64, the number of training images
    "mnist": mnist_pixels,
    "mnist_small": mnist_small_pixels,
    "cifar10": cifar10_pixels,
    "cifar100": cifar100_pixels,
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
    unknown source or sizes that do not fit.
    """
    if source not in SOURCES:
        raise ValueError(f"there is no data set {source!r}; take one of {', '.join(SOURCES)}")
    pixels, labels, n = SOURCES[source]()
    classes = labels.max() + 1
    if sum(sizes) > len(pixels) or any(size < 0 for size in sizes):
        rule = f"sizes, none negative, must add up to at most {len(pixels):,}"
        raise ValueError(f"{rule}, got {list(sizes)} of {source}; data/README.md has larger sets")
    # whole numbers until the division
    mean = pixels[:n].sum(axis=0, dtype=np.int64) / (255 * n) if centre else np.zeros(())
    mean, scale, one_hot = mean.astype(dtype), np.array(255, dtype), np.eye(classes, dtype=dtype)
    slices = [slice(a, b) for a, b in pairwise(np.cumsum([0, *sizes]))]
    return [Split(pixels[part] / scale - mean, one_hot[labels[part]]) for part in slices]
