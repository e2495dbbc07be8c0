"""What tests of fast/ share."""

import warnings

import pytest
import torch


@pytest.fixture(scope="session")
def compiler():
    """Skip where torch.compile does not work: it needs a C++ compiler and a path without spaces."""
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.compile(lambda x: x + 1)(torch.zeros(1))
    except Exception as error:  # whatever it is, it is not ours
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
