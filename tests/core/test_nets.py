"""Dense nets and losses of their outputs: as in torch, and which labels they take."""

import numpy as np
import pytest
import torch
from torch import nn

from hgcore import nets

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3), (20, 9, 8, 7)])
def test_dense_net_is_that_of_torch(sizes, backend):
    net = nets.DenseNet(sizes)
    weights, inputs = RNG.standard_normal(net.layout.size) * 0.3, RNG.standard_normal((7, sizes[0]))
    layers, blocks = [], net.layout.split(torch.as_tensor(weights))
    for i, (rows, columns) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=1):
        layer = nn.Linear(rows, columns, dtype=torch.float64)
        layer.weight.data, layer.bias.data = blocks[f"weights {i}"].T, blocks[f"biases {i}"]
        layers += [layer, nn.Tanh()]
    expected = nn.Sequential(*layers[:-1], nn.LogSoftmax(-1))(torch.as_tensor(inputs)).detach()
    found = backend.numpy(net(backend.array(weights), backend.array(inputs)))
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_initial_weights_have_variance_1_by_inputs():
    net, rng = nets.DenseNet((100, 400, 3)), np.random.default_rng(0)
    weights = net.initial_weights(lambda *shape: rng.standard_normal(shape))
    blocks = net.layout.split(weights)
    assert abs(100 * blocks["weights 1"].var() - 1) < 0.03  # 4 standard errors
    assert not blocks["biases 1"].any() and not blocks["biases 2"].any()


def test_cross_entropy_is_that_of_torch(backend):
    scores, labels = RNG.standard_normal((9, 5)) * 3, RNG.integers(5, size=9)
    log, hot = nets.log_softmax(backend.array(scores)), backend.array(np.eye(5)[labels])
    expected = nn.functional.cross_entropy(torch.as_tensor(scores), torch.as_tensor(labels))
    assert abs(float(nets.cross_entropy(log, hot)) - float(expected)) < 1e-14
    wrong = np.mean(scores.argmax(1) != labels)
    assert nets.error_rate(log, hot) == pytest.approx(wrong, abs=1e-15)
    large = backend.array([[1e4, -1e4, 0.0]])  # no overflow, and a finite gradient
    value, gradient = backend.gradients(lambda scores: nets.log_softmax(scores)[0, 0], large)
    assert float(value) == 0 and np.isfinite(backend.numpy(gradient)).all()


def test_labels_are_classes_or_shares(backend):
    """Numbers of classes give what one-hot labels give; also where batch and classes are equal."""
    scores, classes = nets.log_softmax(backend.array(RNG.standard_normal((4, 4)))), [2, 0, 3, 3]
    hot, kinds = backend.array(np.eye(4)[classes]), (torch.int64, torch.int32)
    numpy = [] if backend.name == "torch" else [np.array(classes)]
    for given in (*numpy, *(torch.tensor(classes, dtype=kind) for kind in kinds)):
        found, expected = (nets.cross_entropy(scores, labels) for labels in (given, hot))
        assert abs(float(found) - float(expected)) < 1e-15
        assert nets.error_rate(scores, given) == nets.error_rate(scores, hot)


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
