"""Minibatches by the number of a step: batch(t) is the same whenever a solver asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral

import numpy as np

from hgcore.arrays import namespace, require_count


def keep(batches: Iterable, backend=None) -> Callable:
    """Return batch(t) of what `batches`, such as a DataLoader, yields once; keeps it in memory.

    Starts again after the last batch; t = None gives all of them as one. A batch is a tensor, or a
    tuple, list or dictionary of them. backend: converts floating-point numbers to its precision
    and device, and moves the rest there.
    """
    return _Kept([_on(backend, batch) for batch in batches])


def draw(source, size: int | None = None, seed: int = 0, backend=None) -> Callable:
    """Return batch(t) of `size` examples of `source`, taken when it is asked for; keeps nothing.

    source: a tuple of arrays, examples along the first axis; a Dataset (__len__, __getitem__); or a
    DataLoader, whose collate_fn, drop_last, shuffle and, without `size`, batch_size are used. Each
    epoch has its own order, from (seed, epoch). What the examples and collate_fn draw themselves
    (augmentations by torch, NumPy or random) comes from (seed, t). t = None: all examples, in
    order. backend: as in `keep`.
    """
    return _Drawn(source, size, seed, backend)


class _Kept:
    def __init__(self, batches: list):
        if not batches:
            raise ValueError("keep needs at least one batch, got none")
        self.batches = batches

    def __call__(self, t):
        if t is None:
            return _each(_joined, *self.batches)
        require_count("t", t)
        return self.batches[t % len(self.batches)]


class _Drawn:
    def __init__(self, source, size, seed, backend):
        from torch.utils import data

        self.seed, self.backend, self.shuffle, self.drop_last = seed, backend, True, False
        self.collate, loader = data.default_collate, None
        if isinstance(source, data.DataLoader):
            source, loader = source.dataset, source
        if isinstance(source, data.IterableDataset) or not hasattr(source, "__getitem__"):
            raise ValueError("draw needs a data set with an index; use keep for a stream")
        if isinstance(source, dict):
            raise ValueError(
                "draw takes a tuple of arrays, got a dict: draw(tuple(source.values()))"
            )
        self.count = len(source[0]) if isinstance(source, tuple) else len(source)
        if isinstance(source, tuple) and len({len(array) for array in source}) > 1:
            raise ValueError(f"arrays must have one length, got {[len(a) for a in source]}")
        if loader is not None:
            _require_plain_order(loader)
            self.shuffle = isinstance(loader.sampler, data.RandomSampler)
            self.drop_last, self.collate = loader.drop_last, loader.collate_fn
            if size is None:  # the only batch of an epoch may be one that is not full
                most = loader.batch_size if self.drop_last else self.count
                size = min(loader.batch_size, most)
        if not isinstance(size, Integral) or not 1 <= size <= self.count:
            hint = "; arrays go in a tuple, a list is a data set" * isinstance(source, list)
            rule = f"size=, the examples of a batch, must lie in 1..{self.count}"
            raise ValueError(f"{rule}, got {size}{hint}")
        self.source, self.size = source, size

    def __call__(self, t):
        if t is not None:
            require_count("t", t)
        indices = np.arange(self.count) if t is None else self._indices(t)
        if isinstance(self.source, tuple):
            return _on(self.backend, tuple(array[indices] for array in self.source))
        from hgcore.modules.draws import drawn_from

        with drawn_from((self.seed, 0 if t is None else t + 1)):
            batch = self.collate([self.source[i] for i in indices.tolist()])
        return _on(self.backend, batch)

    def _indices(self, t: int) -> np.ndarray:
        """Return the examples of step t (size,), fewer at the end of an epoch unless dropped."""
        batches = self.count // self.size if self.drop_last else -(-self.count // self.size)
        epoch, place = divmod(t, batches)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
        return order[place * self.size : (place + 1) * self.size]


def _require_plain_order(loader) -> None:
    """Raise ValueError unless a DataLoader takes each example once an epoch, shuffled or not."""
    from torch.utils import data

    sampler, batches = loader.sampler, loader.batch_sampler
    if loader.batch_size is None:  # what a DataLoader with another one has
        kind = "batch_size=None" if batches is None else type(batches).__name__
    elif type(sampler) not in (data.RandomSampler, data.SequentialSampler):
        kind = type(sampler).__name__
    elif getattr(sampler, "replacement", False) or len(sampler) != len(loader.dataset):
        kind = "RandomSampler with replacement or num_samples"
    else:
        return
    raise ValueError(f"draw has its own order and cannot follow {kind}; use keep")


def _joined(*parts):
    """Return the parts of all batches as one, joined along the examples."""
    xp = namespace(parts[0])
    if not hasattr(parts[0], "shape"):
        kind = type(parts[0]).__name__
        raise TypeError(f"t = None joins batches of tensors, got {kind}: leave it out of the batch")
    return xp.concatenate(parts)


def _each(function: Callable, *batches):
    """Return a batch with `function` of the parts of all `batches` in each place."""
    first = batches[0]
    if isinstance(first, dict):
        return {name: _each(function, *(b[name] for b in batches)) for name in first}
    if isinstance(first, (tuple, list)):
        parts = [_each(function, *parts) for parts in zip(*batches, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(*batches)


def _on(backend, batch):
    """Return a batch with the precision and on the device of `backend`, if one is given."""
    if backend is None:
        return batch

    def converted(part):
        if not hasattr(part, "dtype"):  # a name, a number
            return part
        if part.is_floating_point() if hasattr(part, "detach") else part.dtype.kind == "f":
            return backend.array(part)
        return backend.xp.asarray(part, device=backend.device)

    return _each(converted, batch)
