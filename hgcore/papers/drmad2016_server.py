"""A hyperparameter server: the average of hypergradients, each from a client's own data.

`Server` is a solver for `hg.descend`, and `Round` its problem. Clients are tasks of
dask.distributed, or run here one after the other, with the same bits. Implements: Fu et al. 2016.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hgcore.backend import Autograd
from hgcore.hypergradient import Hypergradient


class Round(NamedTuple):
    """One outer step: a task for each client, a few numbers that say what to compute."""

    tasks: Sequence[tuple]

    backend = Autograd()  # the server works in NumPy, whatever the clients' backend
    as_hyper = backend.array


@dataclass(frozen=True)
class Server:
    """The average over a round of client(task, hyper (m,)) -> (value, grad (m,)), in NumPy.

    dask: a `distributed.Client`; None runs the clients here. A task has one thread, and the sum
    runs in the order of the tasks: on equal machines the bits do not depend on who computes.
    """

    client: Callable
    dask: object = None

    def __call__(self, round: Round, hyper) -> Hypergradient:
        answers = run_tasks(self.client, round.tasks, hyper, dask=self.dask)
        value, grad = (sum(parts) / len(answers) for parts in zip(*answers, strict=True))
        return Hypergradient(value, grad, grad[:0], sum(part.nbytes for _, part in answers))


def run_tasks(function: Callable, tasks: Sequence[tuple], *shared, dask=None) -> list:
    """Return function(task, *shared) for each task, by the workers of `dask` or here if None.

    Another worker takes over the task of a lost one; a task that raises, raises here.
    """
    if dask is None:
        return [on_one_thread(function, task, *shared) for task in tasks]
    futures = [dask.submit(on_one_thread, function, task, *shared, pure=False) for task in tasks]
    return dask.gather(futures)


def on_one_thread(function: Callable, *arguments):
    """Return function(*arguments), computed on one thread: sums depend on their number."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return function(*arguments)
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def cluster(workers: int, scheduler: str | None = None) -> Iterator:
    """Yield a `distributed.Client` of `workers` new processes, or of the scheduler at an address.

    The processes have one thread each and end with the block. The workers of a scheduler of your
    own must have this package and the data.
    """
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield client
        return
    # with dask's own setting of malloc a task takes three times as long
    malloc = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}
    options = dict(threads_per_worker=1, memory_limit=0, dashboard_address=None, host="127.0.0.1")
    with dask.config.set(malloc):
        local = LocalCluster(n_workers=workers, silence_logs=logging.ERROR, **options)
    with local, Client(local, set_as_default=False) as client:
        yield client
