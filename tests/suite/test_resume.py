"""A loop that is killed goes on with the same bits."""

import math
from itertools import islice

import catalogue
import numpy as np
import pytest

import hgcore as hg
from hgcore.suite import resume


def loop(kept):
    """Ten outer steps with Adam, which has a state."""
    problem, hyper = catalogue.bowl(hg.Autograd())
    return hg.descend(hg.Reverse(), problem, hyper, optimizer=hg.Adam(0.1), steps=10, resume=kept)


def row(step):
    return None if step.k == 2 else (step.k, step.value)


@pytest.mark.parametrize("after", [6, 10])
def test_a_killed_loop_goes_on(start, monkeypatch, after):
    """Killed after so many steps, at the latest before its last file."""

    def killed(kept):
        yield from islice(loop(kept), after)
        raise KeyboardInterrupt

    def resumed(run):
        """Return the result of the loop, and which steps were taken."""
        seen = []
        found = resume.resumable(run, "a loop", loop, lambda step: seen.append(step.k) or row(step))
        return *found, seen

    monkeypatch.setattr(resume, "PAUSE", -math.inf)  # a file after each step
    *steps, expected = loop(None)
    with pytest.raises(KeyboardInterrupt):
        resume.resumable(start(backend="autograd"), "a loop", killed, row)
    again = start(backend="autograd")
    rows, last, seen = resumed(again)
    assert np.array_equal(rows, [row(step) for step in (*steps, expected) if step.k != 2])
    assert np.array_equal(last.state, expected.state) and last.value == expected.value
    assert seen == list(range(after - 1, 10))
    resume.clear(start(backend="autograd"))  # a run without this loop
    same, last, seen = resumed(again)
    assert np.array_equal(same, rows) and np.array_equal(last.state, expected.state) and not seen
    start.executed.append("changed")
    assert len(resumed(again)[-1]) == 10
    resume.clear(again)
    assert len(resumed(again)[-1]) == 10


def test_a_loop_ends_where_it_should(start):
    rows, last = resume.resumable(start(), "a", loop, row, lambda rows: len(rows) == 4)
    assert last.k == 4 and len(rows) == 4
    with pytest.raises(ValueError, match="'none' yielded no step"):
        resume.resumable(start(), "none", lambda kept: iter(()), row)
