"""Gradient-based hyperparameter optimisation: one backward recursion, one forward one, one linear
solve, on two backends.
"""

from hgcore import linear, nets
from hgcore.backend import Autograd, Torch
from hgcore.checkpoint import load, save
from hgcore.dynamics import GradientDescent, HeavyBall, Momentum
from hgcore.layout import Layout
from hgcore.linear import ConjugateGradient, Dense, Identity, Neumann, Nystrom
from hgcore.objectives import Compiled, CrossEntropy, Penalised
from hgcore.outer import alternate, descend, progress, realtime
from hgcore.problem import Diverged, Problem
from hgcore.projections import box, box_l1, l1_ball, simplex
from hgcore.reversal import FixedPoint, ReversalBuffer, ReversalError
from hgcore.rules import Adam, Descent, RMSProp
from hgcore.solvers import Forward, Hypergradient, Implicit, Reverse
from hgcore.trajectory import checkpointed, reversible, shortcut, stored, train, truncated

__version__ = "0.1.0"
