"""Dense nets and the losses of their outputs: as in torch."""

import numpy as np
import pytest
import torch
from torch import nn

from hgcore import nets


@pytest.mark.parametrize("sizes", [(4, 3), (20, 9, 8, 7)])
def test_dense_net_is_that_of_torch(sizes, backend):
    net, rng = nets.DenseNet(sizes), np.random.default_rng(0)
    weights, inputs = 0.3 * rng.standard_normal(net.layout.size), rng.standard_normal((7, sizes[0]))
    expected, blocks = torch.as_tensor(inputs), net.layout.split(torch.as_tensor(weights))
    for i in range(1, len(sizes)):
        expected = expected.tanh() if i > 1 else expected
        expected = nn.functional.linear(expected, blocks[f"weights {i}"].T, blocks[f"biases {i}"])
    found = backend.numpy(net(backend.array(weights), backend.array(inputs)))
    assert np.allclose(found, expected.log_softmax(-1), rtol=1e-12, atol=1e-12)


def test_initial_weights_have_variance_1_by_inputs():
    net, rng = nets.DenseNet((100, 400, 3)), np.random.default_rng(0)
    weights = net.initial_weights(lambda *shape: rng.standard_normal(shape))
    blocks = net.layout.split(weights)
    assert abs(100 * blocks["weights 1"].var() - 1) < 0.03  # 4 standard errors
    assert not blocks["biases 1"].any() and not blocks["biases 2"].any()


@pytest.mark.parametrize("classes", [3, 5])
def test_losses_of_labels_are_those_of_torch(classes, backend):
    """Of numbers of classes and one-hot labels; also where batch and classes are equal."""
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((5, classes)) * 3, rng.integers(classes, size=5)
    expected = nn.functional.cross_entropy(torch.as_tensor(scores), torch.as_tensor(labels))
    wrong = np.mean(scores.argmax(1) != labels)
    given = [backend.array(np.eye(classes)[labels]), torch.tensor(labels, dtype=torch.int32)]
    given.append(labels if backend.name == "autograd" else torch.tensor(labels))
    for kind in given:
        log = nets.log_softmax(backend.array(scores))
        assert abs(float(nets.cross_entropy(log, kind)) - float(expected)) < 1e-14
        assert nets.error_rate(log, kind) == pytest.approx(wrong, abs=1e-15)


def test_log_softmax_does_not_overflow(backend):
    large = backend.array([[1e4, -1e4, 0.0]])
    value, gradient = backend.gradients(lambda scores: nets.log_softmax(scores)[0, 0], large)
    assert float(value) == 0 and np.isfinite(backend.numpy(gradient)).all()


def test_wrong_labels_are_refused(backend):
    scores = backend.array(np.zeros((4, 3)))
    for shape in ((4,), (4, 1), (3, 3), (1, 3), ()):
        for function in (nets.cross_entropy, nets.error_rate):
            with pytest.raises(ValueError, match=r"whole numbers of shape \(4,\) or .* \(4, 3\)"):
                function(scores, backend.array(np.zeros(shape)))
    for label in (-1, 3, -100):
        labels = backend.xp.asarray([0, label, 0, 0])
        with pytest.raises(IndexError if label > 0 else (ValueError, IndexError)):
            nets.cross_entropy(scores, labels)
