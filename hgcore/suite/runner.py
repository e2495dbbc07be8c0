"""Run notebooks: papermill's Python API in one process, one thread for each running notebook.

What is done is known by content (notebook.done), so a run that was killed goes on where it stopped.
"""

import logging
import os
import re
import sys
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from hgcore.suite import jobs, live, notebook

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Outcome(NamedTuple):
    """How a job ended: status is done, unchanged, FAILED or interrupted; file is the executed (or
    partial) notebook.
    """

    job: jobs.Job
    status: str
    seconds: float = 0.0
    cell: str = ""
    error: str = ""
    file: Path | None = None


def run(planned, root, *, workers, stream=None):
    """Run every job, `workers` at a time, and return their outcomes in order; one failure touches
    no other job.

    Ctrl-C ends the kernels; what had not finished is then `interrupted`.
    """
    stop, watches = threading.Event(), {}
    with environment(root, workers), ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_execute, job, root, watches, stop) for job in planned]
        board = live.board(stream or sys.stderr, min(workers, len(planned)))
        try:
            _watch(futures, watches, board)
        except KeyboardInterrupt:
            stop.set()
            _end(futures)
        finally:
            board.close()
    return [
        Outcome(job, "interrupted") if future.cancelled() else future.result()
        for job, future in zip(planned, futures, strict=True)
    ]


def _watch(futures, watches, board):
    running = set(futures)
    while running:
        over, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in over:
            outcome = future.result()
            board.say(f"  {outcome.status:<10} {outcome.seconds:8.1f} s  {outcome.job.name}")
        board.show(list(watches.values()))


def _end(futures):
    """Kill our kernels, with what they started, until no thread waits for one."""
    import psutil

    running = {future for future in futures if not future.cancel()}
    while running:
        for child in psutil.Process().children():
            try:
                if any("ipykernel" in word for word in child.cmdline()):
                    for process in [*child.children(recursive=True), child]:
                        process.kill()
            except psutil.NoSuchProcess:
                pass
        running = wait(running, timeout=0.5).not_done


def _execute(job, root, watches, stop):
    """Run one job in this thread; an error becomes an outcome, with the traceback in a .log beside
    the partial notebook.
    """
    target = job.target(root)
    log = target.with_suffix(".log")
    cells = [cell for cell in notebook.read(job.name, root)["cells"] if cell["cell_type"] == "code"]
    watch = watches[job.name] = live.Watch(
        job.name, len(cells) + 1
    )  # papermill adds the cell of its parameters
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        _papermill(job, root, target, watch, stop)
        watch.over = True  # what is wrong from here on is no cell's error
        if not job.overrides and not job.done(root):
            raise RuntimeError(
                "left no complete record of this run: give profiles.start the parameters, "
                "end with claims.check,"
                " change nothing meanwhile"
            )
        jobs.sign(job, root)
        return Outcome(job, "done", watch.seconds, file=target)
    except Exception as error:
        told = getattr(error, "traceback", None) or traceback.format_exception(
            error
        )  # a cell's own, without papermill's frames
        with suppress(OSError):
            log.write_text(
                COLOURS.sub("", "\n".join(map(str.rstrip, told))) + "\n", encoding="utf-8"
            )
        status, said = (
            ("interrupted", "stopped; the next run begins it again")
            if stop.is_set()
            else ("FAILED", _brief(error))
        )
        return Outcome(
            job, status, watch.seconds, watch.place, said, target if target.exists() else log
        )
    finally:
        del watches[job.name]


def _brief(error):
    """`ename: evalue` on one line of at most 400 characters."""
    name, value = (
        getattr(error, "ename", type(error).__name__),
        getattr(error, "evalue", str(error)),
    )
    line = " ".join(COLOURS.sub("", f"{name}: {value}").split())
    return (
        line if len(line) <= 400 else f"{line[:196]} ... {line[-199:]}"
    )  # what is wrong stands first, the way out last


def _papermill(job, root, target, watch, stop):
    """Execute into target. A kernel that does not start is tried once more; a cell never is."""
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # else importing nbformat builds 35 grammars: 2 s
    import papermill
    from traitlets.config import Config

    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    for attempt in (1, 2):
        try:
            return papermill.execute_notebook(
                str(notebook.path(job.name, root)).translate(braces),
                str(target).translate(braces),
                parameters=job.parameters(),
                kernel_name="python3",
                progress_bar=False,
                coalesce_streams=True,
                record_timing=False,
                iopub_timeout=60,
                resources={"metadata": {"path": str(root)}},
                on_cell_execute=watch.enter,
                extra_arguments=[
                    "--IPKernelApp.log_level=50"
                ],  # no word about an interrupt when it shuts down
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )
        except Exception:
            if watch.cell or stop.is_set() or attempt == 2:
                raise


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextmanager
def environment(root, workers):
    """What the kernels inherit: the root, this very package, a share of the cores; a thread count
    that the user set stays.
    """
    before = dict(os.environ)
    package = str(Path(__file__).resolve().parents[2])
    for variable in THREADS:  # OMP first: the others follow it
        os.environ.setdefault(variable, before.get(THREADS[0]) or str(max(1, cores() // workers)))
    for folder in {"HGCORE_DATA", "HGCORE_DATA_MIRROR"} & set(before):
        os.environ[folder] = os.path.abspath(before[folder])  # a kernel has another working folder
    os.environ.update(
        HGCORE_ROOT=str(root),
        JUPYTER_PREFER_ENV_PATH="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, before.get("PYTHONPATH")]))
    os.environ.pop("MPLBACKEND", None)  # the inline one puts the figures into the notebook
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
