"""The command line: see hgcore/suite/cli.py."""

import sys

from hgcore.suite.cli import main

if __name__ == "__main__":
    sys.exit(main())
