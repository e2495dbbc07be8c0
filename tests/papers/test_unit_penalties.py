"""A penalty for every unit (Fu et al. 2016): a tiny net on noise."""

import numpy as np

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((6, 4, 3))
SIZE = papers.unit_layout(NET).size
SETTING = dict(address=(0, 2, 0, "hyperloss"), steps=5, batch=4, rate=0.5, decay=0.5)


def examples(count=20):
    rng = np.random.RandomState(0)
    return data.Split(rng.randn(count, 6), np.eye(3)[rng.randint(3, size=count)])


def test_dealt_keeps_examples_with_their_labels():
    whole = np.hstack(examples())
    parts = [np.hstack(part) for part in papers.shuffled_splits(examples(), [14, 6], (0, "top_rs"))]
    assert [len(part) for part in parts] == [14, 6]
    assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())


def test_scaled_multiplies_what_leaves_a_unit(backend):
    hyper = np.linspace(-1, 1, SIZE)
    free = backend.array(np.arange(1.0, NET.layout.size + 1))
    ratios = NET.layout.split(backend.numpy(papers.scaled(NET, free, backend.array(hyper)) / free))
    assert np.abs(ratios["weights 1"] - np.exp(hyper[:6, None])).max() < 1e-15
    assert np.abs(ratios["weights 2"] - np.exp(hyper[6:, None])).max() < 1e-15
    assert all(abs(ratios[name] - np.exp(0.2)).max() < 1e-15 for name in ("biases 1", "biases 2"))


def test_hypergradient_equals_differences(backend):
    parts = papers.shuffled_splits(examples(), [14, 6], SETTING["address"])
    parts = [part.on(backend) for part in parts]
    case = papers.unit_penalties(backend, NET, *parts, **SETTING, log_scale=-1.0)
    hyper, width = np.full(SIZE, 0.2), 1e-5
    grad = backend.numpy(hg.Reverse(hg.Reversible())(case, hyper).grad)

    def value(shift):
        moved = case.as_hyper(hyper + shift)
        return float(backend.evaluate(case.outer_loss, hg.train(case, moved)[0], moved))

    slopes = [(value(width * unit) - value(-width * unit)) / (2 * width) for unit in np.eye(SIZE)]
    # rounding of the differences, and width**2
    assert abs(grad - slopes).max() < 1e-6 * abs(grad).max()
