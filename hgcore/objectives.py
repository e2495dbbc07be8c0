"""Inner objectives that bring their own derivatives. Each is a function of (weights, hyper, t) like any other, and may be used as one;
a `Problem` on torch takes the derivatives from it in place of a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from hgcore.arrays import written_out
from hgcore.backend import SecondOrder
from hgcore.nets import Dense, cross_entropy


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy of `net` on batch(t) = (inputs, labels), plus strength_b(hyper) |w_b|^2 for each block b of its weights.

    Its derivatives are written out (see fused.py): no graph, so a step costs little more than its matrix products.
    batch: t -> inputs (examples, net.sizes[0]), labels (examples, net.sizes[-1]), of the kind of the weights; t = None: all of them.
    strength: hyper (m,) -> (len(net.layout),), or None for no penalty.
    """

    net: Dense
    batch: Callable
    strength: Callable | None = None
    _of: list = field(default_factory=list, init=False, repr=False, compare=False)  # the hyper last seen, its version, its `_Penalty`

    def __call__(self, weights, hyper, t):
        inputs, labels = self.batch(t)
        loss = cross_entropy(self.net(weights, inputs), labels)
        return loss + self.strength(hyper) @ self.net.layout.sums(weights * weights) if self.strength else loss

    def second_order(self, backend, weights, hyper, t) -> SecondOrder:
        gradient, along, penalty = self._first_order(backend, weights, hyper, t)

        def product(q, curvature=True, mixed=True):
            moved = (along(q),) if curvature else ()
            return (*moved, penalty.pull(weights, q)) if mixed else moved

        return SecondOrder(gradient, product)

    def gradient(self, backend, weights, hyper, t):
        return self._first_order(backend, weights, hyper, t)[0]

    def gradient_along(self, backend, weights, hyper, t) -> tuple:
        gradient, along, penalty = self._first_order(backend, weights, hyper, t)
        return gradient, lambda row, unit: penalty.add(along(row), weights, unit)

    def _first_order(self, backend, weights, hyper, t) -> tuple:
        """(gradient (n,); tangent of the weights (n,) -> that of the gradient (n,); the penalty)."""
        (inputs, labels), layout, way, penalty = self._checked(weights, t), self.net.layout, written_out(), self._penalty(backend, hyper)
        passed = way.forward(weights, inputs, layout)
        gradient, kept = way.backward(way.bare(labels) / -len(labels), weights, layout, passed)
        return penalty.bend(gradient, weights), lambda q: penalty.bend(way.along(q, layout, kept)[1], q), penalty

    def _checked(self, weights, t) -> tuple:
        for name, part in zip(("inputs", "labels"), batch := self.batch(t), strict=True):
            kind = getattr(part, "dtype", type(part).__name__), getattr(part, "device", None)
            if kind != (weights.dtype, weights.device):
                raise TypeError(f"batch({t}) must give tensors like the weights, {weights.dtype} on {weights.device}; its {name} are {kind[0]}"
                                f" on {kind[1]}: hand them through backend.array first")
        return batch

    def _penalty(self, backend, hyper):
        if not self._of or self._of[0] is not hyper or self._of[1] != hyper._version:
            self._of[:] = hyper, hyper._version, (_Penalty if self.strength else _NoPenalty)(backend, self, hyper)
        return self._of[2]


class _Penalty:
    """strength(hyper) @ |w_b|^2 at one hyper. What it is handed to add to, it adds to in place."""

    def __init__(self, backend, objective: CrossEntropy, hyper):
        self.backend, self.strength, self.layout, self.hyper = backend, objective.strength, objective.net.layout, hyper
        (values,), self._pull = backend.pullback(lambda h: (self.strength(h),), hyper)
        self.twice = self.layout.expand(2 * values)

    def bend(self, product, vector):
        """product + d2/dw2 vector."""
        return product.addcmul_(self.twice, vector)

    def pull(self, weights, q):
        """d2/dhyper dw q (m,)."""
        return self._pull((lambda: 2 * self.layout.sums(weights * q),))

    def add(self, tangent, weights, unit):
        """tangent + d2/dw dhyper unit (n,)."""
        return tangent.addcmul_(self.layout.expand(self._slopes @ unit), weights, value=2)

    @functools.cached_property
    def _slopes(self):
        units = self.backend.xp.eye(len(self.layout), dtype=self.hyper.dtype, device=self.hyper.device)
        return self.backend.xp.stack([self._pull((lambda unit=unit: unit,)) for unit in units])


class _NoPenalty:
    def __init__(self, backend, objective, hyper):
        self.nothing = 0 * hyper

    def bend(self, product, vector):
        return product

    def pull(self, weights, q):
        return self.nothing

    def add(self, tangent, weights, unit):
        return tangent


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
        import torch

        return torch.compile(lambda weights, hyper, t: torch.func.grad(self.inner)(weights, hyper, t), fullgraph=True)

    @functools.cached_property
    def _joint(self) -> Callable:
        import torch

        def joint(weights, hyper, t, q):
            gradient, pull = torch.func.vjp(lambda w, h: torch.func.grad(self.inner)(w, h, t), weights, hyper)
            return gradient, *pull(q)

        return torch.compile(joint, fullgraph=True)
