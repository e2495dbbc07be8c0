"""Layout: named blocks of a flat vector, on NumPy, on traced NumPy and on torch."""

import numpy as np
import pytest
import torch

import hgcore as hg

LAYOUT = hg.Layout({"matrix": (2, 3), "number": (), "empty": (0,), "vector": (4,)})
VECTOR = np.arange(11.0)


def test_split_gives_views_in_order(backend):
    """join undoes it, in any order."""
    vector = backend.array(VECTOR.copy())
    blocks = LAYOUT.split(vector)
    assert {name: tuple(b.shape) for name, b in blocks.items()} == LAYOUT.shapes
    assert (LAYOUT.size, len(LAYOUT)) == (11, 4)
    assert blocks["matrix"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert LAYOUT.join(dict(reversed(blocks.items()))).tolist() == VECTOR.tolist()
    vector[6:8] = 99
    assert float(blocks["number"]) == 99 and blocks["vector"].tolist() == [99, 8, 9, 10]


def test_expand_and_sums_by_block(backend):
    """expand repeats a value over its block, sums is its transpose."""
    expanded = LAYOUT.expand(backend.array([1.0, 2, 3, 4]))
    assert expanded.tolist() == [1] * 6 + [2] + [4] * 4
    assert LAYOUT.sums(backend.array(VECTOR)).tolist() == [15, 6, 0, 34]


def test_layout_passes_derivatives_on(backend):
    """Of sum(expand(values) * v**2), through join, split, expand and sums: 1e-14 is rounding."""
    xp = backend.xp

    def f(values, vector):
        joined = LAYOUT.join(LAYOUT.split(vector))
        return xp.sum(LAYOUT.expand(values) * joined**2) + values @ LAYOUT.sums(vector**2)

    values, vector = np.array([1.0, 2, 3, 4]), np.linspace(1, 2, 11)
    _, by_values, by_vector = backend.gradients(f, backend.array(values), backend.array(vector))
    assert np.allclose(by_values, 2 * LAYOUT.sums(vector**2), rtol=1e-14)
    assert np.allclose(by_vector, 4 * LAYOUT.expand(values) * vector, rtol=1e-14)


@pytest.mark.parametrize("first", [2.0, 2, np.float32(2), np.array(2.0)], ids=type)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_join_takes_numbers_before_traced_blocks(first, dtype, backend):
    """The derivative arrives, and the precision is that of the traced block."""
    backend = backend if dtype == "float64" else hg.Torch(dtype=dtype)
    layout = hg.Layout({"number": (), "vector": (2,)})

    def f(vector):
        joined = layout.join({"number": first, "vector": vector})
        return joined @ joined

    value, gradient = backend.gradients(f, backend.array([1.0, 3.0]))
    assert float(value) == 14 and gradient.tolist() == [2, 6]
    assert value.dtype == gradient.dtype and str(gradient.dtype).endswith(dtype)


@pytest.mark.parametrize("counts", [np.array([3, 4]), torch.tensor([3, 4]), torch.ones(2) > 0])
def test_join_does_not_round_to_whole_numbers(counts):
    joined = hg.Layout({"counts": (2,), "rate": ()}).join({"counts": counts, "rate": -4.6})
    assert float(joined[0]) == float(counts[0]) and float(joined[2]) == -4.6
