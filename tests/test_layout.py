"""Named blocks of a flat vector, on NumPy, on traced NumPy and on torch."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import torch

import hgcore as hg

LAYOUT = hg.Layout({"matrix": (2, 3), "number": (), "empty": (0,), "vector": (4,)})
VECTOR = np.arange(11.0)
kinds = pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


@kinds
def test_blocks_come_in_order_with_their_shapes(make):
    blocks = LAYOUT.split(make(VECTOR))
    assert [tuple(b.shape) for b in blocks.values()] == list(LAYOUT.shapes.values()) and list(
        blocks
    ) == list(LAYOUT.shapes)
    assert (
        blocks["matrix"].tolist() == [[0, 1, 2], [3, 4, 5]]
        and float(blocks["number"]) == 6
        and blocks["vector"].tolist() == [7, 8, 9, 10]
    )
    assert (LAYOUT.size, len(LAYOUT)) == (11, 4)


@kinds
def test_joining_undoes_splitting_in_any_order_of_names(make):
    blocks = LAYOUT.split(make(VECTOR))
    assert LAYOUT.join(dict(reversed(blocks.items()))).tolist() == VECTOR.tolist()


@kinds
def test_blocks_are_views(make):
    vector = make(VECTOR.copy())
    vector[6] = 99
    blocks = LAYOUT.split(vector)
    vector[7] = 98
    assert float(blocks["number"]) == 99 and float(blocks["vector"][0]) == 98


@kinds
def test_expanding_gives_each_coordinate_the_value_of_its_block(make):
    assert LAYOUT.expand(make(np.array([1.0, 2, 3, 4]))).tolist() == [1] * 6 + [2] + [4] * 4


def test_derivatives_pass_through_on_both_backends():
    layout = hg.Layout({"matrix": (2, 3), "number": (), "vector": (4,)})

    def f(values, vector, xp):
        blocks = layout.split(vector)
        return (
            xp.sum(layout.expand(values) * layout.join(blocks) ** 2)
            + xp.sum(blocks["matrix"]) * blocks["number"]
        )

    values, vector = np.array([1.0, 2, 3]), np.linspace(1, 2, 11)
    by_numpy = autograd.grad(lambda a, b: f(a, b, anp), (0, 1))(values, vector)
    leaves = [torch.tensor(x, requires_grad=True) for x in (values, vector)]
    f(*leaves, torch).backward()
    by_values = [np.sum(b**2) for b in layout.split(vector).values()]
    assert np.allclose(by_numpy[0], by_values, rtol=1e-14) and np.allclose(
        leaves[0].grad, by_values, rtol=1e-14
    )
    assert np.allclose(leaves[1].grad, by_numpy[1], rtol=1e-14)


@kinds
def test_a_vector_of_another_size_is_refused(make):
    for wrong in (VECTOR[:-1], np.append(VECTOR, 0), VECTOR[None]):
        with pytest.raises(ValueError, match=r"takes a vector of shape \(11,\)"):
            LAYOUT.split(make(wrong.copy()))
    with pytest.raises(ValueError, match="one value per block"):
        LAYOUT.expand(make(np.ones(3)))


def test_missing_and_unknown_blocks_are_refused():
    blocks = LAYOUT.split(VECTOR)
    for wrong in ({k: v for k, v in blocks.items() if k != "number"}, blocks | {"other": VECTOR}):
        with pytest.raises(ValueError, match="blocks must be"):
            LAYOUT.join(wrong)


@kinds
def test_a_block_of_another_shape_is_refused(make):
    blocks = hg.Layout({"first": (2,), "second": (3,)})
    with pytest.raises(ValueError, match=r"block 'first' must have shape \(2,\), got \(3,\)"):
        blocks.join({"first": make(np.ones(3)), "second": make(np.zeros(2))})
