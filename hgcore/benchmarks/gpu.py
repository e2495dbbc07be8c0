"""What is measured on a GPU, as one record: python -m hgcore.benchmarks.gpu (make gpu).

Without a card every row says "not run".
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from hgcore.backend_torch import Torch
from hgcore.benchmarks import peers_gpu
from hgcore.benchmarks.peers_task import Task
from hgcore.checkpoint import write_atomically
from hgcore.fixed_point import PLAIN, arithmetic
from hgcore.hypergradient import Reverse
from hgcore.optimizers import AdamW, Momentum
from hgcore.problem import Problem
from hgcore.reversible import Reversible
from hgcore.suite.notebooks import find_root

NET = (784, 2800, 2800, 10)  # 10,068,410 weights
PATH = "figures/beyond/gpu.json"


def bandwidth() -> float:
    """The bytes a second of a multiplication by 0.9 over those of a copy, 10 million numbers."""
    return peers_gpu.share(Torch("cuda"), 10_000_000)


def same_bits() -> bool:
    """Whether the kernels that are used give the bits of the plain operations."""
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


def undone(optimizer) -> bool:
    """Whether 1,000 steps of a million weights come back; ReversalError otherwise."""
    backend = Torch("cuda", "float32")
    target = backend.array(1.0) * backend.xp.randn(1_000_000, device="cuda")

    def inner_loss(w, hyper, t):
        return ((w - target * (1 + t % 3)) ** 2).mean() * 1e5

    def outer_loss(w, hyper):
        return (0 * w).sum() + hyper[0]

    problem = Problem(backend, inner_loss, outer_loss, optimizer, 0 * target + 1, 1000)
    Reverse(Reversible())(problem, [1.0])
    return True


def reversible_over_stored() -> float:
    """Seconds of a hypergradient of the net at T = 200, reversible over stored."""
    return peers_gpu.slower(Task(NET, 256, 200, "float32", "cuda"))


def beyond_the_card() -> float:
    """The trajectory that was undone without storing it, in sizes of the card's memory."""
    task = Task(NET, 64, 1, "float32", "cuda")
    total = Torch("cuda").memory()
    return peers_gpu.undone(replace(task, steps=total // task.state + 1)) / total


ROWS: dict[str, Callable] = {
    "kernels give the plain bits": same_bits,
    "1,000 steps of Momentum undone": lambda: undone(Momentum(0.1, 0.9)),
    "1,000 steps of AdamW undone": lambda: undone(AdamW(1e-3)),
    "bandwidth of a multiplication over that of a copy": bandwidth,
    "10 million weights, T = 200: reversible over stored seconds": reversible_over_stored,
    "undone trajectory over the card's memory": beyond_the_card,
}


def measured(row: Callable) -> dict:
    """Return {value, seconds}, or {error} if the row failed."""
    start = time.perf_counter()
    try:
        return {"value": row(), "seconds": round(time.perf_counter() - start, 1)}
    except Exception as error:  # one row that fails spoils no other
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> int:
    """Measure every row, print it, and write the record if there is a card."""
    torch = Torch().xp
    if not torch.cuda.is_available():
        print(*(f"{name}: not run (torch sees no GPU)" for name in ROWS), sep="\n")
        return 0
    record = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    record |= {"python": platform.python_version(), "rows": {}}
    for name, row in ROWS.items():
        record["rows"][name] = measured(row)
        print(name, record["rows"][name], flush=True)
        write_atomically(find_root() / PATH, json.dumps(record, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
