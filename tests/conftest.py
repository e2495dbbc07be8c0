"""Tests import the catalogue of problems by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
