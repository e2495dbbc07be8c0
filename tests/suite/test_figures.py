"""Figures: the same bytes each time, and the numbers that were drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from hgcore.suite import figures


@pytest.fixture
def fig():
    made = Figure()
    left, right = made.subplots(1, 2)
    left.plot([0, 1], [1 / 3, np.nan], label="curve")
    left.plot([0, 1], [1, 2])
    left.scatter([1, 2, 3], [4, 5, 6], label="points")
    left.set_title("Left")
    right.imshow(np.eye(2))
    right.bar(["a", "b"], [3, 4], label="bars")
    return made


def saved(fig, name="one", **options):
    run = SimpleNamespace(figures={})
    figures.save(run, name, fig, **options)
    return run.figures[name]


def test_drawn_series(fig):
    found = figures.drawn(fig)
    assert found["Left: curve"] == {"x": [0, 1], "y": [0.3333333, None]}
    assert found["Left"] == {"x": [0, 1], "y": [1, 2]}
    assert found["Left: points"] == {"x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0]}
    others = {"image": [[1.0, 0.0], [0.0, 1.0]]}, {"x": -0.4, "y": 3}, {"x": 0.6, "y": 4}
    assert all(other in found.values() for other in others)


def test_saved_twice_has_the_same_bytes(fig):
    (files, entry), (again, other) = saved(fig, extra={"more": np.float32(0.5)}), saved(fig)
    assert files == again and files["png"][1:4] == b"PNG"
    assert entry["png"] == other["png"] and entry["series"]["more"] == 0.5


def test_large_pictures_are_scaled_down(fig):
    fig.axes[1].imshow(np.random.default_rng(0).random((400, 400, 3)))
    fig.set_size_inches(6, 6)
    assert len(saved(fig)[0]["png"]) < figures.LIMIT


@pytest.mark.parametrize("name", ["", "../x", "a b", "paper/fig"])
def test_bad_figure_names(name, fig):
    with pytest.raises(ValueError, match="name of a figure"):
        saved(fig, name)


def test_styles_differ():
    assert len({(style["color"], style["marker"]) for style in figures.styles(49)}) == 49


def test_rounded_values():
    assert str(figures.rounded(np.float64(-0.0))) == "0.0"
    assert figures.rounded(np.ma.masked_invalid([1.0, np.inf])) == [1.0, None]
    assert figures.rounded(["a", 1]) == ["a", "1"] and figures.rounded([1, 2]) == [1, 2]
