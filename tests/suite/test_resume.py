"""A loop that is killed goes on with the same bits."""

import numpy as np
import pytest

import hgcore as hg
from hgcore.suite import resume, session

GIVEN = ("toy/one", "quick", "autograd", "cpu", 0, {})


@pytest.fixture
def begin(toy, monkeypatch):
    """Start the toy notebook anew, whose executed cells are `begin.cells`."""
    toy.add("one")
    monkeypatch.setattr(resume, "PAUSE", 0)  # a file after each step
    cells = ["parameters", "start", "compute"]

    def begin():
        monkeypatch.setattr(session, "inputs", lambda: cells[:2])
        run = session.start(*GIVEN, quick={"steps": 5})
        monkeypatch.setattr(session, "inputs", lambda: begin.cells)
        return run

    begin.cells = cells
    return begin


def loop(backend):
    """Return a function of resume: ten outer steps of a small descent with Adam."""
    problem = hg.Problem(
        backend=backend,
        inner_loss=lambda weights, hyper, t: ((weights - hyper) ** 2).sum(),
        outer_loss=lambda weights, hyper: ((weights - 1) ** 2).sum(),
        optimizer=hg.Momentum(0.1, 0.9),
        initial=lambda hyper: 0 * hyper,
        steps=3,
    )
    optimizer = hg.Adam(0.1)
    return lambda kept: hg.descend(
        hg.Reverse(), problem, [0.0, 3.0], optimizer=optimizer, steps=10, resume=kept
    )


def measure(step, killed_at=None):
    if step.k == killed_at:
        raise KeyboardInterrupt
    return None if step.k == 2 else (step.k, step.value)


def test_a_killed_loop_goes_on(begin):
    run, seen = begin(), []
    expected = [measure(step) for step in loop(run.backend)(None) if step.k != 2]
    with pytest.raises(KeyboardInterrupt):
        resume.resumable(run, "a loop", loop(run.backend), lambda step: measure(step, 6))
    again = begin()

    def watched(step):
        seen.append(step.k)
        return measure(step)

    rows, last = resume.resumable(again, "a loop", loop(run.backend), watched)
    assert np.array_equal(rows, expected) and 0 < seen[0] <= 6 and seen[-1] == last.k == 9
    seen.clear()
    rows, same = resume.resumable(again, "a loop", loop(run.backend), watched)
    assert np.array_equal(rows, expected) and not seen  # it had ended
    assert np.array_equal(same.state, last.state) and same.value == last.value
    resume.clear(begin())  # a run without this loop
    resume.resumable(again, "a loop", loop(run.backend), watched)
    assert not seen
    begin.cells.append("changed")
    resume.resumable(again, "a loop", loop(run.backend), watched)
    assert len(seen) == 10
    resume.clear(again)
    resume.resumable(again, "a loop", loop(run.backend), watched)
    assert len(seen) == 20


def test_state_outlives_a_kill_before_the_last_file(begin, monkeypatch):
    def keep(file, step, rows, ended):
        if ended:
            raise KeyboardInterrupt
        kept(file, step, rows, ended)

    run, kept = begin(), resume._keep
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "_keep", keep)
        resume.resumable(run, "a loop", loop(run.backend), measure)
    rows, last = resume.resumable(begin(), "a loop", loop(run.backend), measure)
    *_, expected = loop(run.backend)(None)
    assert len(rows) == 9 and last.k == 9 and np.array_equal(last.state, expected.state)


def test_a_loop_ends_where_it_should(begin):
    run = begin()
    rows, last = resume.resumable(run, "a", loop(run.backend), measure, lambda rows: len(rows) == 4)
    assert last.k == 4 and len(rows) == 4
    with pytest.raises(ValueError, match="'none' yielded no step"):
        resume.resumable(run, "none", lambda kept: iter(()), measure)
