"""Batches and random streams by address."""

import hashlib
from collections.abc import Sequence

import numpy as np


def batch(seed: int | Sequence[int], t: int, size: int, total: int) -> np.ndarray:
    """Indices (size,) in 0..total-1, drawn with replacement at the address (*seed, t).

    Addresses of one experiment must have one length: NumPy seeds (1,) and (1, 0) alike.
    """
    return np.random.default_rng([*np.atleast_1d(seed), t]).integers(total, size=size)


def authors_rng(*address: int | str) -> np.random.RandomState:
    """The stream of Maclaurin et al.'s code at (seed, k, t), seeded by the MD5 of that text."""
    # np.int64(0) would print otherwise
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in address)
    digest = hashlib.md5(str(plain).encode(), usedforsecurity=False).hexdigest()
    return np.random.RandomState(int(digest[:8], 16))
