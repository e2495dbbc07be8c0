"""Optimizers against torch.optim, and in the corners: zero gradients, zero moments, clipping."""

import catalogue
import numpy as np
import pytest
from catalogue import gap

import hgcore as hg

torch = pytest.importorskip("torch")

DECAY, BETA2 = 0.875, 1 - 2.0**-10  # multiples of 2**-16: nothing is rounded
TORCH = {
    "heavy ball": lambda w: torch.optim.SGD(w, 0.01, momentum=DECAY),
    "descent": lambda w: torch.optim.SGD(w, 0.01),
    "rmsprop": lambda w: torch.optim.RMSprop(w, 0.01, alpha=BETA2, eps=1e-8, momentum=DECAY),
    "adam": lambda w: torch.optim.Adam(w, 0.01, (DECAY, BETA2), 1e-8),
    "adamw": lambda w: torch.optim.AdamW(w, 1e-3, (DECAY, BETA2), 1e-8, weight_decay=0.01),
}


def quartic(backend, name, steps=40, rate=0.01, **options):
    """A quartic of 20 weights, trained by the optimizer of that name."""
    start = np.random.default_rng(0).standard_normal(20)
    rate = 1e-3 if name == "adamw" else rate
    options = {"beta2": BETA2, "epsilon": 1e-8, "weight_decay": 0.01} | options
    return hg.Problem(
        backend,
        inner_loss=lambda w, h, t: ((w - 0.5) ** 4).sum() + (w[::2] ** 2).sum() * (1 + t % 3),
        outer_loss=lambda w, h: (w**2).sum(),
        optimizer=catalogue.optimizer(name, rate, DECAY, **options),
        initial=start,
        steps=steps,
    ), start


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", TORCH)
def test_training_equals_torch_optim(backend, name, clip):
    """1e-9 for the sums in another order; torch's clipping adds 1e-6 to the norm it divides by."""
    problem, start = quartic(backend, name, clip=clip)
    w = torch.tensor(start, requires_grad=True)
    theirs = TORCH[name]([w])
    for t in range(problem.steps):
        theirs.zero_grad()
        problem.inner_loss(w, None, t).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([w], clip)
        theirs.step()
    solvers = [hg.Stored(), hg.Reversible()] if problem.optimizer.reversible else [hg.Stored()]
    for strategy in solvers:
        ours = backend.numpy(strategy.train(problem, backend.array([])).final[0])
        assert gap(ours, w.detach()) < (1e-5 if clip else 1e-9)


@pytest.mark.parametrize("strategy", [hg.Stored(), hg.Checkpointed(), hg.Reversible()], ids=repr)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
def test_zero_gradients_give_no_nan(strategy, name, dtype):
    """A weight that never moves, one that gets its first gradient late, one whose gradient ends."""
    backend = hg.Torch(dtype=dtype)

    def inner_loss(w, h, t):
        late = (w[1] - 1) ** 2 if t > 5 else 0 * w[1]
        early = (w[2] - 1) ** 2 if t < 5 else 0 * w[2]
        return late + early + h[0] * (w[3] ** 2)

    for clip in (None, 0.5):
        problem = hg.Problem(
            backend,
            inner_loss,
            outer_loss=lambda w, h: (w**2).sum(),
            optimizer=catalogue.optimizer(
                name, lambda h, t: h[1], 0.9, 0.999, lambda h, t: h[2], clip=clip
            ),
            initial=lambda h: backend.array([0.5, 0.5, 0.5, 0.0]),
            steps=12,
        )
        solver = hg.Reverse(strategy)
        if clip is not None:  # nothing moves at all
            problem = hg.Problem(
                backend, lambda w, h, t: 0 * w.sum(), problem.outer_loss, problem.optimizer,
                lambda h: h[:1] * backend.array([0.5, 0.0]), 12,
            )  # fmt: skip
        result = solver(problem, [1.0, 0.01, 1e-8])
        assert np.isfinite(backend.numpy(result.state)).all()
        assert np.isfinite(backend.numpy(result.grad)).all()


def test_fade_is_maclaurins_adam(backend):
    """Maclaurin's code: the first moment fades, its bias correction does not."""
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((6, 3))
    adam = hg.Adam(0.04, 0.9, 0.99, 1e-4, fade=0.5)
    x = mean = square = np.zeros(3)
    state = tuple(backend.array(np.zeros(3)) for _ in range(3))
    for i, g in enumerate(slopes):
        keep = 0.9 * 0.5**i
        mean, square = keep * mean + (1 - keep) * g, 0.99 * square + 0.01 * g**2
        mhat, vhat = mean / (1 - 0.9 ** (i + 1)), square / (1 - 0.99 ** (i + 1))
        x = x - 0.04 * mhat / (np.sqrt(vhat) + 1e-4)
        state = adam.step(state, backend.array(g), adam.coefficients(backend, state[0], None, i))
        assert np.allclose(backend.numpy(state[0]), x, rtol=1e-12)
    assert not adam.reversible


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hg.Momentum("fast", 0.9), "Momentum: rate must be a number, .* got 'fast'"),
        (lambda: hg.Adam(0.1, beta1=None), "Adam: beta1 must be a number, a vector or a function"),
        (lambda: hg.GradientDescent(float), "rate must be a number, .*got <class 'float'>"),
        (lambda: hg.AdamW(0.1, clip={}), "clip must be a number"),
    ],
)
def test_coefficient_of_another_kind_raises(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("beta", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [1.0, 1 - 2.0**-18, 0.0, -0.5, float("nan")])
def test_beta_out_of_range_raises(backend, beta, value):
    """1 - 2**-18 rounds to one, which would divide by 1 - beta**t = 0."""
    problem, hyper = catalogue.bowl(backend, optimizer=hg.Adam(0.1, **{beta: value}))
    with pytest.raises(ValueError, match=rf"{beta} must lie in \[2\*\*-16, 1 - 2\*\*-16\], got"):
        hg.Reverse()(problem, hyper)


@pytest.mark.parametrize("decay", [20.0, 10.0, -0.1])
def test_shrink_out_of_range_raises(backend, decay):
    problem, hyper = catalogue.bowl(backend, optimizer=hg.AdamW(0.1, weight_decay=decay))
    with pytest.raises(ValueError, match=r"1 - rate \* weight_decay must lie in"):
        hg.Reverse(hg.Reversible())(problem, hyper)
