"""Problems that more than one notebook trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hgcore import data, trajectory
from hgcore.backend import cut, namespace
from hgcore.dynamics import Momentum
from hgcore.layout import Layout
from hgcore.nets import Dense, cross_entropy, error_rate, log_softmax
from hgcore.problem import Problem
from hgcore.reversal import DENOMINATOR, ExactMomentum
from hgcore.trajectory import reversible


def valley(first, second):
    """The loss of Maclaurin et al. 2015, Figure 1: a tilted Rosenbrock valley, squashed so that its walls stay finite."""
    floor = 100 * (second - first**2) ** 2 + (1 - first) ** 2 + 200 * first
    return 800 / (1 + namespace(first).exp(-floor / 500))


def slides(steps: int) -> Layout:
    """The hyperparameters of `sliding`: a rate and a momentum per step."""
    return Layout({"log rates": (steps,), "decay logits": (steps,)})


def sliding(backend, steps: int) -> Problem:
    """Momentum from (1.4, 3.9) down the `valley`, which is the outer objective too (Maclaurin et al. 2015, Figure 1)."""
    xp, names = backend.xp, slides(steps)
    return Problem(
        backend=backend,
        inner=lambda weights, hyper, t: valley(weights[0], weights[1]),
        outer=lambda weights, hyper: valley(weights[0], weights[1]),
        dynamics=Momentum(rate=lambda hyper, t: xp.exp(names.split(hyper)["log rates"][t]),
                          decay=lambda hyper, t: 1 / (1 + xp.exp(-names.split(hyper)["decay logits"][t]))),
        initial=lambda hyper: backend.array([1.4, 3.9]),
        steps=steps)

LOGISTIC = Dense((784, 10))


def schedules(net: Dense, steps: int) -> Layout:
    """The hyperparameters of `scheduled`: an initial scale per block of weights; a rate and a momentum per step and block."""
    blocks = len(net.layout)
    return Layout({"log scales": (blocks,), "log rates": (steps, blocks), "momentum logits": (steps, blocks)})


def scheduled(backend, net: Dense, train: data.Split, judged: data.Split, *, steps: int, batch: int, address: tuple) -> Problem:
    """Momentum training of `net` in which every rate, momentum and initial scale is free (Maclaurin et al. 2015, section 3.1).

    Start and minibatches, drawn with replacement, come from the random streams of the authors' code: address = (seed, k).
    The outer objective is the loss on all of `judged`. `schedules(net, steps)` names the hyperparameters.
    """
    xp, layout = backend.xp, schedules(net, steps)
    noise = backend.array(data.authors_rng(*address).randn(net.layout.size))
    batches = [data.authors_rng(*address, t).randint(len(train.labels), size=batch) for t in range(steps)]
    return Problem(
        backend=backend,
        inner=lambda weights, hyper, t: loss(net, weights, train, slice(None) if t is None else batches[t]),
        outer=lambda weights, hyper: loss(net, weights, judged),
        dynamics=Momentum(
            rate=lambda hyper, t: net.layout.expand(xp.exp(layout.split(hyper)["log rates"][t])),
            decay=lambda hyper, t: net.layout.expand(1 / (1 + xp.exp(-layout.split(hyper)["momentum logits"][t])))),
        initial=lambda hyper: net.layout.expand(xp.exp(layout.split(hyper)["log scales"])) * noise,
        steps=steps)


def penalised(backend, train: data.Split, valid: data.Split, *, steps: int, batch: int, rate: float = 1.0, decay: float = 0.9,
              scale: float = np.exp(-4.0), meta_penalty: float = 0.0, seed: int = 0) -> Problem:
    """Softmax regression in which every weight and bias has an L2 penalty of its own (Maclaurin et al. 2015, section 3.2).

    hyper: the logarithms of the penalties, in the layout of `LOGISTIC` (7850,), or of one for all of them (1,).
    Inner objective: cross-entropy of the t-th consecutive batch, in cycles, plus sum(penalties * weights**2).
    Outer: cross-entropy on all of `valid`, plus meta_penalty * sum(penalties**2), a term of the authors' code (0.01)
    that the paper does not mention.
    Weights start normal with standard deviation `scale`, every training alike, from the authors' stream.
    """
    xp = backend.xp
    start = backend.array(scale * np.random.RandomState(seed).randn(2, LOGISTIC.layout.size)[1])  # they draw a velocity first
    slices = [slice(first, first + batch) for first in range(0, len(train.labels), batch)]
    return Problem(
        backend=backend,
        inner=lambda weights, hyper, t: (loss(LOGISTIC, weights, train, slice(None) if t is None else slices[t % len(slices)])
                                         + xp.sum(xp.exp(hyper) * weights**2)),
        outer=lambda weights, hyper: loss(LOGISTIC, weights, valid) + meta_penalty * xp.sum(xp.exp(hyper)**2),
        dynamics=Momentum(rate=lambda hyper, t: rate, decay=lambda hyper, t: decay),
        initial=lambda hyper: start,
        steps=steps)


def learned_data(backend, net: Dense, learned: Layout, given: dict, judged: data.Split, *, steps: int, rate: float = 1.0,
                 decay: float = 0.9, scale: float = np.exp(-4.0), seed: int = 0) -> Problem:
    """Training `net`, full batch, on a training set of N examples that is a hyperparameter (Maclaurin et al. 2015, section 3.3).

    learned: the blocks of hyper, from "images" (N, features), "log penalty" () and "label logits" (N, classes), whose softmax
    is then the soft labels; given: the other ones as they are, and "labels" (N, classes) where no logits are learned.
    Inner objective: cross-entropy plus exp(log penalty) * |weights|**2. Outer: cross-entropy on all of `judged`.
    Weights start normal with standard deviation `scale`, every training alike, from the authors' stream.
    """
    xp, given = backend.xp, {name: backend.array(block) for name, block in given.items()}
    start = backend.array(scale * np.random.RandomState(seed).randn(2, net.layout.size)[1])  # they draw a velocity first

    def inner(weights, hyper, t):
        blocks = given | learned.split(hyper)
        labels = xp.exp(log_softmax(blocks["label logits"])) if "label logits" in blocks else blocks["labels"]
        return loss(net, weights, data.Split(blocks["images"], labels)) + xp.exp(blocks["log penalty"]) * (weights @ weights)

    return Problem(
        backend=backend,
        inner=inner,
        outer=lambda weights, hyper: loss(net, weights, judged),
        dynamics=Momentum(rate=lambda hyper, t: rate, decay=lambda hyper, t: decay),
        initial=lambda hyper: start,
        steps=steps)
class BigIntegers(ExactMomentum):
    """`ExactMomentum` with the buffer of 2015, Algorithm 3 as printed: per weight one Python integer, of any size."""

    def __init__(self, weights, speed):
        super().__init__(weights, speed)
        self.digits = np.zeros(len(weights), dtype=object)

    def forth(self, gradient, decay, gain, rate):
        self._multiply(decay.numerator, DENOMINATOR)
        kicked = self.velocity.add(gain * gradient)
        self.speed = self.velocity.floats()
        drifted = self.position.add(rate * self.speed)
        self.weights = self.position.floats()
        return np.maximum(kicked, drifted)

    def back_velocity(self, gradient, decay, gain) -> None:
        self.velocity.subtract(gain * gradient)
        self._multiply(DENOMINATOR, decay.numerator)
        self.speed = self.velocity.floats()

    def _multiply(self, n: int, d: int) -> None:
        """velocity * n / d; undone by the same with n and d exchanged."""
        bits = self.velocity.bits
        self.digits = self.digits * d + bits % d
        self.velocity.bits = bits // d * n + (self.digits % n).astype(np.int64)
        self.digits = self.digits // n

    def misses(self, other: ExactMomentum) -> int:
        return super().misses(other) + bool((self.digits != 0).any())

    @property
    def nbytes(self) -> int:
        """With the pointers and the heads of the integer objects."""
        return self.position.nbytes + self.velocity.nbytes + self.digits.nbytes + sum(map(sys.getsizeof, self.digits))


class as_in_2015(reversible):
    """The trajectory of Maclaurin et al. 2015 as they released it: slow and large, for comparison. CPU only."""

    def _begin(self, start: tuple) -> BigIntegers:
        return BigIntegers(*(self.backend.exact(vector) for vector in start))


def loss(net: Dense, weights, split: data.Split, rows=slice(None)):
    """Mean cross-entropy of the net on those rows of a split."""
    return cross_entropy(net(weights, split.images[rows]), split.labels[rows])


def units(net: Dense) -> Layout:
    """The hyperparameters of `unit_penalties`: a number for every unit that weights go out from, inputs first."""
    return Layout({f"units {layer}": (size,) for layer, size in enumerate(net.sizes[:-1])})


def scaled(net: Dense, free, hyper, biases: float = 0.2):
    """The weights z exp(t) of free weights z (n,): t is hyper (m,) for what leaves a unit, and the number `biases` for a bias.

    Under one penalty on |z|**2 a larger t regularises less: the penalty on a weight is proportional to exp(-2 t).
    """
    xp, rest = namespace(free), np.exp(biases)
    scales = iter(units(net).split(xp.exp(hyper)).values())
    blocks = {name: xp.broadcast_to(next(scales)[:, None], block.shape) if block.ndim == 2 else rest * xp.ones_like(block)
              for name, block in net.layout.split(free).items()}
    return free * net.layout.join(blocks)


def unit_penalties(backend, net: Dense, train: data.Split, judged: data.Split, *, address: tuple, steps: int, batch: int,
                   rate: float, decay: float, log_penalty: float = -4.0, log_scale: float = -3.0) -> Problem:
    """Momentum training under an L2 penalty per unit: `scaled` weights, exp(log_penalty) |z|**2 (Fu et al. 2016).

    `units(net)` names the hyperparameters; the release takes the mean over a unit's weights where this is their sum, of equal
    sign. Streams of the release: the start comes from address = (seed, stage, k, "hyperloss"), as `dealt` with that address
    deals the examples of outer step k; the minibatch of step t, drawn with replacement, is the same for every k.
    """
    start = backend.array(data.authors_rng(*address).randn(net.layout.size) * np.exp(log_scale))
    batches = [data.authors_rng(address[0], t, "primal").randint(len(train.labels), size=batch) for t in range(steps)]
    penalty, rate, decay = np.exp(log_penalty), backend.array(rate), backend.array(decay)
    return Problem(
        backend=backend,
        inner=lambda free, hyper, t: (loss(net, scaled(net, free, hyper), train, slice(None) if t is None else batches[t])
                                      + penalty * (free @ free)),
        outer=lambda free, hyper: loss(net, scaled(net, free, hyper), judged),
        dynamics=Momentum(rate=lambda hyper, t: rate, decay=lambda hyper, t: decay),
        initial=lambda hyper: start,
        steps=steps)


@cache
def slices(source: str, *sizes: int) -> list[data.Split]:
    """`data.splits`, read once by each process: what the tasks on a worker begin with."""
    return data.splits(source, sizes)
def retrained_error(problem: Problem, net: Dense, hyper, judged: data.Split) -> float:
    """Train `unit_penalties` once more with these hyperparameters: the percentage of `judged` that the net then gets wrong."""
    hyper = problem.hyper(hyper)
    return 100 * error_rate(net(scaled(net, trajectory.train(problem, hyper)[0], hyper), judged.images), judged.labels)


def dealt(examples: data.Split, sizes: Sequence[int], address: tuple) -> list[data.Split]:
    """So many examples for each of `sizes`, in the random order that the authors' stream at `address` gives."""
    order = data.authors_rng(*address).permutation(len(examples.labels))
    return [data.Split(examples.images[order[a:b]], examples.labels[order[a:b]]) for a, b in pairwise(np.cumsum([0, *sizes]))]


class Letters(NamedTuple):
    """One task: to tell the characters of an alphabet apart. images (characters, drawings, pixels), labels (characters, classes)."""

    images: np.ndarray
    labels: np.ndarray


def turned(alphabet: np.ndarray) -> np.ndarray:
    """An alphabet (characters, drawings, side * side) with every picture turned by 90 degrees, counter-clockwise."""
    side = round(alphabet.shape[-1] ** 0.5)
    return np.rot90(alphabet.reshape(*alphabet.shape[:2], side, side), axes=(2, 3)).reshape(alphabet.shape)


def alphabets_and_turned(alphabets: Sequence[np.ndarray], classes: int, rng) -> list[Letters]:
    """Maclaurin et al. 2015, section 3.5: a task per alphabet, then a task per turned alphabet, minus the mean picture of all.

    Labels are drawn at random among `classes` outputs; the turned copy of a character keeps its label.
    """
    labels = [np.eye(classes)[rng.permutation(classes)[: len(alphabet)]] for alphabet in alphabets]
    images = [*alphabets, *map(turned, alphabets)]
    mean = np.concatenate([task.reshape(-1, task.shape[-1]) for task in images]).mean(axis=0)
    return [Letters(task - mean, names) for task, names in zip(images, labels + labels, strict=True)]


def deal(tasks: Sequence[Letters], sizes: Sequence[int], rng) -> list[list[Letters]]:
    """The tasks once for each of `sizes`, so many drawings of every character in each: dealt at random, task by task."""
    orders = [rng.rand(*task.images.shape[:2]).argsort(axis=1)[..., None] for task in tasks]
    dealt = [np.split(np.take_along_axis(task.images, order, 1), np.cumsum(sizes), axis=1) for task, order in zip(tasks, orders, strict=True)]
    return [[Letters(parts[i], task.labels) for task, parts in zip(tasks, dealt, strict=True)] for i in range(len(sizes))]


def sharings(tasks: int) -> Layout:
    """The hyperparameters of `sharing`: for each of the net's three layers a matrix that mixes the tasks."""
    return Layout({layer: (tasks, tasks) for layer in ("input", "middle", "output")})


def evenly(tasks: int, shares: Sequence[float]) -> np.ndarray:
    """Hyperparameters of `sharing`, T = (1 - share) I + share 11'/tasks in each layer: 0 for separate weights, 1 for one set for all."""
    layout = sharings(tasks)
    blocks = [(1 - share) * np.eye(tasks) + share / tasks for share in shares]
    return layout.join(dict(zip(layout.shapes, blocks, strict=True)))


def shared(hyper: np.ndarray, tasks: int) -> dict[str, np.ndarray]:
    """How much each pair of tasks shares in each layer: the covariance T T' as correlations, ones on the diagonal."""
    covariances = {layer: matrix @ matrix.T for layer, matrix in sharings(tasks).split(hyper).items()}
    return {layer: c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for layer, c in covariances.items()}


def sharing(backend, net: Dense, train: Sequence[Letters], judged: Sequence[Letters], rng, *,
            steps: int, rate: float, decay: float, penalty: float, log_scale: float) -> Problem:
    """One net of three layers per task, whose weights are mixed layer by layer (Maclaurin et al. 2015, section 3.5).

    Training moves free weights z, all tasks' together: n = tasks * net.layout.size. In layer l the net of task i has the weights
    sum_j T_l[i, j] z_j, where hyper holds the T_l as `sharings(tasks)` names them. Together with the penalty on |z|**2 this is
    a quadratic penalty on pairs of tasks, with covariance T_l T_l'. Inner: the sum of the tasks' mean cross-entropies, and
    the penalty; full batch. Outer: the mean over tasks on `judged`. z starts with standard deviation exp(log_scale).
    """
    train, judged = ([_examples(backend, task) for task in tasks] for tasks in (train, judged))
    start = backend.array(rng.randn(len(train) * net.layout.size) * np.exp(log_scale))
    return Problem(
        backend=backend,
        inner=lambda free, hyper, t: sum(_losses(net, free, hyper, train)) + penalty * (free @ free),
        outer=lambda free, hyper: sum(_losses(net, free, hyper, judged)) / len(judged),
        dynamics=Momentum(rate=lambda hyper, t: backend.array(rate), decay=lambda hyper, t: backend.array(decay)),
        initial=lambda hyper: start,
        steps=steps)


def _examples(backend, task: Letters) -> data.Split:
    """All drawings of all characters, a row each."""
    pixels, drawings = task.images.shape[-1], task.images.shape[1]
    return data.Split(backend.array(task.images.reshape(-1, pixels)), backend.array(task.labels.repeat(drawings, axis=0)))


def _losses(net: Dense, free, hyper, tasks: Sequence[data.Split]) -> list:
    """The mean cross-entropy of each task's net."""
    nets = mixed(net, free, hyper, len(tasks))
    return [cross_entropy(net.through(blocks, task.images), task.labels) for blocks, task in zip(nets, tasks, strict=True)]


def losses_by_task(backend, net: Dense, free, hyper, tasks: Sequence[Letters]) -> np.ndarray:
    """What `sharing` judges by, of every task on its own: (tasks,)."""
    return np.array([float(loss) for loss in _losses(net, free, hyper, [_examples(backend, task) for task in tasks])])


def mixed(net: Dense, free, hyper, tasks: int):
    """For each task the weights and biases of its net: per block of the net (tasks, size), matrix of its layer @ free weights."""
    matrices = list(sharings(tasks).split(hyper).values())
    blocks = Layout({name: (tasks, size) for name, size in zip(net.layout.shapes, net.layout.sizes, strict=True)}).split(free)
    mixtures = [(matrices[i // 2] @ block).reshape((-1,)) for i, block in enumerate(blocks.values())]
    rows = [cut(mixture, tasks * [size]) for mixture, size in zip(mixtures, net.layout.sizes, strict=True)]
    return [[block.reshape(shape) for block, shape in zip(task, net.layout.shapes.values(), strict=True)] for task in zip(*rows, strict=True)]
