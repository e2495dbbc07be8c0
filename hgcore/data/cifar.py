"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the official archives, or sheets of the same images.

The archives are the binary ones. A sheet is a picture with 100 images in each row. data/README.md
says how the sheets differ from the archives.
"""

import io
import tarfile
from collections.abc import Sequence

import numpy as np

from hgcore.data.files import fetch, in_reach

ARCHIVE_10, ARCHIVE_100 = "cifar10/cifar-10-binary.tar.gz", "cifar100/cifar-100-binary.tar.gz"
FEATURES = 3 * 32 * 32


def cifar10_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """Return (pixels (60000, 3072) uint8, labels (60000,) int64, 50000 training images).

    Pixels are ordered by channel, row, column; images are in the official order. The source is the
    archive if the cache or the mirror has it, else the sheets if either has them, else the archive,
    which is downloaded.
    """
    parts = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if in_reach(ARCHIVE_10) or not in_reach("cifar10/data_batch_1.webp"):
        return _archived(ARCHIVE_10, [f"cifar-10-batches-bin/{part}.bin" for part in parts], 1)
    batches = [_tiles(f"cifar10/{part}.webp") for part in parts]
    labels = b"".join(fetch(f"cifar10/{part}_labels.bin") for part in ("train", "test"))
    labels = np.frombuffer(labels, np.uint8).astype(np.int64)
    return np.concatenate(batches), labels, len(labels) - len(batches[-1])


def cifar100_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """Return (pixels (N, 3072) uint8, fine labels (N,) int64, the number of training images).

    As `cifar10_pixels`. The archive has N = 60,000, of which 50,000 are for training. The sheets
    have N = 12,000 with a split of their own, 100 + 20 of each class: 10,000 are for training.
    """
    sheets = [f"cifar100/{part}_per_class.webp" for part in ("train_100", "test_20")]
    if in_reach(ARCHIVE_100) or not in_reach(sheets[0]):
        files = [f"cifar-100-binary/{part}.bin" for part in ("train", "test")]
        return _archived(ARCHIVE_100, files, 2)  # a coarse and a fine label
    train, test = map(_tiles, sheets)
    pixels = np.concatenate([train, test])
    return pixels, np.arange(len(pixels)) % 100, len(train)  # a column of tiles for each class


def _archived(archive: str, files: Sequence[str], labels: int) -> tuple:
    """Return what `cifar10_pixels` does, from files of a tar archive; the last has the test images.

    A row has `labels` bytes of labels, the last of which is used, and the pixels of an image.
    """
    found, width = {}, labels + FEATURES
    with tarfile.open(fileobj=io.BytesIO(fetch(archive)), mode="r:gz") as tar:
        for member in tar:  # in one pass
            if member.name in files:
                found[member.name] = np.frombuffer(tar.extractfile(member).read(), np.uint8)
    parts = [found[file].reshape(-1, width) for file in files]
    rows = np.concatenate(parts)
    return rows[:, labels:], rows[:, labels - 1].astype(np.int64), len(rows) - len(parts[-1])


def _tiles(sheet: str) -> np.ndarray:
    """Return the tiles of a sheet, row by row, as uint8 (N, 3072)."""
    from PIL import Image  # here: profile quick does not need it

    with Image.open(io.BytesIO(fetch(sheet))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = (length // 32 for length in pixels.shape[:2])
    tiles = pixels.reshape(height, 32, width, 32, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(-1, FEATURES)
