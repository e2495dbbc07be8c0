"""Training sets that are hyperparameters: their derivatives, and what follows from their symmetries."""

import numpy as np
import pytest
from catalogue import unrolled

import hgcore as hg
from hgcore import data, papers

net = hg.nets.DenseNet((6, 3))
rng = np.random.default_rng(0)
VALID = data.Split(rng.standard_normal((20, 6)), np.eye(3)[rng.integers(3, size=20)])
HARD = np.tile(np.eye(3), (2, 1))  # two examples per class
BLOCKS = {
    "images": rng.standard_normal((6, 6)),
    "label logits": rng.standard_normal((6, 3)),
    "log penalty": np.log(0.01),
}


def problem(backend, names, **given):
    """(Problem, hyper) in which those blocks are learned and the others given."""
    layout = hg.Layout({name: np.shape(BLOCKS[name]) for name in names})
    valid = VALID.on(backend)
    made = papers.learned_data(backend, net, layout, given, valid, steps=7)
    return made, layout.join({name: BLOCKS[name] for name in names}), layout


@pytest.mark.parametrize(
    "names",
    [("images", "log penalty"), ("images", "log penalty", "label logits"), ("label logits",)],
    ids="+".join,
)
def test_derivatives(backend, names):
    given = {"images": BLOCKS["images"], "labels": HARD, "log penalty": -4.0}
    made, hyper, _ = problem(backend, names, **given)
    value, slope = unrolled(made, hyper)
    for solver in (hg.Reverse(hg.Reversible()), hg.Forward()):
        found = solver(made, hyper)
        assert float(found.value) == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(backend.numpy(found.grad), slope, rtol=1e-9, atol=1e-12)


def test_soft_labels_may_be_hard(backend):
    hard, hyper, _ = problem(backend, ("images", "log penalty"), labels=HARD)
    soft, _, _ = problem(backend, ("images", "log penalty"), **{"label logits": 100 * HARD})
    assert float(hg.Reverse()(hard, hyper).value) == pytest.approx(
        float(hg.Reverse()(soft, hyper).value), rel=1e-12
    )


def test_blank_images_of_one_class_get_one_gradient(backend):
    made, _, layout = problem(backend, ("images", "log penalty"), labels=HARD)
    grad = hg.Reverse()(
        made, layout.join({"images": np.zeros((6, 6)), "log penalty": np.log(0.01)})
    ).grad
    images = backend.numpy(layout.split(grad)["images"])
    np.testing.assert_allclose(images[:3], images[3:], rtol=1e-12)
    assert abs(images).max() > 1e-3
