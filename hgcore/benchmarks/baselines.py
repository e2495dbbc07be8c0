"""One training task, and its hypergradient by plain torch, higher, TorchOpt and JAX.

The formulas are written once, for torch and for JAX (`lib`). An entrant is a function of a Task
that prepares, compiles if it must, and returns a call: () -> hypergradient (m,). The libraries are
imported where they are used.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from hgcore.backend_torch import Torch
from hgcore.fixed_point import round_decay
from hgcore.nets import DenseNet, cross_entropy

DECAY, BATCHES = float(round_decay(0.9)), 8


class Arrays(NamedTuple):
    """inputs (batches, batch, features), labels, the first weights as blocks, hyper (m,)."""

    inputs: object
    labels: object
    start: list
    hyper: object

    def batch(self, t):
        """Return the minibatch of step t."""
        return self.inputs[t % BATCHES], self.labels[t % BATCHES]

    def outer(self) -> list:
        """Return the data of the outer loss: half of all examples."""
        parts = self.inputs[: BATCHES // 2], self.labels[: BATCHES // 2]
        return [part.reshape((-1, part.shape[-1])) for part in parts]


@dataclass(frozen=True)
class Task:
    """Training a dense tanh net with momentum for `steps`, on noise, which costs what images do.

    Hyperparameters (m,): a log rate for each step and block, then a log penalty for each block.
    """

    sizes: tuple[int, ...]
    batch: int
    steps: int
    dtype: str = "float64"
    device: str = "cpu"

    @property
    def backend(self) -> Torch:
        return Torch(self.device, self.dtype)

    @property
    def state_nbytes(self) -> int:
        """Bytes of weights and velocity."""
        return 2 * DenseNet(self.sizes).layout.size * np.dtype(self.dtype).itemsize

    def arrays(self, array: Callable, transposed: bool = False) -> Arrays:
        """Return the data as a library's arrays; transposed: matrices as torch's modules have."""
        rng, layout = np.random.default_rng(0), DenseNet(self.sizes).layout
        inputs = rng.standard_normal((BATCHES, self.batch, self.sizes[0]))
        classes = rng.integers(self.sizes[-1], size=(BATCHES, self.batch))
        start = layout.split(0.05 * rng.standard_normal(layout.size)).values()
        blocks = [block.T.copy() if transposed else block for block in start]
        hyper = np.repeat([math.log(0.05), -6.0], [self.steps * len(layout), len(layout)])
        data = (inputs, np.eye(self.sizes[-1])[classes], hyper, *blocks)
        inputs, labels, hyper, *blocks = (array(part.astype(self.dtype)) for part in data)
        return Arrays(inputs, labels, blocks, hyper)


def split_hyper(hyper, blocks: int) -> tuple:
    """Return (log rates (T, blocks), log penalties (blocks,))."""
    return hyper[:-blocks].reshape((-1, blocks)), hyper[-blocks:]


def outer_loss(lib, weights: list, x, y):
    """Return the mean cross-entropy of the net."""
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = lib.tanh(x @ matrix + bias)
    return -(lib.log_softmax(x @ weights[-2] + weights[-1], -1) * y).sum() / len(y)


def inner_loss(lib, weights: list, penalties, x, y):
    """Return the outer loss and a penalty on the squares of each block."""
    squares = [p * (block * block).sum() for p, block in zip(penalties, weights, strict=True)]
    return outer_loss(lib, weights, x, y) + sum(squares)


def momentum_step(weights: list, velocity: list, gradient, rates) -> tuple[list, list]:
    """Return (weights, velocity) after a step."""
    velocity = [DECAY * v - (1 - DECAY) * g for v, g in zip(velocity, gradient, strict=True)]
    return [w + r * v for w, r, v in zip(weights, rates, velocity, strict=True)], velocity


def requires_grad(blocks) -> list:
    """Return tensors without history, by which one can differentiate."""
    return [block.detach().requires_grad_() for block in blocks]


def plain_loop(task: Task) -> Callable:
    """Return the hypergradient through one graph of the whole run, written without a library."""
    torch, arrays = task.backend.xp, task.arrays(task.backend.array)

    def call():
        hyper, *weights = requires_grad([arrays.hyper, *arrays.start])
        velocity = [torch.zeros_like(block) for block in weights]
        rates, penalties = map(torch.exp, split_hyper(hyper, len(weights)))
        for t in range(task.steps):
            loss = inner_loss(torch, weights, penalties, *arrays.batch(t))
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
            weights, velocity = momentum_step(weights, velocity, gradient, rates[t])
        return torch.autograd.grad(outer_loss(torch, weights, *arrays.outer()), hyper)[0]

    return call


def torch_module(task: Task):
    """Return the net as a torch.nn.Module."""
    nn, pairs = task.backend.xp.nn, zip(task.sizes[:-1], task.sizes[1:], strict=True)
    layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).to(getattr(task.backend.xp, task.dtype))


def higher_loop(task: Task) -> Callable:
    """higher: a module and torch's SGD with a parameter group for each block."""
    import higher

    torch, arrays = task.backend.xp, task.arrays(task.backend.array, transposed=True)
    model = torch_module(task)
    for parameter, block in zip(model.parameters(), arrays.start, strict=True):
        parameter.data = block
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=DECAY, dampening=DECAY)
    for p in model.parameters():  # otherwise torch does not dampen the first step
        optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}

    def loss(net, x, y):
        return cross_entropy(torch.log_softmax(net(x), -1), y)

    def call():
        (hyper,) = requires_grad([arrays.hyper])
        rates, penalties = map(torch.exp, split_hyper(hyper, len(arrays.start)))
        with higher.innerloop_ctx(model, optimizer) as (net, steps):
            for t in range(task.steps):
                pairs = zip(penalties, net.parameters(), strict=True)
                whole = loss(net, *arrays.batch(t)) + sum(p * (w * w).sum() for p, w in pairs)
                steps.step(whole, override={"lr": list(rates[t])})
            return torch.autograd.grad(loss(net, *arrays.outer()), hyper)[0]

    return call


def torchopt_loop(task: Task) -> Callable:
    """TorchOpt: FuncOptimizer with a transformation written here; its own have one rate for all."""
    import torchopt

    torch, arrays = task.backend.xp, task.arrays(task.backend.array)

    def call():
        hyper, *weights = requires_grad([arrays.hyper, *arrays.start])
        rates, penalties = map(torch.exp, split_hyper(hyper, len(weights)))

        def update(gradient, state, *, params=None, inplace=True):
            t, velocity = state
            change, velocity = momentum_step([0] * len(velocity), velocity, gradient, rates[t])
            return tuple(change), (t + 1, velocity)

        start = 0, [torch.zeros_like(block) for block in weights]
        rule = torchopt.base.GradientTransformation(lambda params: start, update)
        optimizer, weights = torchopt.FuncOptimizer(rule), tuple(weights)
        for t in range(task.steps):
            loss = inner_loss(torch, weights, penalties, *arrays.batch(t))
            weights = optimizer.step(loss, weights)
        return torch.autograd.grad(outer_loss(torch, weights, *arrays.outer()), hyper)[0]

    return call


def jax_scan(task: Task, every: Callable) -> Callable:
    """JAX: jax.grad of a compiled lax.scan on one core.

    every: T -> of how many steps, a divisor of T, jax.checkpoint keeps the start only.
    """
    one_core = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", one_core)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    lib = SimpleNamespace(tanh=jax.numpy.tanh, log_softmax=jax.nn.log_softmax)
    arrays = task.arrays(jax.numpy.asarray)

    def outer(hyper, arrays):
        rates, penalties = map(jax.numpy.exp, split_hyper(hyper, len(arrays.start)))

        def step(state, t):
            gradient = jax.grad(lambda w: inner_loss(lib, w, penalties, *arrays.batch(t)))(state[0])
            return momentum_step(*state, gradient, rates[t]), None

        def stretch(state, steps):
            return jax.lax.scan(step, state, steps)

        steps = jax.numpy.arange(task.steps).reshape((-1, every(task.steps)))
        state = arrays.start, [0 * block for block in arrays.start]
        body = jax.checkpoint(stretch, prevent_cse=False)
        (weights, _), _ = jax.lax.scan(body, state, steps)
        return outer_loss(lib, weights, *arrays.outer())

    compiled = jax.jit(jax.grad(outer)).lower(arrays.hyper, arrays).compile()
    return lambda: compiled(arrays.hyper, arrays).block_until_ready()


def root(steps: int) -> int:
    """Return the largest divisor of `steps` up to its square root."""
    return max(s for s in range(1, math.isqrt(steps) + 1) if steps % s == 0)
