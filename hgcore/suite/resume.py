"""Long loops of a notebook: an interrupted run resumes, with the same bits."""

import os
import re
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

import hgcore as hg
from hgcore.suite import notebooks, session

PAUSE = 30  # seconds between two files; a loop that takes less than a tenth of it leaves none


def resumable(run, name: str, loop: Callable, measure: Callable, stop: Callable | None = None):
    """Run a loop of outer steps to its end; return (rows (k, r), its last OuterStep).

    name: name of the loop, unique in the notebook. loop: resume -> iterator of OuterStep, such as
    hg.alternate(..., resume=resume). measure: step -> r numbers, or None for no row. stop: rows ->
    whether the loop ends here. Rows and step are kept in runs/resume/ until the run writes its
    record. They are used again only by a run with the same cells, parameters and package source.
    """
    file = folder(run) / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.npz"
    run.loops.add(file)
    rows, last, ended = _kept(file, run.backend)
    start = due = time.monotonic()
    for step in () if ended else loop(last):
        if last is not None and (now := time.monotonic()) > due + PAUSE:
            # the step before: the last of the loop is kept below, with its state
            _keep(file, last._replace(hyper=None, grad=None, state=None), rows, False)
            due = time.monotonic() + 9 * (time.monotonic() - now)  # a tenth of the time at most
        last, row = step, measure(step)
        if row is not None:
            rows.append(tuple(map(float, row)))
        if stop is not None and stop(rows):
            break
    if last is None:
        raise ValueError(f"loop {name!r} yielded no step: give it steps >= 1")
    if not ended and time.monotonic() > start + PAUSE / 10:
        _keep(file, last._replace(carry=()), rows, True)
    return np.array(rows), last


def folder(run) -> Path:
    """Return the folder for the files of runs with these cells, parameters and package source."""
    # a cell that is executed again resumes, too; without a kernel the cells are the file's
    executed = list(dict.fromkeys(session.inputs()[run.first_input :]))
    cells = executed or notebooks.code(run.name, run.root)
    content = notebooks.sha256([cells, run.parameters, _package()])
    out = Path(os.environ.get("HGCORE_OUT", run.root))
    return Path(out, "runs", "resume", run.profile, run.name, content[:16])


def clear(run) -> None:
    """Delete the files of this run's loops; for when its record exists."""
    for file in run.loops:
        shutil.rmtree(file.parent, ignore_errors=True)


@cache
def _package() -> str:
    """Return the SHA-256 of the package's source."""
    files = sorted(Path(hg.__file__).parent.rglob("*.py"))
    return notebooks.sha256([file.read_text(encoding="utf-8") for file in files])


def _keep(file: Path, step: hg.OuterStep, rows: list, ended: bool) -> None:
    hg.save(file, step._replace(carry=(step.carry, tuple(rows), ended)))


def _kept(file: Path, backend) -> tuple[list, hg.OuterStep | None, bool]:
    """Return (rows, last step, whether the loop had ended)."""
    if not file.exists():
        return [], None, False
    step = hg.load(file, backend)
    carry, rows, ended = step.carry
    return list(rows), step._replace(carry=carry), ended
