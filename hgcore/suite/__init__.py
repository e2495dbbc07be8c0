"""What the notebooks use: start a run, save figures, check claims; and the command line."""

import sys

from hgcore.suite import meter
from hgcore.suite.claims import Undecided, check
from hgcore.suite.figures import COLUMN, PAGE, PALETTE, save, styles
from hgcore.suite.resume import resumable
from hgcore.suite.session import make_backend, start

# jsonschema imports this checker of formats if it is there, which takes 2 s; nothing here uses it
sys.modules.setdefault("rfc3987_syntax", None)
