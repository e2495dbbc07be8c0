"""What PyTorch differentiates twice wrongly or not at all, and what to use instead.

Hypergradients need second derivatives of the inner loss. Some operations of torch leave terms of
them out without an error; for others torch raises one that does not name the user's function.
tests/core/test_second_derivatives.py compares both lists with finite differences.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple


class Limit(NamedTuple):
    """What torch cannot differentiate twice, and what to use instead."""

    what: str
    operation: str  # a pattern of torch's own name of it, in a graph or an error
    instead: str
    names: str = ""  # torch's modules, norms and functions that use it


_ROOT = "the square root of the sums of squared differences"
# Without an error: torch leaves out terms of the second derivative, or all of them.
WRONG = (
    Limit("weight_norm", "WeightNorm", "divide by the norm in your own module", "WeightNorm"),
    Limit(
        "what torch.compile has compiled",
        "CompiledFunction",
        "pass the module or function itself; hg.fast.Compiled compiles a whole loss",
        "OptimizedModule",
    ),
    Limit(
        "linear_cross_entropy with options",
        "linear_cross_entropy",
        "leave its options out, or use cross_entropy of linear",
    ),
    Limit("torch.cond", "AutogradOp", "use torch.where, or Python's if", "torch.cond"),
    Limit(
        "draws from Beta and Dirichlet",
        "_Dirichlet",
        "draw from Normal or LogNormal",
        "Beta Dirichlet",
    ),
)
# With an error, in which the user's function may not occur.
MISSING = (
    Limit(
        "fused attention",  # hg.nets.functional selects the plain kernel for modules
        "attention",
        "call it inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH), as the function of"
        " hg.nets.functional does",
        "scaled_dot_product_attention multi_head_attention_forward",
    ),
    Limit(
        "torch.cdist", "_cdist", f"use compute_mode='use_mm_for_euclid_dist', or {_ROOT}", "cdist"
    ),
    Limit("pdist", "_pdist", f"use {_ROOT}", "pdist"),
    Limit(
        "EmbeddingBag",
        "embedding_bag",
        "use Embedding and the mean over each bag",
        "EmbeddingBag embedding_bag",
    ),
    Limit("Hardsigmoid", "hardsigmoid", "use relu6(x + 3) / 6", "Hardsigmoid"),
    Limit(
        "a multi-class margin loss",
        "margin_loss",
        "write it with torch.relu",
        "MultiMarginLoss MultiLabelMarginLoss",
    ),
    Limit("CTCLoss", "ctc_loss", "write its recursion with torch.logsumexp", "CTCLoss"),
    Limit("CrossMapLRN2d", "out=", "use LocalResponseNorm", "CrossMapLRN2d"),
    Limit(
        "torch.segment_reduce",
        "segment_reduce",
        "use torch.index_add or torch.scatter_reduce",
        "segment_reduce",
    ),
    Limit("draws from Gamma", "standard_gamma", "draw from LogNormal", "Gamma"),
    Limit(  # on a GPU only
        "cuDNN's recurrent nets",
        "cudnn_rnn",
        "run them inside torch.backends.cudnn.flags(enabled=False)",
    ),
    Limit(
        "sparse tensors",
        "[Ss]parse",
        "use dense ones, such as those of Embedding(sparse=False)",
        "sparse.softmax",
    ),
)
_WRONGLY, _NEVER = "second derivatives that torch gets wrong", "no second derivative in torch"
MODULES = {  # name of a class of torch (or a function): why modules of it are refused
    name: f"has {why}; {limit.instead}"
    for limits, why in ((WRONG, _WRONGLY), (MISSING, _NEVER))
    for limit in limits
    for name in limit.names.split()
}
EMBEDDING = {  # option of torch.nn.Embedding: why it is refused if it is set
    "sparse": "has gradients that torch cannot differentiate; use sparse=False",
    "max_norm": "changes its weights while it runs; use max_norm=None",
    "scale_grad_by_freq": "has another gradient than the loss; use scale_grad_by_freq=False",
    "padding_idx": "has a gradient without the row of padding_idx; set that row to zero",
}
_OTHER = Limit("an operation", "", "write it with other operations of torch")
_FAILED = "derivative for .* is not implemented|double backward|differentiat|[Ss]parse"


def fault(outputs) -> str | None:
    """Return what torch gets wrong in derivatives of the gradients of `outputs`, None if nothing.

    Looks at each operation in their graph, at most 1 microsecond for one.
    """
    kinds = dict.fromkeys(map(type, _nodes(outputs)))
    return next(filter(None, map(_fault_of, kinds)), None)


def leaves(output) -> list:
    """Return the tensors that require a gradient and that `output` was computed from."""
    return [node.variable for node in _nodes((output,)) if hasattr(node, "variable")]


def _nodes(outputs) -> Iterator:
    """Yield each operation in the graph of `outputs`."""
    nodes, seen = [y.grad_fn for y in outputs], {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            yield node
            seen.add(node)
            nodes.extend([before for before, _ in node.next_functions])


@contextlib.contextmanager
def explained():
    """Raise torch's RuntimeError of a missing derivative with the cause and the way out."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().split("\n")[0].rstrip(".")
        if not re.search(_FAILED, said):
            raise
        limits = *MISSING, *WRONG, _OTHER
        limit = next(limit for limit in limits if re.search(limit.operation, said))
        need = f"torch cannot differentiate {limit.what} as often as hypergradients need"
        raise RuntimeError(f"{need} ({said}); {limit.instead}") from error


@functools.lru_cache(maxsize=1024)
def _fault_of(kind: type) -> str | None:
    """Return what torch gets wrong in derivatives of the backward of one kind of operation."""
    for limit in WRONG:
        if re.search(limit.operation, kind.__name__):
            return f"torch gets second derivatives of {limit.what} wrong; {limit.instead}"
    if not _differentiable_once(getattr(kind, "_forward_cls", None)):
        return None
    return (
        f"{kind.__name__.removesuffix('Backward')} is marked @once_differentiable, and torch would"
        " take its second derivative as zero; write a backward that torch can differentiate and"
        " remove the mark"
    )


def _differentiable_once(function: type | None) -> bool:
    """Return whether the backward of a torch.autograd.Function is marked @once_differentiable."""
    from torch.autograd.function import once_differentiable

    mark, backward = once_differentiable(print).__code__, getattr(function, "backward", None)
    while backward is not None and getattr(backward, "__code__", None) is not mark:
        backward = getattr(backward, "__wrapped__", None)  # under another decorator
    return backward is not None
