"""What was the state before step t?  Answers that keep states, or guess them.

A strategy is a frozen record with `train(problem, hyper)`, which trains and returns a Trajectory.
Reversible, in reversible.py, runs the training backwards.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hgcore.arrays import require_count
from hgcore.backend import Linearized
from hgcore.fixed_point import ReversalError
from hgcore.problem import DivergenceMonitor, Problem, quiet


class Trajectory(NamedTuple):
    """A finished training run that can be undone once, for each of `steps`, last first."""

    final: tuple  # the state after training
    steps: Sequence[int]  # those that `undo` knows
    whole: bool  # whether they lead back to the initial state
    nbytes: int  # what is kept between the two passes
    undo: Callable  # t -> (the state before step t, the inner loss linearized there)
    close: Callable = lambda: None  # raises ReversalError unless the passes saw the same run


def train(problem: Problem, hyper, state: tuple | None = None, steps: range | None = None) -> tuple:
    """Return the state after `steps` (default: all), (weights, *slots), each (n,).

    state: that before the first of them (default: the initial one). Nothing else is kept.
    """
    hyper = problem.as_hyper(hyper)
    state = problem.initial_state(hyper) if state is None else state
    steps = range(problem.steps) if steps is None else steps
    problem.smallest_decays(hyper, state, steps)
    return advance(problem, hyper, state, steps, problem.objective(hyper).gradient)


@quiet
def advance(*arguments) -> tuple:
    """Return the last of `states`, which has the same arguments."""
    return collections.deque(states(*arguments), maxlen=1).pop()


def states(problem, hyper, state: tuple, steps: range, gradient: Callable) -> Iterator[tuple]:
    """Yield `state` and that after each step, or raise Diverged. gradient: (weights, t) -> (n,)."""
    monitor = DivergenceMonitor(problem.backend)
    yield state
    for t in steps:
        state = problem.step(state, gradient(state[0], t), hyper, t)
        monitor(t, state[0] @ state[0])
        yield state
    monitor.flush()


class Gradients:
    """The gradients of a run, (weights, t) -> (n,), with their graph in the last `graphs` steps."""

    def __init__(self, problem: Problem, hyper, graphs: int = 0, plain: Callable | None = None):
        self.objective, self.kept = problem.objective(hyper), {}
        self.first, self.plain = problem.steps - graphs, plain or self.objective.gradient

    def __call__(self, weights, t: int):
        if t < self.first:
            return self.plain(weights, t)
        self.kept[t] = self.objective.linearize(weights, t)
        return self.kept[t].gradient

    def linearized(self, weights, t: int) -> Linearized:
        """Return the inner loss linearized at step t, from its graph if that was kept."""
        return self.kept.pop(t, None) or self.objective.linearize(weights, t)


class ComparedGradients(Gradients):
    """Gradients that must have the same lengths in training and on the way back."""

    def __init__(self, problem: Problem, hyper, graphs: int):
        super().__init__(problem, hyper, graphs)
        self.backend, self.seen = problem.backend, []

    def __call__(self, weights, t: int):
        return self._noted(t, super().__call__(weights, t))

    def linearized(self, weights, t: int) -> Linearized:
        found = super().linearized(weights, t)
        self._noted(t, found.gradient)
        return found

    def _noted(self, t: int, gradient):
        self.seen.append((t, self.backend.host_view(gradient @ gradient)))
        return gradient

    def compare(self) -> None:
        """Raise ReversalError if the length of one changed by over sqrt(eps) of the longest."""
        lengths = np.sqrt(np.abs(self.backend.floats([square for _, square in self.seen])))
        allowed, training = np.finfo(self.backend.dtype).eps ** 0.5 * lengths.max(initial=0), {}
        for (t, _), length in zip(self.seen, lengths, strict=True):
            if abs(training.setdefault(t, length) - length) > allowed:
                raise ReversalError(
                    f"step {t} has another gradient on the way back than in training: draw what is"
                    " random (batches, dropout, noise) from a seed made of t"
                )


@quiet
def train_and_keep(name, problem: Problem, hyper, count: int, first=0, graphs=0) -> Trajectory:
    """Train and return the trajectory back to step `first`; keep at most `count` states at a time.

    name: of the strategy. Implements: Griewank and Walther 2000, Algorithm 799 (Revolve).
    """
    start, gradients = problem.initial_state(hyper), ComparedGradients(problem, hyper, graphs)
    steps, kept = range(first, problem.steps), []  # pairs (t, the state before step t)
    block = _block(name, problem.backend, min(count, len(steps) + 1), start)
    problem.smallest_decays(hyper, start, range(problem.steps))

    def keep(t: int, state: tuple) -> None:
        if len(kept) < len(block):  # else it is in use, and dropped next
            for place, vector in zip(block[len(kept)], state, strict=True):
                place[:] = vector
            state = tuple(block[len(kept)])
        kept.append((t, state))

    def keep_up_to(t: int) -> None:
        """Keep the state before step t, and others before it as long as there are places."""
        if kept[-1][0] == t:
            return
        mark, state = kept.pop()
        state = tuple(1 * vector for vector in state)  # graphs must not see the block change
        run = states(problem, hyper, state, range(mark, t), gradients)
        for now, state in enumerate(run, mark):
            if now == mark:
                keep(now, state)
                mark += next_checkpoint(t + 1 - now, count - len(kept)) if now < t else 1

    def undo(t: int) -> tuple[tuple, Linearized]:
        keep_up_to(t)
        _, state = kept.pop()
        return state, gradients.linearized(state[0], t)

    keep(first, advance(problem, hyper, start, range(first), gradients.plain))
    keep_up_to(max(first, problem.steps - 1))
    final = advance(problem, hyper, kept[-1][1], steps[-1:], gradients)
    return Trajectory(final, steps, first == 0, block.nbytes, undo, gradients.compare)


def _block(name: str, backend, count: int, state: tuple):
    """Return memory for `count` states in one block, which does not fragment the heap."""
    like, there = state[0], backend.memory()
    if (needed := count * len(state) * like.nbytes) > there:
        raise MemoryError(
            f"{name} keeps {count} states, {needed / 1e9:.1f} GB, and {backend.device} has"
            f" {there / 1e9:.1f} GB; use Checkpointed() with fewer states, or Reversible()"
        )
    return backend.xp.empty((count, len(state), len(like)), dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Stored:
    """Keeps all T + 1 states: exact, the fastest, (T + 1) n (1 + slots) numbers.

    graphs: of how many of the last steps the graph of the gradient is kept too. Each saves a third
    of the time of a step and costs memory like an unrolled loop (not in `nbytes`).
    Implements: Franceschi et al. 2017, Reverse-HG.
    """

    graphs: int = 0

    def __post_init__(self):
        require_count("graphs", self.graphs)

    def train(self, problem: Problem, hyper) -> Trajectory:
        return train_and_keep("Stored", problem, hyper, problem.steps + 1, graphs=self.graphs)


@dataclass(frozen=True)
class Truncated:
    """Keeps and differentiates the last `last` steps only: biased and cheap.

    Implements: Shaban et al. 2019, truncated back-propagation.
    """

    last: int

    def __post_init__(self):
        require_count("last", self.last)

    def train(self, problem: Problem, hyper) -> Trajectory:
        first = max(0, problem.steps - self.last)
        return train_and_keep("Truncated", problem, hyper, self.last + 1, first)


@dataclass(frozen=True)
class Checkpointed:
    """Keeps `states` states, the initial one included, and computes the others again: exact.

    By default about 2 sqrt(T) of them, which costs one replay of the run. Replays the fewest steps
    possible, r T - binomial(c + r, r - 1), with c = states and r the most that a step is run.
    """

    states: int | None = None

    def __post_init__(self):
        if self.states is not None:
            require_count("states", self.states, least=1, what="states")

    def train(self, problem: Problem, hyper) -> Trajectory:
        count = self.states or 2 * math.isqrt(problem.steps) + 1
        return train_and_keep("Checkpointed", problem, hyper, count)


def next_checkpoint(steps: int, free: int) -> int:
    """Return after how many of `steps` >= 2 steps to keep the next state, with `free` places left.

    With b(c, r) = binomial(c + r, c), c = free + 1 and r the least with steps <= b(c, r): the least
    d with b(c, r-2) <= d <= b(c, r-1) and b(c-1, r-1) <= steps - d <= b(c-1, r), all optimal.
    """
    c = free + 1
    r = next(r for r in itertools.count(1) if steps <= math.comb(c + r, c))
    return max(1, math.comb(c + r - 2, c), steps - math.comb(c + r - 1, c - 1))


@dataclass(frozen=True)
class Shortcut:
    """Puts the straight line from the first to the last weights in place of the path: approximate.

    share: the part of the T steps that is replayed, N = share * T, at least one; the hypergradient
    of what adds up over the steps (a penalty, a rate) shrinks with N. minibatches: "spread" replays
    the batches and coefficients of every (T/N)th step, "first" those of steps 0..N-1. ends: None
    puts the weights before replayed step j at j/N of the line, a number e at N even places from e
    to 1 - e. Slots are those of a steady walk where the optimizer has such (Momentum, HeavyBall),
    otherwise on the line from the first to the last (Adam: ours, no paper's). Keeps two states. Not
    for long runs at small decay with share=1: the line stays long where curvature is negative, and
    the hypergradient can explode. Implements: Fu et al. 2016 (DrMAD), Algorithm 2; as released with
    share=0.1, minibatches="first", ends=0.001.
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
        span = steps if self.minibatches == "spread" else count
        replayed = [j * span // count for j in range(count)]
        even = self.ends is None
        places = np.arange(count) / count if even else np.linspace(self.ends, 1 - self.ends, count)
        return dict(zip(replayed, places.tolist(), strict=True))

    def train(self, problem: Problem, hyper) -> Trajectory:
        first, final = problem.initial_state(hyper), train(problem, hyper)
        places, objective = self.places(problem.steps), problem.objective(hyper)

        def undo(t: int) -> tuple[tuple, Linearized]:
            share, pairs = places[t], zip(first, final, strict=True)
            weights, *slots = ((1 - share) * a + share * b for a, b in pairs)
            if t == 0:
                slots = first[1:]
            elif len(slots) == 1:  # a velocity; the rate with its sign is its drift
                stride = (final[0] - first[0]) / problem.steps
                c = problem.backend.evaluate(problem.coefficients, stride, hyper, t - 1)
                rate = problem.optimizer.drift(c, None, 1.0)
                slots = [stride / problem.backend.xp.where(rate != 0, rate, float("inf"))]
            return (weights, *slots), objective.linearize(weights, t)

        nbytes = sum(vector.nbytes for vector in first + final)
        return Trajectory(final, list(places), True, nbytes, undo)
