"""Run notebooks: one job, one process, one record.

A job that was killed at any moment left nothing half-done; the next run does only what is missing.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from hgcore.suite import notebooks, results
from hgcore.suite.session import THREADS, Job


class Outcome(NamedTuple):
    """How a job ended; wrong: lines that say what went wrong."""

    job: Job
    seconds: float
    wrong: list[str]

    def lines(self, good: str, bad: str) -> str:
        """Return it as a line that begins with `good` or `bad`, then what went wrong."""
        line = f"  {bad if self.wrong else good:<8} {self.seconds:8.1f} s  {self.job.name}"
        return "\n           ".join([line, *self.wrong])


def run_all(
    jobs: list[Job], root: Path, workers: int, dask: str | None = None, out: Path | None = None
) -> Iterator[Outcome]:
    """Run the jobs, `workers` at a time or on the cluster at `dask`; yield each as it ends.

    out: the folder for figures/ and runs/, by default the repository `root`.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    given = {name: os.environ.get(name, threads) for name in THREADS[:3]}
    given |= {"HGCORE_ROOT": str(root), "HGCORE_OUT": str(out or root)}
    if dask is None:
        executor = ThreadPoolExecutor(workers)
    else:
        from distributed import Client

        executor = Client(dask).get_executor(pure=False, retries=2)
    with executor as pool:
        futures = {pool.submit(in_process, job, given): job for job in jobs}
        try:
            for future in as_completed(futures):
                if error := future.exception():
                    yield Outcome(futures[future], 0, [f"{type(error).__name__}: {error}"])
                else:
                    yield future.result()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            for process in list(_running):
                process.terminate()
            raise


_running: set[subprocess.Popen] = set()  # the processes of jobs


def in_process(job: Job, given: dict) -> Outcome:
    """Run the job in a process of its own, which takes its output to the job's log.

    It ends when this one does, at the latest: then its standard input closes.
    """
    log = job.executed(given["HGCORE_OUT"]).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    env = os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    for folder in {"HGCORE_DATA", "HGCORE_DATA_MIRROR"} & set(env):
        env[folder] = os.path.abspath(env[folder])  # a kernel has another working folder
    env.pop("MPLBACKEND", None)  # the inline one puts the figures into the notebook
    command, start = [sys.executable, "-m", "hgcore.suite.runner"], time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        streams = {"stdin": subprocess.PIPE, "stdout": file, "stderr": file}
        with subprocess.Popen([*command, json.dumps(asdict(job))], **streams, env=env) as process:
            _running.add(process)
            code = process.wait()
            _running.discard(process)
    seconds = time.perf_counter() - start
    if code == 0:
        return Outcome(job, seconds, [])
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"ended with status {code}"]
    said = lines[-1][:1000] if code > 0 else f"killed by {signal.Signals(-code).name}"
    return Outcome(job, seconds, [said, f"see {log}"])


def execute(job: Job, root: Path, out: Path) -> None:
    """Run the notebook in this process. Two runs of one job wait for each other."""
    from filelock import FileLock

    source, target, start = notebooks.path(job.name, root), job.executed(out), time.time()
    quoted = f'"{job.name}"', f"'{job.name}'"
    if not any(name in cell for cell in notebooks.code(job.name, root) for name in quoted):
        raise ValueError(f"suite.start in {source} must be given its name, {job.name!r}")
    with FileLock(target.with_suffix(".lock")):
        done = results.state(job, root, out) == "done"
        if not done or job.record(out).stat().st_mtime < start:  # else another runner did it
            _execute_cells(source, target, job.parameters, root)
        if results.state(job, root, out) != "done":
            rule = "its first cell sets the five parameters only, its last calls suite.check"
            raise RuntimeError(f"{job.name} wrote no whole record; the rule: {rule}")
        if job.update:
            notebooks.write(notebooks.normalized(notebooks.read(target)), source)


def _execute_cells(source: Path, target: Path, parameters: dict, cwd: Path) -> None:
    """Run the cells; again, twice at most, if another process took a port of the kernel."""
    import papermill

    options = {"kernel_name": "python3", "progress_bar": False, "coalesce_streams": True}
    options |= {"record_timing": False, "start_timeout": 300, "iopub_timeout": 60, "cwd": cwd}
    for last in (False, False, True):
        try:
            return papermill.execute_notebook(source, target, parameters, **options)
        except RuntimeError as error:
            if last or "died before replying" not in str(error):
                raise


def main() -> None:
    """Run the job that the command line has as JSON; the last line says what went wrong."""
    root, out = (Path(os.environ[name]) for name in ("HGCORE_ROOT", "HGCORE_OUT"))
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    job = Job(**json.loads(sys.argv[1]))
    try:
        execute(job, root, out)
    except Exception as error:  # noqa: BLE001  whatever a notebook may raise
        print(error)
        said = f"{type(error).__name__}: {error}"
        if hasattr(error, "ename"):  # of papermill
            said = f"cell In [{error.exec_count}]: {error.ename}: {error.evalue}"
        if job.overrides:
            given = ", ".join(f"{name}={value!r}" for name, value in job.overrides.items())
            said += f"; check the settings {given}"
        sys.exit(" ".join(said.split()))


def _end_with_the_runner() -> None:
    """End this process when the one that started it has ended; its kernel then ends, too."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
