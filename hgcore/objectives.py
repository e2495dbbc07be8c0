"""Inner objectives that bring their own derivatives. Each is a function of (weights, hyper, t) like any other, and may be used as one;
a `Problem` on torch takes the derivatives from it in place of a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from hgcore.arrays import written_out
from hgcore.backend import SecondOrder, Torch, derived
from hgcore.layout import Layout
from hgcore.nets import Dense, cross_entropy


class _WithPenalty:
    """inner(weights, hyper, t) + strength_b(hyper) |w_b|^2 for each block b of `layout`; no penalty if strength is None."""

    inner: Callable
    layout: Layout
    strength: Callable | None

    def __call__(self, weights, hyper, t):
        loss = self.inner(weights, hyper, t)
        return (
            loss + self.strength(hyper) @ self.layout.sums(self._all(weights) ** 2)
            if self.strength
            else loss
        )

    def gradient(self, backend, weights, hyper, t):
        return self._penalty(backend, weights, hyper).bend(
            derived("gradient", backend, self.inner, weights, hyper, t), weights
        )

    def second_order(self, backend, weights, hyper, t) -> SecondOrder:
        penalty, (gradient, inner) = (
            self._penalty(backend, weights, hyper),
            derived("second_order", backend, self.inner, weights, hyper, t),
        )

        def product(q, curvature=True, mixed=True):
            parts = inner(q, curvature, mixed)
            moved = (penalty.bend(parts[0], q),) if curvature else ()
            return (*moved, parts[-1] + penalty.pull(weights, q)) if mixed else moved

        return SecondOrder(penalty.bend(gradient, weights), product)

    def gradient_along(self, backend, weights, hyper, t) -> tuple:
        penalty, (gradient, along) = (
            self._penalty(backend, weights, hyper),
            derived("gradient_along", backend, self.inner, weights, hyper, t),
        )
        return penalty.bend(gradient, weights), lambda row, unit: penalty.add(
            penalty.bend(along(row, unit), row), weights, unit
        )

    def _all(self, weights):
        """The weights, checked."""
        if weights.shape != (self.layout.size,):
            raise ValueError(
                f"layout must name all blocks of the weights, {tuple(weights.shape)}; it has {self.layout.size} numbers"
            )
        return weights

    def _penalty(self, backend, weights, hyper):
        if not self._of or self._of[0] is not hyper or self._of[1] != hyper._version:
            self._all(weights)
            self._of[:] = (
                hyper,
                hyper._version,
                (_Penalty if self.strength else _NoPenalty)(
                    backend, self.strength, self.layout, hyper
                ),
            )
        return self._of[2]

    @functools.cached_property
    def _of(self) -> list:
        """The hyper last seen, its version, its `_Penalty`."""
        return []


class _Penalty:
    """strength(hyper) @ |w_b|^2 at one hyper."""

    def __init__(self, backend, strength: Callable, layout: Layout, hyper):
        self.xp, self.layout, self.hyper = backend.xp, layout, hyper
        (values,), self._pull = backend.pullback(lambda h: (strength(h),), hyper)
        self.pulled = 0
        self.twice = layout.expand(2 * values)

    def bend(self, product, vector):
        """product + d2/dw2 vector."""
        return self.xp.addcmul(product, self.twice, vector)

    def pull(self, weights, q):
        """d2/dhyper dw q (m,). After as many pulls as it takes, the matrix of the strengths' slopes is made: a product with it costs a tenth."""
        slope, self.pulled = 2 * self.layout.sums(weights * q), self.pulled + 1
        return (
            self._pull((lambda: slope,)) if self.pulled < len(self.layout) else slope @ self._slopes
        )

    def add(self, tangent, weights, unit):
        """tangent + d2/dw dhyper unit (n,)."""
        return self.xp.addcmul(tangent, self.layout.expand(self._slopes @ unit), weights, value=2)

    @functools.cached_property
    def _slopes(self):
        units = self.xp.eye(len(self.layout), dtype=self.hyper.dtype, device=self.hyper.device)
        return self.xp.stack([self._pull((lambda unit=unit: unit,)) for unit in units])


class _NoPenalty:
    def __init__(self, backend, strength, layout, hyper):
        pass

    def bend(self, product, vector):
        return product

    def pull(self, weights, q):
        return 0

    def add(self, tangent, weights, unit):
        return tangent


@dataclass(frozen=True)
class Penalised(_WithPenalty):
    """`inner` (weights, hyper, t) -> scalar, any objective, plus strength_b(hyper) |w_b|^2 for each block b of `layout`.

    The penalty's derivatives are written out: a graph would pass over all weights several times for each of them.
    strength: hyper (m,) -> (len(layout),). `Compiled` goes around it, not into it.
    """

    inner: Callable
    layout: Layout
    strength: Callable


@dataclass(frozen=True)
class CrossEntropy(_WithPenalty):
    """The mean cross-entropy of `net` on batch(t) = (inputs, labels), plus strength_b(hyper) |w_b|^2 for each block b of its weights.

    Its derivatives are written out (see written.py): no graph, so a step costs little more than its matrix products.
    batch: t -> inputs (examples, net.sizes[0]), labels (examples, net.sizes[-1]), of the kind of the weights; t = None: all of them.
    strength: hyper (m,) -> (len(net.layout),), or None for no penalty.
    """

    net: Dense
    batch: Callable
    strength: Callable | None = None

    @property
    def layout(self) -> Layout:
        return self.net.layout

    @functools.cached_property
    def inner(self) -> _Entropy:
        return _Entropy(self.net, self.batch)


@dataclass(frozen=True)
class _Entropy:
    """The mean cross-entropy of `net` on batch(t)."""

    net: Dense
    batch: Callable

    def __call__(self, weights, hyper, t):
        inputs, labels = self.batch(t)
        return cross_entropy(self.net(weights, inputs), labels)

    def gradient(self, backend, weights, hyper, t):
        return self._first_order(weights, t)[0]

    def second_order(self, backend, weights, hyper, t) -> SecondOrder:
        gradient, along = self._first_order(weights, t)
        return SecondOrder(
            gradient,
            lambda q, curvature=True, mixed=True: (along(q),) * curvature + (0 * hyper,) * mixed,
        )

    def gradient_along(self, backend, weights, hyper, t) -> tuple:
        gradient, along = self._first_order(weights, t)
        return gradient, lambda row, unit: along(row)

    def _first_order(self, weights, t) -> tuple:
        """(gradient (n,); tangent of the weights (n,) -> that of the gradient (n,))."""
        (inputs, labels), layout, way = self._checked(weights, t), self.net.layout, written_out()
        gradient, kept = way.backward(
            way.bare(labels) / -len(labels), weights, layout, way.forward(weights, inputs, layout)
        )
        return gradient, lambda q: way.along(q, layout, kept)[1]

    def _checked(self, weights, t) -> tuple:
        for name, part in zip(("inputs", "labels"), batch := self.batch(t), strict=True):
            kind = getattr(part, "dtype", type(part).__name__), getattr(part, "device", None)
            if kind != (weights.dtype, weights.device):
                raise TypeError(
                    f"batch({t}) must give tensors like the weights, {weights.dtype} on {weights.device}; its {name} are {kind[0]}"
                    f" on {kind[1]}: hand them through backend.array first"
                )
        return batch


@dataclass(frozen=True)
class Compiled:
    """`inner` (weights, hyper, t) -> scalar, any function of torch, whose gradients and products torch.compile fuses: for reverse mode.

    The first run compiles, some 5 to 30 seconds (later processes find the kernels in torch's cache); on a CPU torch needs a C++ compiler,
    and to be installed where no folder's name has a space. `inner` must be one graph: t may choose a slice or an index, not what is
    computed; NumPy cannot be part of it. `reversible` checks at its first step whether gradient and product agree in bits and trains
    with the product's gradient if not.
    """

    inner: Callable

    def __call__(self, weights, hyper, t):
        return self.inner(weights, hyper, t)

    def gradient(self, backend, weights, hyper, t):
        return self._gradient(weights, hyper, t)

    def joint(self, backend, weights, hyper, t, q) -> tuple:
        return self._joint(weights, hyper, t, q)

    @functools.cached_property
    def _gradient(self) -> Callable:
        torch = Torch().xp
        return torch.compile(
            lambda weights, hyper, t: torch.func.grad(self.inner)(weights, hyper, t), fullgraph=True
        )

    @functools.cached_property
    def _joint(self) -> Callable:
        torch = Torch().xp

        def joint(weights, hyper, t, q):
            gradient, pull = torch.func.vjp(
                lambda w, h: torch.func.grad(self.inner)(w, h, t), weights, hyper
            )
            return gradient, *pull(q)

        return torch.compile(joint, fullgraph=True)
