"""Answers to the one question of a backward pass: what was the state before step t?

`stored`, `checkpointed` and `reversible` answer exactly, `shortcut` (DrMAD) by a straight line, `truncated` only for the last
steps. Each is called as remember(problem, hyper), trains, and returns a `Trajectory`; bind options with `functools.partial`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hgcore.arrays import namespace
from hgcore.problem import Problem, Watch
from hgcore.reversal import RANGE, ExactMomentum, ReversalError, ratio


class Trajectory(Protocol):
    """A finished training run that can be walked backwards, once, over the steps in `replayed`; if `whole`, to the initial state.

    For each step t, last first: `weights(t, coefficients)`, then, with the gradient found there, `state(t, gradient)`.
    `final`: the state after training; `nbytes`: what is kept between the two passes; `close()` after the last step.
    It may have `graphs`, {t: `Problem.second_order` of step t}: these are not found again.
    """

    final: tuple
    replayed: Sequence[int]
    whole: bool
    nbytes: int

    def weights(self, t, coefficients): ...
    def state(self, t, gradient) -> tuple: ...
    def close(self) -> None: ...


def _size(state: tuple) -> int:
    return sum(vector.nbytes for vector in state)


class Graphs(dict):
    """The gradient of a training run, (weights, hyper, t) -> (n,): that of `plain` up to the last `count` steps, whose second order it keeps."""

    def __init__(self, problem: Problem, count: int, plain: Callable):
        if count < 0:
            raise ValueError(f"graphs must be a number of steps >= 0, got {count}")
        self.problem, self.first, self.plain = problem, problem.steps - count, plain

    def __call__(self, weights, hyper, t):
        if t < self.first:
            return self.plain(weights, hyper, t)
        self[t] = self.problem.second_order(weights, hyper, t)
        return self[t].gradient


def _states(problem: Problem, hyper, state: tuple, steps: range, gradient: Callable | None = None):
    """The states after each of `steps`, starting from `state`; raises `Diverged`."""
    watch, gradient = Watch(problem.backend), problem.gradient if gradient is None else gradient
    for t in steps:
        state = problem.step(state, hyper, t, gradient(state[0], hyper, t))
        watch.weights(t, state[0])
        yield state
    watch.look()


def train(problem: Problem, hyper) -> tuple:
    """The state after training; nothing is kept on the way."""
    state = problem.start(hyper)
    problem.check(hyper, state)
    return _last(state, _states(problem, hyper, state, range(problem.steps)))


def _last(state: tuple, states) -> tuple:
    for after in states:
        state = after
    return state


class stored:
    """Every state is kept: T + 1 of them (Franceschi et al. 2017, Reverse-HG).

    graphs: of how many steps, the last ones, the graph of the gradient is kept as well. The way back need not make them again, which
    saves a third of such a step and costs memory like an unrolled loop; `nbytes` leaves it out.
    """

    first, whole = 0, True

    def __init__(self, problem: Problem, hyper, graphs: int = 0):
        state = problem.start(hyper)
        problem.check(hyper, state)
        self._train(problem, hyper, state, graphs)

    def _train(self, problem, hyper, state, graphs=0):
        self.replayed, self.graphs = (
            range(self.first, problem.steps),
            Graphs(problem, graphs, problem.gradient),
        )
        shape = len(self.replayed) + 1, len(state), len(state[0])
        # one block, made beforehand: vectors that stay between temporary ones leave holes that nobody can use
        self.states = namespace(state[0]).empty(shape, dtype=state[0].dtype, device=state[0].device)
        self.nbytes = self.states.nbytes
        # strict, so that zip asks for one state too many: only then are the last steps looked at (see `_states`)
        for place, after in zip(
            self.states,
            itertools.chain([state], _states(problem, hyper, state, self.replayed, self.graphs)),
            strict=True,
        ):
            for kept, vector in zip(place, after, strict=True):
                kept[:] = vector
        self.final = after

    def weights(self, t, coefficients):
        return self.states[t - self.first, 0]

    def state(self, t, gradient) -> tuple:
        return tuple(self.states[t - self.first])

    def close(self) -> None:
        del self.states


class truncated(stored):
    """Only the last `last` steps are kept and differentiated: biased, cheap (Shaban et al. 2019)."""

    def __init__(self, problem: Problem, hyper, last: int = 1):
        if last < 0:
            raise ValueError(f"last must be a number of steps >= 0, got {last}")
        self.first = max(0, problem.steps - last)
        self.whole = self.first == 0
        state = problem.start(hyper)
        problem.check(hyper, state)
        self._train(problem, hyper, _last(state, _states(problem, hyper, state, range(self.first))))


class checkpointed:
    """About 2 sqrt(T) states are kept, and each stretch between two of them is run again on the way back."""

    whole = True

    def __init__(self, problem: Problem, hyper, every: int | None = None):
        self.problem, self.hyper = problem, hyper
        self.every = max(1, math.isqrt(problem.steps)) if every is None else every
        if self.every < 1:
            raise ValueError(f"every must be a number of steps >= 1, got {every}")
        state = problem.start(hyper)
        problem.check(hyper, state)
        self.marks, self.stretch, self.final = {0: state}, [], state
        for t, after in enumerate(_states(problem, hyper, state, range(problem.steps)), start=1):
            self.final = after
            if t % self.every == 0 and t < problem.steps:
                self.marks[t] = after
        self.replayed = range(problem.steps)
        self.nbytes = (len(self.marks) + min(self.every, problem.steps)) * _size(state)

    def weights(self, t, coefficients):
        if not self.stretch:
            mark = t - t % self.every
            state = self.marks.pop(mark)
            self.stretch = [state, *_states(self.problem, self.hyper, state, range(mark, t))]
        return self.stretch[-1][0]

    def state(self, t, gradient) -> tuple:
        return self.stretch.pop()

    def close(self) -> None:
        self.marks.clear()


class reversible:
    """Nothing is kept but what the decays lose, log2(1/decay) bits a weight and step (Maclaurin et al. 2015).

    State and additions are fixed point (see reversal.py), so the run differs from a `stored` one by rounding, 2**-53 a step.
    Needs an inner objective that always gives the same bits: same thread count, no unseeded randomness. The rewound start is
    compared with the true one, bit for bit, and a difference raises `ReversalError`.
    joint: train with the gradient that the way back finds, which is slower; otherwise only if the plain one is seen to have other bits
    at two places.
    graphs: of how many steps, the last ones, the graph is kept, as in `stored`: what memory there is to spare buys time.
    """

    whole = True

    def __init__(self, problem: Problem, hyper, graphs: int = 0, joint: bool = False):
        if not problem.dynamics.reversible:
            name = type(problem.dynamics).__name__
            raise ValueError(
                f"{name} cannot be run backwards: use Momentum or HeavyBall, or remember the run as `stored`"
            )
        self.problem, self.hyper, self.backend = problem, hyper, problem.backend
        start = problem.start(hyper)
        self.least, self.replayed = problem.check(hyper, start), range(problem.steps)
        self.exact = self._begin(start)
        self.graphs = Graphs(
            problem, graphs, problem.joint_gradient if joint else self._agreeing(start[0])
        )
        self._forward()
        self.final = self.floats()
        self.nbytes = self.exact.nbytes

    def _begin(self, start: tuple) -> ExactMomentum:
        return ExactMomentum(*(self.backend.exact(vector) for vector in start))

    def _forward(self) -> None:
        watch = Watch(self.backend, RANGE)
        watch(-1, self.exact.reach)
        for t in self.replayed:
            weights = self.backend.array(self.exact.weights)
            decay, gain, rate = self._used(t, self.problem.coefficients(weights, self.hyper, t))
            slope = self.backend.exact(self.graphs(weights, self.hyper, t))
            watch(t, self.exact.forth(slope, decay, gain, rate))
        watch.look()

    def _agreeing(self, weights):
        """The gradient to train with: the plain one if its bits are those that the way back will find, else that very call."""
        for _ in self.replayed[:2]:
            plain, joint = (
                find(weights, self.hyper, 0)
                for find in (self.problem.gradient, self.problem.joint_gradient)
            )
            if not bool((plain == joint).all()):
                return self.problem.joint_gradient
            weights = (
                weights - plain
            )  # once more away from the start, where too much may be zero to tell
        return self.problem.gradient

    def _used(self, t, coefficients) -> tuple:
        """(decay, gain, signed rate) of step t, where integers live."""
        rate, decay = (self.backend.exact(c) for c in coefficients)
        dynamics = self.problem.dynamics
        return (
            ratio(decay, self.least[t]),
            dynamics.gain(decay),
            rate if dynamics.sign > 0 else -rate,
        )

    def floats(self) -> tuple:
        """The present state in the backend's type."""
        return self.backend.array(self.exact.weights), self.backend.array(self.exact.speed)

    def weights(self, t, coefficients):
        self.used = self._used(t, coefficients)
        self.exact.back_position(self.used[2])
        return self.backend.array(self.exact.weights)

    def state(self, t, gradient) -> tuple:
        decay, gain, _ = self.used
        self.exact.back_velocity(self.backend.exact(gradient), decay, gain)
        return self.floats()

    def close(self) -> None:
        """Raise unless the rewound start is the true one to the last bit."""
        misses = self.exact.misses(self._begin(self.problem.start(self.hyper)))
        if misses:
            numbers = 2 * len(self.exact.weights)
            raise ReversalError(
                f"the run backwards missed its start in {min(misses, numbers)} of {numbers} numbers: the inner objective"
                " did not give the same bits twice. Keep one thread count, seed what is random by t, on a GPU ask for"
                " deterministic algorithms; if its gradient alone rounds otherwise than with a graph, use"
                " functools.partial(hg.reversible, joint=True); or remember the run as `stored`"
            )


class shortcut:
    """The straight line from the first to the last weights in place of the true path: approximate (DrMAD, Fu et al. 2016).

    share: how many of the T steps are replayed, N = share * T and at least one. Fewer replay a shorter run: the hypergradient of
    something added up over all steps (a penalty, a rate) shrinks with N.
    minibatches: "spread" replays every (T/N)th step's batch and coefficients, "first" those of steps 0..N-1.
    ends: None puts the weights before replayed step j at j/N of the line; a number e puts them at N even places from e to 1 - e.
    Over long runs at small momentum share=1 can explode: the line lingers where curvature is negative (notebooks/drmad2016).
    The authors' release has share=0.1, minibatches="first", ends=0.001. The velocity is that of a steady walk along the line in T
    steps, (w_T - w_0) / (T rate), where the rate is not zero; at the start it is the true one. Only two states are kept.
    """

    whole = True

    def __init__(
        self,
        problem: Problem,
        hyper,
        share: float = 1.0,
        minibatches: str = "spread",
        ends: float | None = None,
    ):
        steps = problem.steps
        count = min(
            steps, max(1, int(round(share * steps, 9)))
        )  # 0.29 of 100 are 29, though 0.29 * 100 is less
        if not 0 < share <= 1:
            raise ValueError(
                f"share must lie in (0, 1], the part of the steps to replay, got {share}"
            )
        if minibatches not in ("spread", "first"):
            raise ValueError(f"minibatches must be 'spread' or 'first', got {minibatches!r}")
        if ends is not None and not 0 <= ends < 0.5:
            raise ValueError(f"ends must be None or lie in [0, 0.5), got {ends}")
        self.replayed = (
            [j * steps // count for j in range(count)] if minibatches == "spread" else range(count)
        )
        places = (
            np.arange(count) / max(1, count) if ends is None else np.linspace(ends, 1 - ends, count)
        )
        self.places = dict(zip(self.replayed, places.tolist(), strict=True))
        self.problem, self.hyper, self.start, self.final = (
            problem,
            hyper,
            problem.start(hyper),
            train(problem, hyper),
        )
        self.nbytes = _size(self.start) + _size(self.final)

    def weights(self, t, coefficients):
        return self._on_the_line(self.places[t])

    def _on_the_line(self, place: float):
        return (1 - place) * self.start[0] + place * self.final[0]

    def state(self, t, gradient) -> tuple:
        weights = self._on_the_line(self.places[t])
        return (
            (weights, *(self._velocity(t) for _ in self.start[1:]))
            if t
            else (weights, *self.start[1:])
        )

    def _velocity(self, t):
        """After step t - 1; zero where nothing moves because the rate is zero."""
        rate = self.problem.coefficients(self.start[0], self.hyper, t - 1)[0]
        stride = self.problem.dynamics.sign * (self.final[0] - self.start[0]) / self.problem.steps
        return stride / self.problem.backend.xp.where(rate != 0, rate, math.inf)

    def close(self) -> None:
        pass
