"""The atlas counts what is spent, dials what it says, and its table says nothing that its claims do not."""

import functools
import json
import re

import catalogue
import matplotlib.pyplot as plt
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg
from hgcore import benchmarks
from hgcore.benchmarks.atlas import _covered
from hgcore.suite import claims, notebook

NAME = "beyond/method_atlas"
ROOT = notebook.find_root()
small = functools.partial(benchmarks.dialled, features=5, bands=2)


def test_contrasts_are_orthonormal_and_of_sum_zero():
    rows = benchmarks.contrasts(10)
    assert gap(rows @ rows.T, np.eye(9)) < 1e-14 and abs(rows.sum(axis=1)).max() < 1e-14


def test_features_are_made_equally_large_and_then_stretched():
    images = np.random.default_rng(0).standard_normal((2, 40, 7)) * np.arange(1, 8)
    first, second = benchmarks.whitened(images, 4, 100)
    scales = np.geomspace(1, 0.1, 4)
    assert (first[:, 0] == 1).all() and gap(
        first[:, 1:].T @ first[:, 1:] / 40, np.diag(scales[1:] ** 2)
    ) < 1e-12
    assert gap(
        benchmarks.whitened([images[0], images[0]], 4, 100)[1], first
    ) < 1e-12 and second.shape == (40, 4)


@pytest.mark.parametrize(
    "solve, gradients, products",
    [
        (hg.Reverse(), 12, 6),
        (hg.Reverse(hg.Stored(graphs=6)), 6, 6),
        (hg.Reverse(hg.Shortcut()), 12, 6),
        (hg.Forward(), 6, 12),
        (hg.Reverse(hg.Truncated(last=2)), 8, 2),
        (hg.Implicit(hg.Neumann(3, 0.01)), 7, 4),
    ],
    ids=lambda x: type(x).__name__,
)
def test_counts_are_those_of_the_algorithm_and_change_nothing(backend, solve, gradients, products):
    problem, hyper = benchmarks.regression(
        backend, "mnist_small", [60, 40], features=5, bands=1, condition=10
    )
    problem = benchmarks.with_momentum(problem, 6, 0.5)
    found = benchmarks.spent(solve, problem, hyper)
    assert (found.gradients, found.products) == (gradients, products)
    assert np.array_equal(found.grad, backend.numpy(solve(problem, hyper).grad))


def test_training_done_before_is_counted_all_the_same():
    problem, hyper = catalogue.ridge(hg.Torch())
    solve = hg.Implicit(hg.ConjugateGradient(3))
    before = benchmarks.spent(solve, problem, hyper, hg.train(problem, problem.as_hyper(hyper)))
    assert (
        before[1:] == benchmarks.spent(solve, problem, hyper)[1:]
        and gap(before.grad, benchmarks.spent(solve, problem, hyper).grad) < 1e-14
    )


def test_dialled_is_at_an_optimum_and_knows_its_truth(backend):
    tame, wild = (
        small(backend, "mnist_small", [60, 40], condition=condition) for condition in (3, 300)
    )
    assert wild.condition > 20 * tame.condition
    for ground in (tame, wild):
        assert (
            abs(
                backend.numpy(
                    ground.problem.objective(ground.problem.as_hyper(ground.hyper)).gradient(
                        ground.optimum, None
                    )
                )
            ).max()
            < 1e-12
        )
        assert (
            np.exp(ground.hyper[-1]) * ground.curvatures[-1] == pytest.approx(1)
            and ground.truth[-1] == 0
        )
    unrolled = backend.numpy(hg.Reverse()(tame.run(400, 0.5), tame.hyper).grad)
    assert gap(unrolled, tame.truth) < 1e-9


def test_radius_is_the_largest_eigenvalue_of_a_step():
    ground = benchmarks.Dialled(
        None, np.array([np.log(0.5)]), None, np.array([0.1, 0.9, 2.0]), None
    )
    for decay in (0.1, 0.9):
        steps = [
            np.array([[1 - 0.5 * bend, -0.5 * decay], [bend, decay]]) for bend in ground.curvatures
        ]  # of (weight, velocity)
        assert ground.radius(decay) == pytest.approx(
            max(abs(np.linalg.eigvals(step)).max() for step in steps)
        )


def test_a_process_grows_by_the_states_that_it_keeps():
    where = (0.5, "mnist_small", [30, 20])
    grown = [
        benchmarks.weighed(hg.Reverse(), steps, *where, features=100, bands=2, condition=5)
        for steps in (3, 3000)
    ]
    assert grown[1] - grown[0] == pytest.approx(3000, rel=0.4)  # of the 43 MB of the states


def test_names_in_a_chart_keep_clear_of_each_other():
    fig, panel = plt.subplots(figsize=(3, 3))
    panel.set(xscale="log", yscale="log", xlim=(1, 100), ylim=(1, 100))
    points = {f"method {i}": (10 * 1.05**i, 10 / 1.1**i, 10**i) for i in range(4)}
    benchmarks.chart(panel, points, {"s": list(points)[:2], "o": list(points)[2:]})
    fig.canvas.draw()
    boxes = np.array([text.get_window_extent().extents for text in panel.texts])
    plt.close(fig)
    assert [text.get_text() for text in panel.texts] == list(points) and np.all(
        _covered(boxes, boxes, np.array([1e4, 1e4]))
        == np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).round(3)
    )


def rows() -> list[list[str]]:
    """(if, then, claims) of the table at the end of the notebook."""
    (source,) = (
        cell["source"] for cell in notebook.read(NAME, ROOT)["cells"] if cell.get("id") == "table"
    )
    lines = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in source.splitlines()
        if line.startswith("|")
    ]
    return lines[2:]


def test_every_row_of_the_table_names_claims_of_the_ledger():
    known = {entry["id"] for entry in claims.entries(NAME, ROOT)}
    assert len(rows()) >= 8
    for row in rows():
        named = re.findall(r"`(\w+)`", row[-1])
        assert len(row) == 3 and named and {f"atlas.{name}" for name in named} <= known, row


def test_no_row_of_the_table_stands_on_a_claim_that_does_not_hold():
    verdicts = {
        claim["id"]: claim["verdict"]
        for file in (ROOT / "figures" / "beyond").glob("atlas*.json")
        for claim in json.loads(file.read_text())["claims"]
    }
    for row in rows():
        assert all(
            verdicts[f"atlas.{name}"] == "HOLDS" for name in re.findall(r"`(\w+)`", row[-1])
        ), row
