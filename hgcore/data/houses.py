"""Boston housing (Harrison and Rubinfeld 1978), out of a Python package."""

import hashlib
import importlib.resources

import numpy as np

from hgcore.data.files import DataError, note

# Of the (506, 14) float64 array, price last, in the package's order: other digits that read as the same numbers are as good.
BOSTON = "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7"
FEATURES = ("CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT")


def boston() -> tuple[np.ndarray, np.ndarray]:
    """features (506, 13) as published, unscaled, in the order of FEATURES, and median prices (506,) in $1000, both float64."""
    try:  # the file itself: mlxtend's own loader imports pandas and sklearn
        text = importlib.resources.files("mlxtend").joinpath("data/data/boston_housing.csv").read_text(encoding="ascii")
        table = np.loadtxt(text.splitlines(), delimiter=",")
    except (ImportError, OSError, ValueError) as error:
        raise DataError(f"boston cannot be read from the package mlxtend ({error}); pip install mlxtend==0.25.0") from error
    found = hashlib.sha256(table.astype("<f8").tobytes()).hexdigest()
    if found != BOSTON:
        raise DataError(
            f"boston in the package mlxtend is altered: expected features and prices (506, 14) with sha256 {BOSTON}, "
            f"found {table.shape} with sha256 {found}; pip install --force-reinstall mlxtend==0.25.0"
        )
    note("boston", found)
    return table[:, :-1], table[:, -1]
