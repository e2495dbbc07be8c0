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

    def record(self, root: Path) -> Path:
        """Return the file of its record."""
        own = "overrides" if self.overrides else ""
        stem = self.name.rpartition("/")[2]
        return folder_of(self.name, self.profile, root, own) / f"{stem}.json"

    def output(self, root: Path) -> Path:
        """Return the file of the executed notebook; its log lies beside it."""
        out = Path(os.environ.get("HGCORE_OUT", root))
        return out / "runs" / ("overrides" if self.overrides else "") / self.profile / self.name

    def done(self, root: Path) -> bool:
        """Return whether a whole record of this code, these parameters and today's data exists."""
        try:
            record = results.load(self.record(root))
            key = notebooks.key(self.name, self.parameters, results.data_of(record), root)
        except (OSError, ValueError):
            return False
        return record["key"] == key


class Outcome(NamedTuple):
    """How a job ended: done, unchanged, FAILED or interrupted."""

    job: Job
    status: str
    seconds: float = 0.0
    message: str = ""


def run(jobs: list[Job], root: Path, workers: int, dask: str | None = None) -> Iterator[Outcome]:
    """Run the jobs, `workers` at a time or on the cluster at `dask`; yield each as it ends."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    given = {name: os.environ.get(name, threads) for name in THREADS[:3]}
    with _executor(workers, dask) as pool:
        futures = {pool.submit(in_process, job, root, given): job for job in jobs}
        try:
            for future in as_completed(futures):
                error = future.exception()
                yield (
                    Outcome(futures[future], "FAILED", 0, repr(error)) if error else future.result()
                )
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


def in_process(job: Job, root: Path, threads: dict) -> Outcome:
    """Run the job in a process of its own, which takes its output to the job's log."""
    log, start = job.output(root).with_suffix(".log"), time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hgcore.suite.runner", str(root), json.dumps(asdict(job))]
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    env = os.environ | threads | {"PYTHONPATH": path, "HGCORE_ROOT": str(root)}
    for folder in {"HGCORE_DATA", "HGCORE_DATA_MIRROR", "HGCORE_OUT"} & set(env):
        env[folder] = os.path.abspath(env[folder])  # a kernel has another working folder
    env.pop("MPLBACKEND", None)  # the inline one puts the figures into the notebook
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=env).returncode
    seconds = time.perf_counter() - start
    if code == 0:
        return Outcome(job, "done", seconds)
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"ended with status {code}"]
    return Outcome(job, "FAILED", seconds, f"{lines[-1][:400]}\nsee {log}")


def execute(job: Job, root: Path) -> None:
    """Run the notebook in this process. Two runs of one job wait for each other."""
    import papermill
    from filelock import FileLock

    target = job.output(root).with_suffix(".ipynb")
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    with FileLock(target.with_suffix(".lock")):
        papermill.execute_notebook(
            str(notebooks.path(job.name, root)).translate(braces),
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
        if not job.overrides and not job.done(root):
            raise RuntimeError(f"{job.name} left no whole record: it must end with suite.check")
        if job.update:
            executed = json.loads(target.read_text(encoding="utf-8"))
            executed["cells"] = [
                {**cell, "source": "".join(cell["source"])} for cell in executed["cells"]
            ]
            notebooks.write(notebooks.normalized(executed), notebooks.path(job.name, root))


def main() -> None:
    """Run the job of the command line; the last line says what went wrong."""
    root, job = Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))
    try:
        execute(job, root)
    except Exception as error:  # noqa: BLE001  whatever a notebook may raise
        cell, name = getattr(error, "exec_count", None), getattr(error, "ename", None)
        print(error)
        where = f"cell In [{cell}]: {name}: {error.evalue}" if name else f"{error!r}"
        sys.exit(" ".join(where.split()))


if __name__ == "__main__":
    main()
