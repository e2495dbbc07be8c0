"""Named blocks of a flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hgcore.arrays import cut, in_reverse, namespace, written_out


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the blocks of a vector (size,), in order: `Layout({"weights": (784, 10), "biases": (10,)})`.

    Works on vectors of either backend, traced or not; a block of shape () is one number.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: list[int] = field(init=False, repr=False)
    size: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "sizes", [math.prod(shape) for shape in self.shapes.values()])
        object.__setattr__(self, "size", sum(self.sizes))

    def __len__(self) -> int:
        return len(self.shapes)

    def split(self, vector) -> dict:
        """{name: block in its shape}; views of `vector` (size,).

        One operation on torch: slices v[a:b] of one's own fill a whole vector of zeros each in every backward pass.
        """
        if vector.shape != (self.size,):
            raise ValueError(
                f"this layout takes a vector of shape ({self.size},), got {tuple(vector.shape)}"
            )
        pieces = cut(vector, self.sizes)
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def join(self, blocks: Mapping):
        """The inverse of `split`: one vector (size,) out of all named blocks."""
        if set(blocks) != set(self.shapes):
            raise ValueError(f"blocks must be {list(self.shapes)}, got {list(blocks)}")
        if wrong := [name for name, shape in self.shapes.items() if blocks[name].shape != shape]:
            raise ValueError(
                f"block {wrong[0]!r} must have shape {self.shapes[wrong[0]]}, got {tuple(blocks[wrong[0]].shape)}"
            )
        xp = namespace(next(iter(blocks.values())))
        return xp.concatenate([blocks[name].reshape((-1,)) for name in self.shapes])

    def expand(self, values):
        """One value per block (len(layout),) -> one value per coordinate (size,)."""
        if values.shape != (len(self),):
            raise ValueError(
                f"expected one value per block, shape ({len(self)},), got {tuple(values.shape)}"
            )
        if in_reverse(values) and values.device.type == "cpu":
            return written_out().Expand.apply(values, self.sizes)
        xp = namespace(values)
        pieces = cut(values, [1] * len(self))
        return xp.concatenate(
            [
                xp.broadcast_to(piece, (size,))
                for piece, size in zip(pieces, self.sizes, strict=True)
            ]
        )

    def sums(self, vector):
        """The sum of each block: (size,) -> (len(layout),); `sums(w * w)` for a penalty of each."""
        if in_reverse(vector) and vector.device.type == "cpu":
            return written_out().Sums.apply(vector, self.sizes)
        return namespace(vector).stack([piece.sum() for piece in cut(vector, self.sizes)])
