"""Dense tanh nets with log-softmax output on torch, their derivatives written out: the gradient, and the pullback of the gradient
(the R-operator of Pearlmutter 1994), each one node of the graph in place of some forty.

Of layer i: h[i] is its input, felt[i] the cotangent of its sums, each (units, batch): products are faster this way round, and a
transposed copy of a matrix pays. Along a direction q of the weights, sums, inputs and what is felt move.
"""

from __future__ import annotations

import torch

tanh_backward = torch.ops.aten.tanh_backward  # (g, h) -> g (1 - h^2)


def fits(weights, inputs) -> bool:
    """Whether `log_probabilities` may be used: reverse mode, of the weights alone. Transforms of torch.func go the plain way."""
    return weights.requires_grad and not inputs.requires_grad and inputs.ndim == 2 and not torch._C._are_functorch_transforms_active()


def log_probabilities(weights, inputs, layout):
    """(batch, classes) for weights (layout.size,) and inputs (batch, features); twice differentiable with respect to the weights."""
    return _LogProbabilities.apply(weights, inputs, layout)


def _layers(vector, layout) -> list[tuple]:
    """(matrix, transposed to (units out, units in); bias, a column) of each layer, views of the vector."""
    blocks = list(layout.split(vector).values())
    return [(matrix.T, bias[:, None]) for matrix, bias in zip(blocks[::2], blocks[1::2], strict=True)]


def _backwards(layers) -> list[tuple]:
    return list(enumerate(layers))[::-1]


class _LogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, inputs, layout):
        h, layers = [inputs.T], _layers(weights, layout)
        for i, (matrix, bias) in enumerate(layers):
            sums = torch.addmm(bias, matrix.contiguous(), h[i])
            if i + 1 < len(layers):
                h.append(sums.tanh_())
        result = torch.log_softmax(sums, 0)
        ctx.layout = layout
        ctx.save_for_backward(weights, result.exp(), *h)
        return result.T

    @staticmethod
    def backward(ctx, cotangent):
        return _Gradient.apply(cotangent.T, ctx.layout, *ctx.saved_tensors), None, None


class _Gradient(torch.autograd.Function):
    """Cotangent of the log-probabilities (classes, batch), weights (n,) -> cotangent of the weights (n,)."""

    @staticmethod
    def forward(ctx, cotangent, layout, weights, probabilities, *h):
        weight, layers = cotangent.sum(0), _layers(weights, layout)
        gradient, felt = torch.empty_like(weights), [cotangent - weight * probabilities]
        for i, (to_matrix, to_bias) in _backwards(_layers(gradient, layout)):
            to_matrix.copy_(felt[0] @ h[i].T)
            torch.sum(felt[0], 1, keepdim=True, out=to_bias)
            if i:
                felt.insert(0, tanh_backward(layers[i][0].T @ felt[0], h[i]))
        ctx.layout, ctx.weight = layout, weight
        ctx.save_for_backward(weights, probabilities, *h, *felt)
        return gradient

    @staticmethod
    def backward(ctx, q):
        if torch.is_grad_enabled():  # a graph of what follows is asked for
            raise RuntimeError("nets.Dense on torch can be differentiated twice; write the net out over Layout.split to do it again")
        weights, probabilities, *kept = ctx.saved_tensors
        h, felt = kept[:len(kept) // 2], kept[len(kept) // 2:]
        matrices, along = [matrix for matrix, _ in _layers(weights, ctx.layout)], _layers(q, ctx.layout)
        sums, inputs = [], [None]  # how they move: the sums of every layer, its inputs
        for i, (matrix_q, bias_q) in enumerate(along):
            sums.append(torch.addmm(bias_q, matrix_q.contiguous(), h[i]))
            if i:
                inputs.append(tanh_backward(sums[i - 1], h[i]))
                sums[i].addmm_(matrices[i], inputs[i])
        output = sums[-1] - (probabilities * sums[-1]).sum(0)
        moving, product = -ctx.weight * probabilities * output, torch.empty_like(weights)  # how felt[i] moves
        for i, (to_matrix, to_bias) in _backwards(_layers(product, ctx.layout)):
            outer = moving @ h[i].T
            to_matrix.copy_(outer.addmm_(felt[i], inputs[i].T) if i else outer)
            torch.sum(moving, 1, keepdim=True, out=to_bias)
            if i:
                back = (along[i][0].T @ felt[i]).addmm_(matrices[i].T, moving)
                moving = tanh_backward(back, h[i]).addcmul_(h[i] * sums[i - 1], felt[i - 1], value=-2)
        return output, None, product, None, *(None for _ in h)
