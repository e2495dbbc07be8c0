"""Boston housing (Harrison and Rubinfeld 1978), out of a Python package."""

import numpy as np

from hgcore.data.files import packaged

# of the (506, 14) float64 array, little-endian, price last, in the package's order
BOSTON = "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7"
FEATURES = "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT".split()


def _table(text: bytes) -> np.ndarray:
    return np.loadtxt(text.decode("ascii").splitlines(), "<f8", delimiter=",")


def boston() -> tuple[np.ndarray, np.ndarray]:
    """features (506, 13), unscaled, in the order of FEATURES, and median prices (506,) in $1000."""
    table = packaged("boston", "data/data/boston_housing.csv", _table, BOSTON)
    return table[:, :-1], table[:, -1]
