"""Problems with known answers: each `case(backend)` returns (problem, hyper)."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import autograd
import numpy as np
import torch

import hgcore as hg

SOLVERS = {
    "stored": hg.Reverse(),
    "checkpointed": hg.Reverse(hg.Checkpointed()),
    "reversible": hg.Reverse(hg.Reversible()),
    "forward": hg.Forward(),
}
LAYOUT = hg.Layout({"matrix": (2, 3), "number": (), "empty": (0,), "vector": (4,)})
OPTIMIZERS = ("descent", "momentum", "heavy ball", "rmsprop", "adam", "adamw")


def gap(a, b) -> float:
    """Return the largest difference over the largest size of b."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.max(np.abs(a - b), initial=0) / np.max(np.abs(b), initial=1e-300))


def same_bits(ours, theirs) -> bool:
    """Return whether two sequences hold equal arrays."""
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same_in_threads(function, points) -> bool:
    """Return whether four threads that share a function get the bits that it gives alone."""
    alone, before = list(map(function, points)), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places inside one gradient
    try:
        with ThreadPoolExecutor(4) as pool:
            return same_bits(pool.map(function, points), alone)
    finally:
        sys.setswitchinterval(before)


def counted(problem) -> tuple:
    """Return the problem and a list to which each call of its inner loss adds its t."""
    calls = []

    def inner_loss(w, hyper, t):
        calls.append(t)
        return problem.inner_loss(w, hyper, t)

    return replace(problem, inner_loss=inner_loss), calls


def optimizer(name, rate, decay, beta2=0.99, epsilon=1e-3, weight_decay=0.1, **options):
    """Return the optimizer of that name; `decay` is also Adam's beta1."""
    return {
        "descent": lambda: hg.GradientDescent(rate, **options),
        "momentum": lambda: hg.Momentum(rate, decay, **options),
        "heavy ball": lambda: hg.HeavyBall(rate, decay, **options),
        "rmsprop": lambda: hg.RMSProp(rate, beta2, epsilon, decay, **options),
        "adam": lambda: hg.Adam(rate, decay, beta2, epsilon, **options),
        "adamw": lambda: hg.AdamW(rate, decay, beta2, epsilon, weight_decay, **options),
    }[name]()


def everything(backend, name="momentum", decay=0.9, per_weight=False, steps=4, n=3, **options):
    """A quartic loss; hyper enters every coefficient, the start, the data and both losses.

    Every coefficient changes from step to step.
    """
    xp, each, spread = backend.xp, (n,) if per_weight else (), 0.3 * per_weight
    blocks = {  # name: shape, center and spread of its hyperparameters
        "rate": ((steps, *each), -3.0, 0.1),
        "decay": (each, np.log(decay / (1 - decay)), spread),
        "beta2": (each, 3.0, spread),
        "epsilon": (each, -4.0, spread),
        "weight_decay": (each, -1.0, spread),
        "initial": ((n,), 0.0, 1.0),
        "velocity": ((n,), 0.0, 0.1),
        "penalty": ((n,), -2.0, 0.0),
        "data": ((3,), 0.0, 1.0),
        "outer": ((), 0.2, 0.0),
    }
    layout = hg.Layout({key: shape for key, (shape, _, _) in blocks.items()})
    rng = np.random.default_rng(0)
    design, target = (backend.array(rng.standard_normal(shape)) for shape in ((3, n), (n,)))

    def inner_loss(w, hyper, t):
        h = layout.split(hyper)
        residual = design @ w - h["data"] * (1.0 if t is None else 1 + 0.1 * t)
        penalty = xp.sum(xp.exp(h["penalty"]) * w**2)
        return xp.sum(residual**2) + 0.1 * xp.sum(w**4) + penalty

    def outer_loss(w, hyper):
        return xp.sum((w - target) ** 2) * xp.exp(layout.split(hyper)["outer"]) + xp.sum(w**3)

    def share(number):
        return 1 / (1 + xp.exp(-number))

    def coefficient(key, kind=xp.exp):
        return lambda hyper, t: kind(layout.split(hyper)[key] + 0.1 * np.cos(t))

    rate = lambda hyper, t: xp.exp(layout.split(hyper)["rate"][t])  # noqa: E731
    decays = coefficient("decay", share), coefficient("beta2", share)
    if name in ("momentum", "heavy ball"):
        options = {"velocity": lambda hyper: layout.split(hyper)["velocity"]} | options
    others = coefficient("epsilon"), coefficient("weight_decay")
    chosen = optimizer(name, rate, *decays, *others, **options)
    start = lambda hyper: layout.split(hyper)["initial"]  # noqa: E731
    problem = hg.Problem(backend, inner_loss, outer_loss, chosen, start, steps)
    hyper = {
        key: center + width * rng.standard_normal(shape)
        for key, (shape, center, width) in blocks.items()
    }
    return problem, layout.join(hyper)


def net_parts(backend, steps) -> SimpleNamespace:
    """What `net` is made of: a dense net, the layout of hyper, batches, a bare loss, penalties."""
    xp, dense, rng = backend.xp, hg.nets.DenseNet((6, 5, 3)), np.random.default_rng(1)
    blocks = len(dense.layout)
    layout = hg.Layout({"scale": (blocks,), "rate": (steps, blocks), "penalty": (blocks,)})
    inputs, labels = rng.standard_normal((30, 6)), np.eye(3)[rng.integers(3, size=30)]
    inputs, labels = backend.array(inputs), backend.array(labels)

    def batch(t):
        rows = slice(None) if t is None else slice(10 * (t % 3), 10 * (t % 3) + 10)
        return inputs[rows], labels[rows]

    def bare(w, hyper, t):
        return hg.nets.cross_entropy(dense(w, batch(t)[0]), batch(t)[1])

    def strength(hyper):
        return xp.exp(layout.split(hyper)["penalty"])

    return SimpleNamespace(dense=dense, layout=layout, batch=batch, bare=bare, strength=strength)


def net(backend, name="momentum", steps=6, rate=0.3, **options):
    """A small dense net on random data: a rate per layer and step, initial scales, penalties."""
    xp, parts, rng = backend.xp, net_parts(backend, steps), np.random.default_rng(2)
    layout, expand, blocks = parts.layout, parts.dense.layout.expand, len(parts.dense.layout)
    noise = backend.array(rng.standard_normal(parts.dense.layout.size))

    def inner_loss(w, hyper, t):
        return parts.bare(w, hyper, t) + xp.sum(expand(parts.strength(hyper)) * w * w)

    def rates(hyper, t):
        return expand(xp.exp(layout.split(hyper)["rate"][t]))

    outer_loss = lambda w, hyper: parts.bare(w, hyper, None)  # noqa: E731
    start = lambda hyper: expand(xp.exp(layout.split(hyper)["scale"])) * noise  # noqa: E731
    chosen = optimizer(name, rates, 0.9, 0.999, 1e-8, **options)
    problem = hg.Problem(backend, inner_loss, outer_loss, chosen, start, steps)
    log_rates = np.log(rate) + 0.2 * rng.standard_normal((steps, blocks))
    penalties = np.linspace(-4, -3, blocks)
    hyper = {"scale": np.full(blocks, -1.0), "rate": log_rates, "penalty": penalties}
    return problem, layout.join(hyper)


def regression(backend, steps=200, n=6):
    """Logistic regression, a penalty per weight, trained to its optimum by gradient descent."""
    xp, rng = backend.xp, np.random.default_rng(2)
    x, x2 = (backend.array(rng.standard_normal((20, n))) for _ in range(2))
    signs = backend.array(np.sign(rng.standard_normal(20)))

    def loss(w, x):
        return xp.mean(xp.log(1 + xp.exp(-signs * (x @ w))))

    inner_loss = lambda w, hyper, t: loss(w, x) + 0.5 * xp.sum(xp.exp(hyper) * w**2)  # noqa: E731
    outer_loss = lambda w, hyper: loss(w, x2) + 1e-3 * xp.sum(hyper**3)  # noqa: E731
    start = lambda hyper: 0 * hyper  # noqa: E731
    optimizer = hg.GradientDescent(0.5)
    problem = hg.Problem(backend, inner_loss, outer_loss, optimizer, start, steps)
    return problem, np.full(n, -1.0)


def noisy(backend, optimizer, steps=100, n=300):
    """Noisy quadratics whose outer loss passes nothing back, so that no adjoint can overflow."""
    rng = np.random.default_rng(0)
    targets = backend.array(rng.standard_normal((7, n)))
    scales = backend.array(np.exp(rng.uniform(-12, 1, n)))
    inner_loss = lambda w, h, t: (scales * (w - targets[t % 7]) ** 2).sum()  # noqa: E731
    outer_loss = lambda w, h: (0 * w).sum() + h[0]  # noqa: E731
    return hg.Problem(backend, inner_loss, outer_loss, optimizer, np.ones(n), steps)


def bowl(backend, steps=6, n=5, **changes):
    """A small quadratic for questions of form; `changes` replace parts of the Problem."""
    xp = backend.xp
    target = backend.array(np.linspace(-1, 1, n))
    parts = {
        "inner_loss": lambda w, hyper, t: xp.sum((w - target) ** 2) * xp.exp(hyper[0]),
        "outer_loss": lambda w, hyper: xp.sum((w - 1) ** 2),
        "optimizer": hg.Momentum(0.1, 0.9),
        "initial": lambda hyper: 0.5 * target + hyper[1],
    }
    return hg.Problem(backend=backend, steps=steps, **parts | changes), np.array([0.1, 0.3])


def unrolled(problem, hyper):
    """Return (value, hypergradient), independent of every solver; decays as really used."""
    backend, xp, opt = problem.backend, problem.backend.xp, problem.optimizer
    kind, start = type(opt), getattr(opt, "velocity", None)

    def coefficients(h, t):
        given = {name: x for name, x in vars(opt).items() if name not in ("velocity", "fade")}
        given = {name: x(h, t) if callable(x) else x for name, x in given.items()}
        c = {name: backend.traced(x) for name, x in given.items() if x is not None}
        for name in c.keys() & {"decay", "beta1", "beta2"}:  # rounded, with derivative 1
            number = backend.array(c[name])
            c[name] = c[name] + (xp.round(number * 2**16) / 2**16 - number)
        return SimpleNamespace(**c)

    def gradient(loss, w):
        if backend.name == "autograd":
            return autograd.grad(loss)(w)
        return xp.autograd.grad(loss(w), w, create_graph=True)[0]

    def whole(h):
        w = backend.traced(problem.initial(h) if callable(problem.initial) else problem.initial)
        w = w + 0 * xp.sum(h)
        v, s = start(h) if start else 0 * w, 0 * w
        for t in range(problem.steps):
            c = coefficients(h, t)
            g = gradient(lambda w, t=t: problem.inner_loss(w, h, t), w)
            if opt.clip is not None and (norm := xp.sqrt(xp.sum(g * g))) > c.clip:
                g = g * c.clip / norm
            w, v, s = one_step(w, v, s, g, c, t)
        return problem.outer_loss(w, h)

    def one_step(w, v, s, g, c, t):
        if kind is hg.GradientDescent:
            return w - c.rate * g, v, s
        if kind is hg.Momentum:
            v = c.decay * v - (1 - c.decay) * g
            return w + c.rate * v, v, s
        if kind is hg.HeavyBall:
            v = c.decay * v + g
            return w - c.rate * v, v, s
        s = c.beta2 * s + (1 - c.beta2) * g**2
        if kind is hg.RMSProp:
            v = c.decay * v + g / (xp.sqrt(s) + c.epsilon)
            return w - c.rate * v, v, s
        keep = c.beta1 * opt.fade**t
        v = keep * v + (1 - keep) * g
        mean, square = v / (1 - c.beta1 ** (t + 1)), s / (1 - c.beta2 ** (t + 1))
        kept = w - c.rate * c.weight_decay * w if kind is hg.AdamW else w
        return kept - c.rate * mean / (xp.sqrt(square) + c.epsilon), v, s

    value, slope = backend.gradients(whole, backend.array(hyper))
    return backend.numpy(value), backend.numpy(slope)


def there_and_back(place, decays, steps=150, n=6) -> list:
    """Return the bits of two values of one buffer after products and sums; undo all of these."""
    rng, buffer = np.random.default_rng(0), hg.ReversalBuffer()
    kicks = [place(kick) for kick in rng.standard_normal((7, n))]
    decays = [decay if np.ndim(decay) == 0 else place(decay) for decay in decays]
    values = hg.FixedPoint(place(rng.standard_normal(n))), hg.FixedPoint(kicks[0], 2.0**-60)
    starts = [value.bits for value in values]
    for t in range(steps):
        for value in values:
            value.bits = buffer.multiply(value.bits, decays[t % len(decays)])
            value.add(kicks[t % 7])
    ends = [torch.as_tensor(value.bits).cpu().numpy().copy() for value in values]
    buffer.pack()
    for t in reversed(range(steps)):
        for value in reversed(values):
            value.subtract(kicks[t % 7])
            value.bits = buffer.divide(value.bits, decays[t % len(decays)])
    assert buffer.empty()
    assert all(bool((v.bits == bits).all()) for v, bits in zip(values, starts, strict=True))
    return ends
