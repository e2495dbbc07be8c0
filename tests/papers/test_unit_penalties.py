"""A penalty for every unit (Fu et al. 2016): a tiny net on noise."""

import numpy as np

import hgcore as hg
from hgcore import data, papers

NET = hg.nets.DenseNet((6, 4, 3))
SIZE = papers.units(NET).size
SETTING = dict(
    address=(0, 2, 0, "hyperloss"), steps=5, batch=4, rate=0.5, decay=0.5, log_scale=-1.0
)


def examples(count=20):
    rng = np.random.RandomState(0)
    return data.Split(rng.randn(count, 6), np.eye(3)[rng.randint(3, size=count)])


def problem(backend):
    parts = papers.dealt(examples(), [14, 6], SETTING["address"])
    return papers.unit_penalties(backend, NET, *(part.on(backend) for part in parts), **SETTING)


def test_examples_are_dealt_once_with_their_labels():
    whole = examples()
    parts = papers.dealt(whole, [14, 6], (0, "top_rs"))
    assert [len(part.labels) for part in parts] == [14, 6]
    rows = np.concatenate([np.hstack(part) for part in parts])
    assert sorted(rows.tolist()) == sorted(np.hstack(whole).tolist()) and not np.array_equal(
        rows, np.hstack(whole)
    )


def test_a_unit_scales_what_leaves_it(backend):
    hyper = np.linspace(-1, 1, SIZE)
    free = backend.array(np.arange(1.0, NET.layout.size + 1))
    ratios = NET.layout.split(backend.numpy(papers.scaled(NET, free, backend.array(hyper)) / free))
    assert np.abs(ratios["weights 1"] - np.exp(hyper[:6, None])).max() < 1e-15
    assert np.abs(ratios["weights 2"] - np.exp(hyper[6:, None])).max() < 1e-15
    assert all(abs(ratios[name] - np.exp(0.2)).max() < 1e-15 for name in ("biases 1", "biases 2"))


def test_hypergradient_against_differences(backend):
    case, hyper, width = problem(backend), np.full(SIZE, 0.2), 1e-5
    grad = backend.numpy(hg.Reverse(hg.Reversible())(case, hyper).grad)

    def value(shift):
        moved = case.as_hyper(hyper + shift)
        return float(backend.evaluate(case.outer_loss, hg.train(case, moved)[0], moved))

    differences = [
        (value(width * unit) - value(-width * unit)) / (2 * width) for unit in np.eye(SIZE)
    ]
    assert (
        abs(grad - differences).max() < 1e-6 * abs(grad).max()
    )  # rounding of the differences, and width**2


def test_retrained_error_is_that_of_the_trained_net(backend):
    case, hyper, judged = problem(backend), np.full(SIZE, 0.2), examples().on(backend)
    weights = papers.scaled(NET, hg.train(case, case.as_hyper(hyper))[0], case.as_hyper(hyper))
    wrong = backend.numpy(NET(weights, judged.images)).argmax(axis=1) != examples().labels.argmax(
        axis=1
    )
    assert abs(papers.retrained_error(case, NET, hyper, judged) - 100 * wrong.mean()) < 1e-12
