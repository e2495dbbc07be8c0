"""python -m hgcore: see suite/cli.py."""

import sys

from hgcore.suite.cli import main

sys.exit(main())
