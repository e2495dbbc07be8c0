"""What was the state before step t?  Answers that keep states, or guess them.

A strategy is a frozen record with `train(problem, hyper)`, which trains and returns a Trajectory.
Stored and Checkpointed answer exactly, Truncated for the last steps only, Shortcut (DrMAD) by a
straight line. Reversible, in reversible.py, runs the training backwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hgcore.backend import Linearized
from hgcore.fixed_point import ReversalError
from hgcore.problem import DivergenceMonitor, Problem, quiet


class Trajectory(Protocol):
    """A finished training run that can be undone once, for each of `steps`, last first.

    final: the state after training; steps: those that `undo` knows; whole: whether they lead back
    to the initial state; nbytes: what is kept between the two passes.
    """

    final: tuple
    steps: Sequence[int]
    whole: bool
    nbytes: int

    def undo(self, t: int) -> tuple[tuple, Linearized]:
        """Return the state before step t and the inner loss linearized there."""

    def close(self) -> None:
        """Raise ReversalError unless the way back was that of the way forth."""


# ---- training


def train(problem: Problem, hyper) -> tuple:
    """Return the state after training, (weights, *slots), each (n,); nothing else is kept."""
    state = problem.initial_state(hyper)
    problem.smallest_decays(hyper, state)
    gradient = problem.objective(hyper).gradient
    return _last(state, states_after(problem, hyper, state, range(problem.steps), gradient))


def _last(state: tuple, states: Iterator[tuple]) -> tuple:
    for after in states:
        state = after
    return state


def states_after(problem, hyper, state, steps, gradient: Callable) -> Iterator[tuple]:
    """Yield the state after each of `steps`, starting from `state`; may raise Diverged.

    gradient: (weights (n,), t) -> (n,).
    """
    monitor, gradient = DivergenceMonitor(problem.backend), quiet(gradient)
    for t in steps:
        state = problem.step(state, gradient(state[0], t), hyper, t)
        monitor.weights(t, state[0])
        yield state
    monitor.flush()


def state_nbytes(state: tuple) -> int:
    """Return the bytes of a state."""
    return sum(vector.nbytes for vector in state)


def require_count(name: str, steps: int) -> None:
    """Raise ValueError unless `steps` is a number of steps."""
    if steps < 0:
        raise ValueError(f"{name} must be a number of steps >= 0, got {steps}")


class Gradients:
    """The gradients of a run, (weights, t) -> (n,), and what is kept of them for the way back.

    graphs: of how many of the last of `steps` steps the graph is kept. plain: (weights, t) -> (n,),
    for the steps before.
    """

    def __init__(self, problem: Problem, hyper, graphs: int = 0, plain: Callable | None = None):
        self.backend, self.objective = problem.backend, problem.objective(hyper)
        self.first, self.plain = problem.steps - graphs, plain or self.objective.gradient
        self.kept, self.lengths, self.found = {}, {}, {}

    def __call__(self, weights, t: int):
        if t < self.first:
            gradient = self.plain(weights, t)
        else:
            self.kept[t] = self.objective.linearize(weights, t)
            gradient = self.kept[t].gradient
        self.lengths.setdefault(t, self._square(gradient))
        return gradient

    def linearized(self, weights, t: int) -> Linearized:
        """Return the inner loss linearized at step t, from its graph if that was kept."""
        found = self.kept.pop(t) if t in self.kept else self.objective.linearize(weights, t)
        self.found[t] = self._square(found.gradient)
        return found

    def _square(self, gradient):
        return self.backend.host_view(gradient @ gradient)

    def compare(self) -> None:
        """Raise ReversalError unless the gradients linearized are as long as those of training.

        They may differ by rounding, at most sqrt(eps) of the longest gradient.
        """
        pairs = [x for t, square in self.found.items() for x in (self.lengths[t], square)]
        lengths = np.sqrt(np.abs(self.backend.floats(pairs))).reshape(-1, 2)
        allowed = np.finfo(self.backend.dtype).eps ** 0.5 * lengths.max(initial=0)
        for t, (ours, theirs) in zip(self.found, lengths, strict=True):
            if abs(ours - theirs) > allowed:
                raise ReversalError(
                    f"at step {t} the inner loss gave another gradient on the way back than in"
                    " training: draw what is random (batches, dropout, noise) from a seed made of t"
                )


# ---- Stored and Truncated


@dataclass(frozen=True)
class Stored:
    """Keeps all T + 1 states: exact, the fastest, (T + 1) n (1 + slots) numbers.

    graphs: of how many steps, the last ones, the graph of the gradient is kept too. Each saves a
    third of the time of a step and costs memory like an unrolled loop (not in `nbytes`).
    Implements: Franceschi et al. 2017, Reverse-HG.
    """

    graphs: int = 0

    def __post_init__(self):
        require_count("graphs", self.graphs)

    def train(self, problem: Problem, hyper) -> Trajectory:
        """Train and return the trajectory."""
        return _StoredRun(problem, hyper, first=0, graphs=self.graphs)


@dataclass(frozen=True)
class Truncated:
    """Keeps and differentiates the last `last` steps only: biased and cheap.

    Implements: Shaban et al. 2019, truncated back-propagation.
    """

    last: int

    def __post_init__(self):
        require_count("last", self.last)

    def train(self, problem: Problem, hyper) -> Trajectory:
        """Train and return the trajectory."""
        return _StoredRun(problem, hyper, first=max(0, problem.steps - self.last), graphs=0)


class _StoredRun:
    def __init__(self, problem: Problem, hyper, first: int, graphs: int):
        self.first, self.steps, self.whole = first, range(first, problem.steps), first == 0
        state, self.gradients = problem.initial_state(hyper), Gradients(problem, hyper, graphs)
        self.states = _block(problem.backend, len(self.steps) + 1, state)
        self.nbytes = self.states.nbytes
        problem.smallest_decays(hyper, state)
        state = _last(state, states_after(problem, hyper, state, range(first), self.gradients))
        late = states_after(problem, hyper, state, self.steps, self.gradients)
        # zip takes the states last: only when it asks for one too many is the monitor flushed
        for place, after in zip(self.states, itertools.chain([state], late), strict=True):
            for kept, vector in zip(place, after, strict=True):
                kept[:] = vector
        self.final = after

    def undo(self, t: int) -> tuple[tuple, Linearized]:
        state = tuple(self.states[t - self.first])
        return state, self.gradients.linearized(state[0], t)

    def close(self) -> None:
        self.gradients.compare()


def _block(backend, count: int, state: tuple):
    """Return memory for `count` states in one block, which does not fragment the heap."""
    needed, there = count * state_nbytes(state), backend.memory()
    if needed > there:
        raise MemoryError(
            f"Stored keeps {count} states, {needed / 1e9:.1f} GB, and {backend.device} has"
            f" {there / 1e9:.1f} GB; use Checkpointed() or Reversible()"
        )
    like, shape = state[0], (count, len(state), len(state[0]))
    return backend.xp.empty(shape, dtype=like.dtype, device=like.device)


# ---- Checkpointed


@dataclass(frozen=True)
class Checkpointed:
    """Keeps `states` states, the initial one included, and computes the others again: exact.

    By default about 2 sqrt(T) of them, which costs one replay of the run. The schedule needs the
    fewest replayed steps that any with so many states can have, r T - binomial(c + r, r - 1) with
    c = states and r the number of times that a step is run at most.
    Implements: Griewank and Walther 2000, Algorithm 799 (Revolve).
    """

    states: int | None = None

    def __post_init__(self):
        if self.states is not None and self.states < 1:
            raise ValueError(f"states must be a number of states >= 1, got {self.states}")

    def train(self, problem: Problem, hyper) -> Trajectory:
        """Train and return the trajectory."""
        return _CheckpointedRun(problem, hyper, self.states or 2 * math.isqrt(problem.steps) + 1)


def next_checkpoint(steps: int, free: int) -> int:
    """Return after how many of `steps` steps to keep the next state, with `free` places left.

    With b(c, r) = binomial(c + r, c) and r the least with steps <= b(free + 1, r), any distance d
    with b(c, r-2) <= d <= b(c, r-1) and b(c-1, r-1) <= steps - d <= b(c-1, r), c = free + 1, is
    optimal; this is the smallest one.
    """
    c = free + 1
    r = next(r for r in itertools.count() if steps <= math.comb(c + r, c))
    fewest = math.comb(c + r - 2, c) if r >= 2 else 1
    return max(1, fewest, steps - math.comb(c - 1 + r, c - 1))


class _CheckpointedRun:
    whole = True

    def __init__(self, problem: Problem, hyper, states: int):
        self.problem, self.hyper, self.steps = problem, hyper, range(problem.steps)
        self.gradients, self.free = Gradients(problem, hyper), states - 1
        self.final = state = problem.initial_state(hyper)
        problem.smallest_decays(hyper, state)
        self.kept, last = [(0, state)], problem.steps - 1
        self.nbytes = min(states, max(1, problem.steps)) * state_nbytes(state)
        self.latest = (last, self._advance(last)) if problem.steps else (None, None)
        if problem.steps:
            self.final = self._run(self.latest[1], range(last, last + 1))

    def _run(self, state: tuple, steps: range) -> tuple:
        return _last(state, states_after(self.problem, self.hyper, state, steps, self.gradients))

    def _advance(self, t: int) -> tuple:
        """Return the state before step t, from the last one kept; keeps more on the way."""
        at, state = self.kept[-1]
        while at < t:
            stop = min(t, at + next_checkpoint(t + 1 - at, self.free)) if self.free else t
            at, state = stop, self._run(state, range(at, stop))
            if self.free and at < t:
                self.kept.append((at, state))
                self.free -= 1
        return state

    def undo(self, t: int) -> tuple[tuple, Linearized]:
        state = self.latest[1] if self.latest[0] == t else self._advance(t)
        self.latest = None, None
        if self.kept[-1][0] == t:
            self.kept.pop()
            self.free += 1
        return state, self.gradients.linearized(state[0], t)

    def close(self) -> None:
        self.gradients.compare()


# ---- Shortcut


@dataclass(frozen=True)
class Shortcut:
    """Puts the straight line from the first to the last weights in place of the path: approximate.

    share: the part of the T steps that is replayed, N = share * T, at least one. Fewer replay a
    shorter run: the hypergradient of what adds up over the steps (a penalty, a rate) shrinks with
    N. minibatches: "spread" replays the batches and coefficients of every (T/N)th step, "first"
    those of steps 0..N-1. ends: None puts the weights before replayed step j at j/N of the line;
    a number e puts them at N even places from e to 1 - e.

    Slots are those of a steady walk along the line where the optimizer has such (Momentum,
    HeavyBall), otherwise on the line from the first to the last slots (Adam: ours, no paper's).
    Only two states are kept. Not for long runs at small decay with share=1, which can explode: the
    line lingers where curvature is negative.
    Implements: Fu et al. 2016 (DrMAD), Algorithm 2; as released with share=0.1,
    minibatches="first", ends=0.001.
    """

    share: float = 1.0
    minibatches: str = "spread"
    ends: float | None = None

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], the steps to replay, got {self.share}")
        if self.minibatches not in ("spread", "first"):
            raise ValueError(f"minibatches must be 'spread' or 'first', got {self.minibatches!r}")
        if self.ends is not None and not 0 <= self.ends < 0.5:
            raise ValueError(f"ends must be None or lie in [0, 0.5), got {self.ends}")

    def places(self, steps: int) -> dict[int, float]:
        """Return {step to replay: place on the line, from 0 to 1} of a run of `steps` steps."""
        # rounded: 0.29 of 100 are 29, though 0.29 * 100 is less
        count = min(steps, max(1, int(round(self.share * steps, 9))))
        spread = [j * steps // count for j in range(count)]
        replayed = spread if self.minibatches == "spread" else range(count)
        even = np.arange(count) / max(1, count)
        places = even if self.ends is None else np.linspace(self.ends, 1 - self.ends, count)
        return dict(zip(replayed, places.tolist(), strict=True))

    def train(self, problem: Problem, hyper) -> Trajectory:
        """Train and return the trajectory."""
        return _ShortcutRun(problem, hyper, self.places(problem.steps))


class _ShortcutRun:
    whole = True

    def __init__(self, problem: Problem, hyper, places: dict[int, float]):
        self.problem, self.hyper, self.places, self.steps = problem, hyper, places, list(places)
        self.first, self.final = problem.initial_state(hyper), train(problem, hyper)
        self.objective = problem.objective(hyper)
        self.nbytes = state_nbytes(self.first) + state_nbytes(self.final)

    def undo(self, t: int) -> tuple[tuple, Linearized]:
        place, pairs = self.places[t], zip(self.first, self.final, strict=True)
        weights, *slots = ((1 - place) * first + place * last for first, last in pairs)
        if t == 0:
            slots = self.first[1:]
        elif (steady := self._steady_slots(t - 1)) is not None:
            slots = steady
        return (weights, *slots), self.objective.linearize(weights, t)

    def _steady_slots(self, t: int) -> tuple | None:
        stride = (self.final[0] - self.first[0]) / self.problem.steps
        c = self.problem.backend.evaluate(self.problem.coefficients, stride, self.hyper, t)
        return self.problem.optimizer.steady_slots(c, stride)

    def close(self) -> None:
        pass
