"""Layout: named blocks of a flat vector, on NumPy, on traced NumPy and on torch."""

import numpy as np
import pytest
import torch

import hgcore as hg

LAYOUT = hg.Layout({"matrix": (2, 3), "number": (), "empty": (0,), "vector": (4,)})
VECTOR = np.arange(11.0)


def test_split_gives_views_in_order(backend):
    vector = backend.array(VECTOR.copy())
    blocks = LAYOUT.split(vector)
    assert {name: tuple(b.shape) for name, b in blocks.items()} == LAYOUT.shapes
    assert (LAYOUT.size, len(LAYOUT)) == (11, 4)
    assert blocks["matrix"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert LAYOUT.join(dict(reversed(blocks.items()))).tolist() == VECTOR.tolist()
    vector[6:8] = 99
    assert float(blocks["number"]) == 99 and blocks["vector"].tolist() == [99, 8, 9, 10]


def test_layout_passes_derivatives_on(backend):
    """Of sum(expand(values) * v**2), through join, split, expand and sums: 1e-14 is rounding."""
    xp = backend.xp

    def f(values, vector):
        joined = LAYOUT.join(LAYOUT.split(vector))
        return xp.sum(LAYOUT.expand(values) * joined**2) + values @ LAYOUT.sums(vector**2)

    values, vector = np.array([1.0, 2, 3, 4]), np.linspace(1, 2, 11)
    expanded, squares = np.array([1.0] * 6 + [2] + [4] * 4), vector**2
    sums = [squares[:6].sum(), squares[6], 0, squares[7:].sum()]
    value, *slopes = backend.gradients(f, backend.array(values), backend.array(vector))
    assert float(value) == pytest.approx(2 * values @ sums, rel=1e-14)
    for found, expected in zip(slopes, (sums, 2 * expanded * vector), strict=True):
        assert np.allclose(found, 2 * np.array(expected), rtol=1e-14)


def test_join_takes_numbers_before_traced_blocks():
    """The derivative arrives, and the precision is that of the traced block."""
    layout = hg.Layout({"number": (), "vector": (2,)})
    for backend in (hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")):
        for first in (2.0, 2, np.float32(2), np.array(2.0)):
            join = lambda x, n=first: layout.join({"number": n, "vector": x})  # noqa: E731
            value, slope = backend.gradients(lambda x, f=join: f(x) @ f(x), backend.array([1.0, 3]))
            assert float(value) == 14 and slope.tolist() == [2, 6]
            assert value.dtype == slope.dtype and str(slope.dtype).endswith(backend.dtype)


def test_join_does_not_round_to_whole_numbers():
    for counts in (np.array([3, 4]), torch.tensor([3, 4]), torch.ones(2) > 0):
        joined = hg.Layout({"counts": (2,), "rate": ()}).join({"counts": counts, "rate": -4.6})
        assert float(joined[0]) == float(counts[0]) and float(joined[2]) == -4.6
