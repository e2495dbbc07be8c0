"""Phones of read speech, frame by frame, with a second task (Franceschi et al. 2017, section 5.3).

The second task is to predict the context of a frame: in the paper embeddings of 300 numbers from
another network, here the phone before and the next one, embedded at random.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hgcore import data
from hgcore.data.speech import centers
from hgcore.layout import Layout
from hgcore.nets import DenseNet, log_softmax
from hgcore.optimizers import HeavyBall
from hgcore.problem import Problem
from hgcore.projections import box

CHUNK = 4096  # frames at once in `accuracy`


class Frames(NamedTuple):
    """N labeled frames, each with the features of the frames around it.

    features (M, F) of all frames; windows (N, W): rows of it; labels (N, 3) int: class, phone
    before, phone after.
    """

    features: np.ndarray
    windows: np.ndarray
    labels: np.ndarray

    def inputs(self, rows):
        """Return the inputs (len(rows), W * F) of a net."""
        return self.features[self.windows[rows]].reshape((len(rows), -1))

    def accuracy(self, net: Callable, weights, backend, least: int | None = None) -> float:
        """Return the percentage of right classes, of all frames, or of `least` or more of them."""
        count = len(self.labels)
        rows = np.arange(0, count, max(1, count // (least or count)))
        right = 0
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            scores = backend.numpy(net(weights, self.inputs(part))[0])
            right += np.sum(scores.argmax(axis=1) == self.labels[part, 0])
        return 100 * float(right) / len(rows)

    def majority(self) -> float:
        """Return the percentage of the most frequent class."""
        return 100 * float(np.bincount(self.labels[:, 0]).max()) / len(self.labels)


def joined(utterances: Iterable[tuple], radius: int) -> Frames:
    """Return the Frames of utterances (features (n, F), labels (n, 3)); class -1 is left out.

    A window is the frame and `radius` frames on either side; the first and the last frame of an
    utterance count for those beyond.
    """
    features, windows, labels, first = [], [], [], 0
    for values, marks in utterances:
        around = np.arange(len(values))[:, None] + np.arange(-radius, radius + 1)
        features.append(values)
        windows.append(first + np.clip(around, 0, len(values) - 1))
        labels.append(marks)
        first += len(values)
    windows, labels = np.concatenate(windows), np.concatenate(labels)
    kept = labels[:, 0] >= 0
    return Frames(np.concatenate(features), windows[kept], labels[kept])


def standardized(backend, parts: Sequence[Frames]) -> list[Frames]:
    """Return the parts with features of mean 0 and variance 1 in the first, on the backend."""
    mean, deviation = parts[0].features.mean(axis=0), parts[0].features.std(axis=0)
    return [p._replace(features=backend.array((p.features - mean) / deviation)) for p in parts]


def timit_frames(backend, *, radius: int, derivatives: int, states: bool) -> list[Frames]:
    """Return TIMIT's training, validation and test frames; see data.timit, data.frame_labels."""
    found: dict[str, list] = {"train": [], "valid": [], "test": []}
    for utterance in data.timit():
        if utterance.split:
            labels = data.frame_labels(utterance, centers(len(utterance.samples)), states)
            features = data.speech_features(utterance.samples, derivatives=derivatives)
            found[utterance.split].append((features.astype("float32"), labels))
    return standardized(backend, [joined(part, radius) for part in found.values()])


def generated_frames(
    backend, classes: int, sizes: Sequence[int], address: tuple, *, radius: int, noise: float
) -> list[Frames]:
    """Return training, validation and test frames of `sizes` made-up utterances of ten phones.

    Phones follow each other as a Markov chain, each for 2 to 6 frames. A frame is half the vector
    of its class, a quarter of those of the phones before and after, and normal noise.
    """
    rng = np.random.default_rng((*address, 4))  # (0,) and (0, 0) are one stream
    means = rng.standard_normal((classes, 8))
    chain = rng.dirichlet(np.full(classes, 0.5), size=classes)

    def utterance():
        phones = [0]
        while len(phones) < 12:
            phones.append(rng.choice(classes, p=chain[phones[-1]]))
        marks = np.column_stack([phones[1:-1], phones[:-2], phones[2:]])
        marks = np.repeat(marks, rng.integers(2, 7, size=len(marks)), axis=0)
        clean = [0.5, 0.25, 0.25] @ means[marks]
        return clean + noise * rng.standard_normal(clean.shape), marks

    parts = [joined([utterance() for _ in range(size)], radius) for size in sizes]
    return standardized(backend, parts)


class PhoneNet:
    """Shared layers of rectified linear units under two linear heads; `layout` names the weights.

    net(weights (n,), inputs (batch, inputs)) -> (log-probabilities (batch, classes), embeddings
    (batch, embedding)).
    """

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, embedding: int):
        shapes = dict(DenseNet((inputs, *hidden)).layout.shapes)
        for head, size in (("class", classes), ("context", embedding)):
            shapes |= {f"{head} weights": (hidden[-1], size), f"{head} biases": (size,)}
        self.embedding, self.layout = embedding, Layout(shapes)

    def __call__(self, weights, inputs) -> tuple:
        *shared, classes, biases, context, offsets = self.layout.split(weights).values()
        for matrix, bias in zip(shared[::2], shared[1::2], strict=True):
            inputs = inputs @ matrix + bias
            inputs = inputs * (inputs > 0)
        return log_softmax(inputs @ classes + biases), inputs @ context + offsets

    def initial_weights(self, address: tuple) -> np.ndarray:
        """Return weights (n,) of variance 2 / (inputs + outputs) in a layer, and biases of zero."""
        rng, blocks = np.random.default_rng(address), {}
        for name, shape in self.layout.shapes.items():
            scale = np.sqrt(2 / sum(shape)) if shape[1:] else 0.0
            blocks[name] = scale * rng.standard_normal(shape)
        return self.layout.join(blocks)


def constraints() -> Callable:
    """Return the projection onto rate, task weight >= 0 and 2**-16 <= momentum <= 0.99.

    The paper's bounds on momentum are 0 and 1. No solver here multiplies by a decay below 2**-16,
    and training with momentum 1 never settles.
    """
    return box(np.array([0, 2.0**-16, 0]), np.array([np.inf, 0.99, np.inf]))


def phone_problem(
    backend, net, train: Frames, valid: Frames, *, phones, stream, batch, valid_frames, steps=0
) -> Callable:
    """Return k -> training by heavy ball, for `hg.realtime`; hyper: rate, momentum, task weight.

    Inner loss: cross-entropy of the classes of a minibatch drawn at t plus half the task weight
    times the mean squared error of the embeddings. Outer loss: cross-entropy of `valid_frames`
    validation frames drawn at k. Addresses and initial weights depend on `stream`.
    """
    optimizer = HeavyBall(rate=lambda hyper, t: hyper[0], decay=lambda hyper, t: hyper[1])
    xp, start = backend.xp, backend.array(net.initial_weights((stream, 0)))
    # vectors of the phones before and after; the sum of two has variance 1 (the same random bits
    # as the rows of stream 0 at k = 0, which does no harm)
    table = np.random.default_rng([0, 2]).normal(0, np.sqrt(0.5), (2 * phones, net.embedding))
    table = backend.array(table)

    def losses(weights, frames, address, size):
        rows = data.batch(address[:-1], address[-1], size, len(frames.labels))
        classes, before, after = frames.labels[rows].T
        log_probabilities, embeddings = net(weights, frames.inputs(rows))
        gaps = embeddings - (table[before] + table[phones + after])
        return -xp.mean(log_probabilities[np.arange(size), classes]), xp.mean(gaps * gaps) / 2

    def inner(weights, hyper, t):
        primary, secondary = losses(weights, train, (stream, 1, t), batch)
        return primary + hyper[2] * secondary

    def at(k: int) -> Problem:
        def outer(weights, hyper):
            return losses(weights, valid, (stream, 2, k), valid_frames)[0]

        return Problem(backend, inner, outer, optimizer, start, steps)

    return at


def draws(stream: int) -> Iterator[np.ndarray]:
    """Yield what random search tries: rate Exp(0.1), momentum U(0, 1), task weight U(0, 4)."""
    rng = np.random.default_rng([stream, 3])
    while True:
        yield np.array([rng.exponential(0.1), rng.uniform(), rng.uniform(0, 4)])


def is_settled(patience: int, gain: float) -> Callable:
    """Return a function: rows (looks, r) -> whether the last `patience` looks gained too little.

    None of them raised the best value of column 0 by the fraction `gain` of it: early stopping, as
    in the authors' code (10 looks, 1 %).
    """

    def settled(rows: Sequence) -> bool:
        best, waited = -np.inf, 0
        for value, *_ in rows:
            best, waited = (value, 0) if value > best * (1 + gain) else (best, waited + 1)
        return waited >= patience

    return settled


def random_search(trial: Callable, candidates: Iterable, looks: int) -> list[np.ndarray]:
    """Return the rows of trials until `looks` are spent: the clock of the search.

    trial: (number, hyper, most looks) -> rows (looks, r), at least one.
    """
    trials: list[np.ndarray] = []
    for number, hyper in enumerate(candidates):
        if (left := looks - sum(map(len, trials))) < 1:
            break
        trials.append(trial(number, hyper, left))
    return trials
