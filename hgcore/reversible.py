"""What was the state before step t?  Answered by running the training backwards.

Implements: Maclaurin et al. 2015, Algorithms 2 and 3; for Adam and AdamW, which that paper leaves
to future work, by the same arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from hgcore.arrays import namespace, require_count
from hgcore.backend import Linearized
from hgcore.fixed_point import (
    DENOMINATOR,
    UNIT,
    WIDE_UNIT,
    FixedPoint,
    ReversalBuffer,
    ReversalError,
    as_decay,
)
from hgcore.optimizers import Optimizer
from hgcore.problem import SHRINK, DivergenceMonitor, Problem, quiet
from hgcore.trajectory import Gradients, Trajectory

RANGE = 2.0**63 * UNIT
_MISSED = (
    "the run backwards missed its start in {wrong} of {size} numbers: inner_loss, initial or a"
    " coefficient did not give the same bits twice. Keep one thread count, draw what is random from"
    " a seed made from t, on a GPU ask for deterministic algorithms; if the gradient rounds"
    " differently with and without a graph, use Reversible(joint=True)"
)
_TOO_LARGE = (
    "a weight or slot reached {number:.4g} {where}; fixed point holds magnitudes below {limit:.0f}:"
    " scale the problem, or use Checkpointed() or Stored()"
)


@dataclass(frozen=True)
class Reversible:
    """Keeps what decays lose, log2(1/decay) bits a weight, slot and step: exact.

    State and sums are fixed point, so a run differs from a Stored one by rounding, 2**-52 a step:
    scale a loss whose gradients are below 1e-7.
    Needs an inner loss that always gives the same bits: one thread count, no unseeded randomness.
    The rewound start is compared with the true one bit for bit; a difference raises ReversalError.
    graphs: of how many steps, the last ones, the graph is kept, as in Stored. joint: train with the
    gradient of the backward pass's routine, which is slower; by default only if the two differ in
    a bit at one of two probes.
    """

    graphs: int = 0
    joint: bool = False

    def __post_init__(self):
        require_count("graphs", self.graphs)

    @quiet
    def train(self, problem: Problem, hyper) -> Trajectory:
        """Train and return the trajectory, which runs backwards."""
        if not problem.optimizer.reversible:
            name = type(problem.optimizer).__name__
            raise ValueError(
                f"{name} cannot be run backwards with these settings: use Momentum, HeavyBall,"
                " Adam, AdamW or RMSProp with decay=, or another strategy such as Checkpointed()"
            )
        backend, start = problem.backend, problem.initial_state(hyper)
        steps, exact = range(problem.steps), self.begin(problem, start)
        smallest = problem.smallest_decays(hyper, start, steps)
        gradients = Gradients(problem, hyper, self.graphs, self._gradient(problem, hyper, start[0]))

        def coefficients(t: int) -> SimpleNamespace:
            found = vars(backend.evaluate(problem.coefficients, exact.weights, hyper, t))
            shared = {k: backend.host_view(x) for k, x in found.items() if k != "t"}
            return SimpleNamespace(**found | shared)

        def state() -> tuple:
            return tuple(map(backend.array, (exact.weights, *exact.slots)))

        def undo(t: int) -> tuple[tuple, Linearized]:
            c = coefficients(t)
            exact.undo_weights(c)
            linearized = gradients.linearized(backend.array(exact.weights), t)
            exact.undo_slots(backend.host_view(linearized.gradient), c, smallest[t])
            return state(), linearized

        def close() -> None:
            if wrong := exact.mismatches(self.begin(problem, problem.initial_state(hyper))):
                raise ReversalError(_MISSED.format(wrong=min(wrong, exact.size), size=exact.size))

        monitor = DivergenceMonitor(backend, RANGE, _TOO_LARGE)
        monitor(-1, exact.reach)
        for t in steps:
            gradient = backend.host_view(gradients(backend.array(exact.weights), t))
            monitor(t, exact.step(gradient, coefficients(t), smallest[t]))
        monitor.flush()
        exact.pack()
        return Trajectory(state(), steps, True, exact.nbytes, undo, close)

    def begin(self, problem: Problem, start: tuple) -> ExactState:
        """Return the exact state at `start`."""
        return ExactState(problem.optimizer, tuple(map(problem.backend.host_view, start)))

    def _gradient(self, problem: Problem, hyper, weights) -> Callable:
        """Return the plain gradient if its bits are those of the joint one, else the latter."""
        objective = problem.objective(hyper)
        if not self.joint and objective.one_routine:
            return objective.gradient

        def joint(weights, t: int):
            return objective.linearize(weights, t).gradient

        for _ in range(min(2, problem.steps)):
            plain = objective.gradient(weights, 0)
            if self.joint or not bool((plain == joint(weights, 0)).all()):
                return joint
            weights = weights - plain  # away from the start, where too much may be zero to tell
        return objective.gradient


class ExactState:
    """Weights and slots in fixed point, changed and restored by the steps of an optimizer.

    weights, slots: the state as floats of the type that was given. Gradients and coefficients are
    arrays of the same library. One buffer keeps what all decays lose. A factor `shrink` of the
    weights is kept apart, weights = scale * position: the logarithm of the scale is fixed point too
    and adds up without loss. When the scale falls below one half, it is rounded to a multiple of
    2**-16 and multiplied into the position, through the buffer.
    """

    def __init__(self, optimizer: Optimizer, state: tuple):
        self.optimizer, self.dtype, self.size = optimizer, state[0].dtype, sum(map(len, state))
        units = [UNIT, *(WIDE_UNIT if slot.square else UNIT for slot in optimizer.slots)]
        pairs = zip(state, units, strict=True)
        self.values = [FixedPoint(x, unit, wide=unit == WIDE_UNIT) for x, unit in pairs]
        self.position, self.buffer, self.renewals = self.values[0], ReversalBuffer(), []
        self.scale = self.log_scale = None  # of the weights, if they shrink
        self.log_least = 0.0  # no scale has a smaller logarithm
        self.weights, *self.slots = (value.floats(self.dtype) for value in self.values)
        self.reach = _largest([namespace(x).amax(abs(x)) for x in state])

    def step(self, gradient, c, smallest: dict):
        """Do step c.t; return a bound on the magnitudes met.

        smallest: the smallest value of each decay, and of shrink, in this step.
        """
        gradient, reached = self.optimizer.clipped(c, gradient), []
        for i, value in enumerate(self.values[1:]):
            amount, decay = self._kick_and_decay(i, gradient, c, smallest)
            self.slots[i], reach = value.decay_add(self.buffer, decay, amount, self.dtype)
            reached.append(reach)
        if (shrink := self.optimizer.shrink(c)) is not None:
            self.log_scale = self.log_scale or FixedPoint(0 * shrink)
            self._rescale(self.log_scale.add, shrink)
            self.log_least += math.log(smallest[SHRINK])
        floats, reach = self.position.decay_add(None, None, *self._drift(c))
        if self.log_least < -math.log(2):
            floats = self._renewed(c.t)
        self.weights = self._scaled(floats)
        return _largest([*reached, reach])

    def undo_weights(self, c) -> None:
        """Undo the second half of step c.t: afterwards `weights` are those before it."""
        if self.renewals and self.renewals[-1][0] == c.t:
            _, decay = self.renewals.pop()
            self._rescale(self.log_scale.add, decay.numerator / DENOMINATOR)
            self.position.undo_decay_add(self.buffer, decay, None)
        floats = self.position.undo_decay_add(None, None, *self._drift(c))
        if (shrink := self.optimizer.shrink(c)) is not None:
            self._rescale(self.log_scale.subtract, shrink)
        self.weights = self._scaled(floats)

    def undo_slots(self, gradient, c, smallest: dict) -> None:
        """Undo the first half of step c.t, given the gradient (n,) at the weights before it."""
        gradient = self.optimizer.clipped(c, gradient)
        for i, value in reversed(list(enumerate(self.values[1:]))):
            amount, decay = self._kick_and_decay(i, gradient, c, smallest)
            self.slots[i] = value.undo_decay_add(self.buffer, decay, amount, self.dtype)

    def _kick_and_decay(self, i: int, gradient, c, smallest: dict) -> tuple:
        slot = self.optimizer.slots[i]
        least = slot.decay(SimpleNamespace(**smallest))
        return slot.kick(c, gradient, *self.slots[:i]), as_decay(slot.decay(c), least)

    def _drift(self, c) -> tuple:
        """Return what is added to the position, and the type of the sum: None to be scaled."""
        drift = self.optimizer.drift(c, None, *self.slots)
        return (drift, self.dtype) if self.scale is None else (drift / self.scale, None)

    def _scaled(self, floats):
        if self.scale is None:
            return floats
        return namespace(floats).asarray(floats * self.scale, dtype=self.dtype)

    def _rescale(self, change: Callable, factor) -> None:
        """Multiply the scale by `factor`, or divide it: change is log_scale.add or subtract."""
        change(namespace(factor).log(factor))
        logarithm = self.log_scale.floats()
        self.scale = namespace(logarithm).exp(logarithm)

    def _renewed(self, t: int):
        """Multiply the rounded scale into the position; return the position."""
        decay = as_decay(namespace(self.scale).clip(self.scale, 1 / DENOMINATOR, 1.0))
        self.position.decay_add(self.buffer, decay, None)
        self._rescale(self.log_scale.subtract, decay.numerator / DENOMINATOR)
        self.log_least -= math.log(decay.least / DENOMINATOR)
        self.renewals.append((t, decay))
        return self.position.floats()

    def pack(self) -> None:
        """Keep all integers in as few bytes as hold them, until they are next changed."""
        for part in (*self.values, self.buffer):
            part.pack()

    def mismatches(self, other: ExactState) -> int:
        """Return how many numbers differ from those of `other`, one more if anything is left."""
        pairs = zip(self.values, other.values, strict=True)
        wrong = sum(ours.mismatches(theirs) for ours, theirs in pairs)
        scaled = self.log_scale is not None and bool((self.log_scale.bits != 0).any())
        return wrong + (scaled or not self.buffer.empty())

    @property
    def nbytes(self) -> int:
        """The bytes of the integers, the buffer and the renewals."""
        held = [*self.values, self.buffer, *(decay.numerator for _, decay in self.renewals)]
        return sum(getattr(part, "nbytes", 8) for part in held)


def _largest(numbers: list):
    """Return the largest of scalars, NaN if there is one."""
    return functools.reduce(namespace(numbers[0]).maximum, numbers)
