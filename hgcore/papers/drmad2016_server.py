"""A hyperparameter server: clients compute hypergradients, each on its own slice of the data; the
server averages (Fu et al. 2016).

`Server` is a solver for `descend`, and `Round` its problem. The clients are tasks of
dask.distributed, on processes of this machine or on any scheduler that is named; without one they
are done here, one after the other, with the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hgcore.backend import Autograd
from hgcore.hypergradient import Hypergradient

BEGUN = "hgcore task begun"  # the topic under which workers tell the scheduler


class Round(NamedTuple):
    """One outer step of all clients: for each a task, described by a few numbers and names so that
    it travels cheaply.
    """

    tasks: Sequence[tuple]

    backend = Autograd()  # the server works in NumPy, whatever the clients' backend

    @staticmethod
    def as_hyper(hyper) -> np.ndarray:
        """The vector (m,) in NumPy."""
        return np.asarray(hyper, dtype=np.float64)


@dataclass(frozen=True)
class Server:
    """The average over a round of client(task, hyper (m,)) -> (value, grad (m,)), in NumPy.

    dask: a `distributed.Client`, see `cluster`; None does the tasks here. What a lost worker had,
        others do again. A task has one thread, and the sum runs in the order of the tasks whoever
        is ready first: on equal machines the bits are the same each time.
    """

    client: Callable
    dask: object = None

    def __call__(self, round: Round, hyper) -> Hypergradient:
        answers = each(self.client, round.tasks, hyper, dask=self.dask)
        value, grad = (sum(parts) / len(answers) for parts in zip(*answers, strict=True))
        return Hypergradient(value, grad, grad[:0], sum(part.nbytes for _, part in answers))


def each(function: Callable, tasks: Sequence[tuple], *shared, dask=None) -> list:
    """function(task, *shared) for each task, in their order: on the workers of `dask`, or here if
    None.
    """
    if dask is None:
        return [alone(function, task, *shared) for task in tasks]
    return dask.gather(
        [dask.submit(_announced, function, task, *shared, pure=False, retries=2) for task in tasks]
    )


def alone(function: Callable, *arguments):
    """function(*arguments) on one thread, the only number of threads that all machines have."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return function(*arguments)
    finally:
        torch.set_num_threads(threads)


def _announced(function: Callable, task: tuple, *shared):
    from distributed import get_worker

    get_worker().log_event(BEGUN, {"task": task, "pid": os.getpid()})
    return alone(function, task, *shared)


@contextlib.contextmanager
def cluster(workers: int, scheduler: str | None = None) -> Iterator:
    """A `distributed.Client` of `workers` new processes of one thread each on this machine, or of
    the scheduler at that address.

    The processes end with the block, or with this process. No dashboard. Warnings are not shown:
    that a worker was lost is no error, and a task that fails raises here. A scheduler's own workers
    must have this package, and the data.
    """
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield client
        return
    keep_memory = {
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None
    }  # dask's own value makes a task take thrice as long
    with dask.config.set(keep_memory):
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
    with local, Client(local, set_as_default=False) as client:
        yield client


def begun(dask, since: float = 0.0) -> list[tuple[float, dict]]:
    """(scheduler's time, {task, pid, worker}) of each beginning of a task later than `since`: one
    more if a worker was lost.
    """
    return [(moment, told) for moment, told in dask.get_events(BEGUN) or () if moment > since]


def kill(dask, task: tuple) -> Future:
    """Kill the next worker that begins `task`, at once and without notice; the future says whom.

    To try what a loss changes.
    """
    since = max((moment for moment, _ in begun(dask)), default=0.0)

    def strike() -> dict:
        while not (
            found := [told for _, told in begun(dask, since) if tuple(told["task"]) == task]
        ):
            time.sleep(0.005)
        dask.run(_die, workers=[found[0]["worker"]], wait=False)
        return found[0]

    pool = ThreadPoolExecutor(1)
    future = pool.submit(strike)
    pool.shutdown(wait=False)
    return future


async def _die() -> None:
    os.kill(
        os.getpid(), signal.SIGKILL
    )  # this way round it works on every machine of a cluster, and on none by mistake
