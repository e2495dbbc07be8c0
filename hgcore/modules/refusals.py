"""Which torch modules cannot be a function of a vector, and why."""

import torch

from hgcore.checks import second_derivatives


def require_plain(module) -> None:
    """Raise unless `module` can be copied as it is, and torch differentiates it twice."""
    kind = type(module).__name__
    if isinstance(module, type) or not isinstance(module, torch.nn.Module):
        raise TypeError(f"functional takes a torch.nn.Module, got {kind}")
    for name, part in module.named_modules():
        if (why := _fault(part)) is not None:
            raise ValueError(f"module {name or kind!r} ({type(part).__name__}) {why}")
    for name, p in module.named_parameters():
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: call the module once before")
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ValueError(
                f"parameter {name!r} has a hook, which its copies lose: remove it, and clip with"
                " the optimizer's clip=, mask in the module or the loss"
            )
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{kind} has no parameters to train (requires_grad)")
    kinds = sorted({str(as_real(p).dtype).removeprefix("torch.") for p in trained})
    if kinds not in (["float32"], ["float64"]):
        what = f"{kind} has parameters of {' and '.join(kinds)}"
        raise TypeError(f"{what}; use one of float32 and float64, by module.to(torch.float64)")


def _fault(part) -> str | None:
    """Return why a part of a module cannot be used, None if it can."""
    if isinstance(part, torch.jit.ScriptModule):
        return "is a script, which cannot be copied; pass the module itself"
    if isinstance(part, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return "spreads another module over devices; pass that one, its .module"
    if part._backward_hooks or part._backward_pre_hooks:
        return "has a backward hook, so that its gradient is not that of the loss; remove it"
    if part._compiled_call_impl:
        return second_derivatives.MODULES["OptimizedModule"]
    for one in (part, *part._forward_pre_hooks.values()):  # norms may be hooks
        for kind in type(one).__mro__:
            why = second_derivatives.MODULES.get(kind.__name__.removeprefix("_"))
            if why and kind.__module__.startswith("torch."):
                return why
    if isinstance(part, torch.nn.Embedding):
        for option, why in second_derivatives.EMBEDDING.items():
            given = getattr(part, option)
            if given is not None and given is not False:
                if option != "padding_idx" or part.weight[given].any():
                    return f"has {option}={given}, which {why}"
    return None


def as_real(parameter):
    """Return a parameter, a complex one as pairs of numbers (*shape, 2)."""
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter
