"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the official archives, or sheets of the same images.

The archives are the official binary ones, which have labels and pixels only. A sheet is a picture
with 100 images in each row. data/README.md says how the sheets differ from the archives.
"""

import io
import tarfile
import zlib
from collections.abc import Sequence

import numpy as np

from hgcore.data.files import FILES, DataError, File, fetch, in_reach

_TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
ARCHIVE_10, ARCHIVE_100 = "cifar10/cifar-10-binary.tar.gz", "cifar100/cifar-100-binary.tar.gz"
FILES[ARCHIVE_10] = File(
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170052171, _TORONTO
)
FILES[ARCHIVE_100] = File(
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", 168513733, _TORONTO
)
for _name, _size, _sha256 in (
    (
        "cifar10/data_batch_1.webp",
        17041184,
        "be07d284e29905f3c4a65320995f89e5e540a47b827de77a1d069d332df5a062",
    ),
    (
        "cifar10/data_batch_2.webp",
        17084222,
        "9973c783e300518096c8a2f127c7e8281d6615c91d2ff733b9748f27b5b0c73d",
    ),
    (
        "cifar10/data_batch_3.webp",
        17090096,
        "8b4cf3b9e712e73dc0e2420447aeb9953a69de6630ab720cbf3e6d89a2cee590",
    ),
    (
        "cifar10/data_batch_4.webp",
        17056728,
        "26f9784b43e78430ea05bac9eefc4d9eda2b06d2b5bb089f1e2b42465ec3cebd",
    ),
    (
        "cifar10/data_batch_5.webp",
        17046986,
        "7f6292c08c2ccce6216a5e2defda8f08f1b956694e23edcd42aa3170ab847ce3",
    ),
    (
        "cifar10/test_batch.webp",
        17071740,
        "17dac5e35d12f51d8ae4b5339bea35fcbbca4da883effedd98a529974a3b28f7",
    ),
    (
        "cifar10/train_labels.bin",
        50000,
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    (
        "cifar10/test_labels.bin",
        10000,
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
    (
        "cifar100/train_100_per_class.webp",
        17187102,
        "e6f85d726ca92d45a2270606684df78ca0f587519250d46afd8ff0371f828a91",
    ),
    (
        "cifar100/test_20_per_class.webp",
        3378968,
        "c811ebb81fc35bce7ef4b5b40ada687bfbe370093ba187e9d76b2a25d26eb12d",
    ),
):
    FILES[_name] = File(_sha256, _size, ())
FEATURES = 3 * 32 * 32


def cifar10_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """Return (pixels (60000, 3072) uint8, labels (60000,) int64, 50000 training images).

    Pixels are ordered by channel, row, column; images are in the official order. The source is the
    archive if the cache or the mirror has it, else the sheets if either has them, else the archive,
    which is downloaded.
    """
    parts = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if _use_archive(ARCHIVE_10, "cifar10/data_batch_1.webp"):
        files = [f"cifar-10-batches-bin/{part}.bin" for part in parts]
        *train, test = _members(ARCHIVE_10, files, 1 + FEATURES)
        rows = np.concatenate([*train, test])
        return rows[:, 1:], rows[:, 0].astype(np.int64), len(rows) - len(test)
    *train, test = (_tiles(f"cifar10/{part}.webp") for part in parts)
    labels = b"".join(fetch(f"cifar10/{part}_labels.bin") for part in ("train", "test"))
    pixels = np.concatenate([*train, test])
    return pixels, np.frombuffer(labels, np.uint8).astype(np.int64), len(pixels) - len(test)


def cifar100_pixels() -> tuple[np.ndarray, np.ndarray, int]:
    """Return (pixels (N, 3072) uint8, fine labels (N,) int64, the number of training images).

    As `cifar10_pixels`. The archive has N = 60,000, of which 50,000 are for training. The sheets
    have N = 12,000 with a split of their own, 100 + 20 of each class: 10,000 are for training.
    """
    sheets = [f"cifar100/{part}_per_class.webp" for part in ("train_100", "test_20")]
    if _use_archive(ARCHIVE_100, sheets[0]):
        files = [f"cifar-100-binary/{part}.bin" for part in ("train", "test")]
        train, test = _members(ARCHIVE_100, files, 2 + FEATURES)  # a coarse and a fine label
        rows = np.concatenate([train, test])
        return rows[:, 2:], rows[:, 1].astype(np.int64), len(train)
    train, test = map(_tiles, sheets)
    pixels = np.concatenate([train, test])
    return pixels, np.arange(len(pixels)) % 100, len(train)  # a column of tiles for each class


def _use_archive(archive: str, sheet: str) -> bool:
    """Return whether the cache or the mirror has the archive, or neither has the sheet."""
    return in_reach(archive) or not in_reach(sheet)


def _members(archive: str, files: Sequence[str], width: int) -> list[np.ndarray]:
    """Return these files of a tar archive, each as uint8 (N, width)."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(fetch(archive)), mode="r:gz") as tar:
            for member in tar:
                if member.name in files and member.isfile():
                    found[member.name] = np.frombuffer(tar.extractfile(member).read(), np.uint8)
        return [found[file].reshape(-1, width) for file in files]
    except (KeyError, ValueError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive} does not hold rows of {width} bytes ({error!r})") from error


def _tiles(sheet: str) -> np.ndarray:
    """Return the tiles of a sheet, row by row, as uint8 (N, 3072)."""
    from PIL import Image  # here: profile quick does not need it

    try:
        with Image.open(io.BytesIO(fetch(sheet))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        height, width = (length // 32 for length in pixels.shape[:2])
        tiles = pixels.reshape(height, 32, width, 32, 3).transpose(0, 2, 4, 1, 3)
    except (OSError, ValueError) as error:
        raise DataError(f"{sheet} is not a picture of tiles of 32 x 32 ({error!r})") from error
    return tiles.reshape(-1, FEATURES)
