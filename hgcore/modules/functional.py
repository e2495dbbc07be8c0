"""Torch modules as functions of one flat weight vector."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from types import MethodType

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hgcore.layout import Layout
from hgcore.modules.draws import ALONE, drawn_from, generators
from hgcore.modules.refusals import as_real, require_plain


class ModuleFunction:
    """A torch module as function(weights (n,), *inputs, seed=None, **named) -> its output.

    A call runs a copy of the module whose parameters are blocks of the vector (complex ones made
    of pairs of numbers). `layout` has their names. What requires no gradient stays as it is, and so
    do buffers. Batch statistics: in training mode those of the batch given; running averages do not
    move, see `evaluation`. Dropout and noise are drawn from `seed`, whole numbers such as (t,).
    Attention uses torch's plain kernel, and recurrent nets do without cuDNN: the others have no
    second derivatives.
    What a call keeps on the module (a hidden state, an auxiliary loss, a cache) is lost:
    return it instead.
    Raises ValueError where the copy would not give what the module gives (parameters with hooks, a
    function that keeps the module itself), for draws without a seed, for buffers that move, and
    after train() or eval() changed the mode.
    """

    def __init__(self, module):
        require_plain(module)
        self.module, self.parts = module, list(module.modules())
        self.modes = [part.training for part in self.parts]
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.layout = Layout({name: tuple(as_real(p).shape) for name, p in self.trained.items()})
        known = {id(x) for x in (*self.parts, *module.parameters())}
        self.links = [_links(part, known) for part in self.parts]
        self.examined = set()  # whether the first call with a seed, and without, was compared

    def initial_weights(self):
        """Return the module's parameters as one vector (n,)."""
        with ALONE:
            return torch.cat([as_real(p).detach().reshape(-1) for p in self.trained.values()])

    def __call__(self, weights, *inputs, seed=None, **named):
        if torch.compiler.is_compiling():  # which knows this call, and cannot follow a copy
            if seed is not None:
                raise ValueError("a compiled loss cannot take a seed: leave hg.fast.Compiled out")
            state = self._parameters(weights)
            state |= {name: b.clone() for name, b in self.module.named_buffers()}
            return torch.func.functional_call(self.module, state, inputs, named)
        kind, shape = type(weights).__name__, tuple(getattr(weights, "shape", ()))
        if not isinstance(weights, torch.Tensor) or shape != (self.layout.size,):
            what = f"weights must be a tensor ({self.layout.size},), got {kind} {shape}"
            raise TypeError(f"{what}; call it as function(weights, *inputs)")
        if self.modes != [part.training for part in self.parts]:
            kind = type(self.module).__name__
            raise ValueError(f"{kind}: train() or eval() changed the mode; call functional again")
        with self._settings(weights, seed) as run:
            # transforms of torch.func cannot compare numbers
            plain = torch._C._functorch.maybe_current_level() is None
            if plain and (seed is None) not in self.examined:
                self._examine(weights, inputs, named, seed, run)
                self.examined.add(seed is None)
            return run(self._copy(weights), *inputs, **named)

    def evaluation(self, weights, batches: Iterable[tuple]) -> "ModuleFunction":
        """Return the function of the module in evaluation mode: no dropout, fixed statistics.

        They are the means over `batches` (tuples of inputs, without labels) at `weights`. The
        module stays as it is. For tests, not for losses: raises ValueError if the statistics would
        need a gradient.
        """
        attributes = (x for part in self.parts for x in vars(part).values())
        computed = (x for x in attributes if isinstance(x, torch.Tensor) and x.grad_fn is not None)
        module = copy.deepcopy(self.module, {id(x): x.detach() for x in computed}).eval()
        layers = [part for part in module.modules() if _tracks_statistics(part)]
        if layers and weights.requires_grad:
            raise ValueError(
                "evaluation fixes the batch statistics, so a loss of it has a wrong gradient: test"
                " trained weights with it; in a loss use the function itself, of a module whose"
                " dropout layers are in eval()"
            )
        own, count = dict(module.named_parameters()), 0
        with torch.no_grad():
            for name, block in self._parameters(weights).items():
                own[name].copy_(block)
            for count, batch in enumerate(batches, start=1):
                for layer in layers:
                    layer.train().momentum = 1 / count  # a cumulative mean
                if not isinstance(batch, (tuple, list)):
                    what = type(batch).__name__
                    raise TypeError(f"batches must be tuples of inputs such as (x,), got {what}")
                module(*batch)
        if layers and not count:
            raise ValueError("the module has batch statistics: give batches to take the means of")
        return ModuleFunction(module.eval())

    def _parameters(self, weights) -> dict:
        """Return {name: block of weights}, complex where the module's parameter is.

        Complex ones are copies: a view needs an even place in memory.
        """
        pairs = {name for name, p in self.trained.items() if p.is_complex()}
        blocks = self.layout.split(weights).items()
        return {k: torch.complex(*x.unbind(-1)) if k in pairs else x for k, x in blocks}

    def _copy(self, weights):
        """Return a copy of the module whose parameters are blocks of `weights`.

        One for each call: activation checkpointing runs parts of it again in the backward pass,
        and several threads may be in a call.
        """
        blocks = self._parameters(weights)
        copies = {id(part): object.__new__(type(part)) for part in self.parts}
        known = copies | {id(p): blocks[name] for name, p in self.trained.items()}
        with ALONE:
            for part, links in zip(self.parts, self.links, strict=True):
                own = vars(copies[id(part)])
                own |= vars(part)
                own |= {name: _replaced(own[name], known) for name in links}
                own["_buffers"] = own["_buffers"].copy()
                if part.training and _tracks_statistics(part):
                    own |= {"track_running_stats": False, "running_mean": None, "running_var": None}
                    own["_buffers"] = {}
        return copies[id(self.module)]

    @contextlib.contextmanager
    def _settings(self, weights, seed) -> Iterator[Callable]:
        """Select kernels with second derivatives; yield (module, *inputs) -> output."""

        def run(module, *inputs, **named):
            with nothing if seed is None else drawn_from(seed, weights.device):
                return module(*inputs, **named)

        nothing = contextlib.nullcontext()
        recurrent = weights.is_cuda and any(isinstance(x, torch.nn.RNNBase) for x in self.parts)
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nothing
        with _plain_attention(), cudnn:
            yield run

    def _examine(self, weights, inputs, named, seed, run: Callable) -> None:
        """Raise ValueError unless a copy gives what the module gives, and leaves it as it was."""
        # not the module's own weights, which a function of it may have kept
        weights = (1.01 * self.initial_weights() + 0.001).to(weights)
        buffers = dict(self.module.named_buffers())
        self._require_precision(weights, buffers.values())
        with torch.no_grad(), ALONE:
            with self._at(weights):
                state = {name: b.clone() for name, b in buffers.items()}
                expected = run(torch.func.functional_call, self.module, state, inputs, named)
            versions = [buffer._version for buffer in buffers.values()]
            before = generators(weights)
            copied = self._copy(weights)
            output = run(copied, *inputs, **named)
            drew = seed is None and before != generators(weights)
            saved, own = self.module.state_dict().keys(), dict(copied.named_buffers())
            moves = [k for k, b in buffers.items() if own.get(k, b) is not b and k in saved]
            pairs = zip(buffers.items(), versions, strict=True)
            moves += [name for (name, b), version in pairs if b._version != version]
            if drew:
                why = "draws random numbers (dropout, noise): give a call seed=(t,), or call eval()"
            elif moves:
                why = f"changes its buffer {moves[0]!r} in a call: call eval()"
            elif _alike(output, expected):
                return
            elif not _alike(output, run(self._copy(weights), *inputs, **named)):
                why = (
                    "gives another output when it is called again: remove the state or the random"
                    " generator that it keeps"
                )
            else:
                why = (
                    "keeps a function of itself, such as a lambda or partial made in __init__, or"
                    " an object that holds its weights: make it a method"
                )
        raise ValueError(f"{type(self.module).__name__} {why} before functional")

    def _require_precision(self, weights, buffers: Iterable) -> None:
        """Raise TypeError if what is not trained has another precision than `weights`."""
        own = self.initial_weights().dtype
        fixed = [p for p in self.module.parameters() if not p.requires_grad]
        if own != weights.dtype and any(x.dtype == own for x in (*fixed, *buffers)):
            raise TypeError(
                f"buffers or frozen parameters of {type(self.module).__name__} are {own}, the"
                f" weights {weights.dtype}: call module.to({weights.dtype}) before functional, or"
                " give the backend the module's dtype"
            )

    @contextlib.contextmanager
    def _at(self, weights) -> Iterator[None]:
        """Give the module itself these weights, in place, and what it had afterwards."""
        attributes = [vars(part) | {"_buffers": part._buffers.copy()} for part in self.parts]
        containers = {}  # by id: a call fills copies of them
        for part, links in zip(self.parts, self.links, strict=True):
            vars(part).update({name: _replaced(vars(part)[name], containers) for name in links})
        given = {name: (p.data, p.data.clone()) for name, p in self.trained.items()}
        try:
            for name, block in self._parameters(weights).items():
                p = self.trained[name].data
                alike = p.dtype == block.dtype and p.device == block.device
                self.trained[name].data = p.copy_(block) if alike else block
            yield
        finally:
            for name, (own, values) in given.items():
                self.trained[name].data = own.copy_(values)
            for part, kept in zip(self.parts, attributes, strict=True):
                vars(part).clear()
                vars(part).update(kept)


def _tracks_statistics(part) -> bool:
    """Whether a layer moves running averages in training mode."""
    return vars(part).get("track_running_stats", False) and part.running_mean is not None


def _links(part, known: set) -> list[str]:
    """Return the attributes that refer to `known` or that a call may fill: a copy has its own."""
    own = set(vars(part)).difference(vars(torch.nn.Module()))
    filled = {name for name in own if isinstance(vars(part)[name], (dict, list, set))}
    return [name for name, x in vars(part).items() if name in filled or _refers(x, known)]


def _refers(x, known: set) -> bool:
    """Whether an attribute is, or holds, one of the objects with ids `known`."""
    if isinstance(x, dict) or type(x) in (list, tuple):
        return any(_refers(one, known) for one in (x.values() if isinstance(x, dict) else x))
    return id(getattr(x, "__self__", x)) in known


def _replaced(x, known: dict):
    """Return an attribute with the objects in `known`, by id, replaced; containers join `known`."""
    if id(x) in known:
        return known[id(x)]
    if isinstance(x, MethodType):
        return MethodType(x.__func__, known.get(id(x.__self__), x.__self__))
    if type(x) is tuple:
        return tuple(_replaced(one, known) for one in x)
    if not isinstance(x, (dict, list, set)):
        return x
    copied = known[id(x)] = copy.copy(x)  # an OrderedDict stays one
    if isinstance(x, dict):
        copied.update((name, _replaced(one, known)) for name, one in x.items())
    elif isinstance(x, list):
        copied[:] = [_replaced(one, known) for one in x]
    return copied


_attention = contextlib.ExitStack()  # torch's choice of kernels, one for all threads
_callers: list[int] = []  # the calls that need the plain kernel


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Select the kernel of attention that has a second derivative, until the last call is done."""
    with ALONE:
        if not _callers:
            _attention.enter_context(sdpa_kernel(SDPBackend.MATH))
        _callers.append(1)
    try:
        yield
    finally:
        with ALONE:
            _callers.pop()
            if not _callers:
                _attention.close()


def _alike(a, b) -> bool:
    """Whether two outputs, tensors or nested, are equal but for rounding."""
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(a, dict):
        return all(_alike(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return all(map(_alike, a, b))
    return True
