"""How fast is exact reversal? `OMP_NUM_THREADS=1 python tests/race.py [rounds]` races it against plain unrolled loops.

One process, alternating, one thread: 784-50-50-50-10 net, batch 250, float64, T = 100, a rate per step and block, a penalty
per block. Memory at T = 1000, each in a process of its own. Writes figures/beyond/reversible_race.json; not a test, it fails
nothing. Ratios only: seconds of one machine mean nothing on another.
"""

import functools
import json
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import hgcore as hg
from hgcore import figures, meter

SIZES, BATCH, DECAY = (784, 50, 50, 50, 10), 250, round(0.9 * 2**16) / 2**16


NET = hg.nets.Dense(SIZES)


@functools.cache
def numbers():
    """(inputs, labels, start): noise, whose numbers cost what real ones do."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, SIZES[0], generator=generator, dtype=torch.float64)
    labels = torch.eye(10, dtype=torch.float64)[torch.randint(10, (2000,), generator=generator)]
    return inputs, labels, 0.05 * torch.randn(NET.layout.size, generator=generator, dtype=torch.float64)


def batch(t):
    return slice(t * BATCH % 2000, t * BATCH % 2000 + BATCH)


def task(steps):
    """(problem, hyper) with a net of hg.nets."""
    inputs, labels, start = numbers()
    blocks = hg.Layout({"rate": (steps, 8), "penalty": (8,)})

    def inner(w, hyper, t):
        penalty = NET.layout.expand(torch.exp(blocks.split(hyper)["penalty"]))
        return hg.nets.cross_entropy(NET(w, inputs[batch(t)]), labels[batch(t)]) + torch.sum(penalty * w * w)

    problem = hg.Problem(
        backend=hg.Torch(), inner=inner, outer=lambda w, hyper: hg.nets.cross_entropy(NET(w, inputs[:1000]), labels[:1000]),
        dynamics=hg.Momentum(rate=lambda hyper, t: NET.layout.expand(torch.exp(blocks.split(hyper)["rate"][t])), decay=lambda hyper, t: DECAY),
        initial=lambda hyper: start, steps=steps)
    return problem, torch.as_tensor(blocks.join({"rate": np.full((steps, 8), np.log(0.05)), "penalty": np.full(8, -6.0)}))


def by_hand(w, x):
    """The net in plain torch."""
    for matrix, bias in zip(w[:-2:2], w[1:-2:2], strict=True):
        x = torch.tanh(x @ matrix + bias)
    return torch.log_softmax(x @ w[-2] + w[-1], -1)


def loss(w, rows):
    inputs, labels, _ = numbers()
    return -(by_hand(w, inputs[rows]) * labels[rows]).sum() / len(labels[rows])


def loop(problem, hyper):
    """The same hypergradient in plain torch, without hgcore: lists of tensors, and the whole run in one graph."""
    steps, hyper = problem.steps, hyper.clone().requires_grad_()
    rates, penalties = torch.exp(hyper[:-8]).reshape(steps, 8), torch.exp(hyper[-8:])
    w = [block.clone().requires_grad_() for block in NET.layout.split(numbers()[2]).values()]
    v = [torch.zeros_like(block) for block in w]
    for t in range(steps):
        objective = loss(w, batch(t)) + sum(p * (block * block).sum() for p, block in zip(penalties, w, strict=True))
        gradient = torch.autograd.grad(objective, w, create_graph=True)
        v = [DECAY * a - (1 - DECAY) * b for a, b in zip(v, gradient, strict=True)]
        w = [a + rate * b for a, rate, b in zip(w, rates[t], v, strict=True)]
    return torch.autograd.grad(loss(w, slice(1000)), hyper)[0]


def loop_over_problem(problem, hyper):
    """Plain torch again, but around the problem's own functions, flat vectors and net of hg.nets."""
    hyper = hyper.clone().requires_grad_()
    w = problem.initial(hyper).clone().requires_grad_()
    v = torch.zeros_like(w)
    for t in range(problem.steps):
        (gradient,) = torch.autograd.grad(problem.inner(w, hyper, t), w, create_graph=True)
        v = DECAY * v - (1 - DECAY) * gradient
        w = w + problem.dynamics.rate(hyper, t) * v
    return torch.autograd.grad(problem.outer(w, hyper), hyper)[0]


def reversed_run(problem, hyper):
    return hg.Reverse(hg.reversible)(problem, hyper).grad


def stored_run(problem, hyper):
    return hg.Reverse()(problem, hyper).grad


RUNNERS = {"plain loop": loop, "plain loop over hg.nets": loop_over_problem, "Reverse(stored)": stored_run, "Reverse(reversible)": reversed_run}


def alone(name, steps):
    """One hypergradient, for a process of its own; a short one first, so that libraries are loaded and kernels compiled."""
    RUNNERS[name](*task(2))
    return meter.cost(lambda: RUNNERS[name](*task(steps)))


def main(rounds):
    torch.set_num_threads(1)
    problem, hyper = task(100)
    exact = loop(problem, hyper)
    times = meter.race({name: functools.partial(run, problem, hyper) for name, run in RUNNERS.items()}, rounds)
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:  # a fresh process for each
        peaks = {name: pool.submit(alone, name, 1000).result().peak for name in RUNNERS}
    record = {
        "T = 100, times over the plain loop's, median": {n: statistics.median(t) / statistics.median(times["plain loop"]) for n, t in times.items()},
        "T = 100, times over the plain loop's, least": {n: min(t) / min(times["plain loop"]) for n, t in times.items()},
        "T = 100, largest difference from the plain loop, relative": {
            n: float((run(problem, hyper) - exact).abs().max() / exact.abs().max()) for n, run in RUNNERS.items()},
        "T = 1000, peak memory, MiB": {n: peak / 2**20 for n, peak in peaks.items()}, "rounds": rounds, "torch": torch.__version__}
    text = json.dumps(record, indent=1) + "\n"
    figures.write(Path(__file__).parent.parent / "figures" / "beyond" / "reversible_race.json", text.encode())
    print(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
