"""Inner losses that know their derivatives. Each is also a function of (weights, hyper, t)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hgcore.backend import Backend, Linearized
from hgcore.backend_torch import Torch
from hgcore.layout import Layout
from hgcore.nets import DenseNet, cross_entropy
from hgcore.problem import Objective, objective_of

# ---- penalties


@dataclass(frozen=True)
class Penalized:
    """loss(weights, hyper, t) + strength_b(hyper) |w_b|^2 for each block b of `layout`.

    A graph would pass over all weights several times for the penalty; about 10 % faster. loss: any
    inner loss, but not Compiled around it. strength: hyper (m,) -> (len(layout),).
    """

    loss: Callable
    layout: Layout
    strength: Callable

    def __call__(self, weights, hyper, t):
        return self.loss(weights, hyper, t) + _penalty(self.layout, self.strength, weights, hyper)

    def objective(self, backend: Backend, hyper) -> Objective:
        """Return the loss and its derivatives at `hyper`."""
        inner = objective_of(self.loss, backend, hyper)
        return _PenalizedObjective(inner, self.layout, backend, self.strength, hyper)


def _penalty(layout: Layout, strength: Callable, weights, hyper):
    _require_all_blocks(layout, weights)
    return strength(hyper) @ layout.sums(weights * weights)


def _require_all_blocks(layout: Layout, weights) -> None:
    if tuple(weights.shape) != (layout.size,):
        raise ValueError(
            f"layout must name all blocks of the weights, {tuple(weights.shape)}; it has"
            f" {layout.size} numbers"
        )


class _PenalizedObjective:
    """An Objective plus strength_b |w_b|^2, bound to one hyper."""

    def __init__(self, inner: Objective, layout: Layout, backend, strength: Callable, hyper):
        self.inner, self.layout, self.xp = inner, layout, backend.xp
        self.one_routine = getattr(inner, "one_routine", False)
        (values,), self.pull = backend.vjp(lambda h: (strength(h),), hyper)
        self.twice = layout.expand(2 * values)

    @functools.cached_property
    def slopes(self):
        """The derivatives of the strengths (blocks, m)."""
        units = self.xp.diag(0 * self.layout.sums(self.twice) + 1)
        return self.xp.stack([self.pull((unit,))[0] for unit in units])

    def _sums(self, vector):
        """Return layout.sums, on a CPU in one pass."""
        if isinstance(vector, np.ndarray) or vector.device.type != "cpu" or 0 in self.layout.sizes:
            return self.layout.sums(vector)
        starts = np.cumsum([0, *self.layout.sizes[:-1]])
        return self.xp.from_numpy(np.add.reduceat(vector.numpy(), starts))

    def _bent(self, gradient, weights):
        _require_all_blocks(self.layout, weights)
        return gradient + self.twice * weights

    def gradient(self, weights, t):
        return self._bent(self.inner.gradient(weights, t), weights)

    def linearize(self, weights, t) -> Linearized:
        inner = self.inner.linearize(weights, t)

        def mixed(q):
            return (2 * self._sums(weights * q)) @ self.slopes

        def product(q):
            curvature, rest = inner.product(q)
            return curvature + self.twice * q, rest + mixed(q)

        return Linearized(
            self._bent(inner.gradient, weights),
            product,
            lambda q: inner.hvp(q) + self.twice * q,
            lambda q: inner.mixed(q) + mixed(q),
        )

    def pushforward(self, weights, t) -> tuple:
        gradient, inner_push = self.inner.pushforward(weights, t)

        def push(dw, dh):
            own = self.twice * dw + self.layout.expand(2 * (self.slopes @ dh)) * weights
            return inner_push(dw, dh) + own

        return self._bent(gradient, weights), push


# ---- cross-entropy of a dense net


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy of `net` on batch(t), plus strength_b(hyper) |w_b|^2 for each block.

    Hand-written derivatives: a step costs little more than its matrix products. On the autograd
    backend, the reference, they are left to autograd. batch: t -> inputs (examples, sizes[0]) and
    labels (examples, sizes[-1]), tensors like the weights; t = None: all of them. strength:
    hyper (m,) -> (len(net.layout),), None for no penalty.
    """

    net: DenseNet
    batch: Callable
    strength: Callable | None = None

    @property
    def layout(self) -> Layout:
        """The blocks of the net's weights."""
        return self.net.layout

    def __call__(self, weights, hyper, t):
        inputs, labels = self.batch(t)
        loss = cross_entropy(self.net(weights, inputs), labels)
        if self.strength is None:
            return loss
        return loss + _penalty(self.layout, self.strength, weights, hyper)

    def objective(self, backend: Backend, hyper) -> Objective:
        """Return the loss and its derivatives at `hyper`."""
        if not isinstance(backend, Torch):
            return Objective(backend, self, hyper)
        plain = _CrossEntropyObjective(self.net, self.batch, hyper)
        if self.strength is None:
            return plain
        return _PenalizedObjective(plain, self.layout, backend, self.strength, hyper)


class _CrossEntropyObjective:
    """The mean cross-entropy of a net on batch(t); hyper has no part in it."""

    one_routine = True

    def __init__(self, net: DenseNet, batch: Callable, hyper):
        self.net, self.batch, self.hyper = net, batch, hyper

    def gradient(self, weights, t):
        return self._gradient_and_along(weights, t)[0]

    def linearize(self, weights, t) -> Linearized:
        gradient, hvp = self._gradient_and_along(weights, t)
        nothing = 0 * self.hyper
        return Linearized(gradient, lambda q: (hvp(q), nothing), hvp, lambda q: nothing)

    def pushforward(self, weights, t) -> tuple:
        gradient, hvp = self._gradient_and_along(weights, t)
        return gradient, lambda dw, dh: hvp(dw)

    def _gradient_and_along(self, weights, t) -> tuple:
        """Return (gradient (n,), tangent of the weights (n,) -> that of the gradient)."""
        from hgcore.fast import dense_net

        (inputs, labels), layout = self._checked(weights, t), self.net.layout
        cotangent = dense_net.numbers(labels) / -len(labels)
        cache = dense_net.forward(weights, inputs, layout)
        gradient, cache = dense_net.backward(cotangent, weights, layout, cache)
        return gradient, lambda q: dense_net.along(q, layout, cache)[1]

    def _checked(self, weights, t) -> tuple:
        batch = self.batch(t)
        for name, part in zip(("inputs", "labels"), batch, strict=True):
            kind = getattr(part, "dtype", type(part).__name__), getattr(part, "device", None)
            if kind != (weights.dtype, weights.device):
                raise TypeError(
                    f"batch({t}) must give tensors like the weights, {weights.dtype} on"
                    f" {weights.device}; its {name} are {kind[0]} on {kind[1]}: convert them with"
                    " backend.array first"
                )
        return batch


# ---- any torch loss, compiled


@dataclass(frozen=True)
class Compiled:
    """Any torch loss (weights, hyper, t), whose gradients and products torch.compile fuses.

    For reverse mode. The first run compiles for 5 to 30 seconds; on a CPU torch needs a C++
    compiler and a path without spaces. `loss` must be one graph: t may choose a slice or an index,
    not what is computed; NumPy cannot be part of it. A linearized step costs one gradient more
    than with a graph, because the compiled product computes its own.
    """

    loss: Callable

    def __call__(self, weights, hyper, t):
        return self.loss(weights, hyper, t)

    def objective(self, backend: Backend, hyper) -> Objective:
        """Return the loss and its derivatives at `hyper`."""
        return _CompiledObjective(self, hyper)

    @functools.cached_property
    def compiled_gradient(self) -> Callable:
        """(weights, hyper, t) -> (n,), compiled at first use."""
        import torch

        def gradient(weights, hyper, t):
            return torch.func.grad(self.loss)(weights, hyper, t)

        return torch.compile(gradient, fullgraph=True)

    @functools.cached_property
    def compiled_product(self) -> Callable:
        """(weights, hyper, t, q) -> (H q, B'q), compiled at first use."""
        import torch

        def product(weights, hyper, t, q):
            def gradient(weights, hyper):
                return torch.func.grad(self.loss)(weights, hyper, t)

            return torch.func.vjp(gradient, weights, hyper)[1](q)

        return torch.compile(product, fullgraph=True)


class _CompiledObjective:
    one_routine = True

    def __init__(self, compiled: Compiled, hyper):
        self.compiled, self.hyper = compiled, hyper
        self.plain = Objective(Torch(), compiled.loss, hyper)

    def gradient(self, weights, t):
        return self.compiled.compiled_gradient(weights, self.hyper, t)

    def linearize(self, weights, t) -> Linearized:
        def product(q):
            return self.compiled.compiled_product(weights, self.hyper, t, q)

        hvp, mixed = lambda q: product(q)[0], lambda q: product(q)[1]  # noqa: E731
        return Linearized(self.gradient(weights, t), product, hvp, mixed)

    def pushforward(self, weights, t) -> tuple:
        return self.plain.pushforward(weights, t)
