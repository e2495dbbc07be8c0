"""What is measured on a GPU, as one record: python -m hgcore.benchmarks.gpu (make gpu).

Without a card every row says "not run".
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hgcore.backend_torch import Torch
from hgcore.benchmarks.baselines import DECAY, Task
from hgcore.benchmarks.peers import as_problem, ours
from hgcore.checkpoint import write_atomically
from hgcore.data import find_root
from hgcore.fixed_point import PLAIN, ReversalBuffer, arithmetic, as_decay
from hgcore.hypergradient import Reverse
from hgcore.optimizers import AdamW
from hgcore.reversible import Reversible
from hgcore.trajectory import Stored

NET = (784, 2800, 2800, 10)  # 10,068,410 weights
MILLION = Task((784, 1000, 200, 10), 64, 1000, "float32", "cuda")  # 987,210 weights
PATH = "figures/beyond/gpu.json"


def seconds(backend: Torch, call: Callable, times: int = 1) -> float:
    """Return seconds on the clock of one of `times` calls, with all that they start on a device."""
    wait = backend.xp.cuda.synchronize if backend.device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times


def same_bits() -> bool:
    """Return whether the kernels that are used give the bits of the plain operations."""
    torch = Torch("cuda").xp
    torch.manual_seed(0)
    bits = torch.randint(-(2**62), 2**62, (300_000,), device="cuda")
    state = torch.randint(0, 2**50, (300_000,), device="cuda")
    amount = torch.randn(300_000, device="cuda", dtype=torch.float64)
    for case in [(state, 58982, None), (state, 58982, amount), (None, None, amount)]:
        arguments = bits, None, *case, 2.0**-52, torch.float32
        for fast, plain in zip(arithmetic(bits), PLAIN, strict=True):
            pairs = zip(fast(*arguments), plain(*arguments), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs if b is not None and b.ndim):
                return False
    return True


def undone(task: Task, optimizer=None) -> bool:
    """Return True if a training comes back without being stored; raise ReversalError otherwise.

    optimizer: another than the task's momentum.
    """
    problem, hyper = as_problem(task)
    Reverse(Reversible())(replace(problem, optimizer=optimizer or problem.optimizer), hyper)
    return True


def bandwidth(device: str, count: int, times: int = 20) -> float:
    """Return bytes per second of multiplying `count` numbers by 0.9 over those of a copy."""
    backend, buffer, decay = Torch(device), ReversalBuffer(), as_decay(DECAY)
    values = backend.xp.arange(count, device=device)
    copy = backend.xp.empty_like(values)
    spent = []
    for call in (lambda: copy.copy_(values), lambda: buffer.multiply(values, decay)):
        call()
        spent.append(seconds(backend, call, times))
    # a multiplication reads and writes values and buffer, a copy reads and writes values only
    return 2 * spent[0] / spent[1]


def reversible_over_stored(task: Task, rounds: int = 3) -> float:
    """Return median seconds of a reversible hypergradient over those of a stored one."""
    calls = [ours(task, trajectory) for trajectory in (Stored(), Reversible())]
    spent = [[seconds(task.backend, call) for call in calls] for _ in range(rounds)]
    stored, reversible = map(statistics.median, zip(*spent, strict=True))
    return reversible / stored


def beyond_the_card() -> float:
    """Return the trajectory that was undone without storing it, in sizes of the card's memory."""
    task, total = Task(NET, 64, 1, "float32", "cuda"), Torch("cuda").memory()
    steps = total // task.state_nbytes + 1
    return undone(replace(task, steps=steps)) * task.state_nbytes * (steps + 1) / total


ROWS: dict[str, Callable] = {
    "kernels give the plain bits": same_bits,
    "1,000 steps of Momentum undone": partial(undone, MILLION),
    "1,000 steps of AdamW undone": partial(undone, MILLION, AdamW(1e-3)),
    "bandwidth of a multiplication over that of a copy": partial(bandwidth, "cuda", 10_000_000),
    "10 million weights, T = 200: reversible over stored seconds": partial(
        reversible_over_stored, Task(NET, 256, 200, "float32", "cuda")
    ),
    "undone trajectory over the card's memory": beyond_the_card,
}


def main() -> None:
    """Measure every row, print it, and write the record if there is a card."""
    torch = Torch().xp
    if not torch.cuda.is_available():
        print(*(f"{name}: not run (torch sees no GPU)" for name in ROWS), sep="\n")
        return
    record = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    record |= {"python": platform.python_version(), "rows": {}}
    for name, row in ROWS.items():
        start = time.perf_counter()
        try:
            found = {"value": row(), "seconds": round(time.perf_counter() - start, 1)}
        except Exception as error:  # one row that fails spoils no other
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(name, found, flush=True)
        record["rows"][name] = found
        write_atomically(find_root() / PATH, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    main()
