"""One problem on which every method is measured: logistic regression of digits with a condition
number to dial, and a count of what is spent.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.backend import Linearized
from hgcore.backend_torch import Torch
from hgcore.hypergradient import Implicit
from hgcore.layout import Layout
from hgcore.linear import DenseSolve
from hgcore.nets import cross_entropy, log_softmax
from hgcore.optimizers import GradientDescent, HeavyBall
from hgcore.papers.lorraine2020_inverses import hessian, minimum
from hgcore.problem import Problem
from hgcore.suite import meter

CLASSES = 10
SHADES = {"s": "0.35", "^": "white", "o": "#56B4E9"}  # of marks, by their shape
INK = dict(edgecolor="black", linewidth=0.5, clip_on=False)
NEWTON = 10  # steps from zero to the optimum: some eight are needed


class Counting:
    """A backend that counts gradients of the inner objective and products with its second
    derivatives, and does what `backend` does.
    """

    def __init__(self, backend):
        self.backend, self.gradients_seen, self.products_seen = backend, 0, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def gradient(self, f, weights, hyper):
        self.gradients_seen += 1
        return self.backend.gradient(f, weights, hyper)

    def linearize(self, f, weights, hyper) -> Linearized:
        self.gradients_seen += 1
        gradient, *products = self.backend.linearize(f, weights, hyper)
        return Linearized(gradient, *map(self._counted, products))

    def pushforward(self, f, weights, hyper) -> tuple:
        self.gradients_seen += 1
        gradient, push = self.backend.pushforward(f, weights, hyper)
        return gradient, self._counted(push)

    def _counted(self, product: Callable) -> Callable:
        def counted(*args, **keywords):
            self.products_seen += 1
            return product(*args, **keywords)

        return counted


class Spent(NamedTuple):
    """A hypergradient (m,) and its price: gradients and products of the inner objective, training
    included; states kept.
    """

    grad: np.ndarray
    gradients: int
    products: int
    states: float


def spent(solve: Callable, problem: Problem, hyper, *trained) -> Spent:
    """What solve(problem, hyper) finds and what it takes; for inner objectives that leave their
    derivatives to the backend.

    trained: the state that an implicit method begins with, if it is there already; its training is
        counted all the same.
    states: `nbytes` over those of one state. The one gradient of the outer objective is not
        counted.
    """
    counting, before = Counting(problem.backend), problem.steps if trained else 0
    found = solve(replace(problem, backend=counting), hyper, *trained)
    return Spent(
        problem.backend.numpy(found.grad),
        before + counting.gradients_seen,
        counting.products_seen,
        found.nbytes / found.state.nbytes,
    )


def whitened(images: Sequence[np.ndarray], features: int, condition: float) -> list[np.ndarray]:
    """Each of `images` (N, pixels) as (N, features): one, and the first principal components of the
    first set, each of variance one there; all scaled by factors that fall evenly, in ratio, from 1
    to condition^-1/2.
    """
    mean = images[0].mean(axis=0)
    variances, axes = np.linalg.eigh((images[0] - mean).T @ (images[0] - mean) / len(images[0]))
    variances, axes = variances[:-features:-1], axes[:, :-features:-1]
    axes = (
        axes * np.sign(axes[abs(axes).argmax(axis=0), range(features - 1)]) / variances**0.5
    )  # the same signs everywhere
    scales = np.geomspace(1, condition**-0.5, features)
    return [np.column_stack([np.ones(len(part)), (part - mean) @ axes]) * scales for part in images]


def contrasts(classes: int) -> np.ndarray:
    """(classes - 1, classes), rows orthonormal and of sum zero: scores in them have no direction
    that changes no probability.
    """
    rows = np.tri(classes - 1, classes) - np.diag(np.arange(1.0, classes), 1)[:-1]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_momentum(problem: Problem, steps: int, decay: float) -> Problem:
    """`problem`, trained for so many steps, its rate kept."""
    held = problem.backend.array(decay)
    return replace(
        problem,
        steps=steps,
        optimizer=HeavyBall(rate=problem.optimizer.rate, decay=held),
    )


@dataclass(frozen=True)
class Dialled:
    """Logistic regression at one conditioning.

    hyper (bands + 1,): log penalties of the bands of features, then the log rate.

    optimum (n,), its curvatures (n,) ascending, the hypergradient there by the implicit function
    theorem (bands + 1,): nothing to the rate.
    """

    problem: Problem
    hyper: np.ndarray
    optimum: object
    curvatures: np.ndarray
    truth: np.ndarray

    @property
    def condition(self) -> float:
        return self.curvatures[-1] / self.curvatures[0]

    def run(self, steps: int, decay: float) -> Problem:
        """Training for so many steps with momentum, all examples in each."""
        return with_momentum(self.problem, steps, decay)

    def radius(self, decay: float) -> float:
        """By what factor an error shrinks in one step near the optimum: the spectral radius of the
        step.
        """
        trace = 1 + decay - np.exp(self.hyper[-1]) * self.curvatures
        return float(
            abs(trace[:, None] + np.emath.sqrt(trace**2 - 4 * decay)[:, None] * [1, -1]).max() / 2
        )


def regression(
    backend, source: str, examples: Sequence[int], *, features: int, bands: int, condition: float
) -> tuple[Problem, np.ndarray]:
    """(descent on all examples, from zero; log penalties of the bands and the log rate, a zero to
    be replaced).

    Weights (9 * features,): scores in `contrasts`. The penalties are as large as the curvature of
    the flattest feature is, about. Outer objective: cross-entropy on the second part of `examples`.
    """
    train, judged = data.splits(source, examples)
    inputs, seen = (
        backend.array(part) for part in whitened([train.images, judged.images], features, condition)
    )
    labels, truth, basis = (
        backend.array(part) for part in (train.labels, judged.labels, contrasts(CLASSES))
    )
    layout = Layout(
        {
            f"band {i}": (len(rows), CLASSES - 1)
            for i, rows in enumerate(np.array_split(np.arange(features), bands))
        }
    )
    xp, start = backend.xp, backend.array(np.zeros(layout.size))

    def loss(w, x, y):
        return cross_entropy(log_softmax(x @ w.reshape(features, CLASSES - 1) @ basis), y)

    problem = Problem(
        backend=backend,
        steps=0,
        initial=lambda hyper: start,
        optimizer=GradientDescent(rate=lambda hyper, t: xp.exp(hyper[-1])),
        inner_loss=lambda w, hyper, t: (
            loss(w, inputs, labels) + xp.exp(hyper[:-1]) @ layout.sums(w * w)
        ),
        outer_loss=lambda w, hyper: loss(w, seen, truth),
    )
    return problem, np.append(np.full(bands, np.log(0.025 / condition)), 0.0)


def dialled(backend, *where, **size) -> Dialled:
    """`regression` with its optimum; the rate is 1 / the largest curvature there."""
    problem, hyper = regression(backend, *where, **size)
    (optimum,) = minimum(problem, hyper, NEWTON)
    curvatures = np.linalg.eigvalsh(hessian(problem, hyper, optimum))
    hyper[-1] = -np.log(curvatures[-1])
    return Dialled(
        problem,
        hyper,
        optimum,
        curvatures,
        backend.numpy(Implicit(DenseSolve())(problem, hyper, (optimum,)).grad),
    )


def weighed(solve: Callable, steps: int, decay: float, *where, **size) -> float:
    """By how many states a process of its own grows for one hypergradient of `regression` on torch,
    after so many steps at a rate of one.

    Counted from when data are there and a short run has loaded and compiled what is loaded and
    compiled once.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth, solve, steps, decay, *where, **size).result()


def _growth(solve: Callable, steps: int, decay: float, *where, **size) -> float:
    problem, hyper = regression(Torch(), *where, **size)
    solve(with_momentum(problem, 2, decay), hyper)
    meter.release()
    return meter.cost(lambda: solve(with_momentum(problem, steps, decay), hyper)).peak / (
        2 * problem.initial_state(problem.as_hyper(hyper))[0].nbytes
    )


def area(size: float) -> float:
    """Of a mark, in square points."""
    return 4 + 34 * np.log10(1 + size)


def chart(
    panel, points: dict[str, tuple[float, float, float]], shapes: dict[str, Sequence[str]]
) -> None:
    """Draw and name points {name: (x, y, size)} in a logarithmic panel whose limits are set;
    {marker: names}. Names avoid marks and each other.

    The `area` of a mark grows with the logarithm of its size. What lies outside is drawn on the
    edge.
    """
    window = panel.get_window_extent()
    box, limits = (
        np.array([window.width, window.height]) * 72 / panel.figure.dpi,
        np.log([panel.get_xlim(), panel.get_ylim()]).T,
    )
    spots = {
        name: np.clip((np.log(point[:2]) - limits[0]) / (limits[1] - limits[0]), 0, 1) * box
        for name, point in points.items()
    }
    reach = {name: area(point[2]) ** 0.5 / 2 for name, point in points.items()}
    taken = [
        np.concatenate([spots[name] - reach[name], spots[name] + reach[name]]) for name in points
    ]
    for marker, names in shapes.items():
        places = np.array([spots[name] / box for name in names])
        panel.scatter(
            *places.T,
            [4 * reach[name] ** 2 for name in names],
            marker=marker,
            facecolor=SHADES[marker],
            **INK,
            transform=panel.transAxes,
        )
    for name in sorted(points, key=lambda name: -spots[name][1]):
        rooms = _rooms(spots[name], reach[name], 3.4 * len(name), 6.5)
        room = rooms[np.argmin(_covered(rooms, np.array(taken), box))]
        taken.append(room)
        ends = np.array([spots[name], np.clip(spots[name], room[:2], room[2:])]) / box
        panel.plot(
            *ends.T,
            color="0.4",
            linewidth=0.4,
            zorder=0,
            transform=panel.transAxes,
            scalex=False,
            scaley=False,
        )
        panel.text(
            *(room[:2] + room[2:]) / 2 / box,
            name,
            fontsize=6,
            ha="center",
            va="center",
            transform=panel.transAxes,
            in_layout=False,
        )


def _rooms(spot, reach: float, wide: float, high: float) -> np.ndarray:
    """Boxes (k, 4) of that size, in points, around a mark: beside it, then farther off."""
    corners = [
        spot + (across, up)
        for far in (1, 4, 8, 13, 19, 26, 34)
        for across in (reach + far, -wide / 2, -wide - reach - far)
        for up in (-high / 2, reach + far, -high - reach - far)
        if across != -wide / 2 or up != -high / 2
    ]
    return np.hstack([corners, np.add(corners, (wide, high))])


def _covered(rooms, taken, box) -> np.ndarray:
    """How much of each of `rooms` (k, 4) is taken, or outside `box`, in square points."""

    def shared(boxes):
        sides = np.minimum(rooms[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
            rooms[:, None, :2], boxes[None, :, :2]
        )
        return np.prod(np.maximum(sides, 0), axis=2).sum(axis=1)

    return np.round(
        shared(taken)
        + np.prod(rooms[:, 2:] - rooms[:, :2], axis=1)
        - shared(np.array([[0, 0, *box]])),
        3,
    )
