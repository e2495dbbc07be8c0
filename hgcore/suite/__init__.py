"""What the notebooks use: start a run, save figures, check claims; and the command line."""

from hgcore.suite import meter
from hgcore.suite.claims import Undecided, check
from hgcore.suite.figures import COLUMN, LINESTYLES, MARKERS, PAGE, PALETTE, save, styles
from hgcore.suite.resume import resumable
from hgcore.suite.session import make_backend, start
