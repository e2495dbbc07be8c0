"""Is the hypergradient of a problem right?  Checks by finite differences, on a short run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hgcore.arrays import like, require_instance
from hgcore.checks.connected import require_graph
from hgcore.hypergradient import Forward, Reverse
from hgcore.problem import OutOfRange, Problem, quiet
from hgcore.reversible import Reversible
from hgcore.trajectory import Checkpointed, train

ENTRIES = 20  # how many hyperparameters are moved one by one
_BITS = "{} differs when computed twice: draw what is random from a seed made of t"
_PADDED = " (an Embedding's padding_idx does so, too, and does no harm)"
_GRADIENT = (
    "a hook, .detach(), .data, no_grad or an autograd.Function of your own changes it; to clip, use"
    f" the optimizer's clip={_PADDED}"
)
_TWICE = (
    "an autograd.Function of your own, or an operation that the backend differentiates wrongly"
    f" twice; write it in plain operations{_PADDED}"
)
_CUT = (
    "float(), .item(), .detach() or a NumPy function cuts a hyperparameter off; compute with"
    " backend.xp"
)
_KINK = "the loss has a kink here (a ReLU at zero, the bound of a clamp); check beside it"
_EDGE = "differences are not finite so near the end of a logarithm or root; check farther from it"
_JUMPS = "the loss changes in jumps, its derivative is zero between them"
_STRANGERS = (
    "which stay as they are: use the weights and function of hg.nets.functional, not the module and"
    " its parameters (a net that is not trained here: requires_grad_(False))"
)
_RUN = "the steps amplify rounding: lower the rate, or use float64"


class Finding(NamedTuple):
    """What one check found; status: "ok", "note" or "WRONG"."""

    status: str
    subject: str
    words: str

    def __str__(self) -> str:
        return f"{self.status:<6}{self.subject}: {self.words}"


@dataclass(frozen=True)
class Report:
    """The findings of `check`; prints as a line each."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.status != "WRONG" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def check(problem: Problem, hyper, steps: int = 10, seed: int = 0) -> Report:
    """Return a Report on the derivatives of `problem` at hyper (m,), on a run of at most `steps`.

    Gradients of both losses against differences of the losses; products with second derivatives
    against differences of the gradient; the same bits twice; the hypergradient by two solvers, and
    against differences of the whole run, one hyperparameter at a time (of more than 20: all along
    a random direction, and 20 drawn from `seed`). About 50 short runs. Never raises for what is
    wrong with the problem. Not for losses with jumps; kinks (ReLU) make it less sharp.
    """
    require_instance("problem", problem, Problem, "hg.Problem(...)")
    findings = []
    try:
        short = replace(problem, steps=min(problem.steps, steps))
        rng = np.random.default_rng(seed)
        findings.extend(_Examination(short, short.as_hyper(hyper), rng).all())
        if skipped := sum("not compared" in finding.words for finding in findings):
            words = f"{skipped} of {len(findings)} not compared; float64 can tell more"
            findings.append(Finding("note", "in all", words))
    except Exception as error:  # a loss may raise anything
        findings.append(Finding("WRONG", type(error).__name__, str(error)))
    return Report(tuple(findings))


class _Examination:
    """The checks, at one problem and hyper."""

    def __init__(self, problem: Problem, hyper, rng: np.random.Generator):
        self.problem, self.hyper, self.rng = problem, hyper, rng
        self.precision = float(np.finfo(problem.backend.dtype).eps)

    def all(self) -> Iterator[Finding]:
        """Yield the findings; none after the first if something is not the same again."""
        t, weights = max(0, self.problem.steps - 1), train(self.problem, self.hyper)[0]
        bits = self._bits(weights, t)
        yield bits
        if bits.status == "ok":
            yield from self._inner(weights, t)
            yield from self._outer(weights)
            yield from self._run()
            yield from self._strangers(weights, t)
            yield from self._rates(weights)

    def _gradient(self, weights, hyper, t):
        return self.problem.objective(hyper).gradient(weights, t)

    @quiet
    def _bits(self, weights, t) -> Finding:
        problem, hyper = self.problem, self.hyper

        def parts() -> Iterator[tuple]:
            yield "the gradient", self._gradient(weights, hyper, t)
            yield from (("the outer loss", x) for x in problem.outer_gradients(weights, hyper))
            yield from (("initial", x) for x in problem.initial_state(hyper))
            if problem.steps:
                c = problem.backend.evaluate(problem.coefficients, weights, hyper, t)
                yield from ((name, x) for name, x in vars(c).items() if name != "t")

        for (name, first), (_, again) in zip(parts(), parts(), strict=True):
            if not np.array_equal(*map(problem.backend.numpy, (first, again)), equal_nan=True):
                return Finding("WRONG", "same bits", _BITS.format(name))
        return Finding("ok", "same bits", "yes")

    @quiet
    def _inner(self, weights, t) -> Iterator[Finding]:
        loss, hyper, backend = self.problem.inner_loss, self.hyper, self.problem.backend
        found = self.problem.objective(hyper).linearize(weights, t)
        along, dw, dh = found.gradient, self._direction(weights), self._direction(hyper)
        steepest = along / (_norm(along) or 1.0)
        for subject, d in (("inner d/dw", dw), ("inner d/dw, steepest", steepest)):
            line = lambda e, d=d: backend.evaluate(loss, weights + e * d, hyper, t)  # noqa: E731
            yield self._compared(subject, line, along @ d, _GRADIENT)
        line = lambda e: self._gradient(weights + e * dw, hyper, t)  # noqa: E731
        yield self._compared("inner d2/dw2", line, found.hvp(dw), _TWICE)
        line = lambda e: self._gradient(weights, hyper + e * dh, t) @ dw  # noqa: E731
        yield self._compared("inner d2/dw dhyper", line, found.mixed(dw) @ dh, _CUT)

    @quiet
    def _outer(self, weights) -> Iterator[Finding]:
        hyper, dw, dh = self.hyper, self._direction(weights), self._direction(self.hyper)
        _, by_weights, by_hyper = self.problem.outer_gradients(weights, hyper)
        if not by_weights.any():
            require_graph(self.problem, "outer_loss", self.problem.outer_loss, weights, hyper)
        line = lambda e: self._outer_loss(weights + e * dw, hyper)  # noqa: E731
        yield self._compared("outer d/dw", line, by_weights @ dw, _GRADIENT)
        line = lambda e: self._outer_loss(weights, hyper + e * dh)  # noqa: E731
        yield self._compared("outer d/dhyper", line, by_hyper @ dh, _CUT)

    def _strangers(self, weights, t) -> Iterator[Finding]:
        """Yield a note on each loss that uses tensors which weights and hyper cannot change."""
        inner = lambda w, h: self.problem.inner_loss(w, h, t)  # noqa: E731
        for name, loss in (("inner_loss", inner), ("outer_loss", self.problem.outer_loss)):
            if count := self.problem.backend.sources(loss, weights, self.hyper)[1]:
                words = f"uses {count} other tensors that require a gradient, {_STRANGERS}"
                yield Finding("note", name, words)

    def _rates(self, weights) -> Iterator[Finding]:
        """Yield a note if the rate of the first step is negative."""
        c = self.problem.optimizer.coefficients(self.problem.backend, weights, self.hyper, 0)
        if (least := float(c.rate.min())) < 0:
            words = f"{least:.3g} at step 0, so the loss grows; if hyper is its logarithm, take exp"
            yield Finding("note", "rate", words)

    def _outer_loss(self, weights, hyper):
        return self.problem.backend.evaluate(self.problem.outer_loss, weights, hyper)

    @quiet
    def _run(self) -> Iterator[Finding]:
        """Yield findings on the hypergradient: by two solvers, and one hyperparameter at a time."""
        problem, hyper, idle = self.problem, self.hyper, []
        stored = _solve(Reverse(), problem, hyper)
        if problem.optimizer.reversible:
            name, other = "Reversible", Reverse(Reversible())
        elif len(hyper) <= ENTRIES:
            name, other = "Forward", Forward()
        else:
            name, other = "Checkpointed", Reverse(Checkpointed(states=2))
        try:
            again = _solve(other, problem, hyper)
        except OutOfRange as error:
            yield Finding("note", name, str(error))
            name, again = "Checkpointed", _solve(Reverse(Checkpointed(2)), problem, hyper)
        gap = _norm(stored.grad - again.grad) / (_norm(stored.grad) or 1.0)
        found = "ok" if gap < 1e4 * self.precision**0.5 else "WRONG"
        words = f"a relative difference of {gap:.1e}"
        yield Finding(found, f"Stored, {name}", words if found == "ok" else f"{words}: {_RUN}")

        def line(e, unit):
            moved = hyper + e * unit
            return self._outer_loss(self._trained(moved), moved)

        if len(hyper) > ENTRIES:
            unit = self._direction(hyper)
            slope = stored.grad @ unit
            yield self._compared("all of hyper", functools.partial(line, unit=unit), slope, _CUT)
        drawn = self.rng.permutation(len(hyper))
        acting = problem.backend.numpy(stored.grad)[drawn] != 0
        for i in sorted([*drawn[acting], *drawn[~acting]][:ENTRIES]):
            unit = like(np.eye(1, len(hyper), i)[0], hyper) * (1 + abs(float(hyper[i])))
            along = functools.partial(line, unit=unit)
            if float(stored.grad[i]) == 0 and float(along(0.1)) == float(along(-0.1)):
                idle.append(int(i))
            else:
                yield self._compared(f"hyper[{i}]", along, stored.grad @ unit, _CUT)
        if idle:
            yield Finding("note", f"hyper{idle}", f"no effect within {problem.steps} steps")

    def _trained(self, hyper):
        """Return the trained weights at `hyper`, near that of the check.

        Decays are moved by as much as rounding moved them there: rounded ones change in jumps.
        """
        problem, optimizer, backend = self.problem, self.problem.optimizer, self.problem.backend
        state = problem.initial_state(hyper)
        for t in range(problem.steps):
            gradient = self._gradient(state[0], hyper, t)
            c = optimizer.coefficients(backend, gradient, hyper, t)
            plain = optimizer.coefficients(backend, gradient, self.hyper, t)
            rounded = problem.coefficients(gradient, self.hyper, t)
            for name in optimizer.decays:
                setattr(c, name, getattr(c, name) + getattr(rounded, name) - getattr(plain, name))
            state = backend.evaluate(optimizer.step, state, gradient, c)
        return state[0]

    def _direction(self, vector):
        """Return a random direction like `vector`, of length 1 + that of the vector."""
        direction = like(self.rng.standard_normal(len(vector)), vector)
        return direction * ((1 + _norm(vector)) / (_norm(direction) or 1.0))

    def _compared(self, subject: str, line: Callable, expected, why: str) -> Finding:
        """Compare `expected` with the derivative of line(e) at 0, by central differences.

        If that is close at one step length, the others are left out.
        """
        size, slopes, close = _norm(expected), [], 30 * self.precision**0.5
        known, unit = f"{size:.3g}", self.precision ** (1 / 3)
        steps = np.geomspace(min(0.05, 1e3 * unit), 0.01 * unit, 7)
        for e in steps:
            slopes.append((line(e) - line(-e)) / (2 * e))
            gap = _norm(slopes[-1] - expected)
            # short steps may be lost in rounding: then they agree with zero
            if gap <= close * size and (size or e == steps[0]):
                return Finding("ok", subject, f"{known}, differences agree to {gap:.0e}")
        status, words = self._explained(line, expected, steps, slopes, close)
        return Finding(status, subject, f"{known}, {words}" + (status == "WRONG") * f": {why}")

    def _explained(self, line, expected, steps, slopes: list, close: float) -> tuple[str, str]:
        """Return (status, words) where no difference is close: a kink, rounding, or an error.

        The three step lengths in a row count at which the slopes agree best. Their differences
        bound the error; that of the two shortest is taken for rounding.
        """
        here = line(0.0)
        scatter = np.array([_norm(a - b) for a, b in itertools.pairwise(slopes)])
        least = self.precision * _norm(here)  # `noise` grows with the run
        noise = (scatter[-1] * steps[-1] + least) / steps
        errors = np.maximum(scatter[:-1], scatter[1:]) + noise[1:-1]
        sizes = np.array([_norm(slope) for slope in slopes])
        errors[(sizes[2:] == 0) & sizes.any()] = np.inf  # the steps of a staircase are flat
        if not np.isfinite(errors).any():
            return "note", f"not compared: {_EDGE if np.isnan(scatter).any() else _JUMPS}"
        i = int(np.nanargmin(errors))
        slope, error, at = slopes[i + 1], errors[i], steps[i + 1 : i + 3]
        size, gaps = max(_norm(slope), _norm(expected)), [_norm(x - expected) for x in slopes]
        gap, agrees = gaps[i + 1], gaps[i + 1] <= 4 * error + close * size
        if agrees and (error < 0.03 * size or gap <= 2 * least / at[0]):
            return "ok", f"differences agree to {gap:.0e}"
        if agrees or error > 0.1 * gap:
            return "note", f"not compared: differences scatter by {error:.0e} (kinks, rounding)"
        shorter = zip(gaps[i + 2 :], noise[i + 2 :], strict=True)
        if any(max(pair) < 0.1 * gap for pair in shorter):
            return "note", "not compared: only the shortest differences agree"
        # the difference of both sides' slopes: it falls with the step, but not at a kink
        far, near = (_norm(line(e) + line(-e) - 2 * here) / e for e in at)
        if near > far * (at[1] / at[0]) ** 0.5 and gap <= 0.6 * near:
            return "note", f"not compared: {_KINK}"
        return "WRONG", f"but {_norm(slope):.6g} by differences (off by {gap:.1e})"


def _solve(solver, problem: Problem, hyper):
    """Return the hypergradient without the checks of solvers, which stop at the first fault."""
    return type(solver).__call__.__wrapped__(solver, problem, hyper)


def _norm(x) -> float:
    """Return the length of a vector, or the magnitude of a scalar."""
    return float((x * x).sum()) ** 0.5
