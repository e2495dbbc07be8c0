"""Rate, weight decay and momentum from random starts (Clarke, Oldewage, Hernández-Lobato 2022).

hyper (3,): log10 of the rate, log10 of the weight decay, logit of the momentum.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.data import Split
from hgcore.nets import DenseNet
from hgcore.optimizers import HeavyBall
from hgcore.papers.franceschi2017_tasks import multinomial
from hgcore.problem import Problem
from hgcore.projections import box

# rates as in their code; momentum is a multiple of 2**-16 here, so its logit stays within 11
update_constraints = box(np.array([-10.0, -np.inf, -11.0]), np.array([0.0, np.inf, 11.0]))


def random_update(seed_path: tuple) -> np.ndarray:
    """Return random hyper (3,), as in their code.

    Momentum is uniform in (0, 1), so are the logarithms of a rate in 1e-6..0.1 and of a weight
    decay in 1e-7..0.01. seed_path: as in update_problems.
    """
    low, high = [-6.0, -7.0, 0.0], [-1.0, -2.0, 1.0]
    rate, decay, momentum = np.random.default_rng([*seed_path, 3, 0]).uniform(low, high)
    return np.array([rate, decay, np.log(momentum / (1 - momentum))])


class Task(NamedTuple):
    """A data set on a backend, its net and its loss(outputs, labels).

    Inputs have mean 0 and standard deviation 1 over training and validation rows together. unit:
    the factor from a loss to a reported test loss.
    """

    backend: object
    train: Split
    valid: Split
    test: Split
    net: DenseNet  # for its sizes and layout; `outputs` is the net
    loss: Callable
    unit: float = 1.0

    def outputs(self, weights, inputs):
        """Return the outputs (batch, outputs) of one hidden layer of ReLU units."""
        matrix, bias, last, last_bias = self.net.layout.split(weights).values()
        hidden = self.backend.xp.clip(inputs @ matrix + bias, 0, None)
        return hidden @ last + last_bias

    def loss_of(self, weights, split: Split, rows=slice(None)):
        """Return the mean loss on these rows."""
        return self.loss(self.outputs(weights, split.images[rows]), split.labels[rows])

    def test_loss(self, weights=None) -> float:
        """Return `unit` times the loss on the test rows.

        Without weights: that of the constant output 0, the mean price or equal probabilities.
        """
        weights = self.backend.array(np.zeros(self.net.layout.size)) if weights is None else weights
        return self.unit * float(self.loss_of(weights, self.test))

    def all_rows(self) -> "Task":
        """Return the task whose training rows include the validation rows."""
        pairs = zip(self.train, self.valid, strict=True)
        return self._replace(train=Split(*map(self.backend.xp.concatenate, pairs)))


def house_prices(backend, hidden: int, seed_path: tuple) -> Task:
    """Return Boston housing, rows in an order drawn at seed_path; test losses in ($1000)**2."""
    features, prices = data.boston()
    rows = np.random.default_rng([*seed_path, 4, 0]).permutation(len(prices))
    table = np.column_stack([features, prices])[rows]
    columns, deviations = _standardized(table, (364, 91, 51))
    parts = [Split(part[:, :-1], part[:, -1:]).on(backend) for part in columns]
    net = DenseNet((features.shape[1], hidden, 1))
    return Task(backend, *parts, net, _squared_error, float(deviations[-1] ** 2))


def digits(backend, hidden: int, source: str, sizes: tuple[int, int, int]) -> Task:
    """Return MNIST or mnist_small, see `data.splits`; losses are cross-entropies."""
    splits = data.splits(source, sizes, centre=False)  # constant pixels stay exactly so
    images, _ = _standardized(np.concatenate([part.images for part in splits]), sizes)
    parts = [Split(x, part.labels).on(backend) for x, part in zip(images, splits, strict=True)]
    return Task(backend, *parts, DenseNet((784, hidden, 10)), multinomial)


def _squared_error(outputs, labels):
    return ((outputs - labels) ** 2).mean()


def _standardized(table: np.ndarray, sizes: tuple) -> tuple[list[np.ndarray], np.ndarray]:
    """Return (standardized parts of `sizes` rows, the standard deviations (columns,))."""
    train, valid, test = sizes
    known = table[: train + valid]
    deviations = np.where(known.std(axis=0) > 0, known.std(axis=0), 1)
    scaled = (table[: sum(sizes)] - known.mean(axis=0)) / deviations
    return np.split(scaled, [train, train + valid]), deviations


def update_problems(task: Task, *, seed_path: tuple, batch, every, steps) -> Callable:
    """Return k -> the problem of outer step k, SGD with momentum.

    Inner loss: that of a minibatch plus decay |w|**2 / 2; t = None is the last minibatch of outer
    step k, which has `every` inner steps. Outer loss: that of a minibatch of validation rows. A
    minibatch has all rows if there are at most `batch`. seed_path: (seed, start), for minibatches
    and initial weights, which are uniform within 1 / sqrt(inputs), as in torch.nn.Linear.
    """
    backend, layout = task.backend, task.net.layout
    bounds = layout.expand(np.repeat(task.net.sizes[:-1], 2) ** -0.5)
    start = backend.array(np.random.default_rng([*seed_path, 0, 0]).uniform(-bounds, bounds))
    optimizer = HeavyBall(
        rate=lambda hyper, t: 10 ** hyper[0],
        decay=lambda hyper, t: 1 / (1 + backend.xp.exp(-hyper[2])),
    )

    def loss(weights, split: Split, stream: int, t: int):
        total = len(split.labels)
        rows = data.batch((*seed_path, stream), t, batch, total) if batch < total else slice(None)
        return task.loss_of(weights, split, rows)

    def at(k: int) -> Problem:
        def inner(weights, hyper, t):
            t = (k + 1) * every - 1 if t is None else t
            return loss(weights, task.train, 1, t) + 10 ** hyper[1] / 2 * (weights @ weights)

        def outer(weights, hyper):
            return loss(weights, task.valid, 2, k)

        return Problem(backend, inner, outer, optimizer, start, steps)

    return at
