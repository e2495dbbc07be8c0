"""What tests share: both backends, and `catalogue`, problems with known answers, by name."""

import sys
from pathlib import Path

import pytest

import hgcore as hg

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=[hg.Autograd(), hg.Torch()], ids=lambda backend: backend.name)
def backend(request):
    """Both backends, in double precision."""
    return request.param
