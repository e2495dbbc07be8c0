"""Named blocks of a flat vector."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hgcore.arrays import like, namespace, pieces
from hgcore.backend import fast_nodes


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the blocks of a vector (size,), in order; a block () is one number.

    Works on vectors of either backend, traced or not.

    >>> layout = Layout({"weights": (2, 3), "bias": ()})
    >>> layout.size, list(layout.split(np.arange(7.0)))
    (7, ['weights', 'bias'])
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: list[int] = field(init=False, repr=False)
    size: int = field(init=False)

    def __post_init__(self):
        for name, shape in self.shapes.items():
            if not isinstance(shape, tuple):
                raise TypeError(f"the shape of block {name!r} must be a tuple, got {shape!r}")
        object.__setattr__(self, "sizes", list(map(math.prod, self.shapes.values())))
        object.__setattr__(self, "size", sum(self.sizes))

    def __len__(self) -> int:
        return len(self.shapes)

    def split(self, vector) -> dict:
        """Return {name: block in its shape}, views of `vector` (size,)."""
        _require_shape("this layout takes a vector of", vector, (self.size,))
        # one operation on torch: a slice v[a:b] fills a whole vector of zeros in a backward pass
        blocks = zip(self.shapes.items(), pieces(vector, self.sizes), strict=True)
        return {name: block.reshape(shape) for (name, shape), block in blocks}

    def join(self, blocks: Mapping):
        """Return the vector (size,) of all named blocks (arrays, or numbers): undoes `split`.

        A tensor or traced block makes all others like it.
        """
        if set(blocks) != set(self.shapes):
            raise ValueError(f"blocks must be {list(self.shapes)}, got {list(blocks)}")
        given = [blocks[name] for name in self.shapes]
        arrays = [x if hasattr(x, "shape") else np.asarray(x, dtype=float) for x in given]
        for (name, shape), array in zip(self.shapes.items(), arrays, strict=True):
            _require_shape(f"block {name!r} must have", array, shape)
        model = next((x for x in arrays if namespace(x) is not np), arrays[0])
        xp = namespace(model)
        if not any(kind in str(model.dtype) for kind in ("float", "complex")):  # would round others
            model = xp.asarray(model, dtype=xp.float64)
        alike = [
            x if x.dtype == model.dtype and namespace(x) is xp else like(x, model) for x in arrays
        ]
        return xp.concatenate([x.reshape((-1,)) for x in alike])

    def expand(self, values):
        """Return one value per coordinate (size,) from one per block (len(layout),)."""
        _require_shape("expected one value per block,", values, (len(self),))
        nodes = fast_nodes("blocks", values)
        if nodes and nodes.fits(values, self):
            return nodes.Expand.apply(values, self)
        xp, parts = namespace(values), pieces(values, [1] * len(self))
        blocks = [(part, size) for part, size in zip(parts, self.sizes, strict=True) if size]
        return xp.concatenate([xp.broadcast_to(part, (size,)) for part, size in blocks])

    def sums(self, vector):
        """Return the sum of each block, (size,) -> (len(layout),)."""
        _require_shape("this layout takes a vector of", vector, (self.size,))
        nodes = fast_nodes("blocks", vector)
        if nodes and nodes.fits(vector, self):
            return nodes.Sums.apply(vector, self)
        return namespace(vector).stack([part.sum() for part in pieces(vector, self.sizes)])


def _require_shape(what: str, array, shape: tuple) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{what} shape {shape}, got {tuple(array.shape)}")
