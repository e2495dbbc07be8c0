"""One problem on which every method is measured: logistic regression of digits whose condition
number can be set, and a count of gradients, products and states.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.linalg import helmert

from hgcore import data
from hgcore.backend import Linearized
from hgcore.hypergradient import Implicit
from hgcore.layout import Layout
from hgcore.linear import DenseSolve
from hgcore.nets import cross_entropy, log_softmax
from hgcore.optimizers import GradientDescent
from hgcore.papers.lorraine2020_inverses import hessian, newton_minimum
from hgcore.problem import Problem

CLASSES = 10
NEWTON = 10  # steps from zero to the optimum: about eight are needed


class Counting:
    """A backend that counts gradients of the inner loss and products with second derivatives."""

    def __init__(self, backend):
        self.backend, self.num_gradients, self.num_products = backend, 0, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def gradient(self, f, weights, hyper):
        self.num_gradients += 1
        return self.backend.gradient(f, weights, hyper)

    def linearize(self, f, weights, hyper) -> Linearized:
        self.num_gradients += 1
        gradient, *products = self.backend.linearize(f, weights, hyper)
        return Linearized(gradient, *map(self._counted, products))

    def pushforward(self, f, weights, hyper) -> tuple:
        self.num_gradients += 1
        gradient, push = self.backend.pushforward(f, weights, hyper)
        return gradient, self._counted(push)

    def _counted(self, product: Callable) -> Callable:
        def counted(*args, **keywords):
            self.num_products += 1
            return product(*args, **keywords)

        return counted


class Cost(NamedTuple):
    """A hypergradient (m,), gradients and products with training included, and states kept."""

    grad: np.ndarray
    gradients: int
    products: int
    states: float


def cost_of(solver: Callable, problem: Problem, hyper) -> Cost:
    """Return what solver(problem, hyper) finds and what it costs.

    For a plain inner loss, whose derivatives are the backend's. The gradient of the outer loss is
    not counted. states: `nbytes` over those of one state.
    """
    counting = Counting(problem.backend)
    found = solver(replace(problem, backend=counting), hyper)
    grad, states = problem.backend.numpy(found.grad), found.nbytes / found.state.nbytes
    return Cost(grad, counting.num_gradients, counting.num_products, states)


def pca_features(images: Sequence[np.ndarray], features: int, condition: float) -> list[np.ndarray]:
    """Return each of `images` (N, pixels) as (N, features).

    One, and the first principal components of the first set with variance one, all scaled by
    factors that fall geometrically from 1 to condition^-1/2.
    """
    mean = images[0].mean(axis=0)
    variances, axes = np.linalg.eigh((images[0] - mean).T @ (images[0] - mean) / len(images[0]))
    variances, axes = variances[:-features:-1], axes[:, :-features:-1]
    signs = np.sign(axes[abs(axes).argmax(axis=0), range(features - 1)])  # the same on any machine
    scales = np.geomspace(1, condition**-0.5, features)
    scores = [(part - mean) @ (axes * signs / variances**0.5) for part in images]
    return [np.column_stack([np.ones(len(part)), part]) * scales for part in scores]


class ConditionedProblem(NamedTuple):
    """Logistic regression from zero, all examples in each step, and its optimum.

    Weights (n,): 9 for each feature. hyper (bands + 1,): log penalties of the bands of features,
    about as large as the flattest curvature, and the log rate, 1 / the largest curvature at the
    optimum. The outer loss is the cross-entropy of other digits. `steps` is zero: replace it, and
    the optimizer. optimum (n,); curvatures there (n,) ascending; hypergradient (bands + 1,) there,
    by the implicit function theorem.
    """

    problem: Problem
    hyper: np.ndarray
    optimum: object
    curvatures: np.ndarray
    hypergradient: np.ndarray

    @property
    def condition(self) -> float:
        return self.curvatures[-1] / self.curvatures[0]


def conditioned_problem(
    backend, examples: Sequence[int], features: int, bands: int, condition: float
) -> ConditionedProblem:
    """Return the problem with its optimum, found by Newton's method."""
    train, valid = data.splits("mnist_small", examples)
    # orthonormal rows of sum zero: scores in them have no direction that changes no probability
    parts = (*pca_features([train.images, valid.images], features, condition), helmert(CLASSES))
    inputs, valid_inputs, basis = map(backend.array, parts)
    labels, valid_labels = backend.array(train.labels), backend.array(valid.labels)
    groups = enumerate(np.array_split(np.arange(features), bands))
    layout = Layout({f"band {i}": (len(rows), CLASSES - 1) for i, rows in groups})
    xp = backend.xp

    def loss(w, x, y):
        return cross_entropy(log_softmax(x @ w.reshape(features, CLASSES - 1) @ basis), y)

    problem = Problem(
        backend=backend,
        inner_loss=lambda w, hyper, t: (
            loss(w, inputs, labels) + xp.exp(hyper[:-1]) @ layout.sums(w * w)
        ),
        outer_loss=lambda w, hyper: loss(w, valid_inputs, valid_labels),
        optimizer=GradientDescent(rate=lambda hyper, t: xp.exp(hyper[-1])),
        initial=np.zeros(layout.size),
        steps=0,
    )
    hyper = np.append(np.full(bands, np.log(0.025 / condition)), 0.0)
    (optimum,) = newton_minimum(problem, hyper, NEWTON)
    curvatures = np.linalg.eigvalsh(hessian(problem, hyper, optimum))
    hyper[-1] = -np.log(curvatures[-1])
    grad = backend.numpy(Implicit(DenseSolve())(problem, hyper, (optimum,)).grad)
    return ConditionedProblem(problem, hyper, optimum, curvatures, grad)
