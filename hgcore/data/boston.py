"""Boston housing (Harrison and Rubinfeld 1978), out of a Python package."""

from functools import partial

import numpy as np

from hgcore.data.files import packaged

# of the (506, 14) float64 array, little-endian, price last, in the package's order
BOSTON = "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7"


def boston() -> tuple[np.ndarray, np.ndarray]:
    """Return unscaled features (506, 13) and median prices (506,) in $1000.

    Features: CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT.
    """
    read = partial(np.loadtxt, dtype="<f8", delimiter=",")
    table = packaged("boston", "data/data/boston_housing.csv", read, BOSTON)
    return table[:, :-1], table[:, -1]
