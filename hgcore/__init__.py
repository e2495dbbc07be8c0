"""Gradient-based hyperparameter optimization on two backends.

One backward recursion (Reverse), one forward one (Forward), one linear solve (Implicit).
"""

import importlib

from hgcore import linear, nets
from hgcore.backend import Autograd
from hgcore.backend_torch import Torch
from hgcore.checkpoint import load, save
from hgcore.checks.check import check
from hgcore.fixed_point import FixedPoint, ReversalBuffer, ReversalError
from hgcore.hypergradient import Conditions, Forward, Hypergradient, Implicit, Reverse
from hgcore.layout import Layout
from hgcore.linear import ConjugateGradient, DenseSolve, Identity, Neumann, Nystrom
from hgcore.modules import batches
from hgcore.optimizers import Adam, AdamW, GradientDescent, HeavyBall, Momentum, RMSProp
from hgcore.outer import OuterStep, alternate, descend, progress, realtime
from hgcore.problem import Diverged, Problem
from hgcore.projections import box, box_l1, l1_ball, simplex
from hgcore.reversible import Reversible
from hgcore.trajectory import Checkpointed, Shortcut, Stored, Truncated, train

__version__ = "0.2.0"


def __getattr__(name: str):
    """Import `hg.fast` when it is first used: it needs torch."""
    if name == "fast":
        return importlib.import_module("hgcore.fast")
    raise AttributeError(f"module 'hgcore' has no attribute {name!r}")
