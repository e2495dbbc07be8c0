"""Run notebooks: one job, one process, one record.

A job that was killed at any moment left nothing half-done; the next run does only what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from hgcore.suite import notebooks, results
from hgcore.suite.session import THREADS, folder_of


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters. update: write the outputs into notebooks/."""

    name: str
    profile: str = "quick"
    backend: str = "torch"
    device: str = "cpu"
    seed: int = 0
    overrides: dict = field(default_factory=dict)
    update: bool = False

    @property
    def parameters(self) -> dict:
        """What papermill is given."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "update")}

    @property
    def _own(self) -> str:
        return "overrides" if self.overrides else ""

    def record(self, out: Path) -> Path:
        """Return the file of its record; out: the repository, or another folder for results."""
        stem = self.name.rpartition("/")[2]
        return folder_of(self.name, self.profile, out, self._own) / f"{stem}.json"

    def executed(self, out: Path) -> Path:
        """Return the file of the executed notebook; its log lies beside it."""
        return Path(out) / "runs" / self._own / self.profile / f"{self.name}.ipynb"

    def done(self, root: Path, out: Path | None = None) -> bool:
        """Return whether a whole record of this code, these parameters and today's data exists."""
        try:
            record = results.load(self.record(out or root))
            key = notebooks.key(self.name, self.parameters, results.data_of(record), root)
        except (OSError, ValueError):
            return False
        return record["key"] == key


class Outcome(NamedTuple):
    """How a job ended: done or FAILED."""

    job: Job
    status: str
    seconds: float = 0.0
    message: str = ""

    def line(self, status: str = "") -> str:
        """Return it as a line, a second one with the message if there is one."""
        line = f"  {status or self.status:<8} {self.seconds:8.1f} s  {self.job.name}"
        return line + (f"\n           {self.message}" if self.message else "")


def run_all(
    jobs: list[Job], root: Path, workers: int, dask: str | None = None, out: Path | None = None
) -> Iterator[Outcome]:
    """Run the jobs, `workers` at a time or on the cluster at `dask`; yield each as it ends.

    out: the folder for figures/ and runs/, by default the repository `root`.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    given = {name: os.environ.get(name, threads) for name in THREADS[:3]}
    given |= {"HGCORE_ROOT": str(root), "HGCORE_OUT": str(out or root)}
    with _executor(workers, dask) as pool:
        futures = {pool.submit(in_process, job, given): job for job in jobs}
        try:
            for future in as_completed(futures):
                error = future.exception()
                failed = Outcome(futures[future], "FAILED", 0, repr(error))
                yield failed if error else future.result()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            raise


@contextlib.contextmanager
def _executor(workers: int, dask: str | None) -> Iterator[Executor]:
    if dask is None:
        with ThreadPoolExecutor(workers) as pool:
            yield pool
        return
    from distributed import Client

    with Client(dask) as client:
        yield client.get_executor(pure=False, retries=2)


def in_process(job: Job, given: dict) -> Outcome:
    """Run the job in a process of its own, which takes its output to the job's log."""
    log = job.executed(given["HGCORE_OUT"]).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    env = os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    for folder in {"HGCORE_DATA", "HGCORE_DATA_MIRROR"} & set(env):
        env[folder] = os.path.abspath(env[folder])  # a kernel has another working folder
    env.pop("MPLBACKEND", None)  # the inline one puts the figures into the notebook
    command, start = [sys.executable, "-m", "hgcore.suite.runner"], time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        text = json.dumps(asdict(job))
        code = subprocess.run([*command, text], stdout=file, stderr=file, env=env).returncode
    seconds = time.perf_counter() - start
    if code == 0:
        return Outcome(job, "done", seconds)
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"ended with status {code}"]
    return Outcome(job, "FAILED", seconds, f"{lines[-1][:400]}\nsee {log}")


def execute(job: Job, root: Path, out: Path) -> None:
    """Run the notebook in this process. Two runs of one job wait for each other."""
    import papermill
    from filelock import FileLock

    source, target, start = notebooks.path(job.name, root), job.executed(out), time.time()
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    with FileLock(target.with_suffix(".lock")):
        if job.done(root, out) and job.record(out).stat().st_mtime > start:
            return  # another runner did it while this one waited
        papermill.execute_notebook(
            str(source).translate(braces),
            str(target).translate(braces),
            parameters=job.parameters,
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,
            record_timing=False,
            start_timeout=300,
            iopub_timeout=60,
            resources={"metadata": {"path": str(root)}},
        )
        if not job.done(root, out):
            raise RuntimeError(f"{job.name} left no whole record: it must end with suite.check")
        if job.update:
            notebooks.write(notebooks.normalized(notebooks.load(target)), source)


def main() -> None:
    """Run the job that the command line has as JSON; the last line says what went wrong."""
    root, out = (Path(os.environ[name]) for name in ("HGCORE_ROOT", "HGCORE_OUT"))
    try:
        execute(Job(**json.loads(sys.argv[1])), root, out)
    except Exception as error:  # noqa: BLE001  whatever a notebook may raise
        cell, name = getattr(error, "exec_count", None), getattr(error, "ename", None)
        print(error)
        where = f"cell In [{cell}]: {name}: {error.evalue}" if name else f"{error!r}"
        sys.exit(" ".join(where.split()))


if __name__ == "__main__":
    main()
