"""Problems with known answers: each `case(backend)` returns (problem, hyper) with several kinds of hyperparameters at once."""

import dataclasses
import functools

import numpy as np

import hgcore as hg
from hgcore.arrays import namespace


def everything(backend, decay=0.9, per_coordinate=False, dynamics=hg.Momentum, steps=12, n=4):
    """A quartic loss; hyper enters rates, decays, initial weights and velocity, penalty, data and the outer loss directly."""
    xp = backend.xp
    layout = hg.Layout(
        {
            "rate": (steps,),
            "decay": (n if per_coordinate else 1,),
            "initial": (n,),
            "velocity": (n,),
            "penalty": (n,),
            "data": (3,),
            "outer": (1,),
        }
    )
    rng = np.random.default_rng(0)
    design, target = (backend.array(rng.standard_normal(shape)) for shape in ((3, n), (n,)))

    def inner(w, hyper, t):
        h = layout.split(hyper)
        residual = design @ w - h["data"] * (1.0 if t is None else 1 + 0.1 * t)
        return xp.sum(residual**2) + 0.1 * xp.sum(w**4) + xp.sum(xp.exp(h["penalty"]) * w**2)

    def outer(w, hyper):
        return xp.sum((w - target) ** 2) * xp.exp(layout.split(hyper)["outer"][0]) + xp.sum(w**3)

    def decays(hyper, t):
        logits = layout.split(hyper)["decay"]
        value = 1 / (1 + xp.exp(-logits))
        return value if per_coordinate else value[0]

    problem = hg.Problem(
        backend=backend,
        inner=inner,
        outer=outer,
        steps=steps,
        dynamics=dynamics(
            rate=lambda hyper, t: xp.exp(layout.split(hyper)["rate"][t]),
            decay=decays,
            velocity=lambda hyper: layout.split(hyper)["velocity"],
        ),
        initial=lambda hyper: layout.split(hyper)["initial"],
    )
    logit = np.log(decay / (1 - decay))
    hyper = layout.join(
        {
            "rate": np.full(steps, -3.0) + 0.1 * rng.standard_normal(steps),
            "decay": logit + (0.3 * rng.standard_normal(n) if per_coordinate else np.zeros(1)),
            "initial": rng.standard_normal(n),
            "velocity": 0.1 * rng.standard_normal(n),
            "penalty": np.full(n, -2.0),
            "data": rng.standard_normal(3),
            "outer": np.array([0.2]),
        }
    )
    return problem, hyper


def layered(backend, steps=20):
    """A small dense net on random data: rates and decays per layer and step, initial scales, penalties; T = 20."""
    xp, net = backend.xp, hg.nets.Dense((6, 5, 3))
    layers = len(net.layout)
    layout = hg.Layout(
        {
            "scale": (layers,),
            "rate": (steps, layers),
            "decay": (steps, layers),
            "penalty": (layers,),
        }
    )
    rng = np.random.default_rng(1)
    inputs, noise = (
        backend.array(rng.standard_normal((30, 6))),
        backend.array(rng.standard_normal(net.layout.size)),
    )
    labels = backend.array(np.eye(3)[rng.integers(3, size=30)])

    def loss(w, inputs, labels):
        return hg.nets.cross_entropy(net(w, inputs), labels)

    def inner(w, hyper, t):
        rows = slice(None) if t is None else slice(10 * (t % 3), 10 * (t % 3) + 10)
        penalty = net.layout.expand(xp.exp(layout.split(hyper)["penalty"]))
        return loss(w, inputs[rows], labels[rows]) + xp.sum(penalty * w * w)

    problem = hg.Problem(
        backend=backend,
        inner=inner,
        outer=lambda w, hyper: loss(w, inputs, labels),
        steps=steps,
        dynamics=hg.Momentum(
            rate=lambda hyper, t: net.layout.expand(xp.exp(layout.split(hyper)["rate"][t])),
            decay=lambda hyper, t: net.layout.expand(
                1 / (1 + xp.exp(-layout.split(hyper)["decay"][t]))
            ),
        ),
        initial=lambda hyper: net.layout.expand(xp.exp(layout.split(hyper)["scale"])) * noise,
    )
    hyper = layout.join(
        {
            "scale": np.full(layers, -1.0),
            "rate": np.full((steps, layers), -0.5),
            "decay": np.full((steps, layers), 0.5) + 0.2 * rng.standard_normal((steps, layers)),
            "penalty": np.full(layers, -4.0),
        }
    )
    return problem, hyper


def plain(backend, steps=15):
    """Gradient descent with one rate per weight, all of them hyperparameters."""
    xp = backend.xp
    target = backend.array(np.linspace(-1, 1, 5))
    problem = hg.Problem(
        backend=backend,
        inner=lambda w, hyper, t: xp.sum((w - target) ** 2) + 0.1 * xp.sum(w**4),
        outer=lambda w, hyper: xp.sum(w**3),
        steps=steps,
        dynamics=hg.GradientDescent(rate=lambda hyper, t: hyper),
        initial=lambda hyper: 1 + 0 * hyper,
    )
    return problem, np.linspace(0.01, 0.1, 5)


def ridge(backend, steps=400, n=6):
    """Ridge regression with a penalty per weight, trained to its optimum: the implicit hypergradient has a closed form."""
    xp = backend.xp
    rng = np.random.default_rng(2)
    x, y, x2, y2 = (backend.array(rng.standard_normal(s)) for s in ((20, n), (20,), (15, n), (15,)))
    problem = hg.Problem(
        backend=backend,
        inner=lambda w, hyper, t: (
            0.5 * xp.mean((x @ w - y) ** 2) + 0.5 * xp.sum(xp.exp(hyper) * w**2)
        ),
        outer=lambda w, hyper: 0.5 * xp.mean((x2 @ w - y2) ** 2),
        steps=steps,
        dynamics=hg.GradientDescent(rate=lambda hyper, t: 0.5),
        initial=lambda hyper: 0 * hyper,
    )
    return problem, np.full(n, -1.0)


def bowl(backend, steps=6, n=5, **changes):
    """A small quadratic for questions of form rather than of number; `changes` replace parts of the Problem."""
    xp = backend.xp
    target = backend.array(np.linspace(-1, 1, n))
    parts = {
        "inner": lambda w, hyper, t: xp.sum((w - target) ** 2) * xp.exp(hyper[0]),
        "outer": lambda w, hyper: xp.sum((w - 1) ** 2),
        "dynamics": momentum(),
        "initial": lambda hyper: 0.5 * target + hyper[1],
    }
    return hg.Problem(backend=backend, steps=steps, **parts | changes), np.array([0.1, 0.3])


def momentum(rate=0.1, decay=0.9, kind=hg.Momentum, velocity=None):
    """Dynamics whose coefficients are the given numbers, or functions of t."""
    function = lambda x: (lambda hyper, t: x(t)) if callable(x) else (lambda hyper, t: x)  # noqa: E731
    return kind(rate=function(rate), decay=function(decay), velocity=velocity)


def logistic(backend, steps=400, n=4):
    """Logistic regression with a penalty per weight, trained to its optimum by gradient descent; its Hessian is positive definite."""
    xp = backend.xp
    rng = np.random.default_rng(3)
    (x, x2), signs = (
        (backend.array(rng.standard_normal((25, n))) for _ in range(2)),
        backend.array(np.sign(rng.standard_normal(25))),
    )
    problem = hg.Problem(
        backend=backend,
        steps=steps,
        dynamics=hg.GradientDescent(rate=lambda hyper, t: 1.0),
        initial=lambda hyper: 0 * hyper,
        inner=lambda w, hyper, t: (
            xp.mean(xp.log(1 + xp.exp(-signs * (x @ w)))) + xp.sum(xp.exp(hyper) * w**2)
        ),
        outer=lambda w, hyper: xp.mean(xp.log(1 + xp.exp(-signs * (x2 @ w)))),
    )
    return problem, np.linspace(-3, -1, n)


def unrolled(problem, hyper):
    """The hypergradient by automatic differentiation of the whole loop: independent of every solver, decays as really used."""
    backend = problem.backend
    names = list(problem.dynamics.functions)

    def through(value):  # the value rounded, the derivative as if it were not
        number = value.detach() if hasattr(value, "detach") else getattr(value, "_value", value)
        return value + (namespace(number).round(number * 2**16) / 2**16 - number)

    def whole(h):
        state = (problem.initial(h),)
        if problem.dynamics.vectors == 2:
            velocity = problem.dynamics.velocity
            state = (*state, velocity(h) if velocity else 0 * state[0])
        for t in range(problem.steps):
            w = state[0]
            if backend.name == "torch":
                leaf = w if w.requires_grad else w.detach().requires_grad_()
                gradient = backend.xp.autograd.grad(
                    problem.inner(leaf, h, t), leaf, create_graph=True
                )[0]
            else:
                from autograd import grad

                gradient = grad(lambda w, t=t: problem.inner(w, h, t))(w)
            values = [f(h, t) for f in problem.dynamics.functions.values()]
            values = [
                through(v) if name == "decay" else v for name, v in zip(names, values, strict=True)
            ]
            if problem.dynamics.vectors == 1:
                state = (w - values[0] * gradient,)
            elif isinstance(problem.dynamics, hg.Momentum):
                velocity = values[1] * state[1] - (1 - values[1]) * gradient
                state = w + values[0] * velocity, velocity
            else:
                velocity = values[1] * state[1] + gradient
                state = w - values[0] * velocity, velocity
        return problem.outer(state[0], h)

    value, slope = backend.gradients(whole, backend.array(hyper))
    return backend.numpy(value), backend.numpy(slope)


# ---- cases that several tests share

CASES = {
    "scalar decay": everything,
    "decay 0.99": functools.partial(everything, decay=0.99),
    "decay 0.3": functools.partial(everything, decay=0.3),
    "per coordinate": functools.partial(everything, per_coordinate=True),
    "heavy ball": functools.partial(everything, dynamics=hg.HeavyBall, decay=0.5),
    "one weight": functools.partial(everything, n=1, per_coordinate=True),
    "no steps": functools.partial(everything, steps=0),
    "one step": functools.partial(everything, steps=1),
    "layers": functools.partial(layered, steps=8),
}
EXACT = {
    "stored": hg.Reverse(),
    "checkpointed": hg.Reverse(hg.checkpointed),
    "reversible": hg.Reverse(hg.reversible),
    "all of truncated": hg.Reverse(functools.partial(hg.truncated, last=99)),
    "forward": hg.Forward(),
}
RULES = {
    "descent": hg.Descent(0.05),
    "momentum": hg.Descent(0.05, 0.8),
    "rmsprop": hg.RMSProp(0.02),
    "adam": hg.Adam(0.05),
    "adam as in the paper": hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=1e-4),
}


def loops(backend):
    """Every outer loop on a small problem, without its number of steps: (loop(steps=, rule=, resume=), what a step holds)."""
    problem, hyper = ridge(backend, steps=5)
    project, implicit = hg.box(-3.0, 0.0), hg.Implicit(hg.Neumann(4, 0.1))

    def drifting(k):
        return dataclasses.replace(problem, outer=lambda w, h: (1 + 0.1 * k) * problem.outer(w, h))

    return {
        "descend": functools.partial(hg.descend, hg.Reverse(), problem, hyper, project=project),
        "descend, new problems": functools.partial(
            hg.descend,
            hg.Reverse(),
            lambda k: ridge(backend, steps=3 + k)[0],
            hyper,
            project=project,
        ),
        "realtime, new problems": functools.partial(
            hg.realtime, drifting, hyper, every=3, project=project
        ),
        "alternate, new problems": functools.partial(
            hg.alternate, implicit, drifting, hyper, every=4, project=project
        ),
        "realtime": functools.partial(hg.realtime, problem, hyper, every=3, project=project),
        "alternate": functools.partial(
            hg.alternate, implicit, problem, hyper, every=4, project=project
        ),
    }


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))[0]
    return (basis * eigenvalues) @ basis.T


def solved(backend, solve, a, b):
    a = backend.array(a)
    return backend.numpy(solve(lambda v: a @ v, backend.array(b)))


def gap(a, b) -> float:
    """Largest difference, relative to the largest number."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
