"""Inner losses that know their derivatives. Each is also a function of (weights, hyper, t)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

from hgcore.backend import Backend, Linearized
from hgcore.backend_torch import Torch
from hgcore.layout import Layout
from hgcore.nets import DenseNet, cross_entropy
from hgcore.problem import Objective, objective_of


class _OneRoutine(Objective):
    """An Objective whose gradient is that of `linearize`."""

    one_routine = True

    def gradient(self, weights, t):
        return self.linearize(weights, t).gradient


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
        squares = self.layout.sums(weights * weights)
        return self.loss(weights, hyper, t) + self.strength(hyper) @ squares

    def objective(self, backend: Backend, hyper) -> Objective:
        """Return the loss and its derivatives at `hyper`."""
        return _PenalizedObjective(backend, self, hyper)


def _require_all_blocks(layout: Layout, weights) -> None:
    if tuple(weights.shape) != (layout.size,):
        raise ValueError(
            f"layout must name all blocks of the weights, {tuple(weights.shape)}; it has"
            f" {layout.size} numbers"
        )


class _PenalizedObjective(Objective):
    @functools.cached_property
    def inner(self) -> Objective:
        return objective_of(self.loss.loss, self.backend, self.hyper)

    @property
    def one_routine(self) -> bool:
        return self.inner.one_routine

    @functools.cached_property
    def _strengths(self) -> tuple:
        """The strengths (blocks,), and the vector-Jacobian product of their function."""
        (values,), pull = self.backend.vjp(lambda h: (self.loss.strength(h),), self.hyper)
        return values, pull

    @functools.cached_property
    def _twice(self):
        return self.loss.layout.expand(2 * self._strengths[0])

    @functools.cached_property
    def _slopes(self):
        """The derivatives of the strengths (blocks, m)."""
        (values, pull), xp = self._strengths, self.backend.xp
        return xp.stack([pull((unit,))[0] for unit in xp.diag(0 * values + 1)])

    def _plus_own(self, inner, vector):
        """Return inner + the penalty's second derivative times `vector`, all (n,)."""
        _require_all_blocks(self.loss.layout, vector)
        total = self._twice * vector
        total += inner
        return total

    def gradient(self, weights, t):
        return self._plus_own(self.inner.gradient(weights, t), weights)

    def linearize(self, weights, t) -> Linearized:
        inner = self.inner.linearize(weights, t)

        def mixed(q):
            sums = self.backend.evaluate(self.loss.layout.sums, weights * q)
            return (2 * sums) @ self._slopes

        def product(q):
            curvature, rest = inner.product(q)
            return self._plus_own(curvature, q), rest + mixed(q)

        return Linearized(
            self._plus_own(inner.gradient, weights),
            product,
            lambda q: self._plus_own(inner.hvp(q), q),
            lambda q: inner.mixed(q) + mixed(q),
        )

    def pushforward(self, weights, t) -> tuple:
        gradient, inner_push = self.inner.pushforward(weights, t)

        def push(dw, dh):
            bent = self.loss.layout.expand(2 * (self._slopes @ dh)) * weights
            return inner_push(dw, dh) + self._plus_own(bent, dw)

        return self._plus_own(gradient, weights), push


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
        if self.strength is not None:
            return self._penalized()(weights, hyper, t)
        inputs, labels = self.batch(t)
        return cross_entropy(self.net(weights, inputs), labels)

    def objective(self, backend: Backend, hyper) -> Objective:
        """Return the loss and its derivatives at `hyper`."""
        if not isinstance(backend, Torch):
            return Objective(backend, self, hyper)
        if self.strength is None:
            return _CrossEntropyObjective(backend, self, hyper)
        return self._penalized().objective(backend, hyper)

    def _penalized(self) -> Penalized:
        return Penalized(dataclasses.replace(self, strength=None), self.layout, self.strength)


class _CrossEntropyObjective(_OneRoutine):
    """The mean cross-entropy of a net on batch(t); hyper has no part in it."""

    def linearize(self, weights, t) -> Linearized:
        from hgcore.fast import dense_net

        inputs, labels = self._batch(weights, t)
        run = dense_net.Forward(weights, inputs, self.loss.layout)
        back = dense_net.Backward(run, dense_net.numbers(labels) / -len(labels), weights)
        nothing, version = 0 * self.hyper, inputs._version

        def hvp(q):
            if inputs._version != version:
                raise RuntimeError(f"the inputs of batch({t}) were changed: give other tensors")
            return back.along(q)[1]

        return Linearized(back.gradient, lambda q: (hvp(q), nothing), hvp, lambda q: nothing)

    def pushforward(self, weights, t) -> tuple:
        linearized = self.linearize(weights, t)
        return linearized.gradient, lambda dw, dh: linearized.hvp(dw)

    def _batch(self, weights, t) -> tuple:
        """Return (inputs, labels); raise unless they are like the weights and fit the net."""
        _require_all_blocks(self.loss.layout, weights)
        sizes, batch = self.loss.net.sizes, self.loss.batch(t)
        for name, part in zip(("inputs", "labels"), batch, strict=True):
            kind = getattr(part, "dtype", type(part).__name__), getattr(part, "device", None)
            if kind != (weights.dtype, weights.device):
                raise TypeError(
                    f"batch({t}) must give tensors like the weights, {weights.dtype} on"
                    f" {weights.device}; its {name} are {kind[0]} on {kind[1]}: convert them with"
                    " backend.array first"
                )
        inputs, labels = (tuple(part.shape) for part in batch)
        if inputs[1:] != (sizes[0],) or labels != (inputs[0], sizes[-1]) or not inputs[0]:
            raise ValueError(
                f"batch({t}) must give inputs (examples, {sizes[0]}) and labels (examples,"
                f" {sizes[-1]}), at least one example, got {inputs} and {labels}"
            )
        return batch


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
        return _CompiledObjective(backend, self, hyper)

    @functools.cached_property
    def functions(self) -> tuple[Callable, Callable]:
        """(weights, hyper, t) -> (n,) and (weights, hyper, t, q) -> (H q, B'q), compiled at use."""
        import torch

        def gradient(weights, hyper, t):
            return torch.func.grad(self.loss)(weights, hyper, t)

        def product(weights, hyper, t, q):
            return torch.func.vjp(lambda w, h: gradient(w, h, t), weights, hyper)[1](q)

        for f in (gradient, product):  # torch refuses the ninth compilation of a code object
            f.__code__ = f.__code__.replace()
        return tuple(torch.compile(f, fullgraph=True) for f in (gradient, product))


class _CompiledObjective(_OneRoutine):
    def linearize(self, weights, t) -> Linearized:
        if "functions" not in vars(self.loss):  # once: a compiler sees no wrong second derivatives
            self.backend.linearize(self._at(t), weights, self.hyper)
        gradient, product = self.loss.functions
        at = weights, self.hyper, t
        hvp, mixed = (lambda q, i=i: product(*at, q)[i] for i in range(2))
        return Linearized(gradient(*at), lambda q: product(*at, q), hvp, mixed)
