"""Layout: named blocks of a flat vector, on both backends."""

import numpy as np
import pytest
import torch
from catalogue import LAYOUT

import hgcore as hg


def test_split_gives_views_in_order(backend):
    vector = backend.array(np.arange(11.0))
    blocks = LAYOUT.split(vector)
    assert {name: tuple(b.shape) for name, b in blocks.items()} == LAYOUT.shapes
    assert (LAYOUT.size, len(LAYOUT)) == (11, 4)
    assert blocks["matrix"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert LAYOUT.join(dict(reversed(blocks.items()))).tolist() == vector.tolist()
    vector[6:8] = 99
    assert float(blocks["number"]) == 99 and blocks["vector"].tolist() == [99, 8, 9, 10]


def test_layout_expands_and_sums_blocks(backend):
    values, vector = backend.array([1.0, 2, 3, 4]), backend.array(np.arange(11.0))
    assert LAYOUT.expand(values).tolist() == [1] * 6 + [2] + [4] * 4
    assert LAYOUT.sums(vector).tolist() == [15, 6, 0, 34]


@pytest.mark.parametrize("number", [2.0, 2, np.float32(2), np.array(2.0)])
@pytest.mark.parametrize("backend", [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")])
def test_join_takes_numbers_before_traced_blocks(backend, number):
    """The derivative arrives, and the precision is that of the traced block."""
    layout = hg.Layout({"number": (), "vector": (2,)})
    join = lambda x: layout.join({"number": number, "vector": x})  # noqa: E731
    value, slope = backend.gradients(lambda x: join(x) @ join(x), backend.array([1.0, 3]))
    assert float(value) == 14 and slope.tolist() == [2, 6]
    assert value.dtype == slope.dtype and str(slope.dtype).endswith(backend.dtype)


@pytest.mark.parametrize("counts", [np.array([3, 4]), torch.tensor([3, 4]), torch.ones(2) > 0])
def test_join_does_not_round_to_whole_numbers(counts):
    joined = hg.Layout({"counts": (2,), "rate": ()}).join({"counts": counts, "rate": -4.6})
    assert joined.tolist() == [*map(float, counts), -4.6]
