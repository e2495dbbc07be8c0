"""The derivatives of a backend: finite differences, each other, and closed forms."""

import numpy as np
import pytest
import torch

import hgcore as hg

RNG = np.random.default_rng(0)
W, H, MATRIX = RNG.standard_normal(4), RNG.standard_normal(3), RNG.standard_normal((4, 4))


@pytest.fixture
def curved(backend):
    """A function of (w (4,), h (3,)) with every second derivative, and the point (W, H)."""
    xp, matrix = backend.xp, backend.array(MATRIX)

    def f(w, h):
        quadratic = xp.sum(h**3) * xp.sum(w**2) + h[1] * h[2]
        return xp.sum(xp.sin(matrix @ w) * xp.exp(h[0] * w)) + quadratic

    return f, backend.array(W), backend.array(H)


def differences(f, x, step=1e-6):
    """Return central differences (len(x), ...), error about 1e-10 for numbers of size 1."""
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def derivatives(backend, f, w, h, q, dh):
    """Return all that a backend derives of a loss, for directions q of w and dh of h."""
    linearized = backend.linearize(f, w, h)
    gradient, push = backend.pushforward(f, w, h)
    return {
        "gradients": backend.gradients(f, w, h),
        "gradient": (backend.gradient(f, w, h), linearized.gradient, gradient),
        "products": (*linearized.product(q), linearized.hvp(q), linearized.mixed(q)),
        "push": (push(q, dh),),
    }


def test_gradients_equal_finite_differences(backend, curved):
    f, w, h = curved

    def value(w, h):
        return float(backend.evaluate(f, backend.array(w), backend.array(h)))

    found, by_w, by_h = backend.gradients(f, w, h)
    assert float(found) == value(W, H)
    assert np.allclose(by_w, differences(lambda w: value(w, H), W), atol=1e-7)
    assert np.allclose(by_h, differences(lambda h: value(W, h), H), atol=1e-7)


def test_products_equal_finite_differences(backend, curved):
    """H q, B'q and H q + B dh; the separate derivatives have the bits of the joint ones."""
    q, dh = RNG.standard_normal(4), RNG.standard_normal(3)

    def gradient(w, h):
        return backend.numpy(backend.gradient(curved[0], backend.array(w), backend.array(h)))

    found = derivatives(backend, *curved, backend.array(q), backend.array(dh))
    curvature, mixed, hvp, mixed_alone = found["products"]
    hessian = differences(lambda w: gradient(w, H), W)
    by_hyper = differences(lambda h: gradient(W, h), H)
    assert np.allclose(curvature, hessian @ q, atol=1e-6)
    assert np.allclose(mixed, by_hyper @ q, atol=1e-6)
    assert np.allclose(found["push"][0], hessian @ q + dh @ by_hyper, atol=1e-6)
    assert np.array_equal(hvp, curvature) and np.array_equal(mixed_alone, mixed)
    alone, joint, pushed = found["gradient"]  # Reversible depends on these
    assert np.array_equal(alone, joint) and np.array_equal(alone, pushed)


def test_vjp_is_the_transpose_of_jvp(backend):
    """Of a scalar, a vector, a constant and a sum; 1e-14 is rounding."""
    xp = backend.xp

    def f(h, w):
        return xp.exp(h[0]) * h[1], xp.sin(h) * h[2], backend.traced(0.25), xp.sum(w) + h[0] * w

    point = backend.array(H), backend.array(W)
    values, pull = backend.vjp(f, *point)
    again, push = backend.jvp(f, *point)
    assert all(np.array_equal(a, b) for a, b in zip(values, again, strict=True))
    tangents = [backend.array(RNG.standard_normal(size)) for size in (3, 4)]
    cotangents = [backend.array(RNG.standard_normal(np.shape(value))) for value in values]
    pairs = list(zip(push(*tangents), cotangents, strict=True))
    pairs += [(-x, y) for x, y in zip(tangents, pull(tuple(cotangents)), strict=True)]
    assert abs(sum(np.sum(backend.numpy(a * b)) for a, b in pairs)) < 1e-14
    assert float(push(*tangents)[2]) == 0 and float(abs(push(*tangents)[1]).sum()) > 0


INDEPENDENT = {
    "of hyper": lambda w, h: (h * h).sum(),
    "linear": lambda w, h: (w * 2.0).sum(),
    "constant": lambda w, h: (w * 0 + 1.0).sum(),
}


@pytest.mark.parametrize("f", INDEPENDENT.values(), ids=INDEPENDENT)
def test_missing_dependence_gives_zeros(backend, f):
    """In the right shapes."""
    w, h = backend.array(W), backend.array(H)
    found = derivatives(backend, f, w, h, w, h)
    assert [tuple(x.shape) for x in found["gradients"]] == [(), (4,), (3,)]
    assert [len(x) for x in found["products"]] == [4, 3, 4, 3]
    assert not any(x.any() for x in (*found["products"], *found["push"]))


@pytest.mark.parametrize("f", [lambda w, h: w, lambda w, h: w[:1], lambda w, h: 1.0])
def test_loss_must_be_a_scalar(backend, f):
    for verb in (backend.gradients, backend.gradient, backend.linearize, backend.pushforward):
        with pytest.raises(ValueError, match=r"must return a scalar of shape \(\)"):
            verb(f, backend.array(W), backend.array(H))


@pytest.mark.parametrize(
    "backend", [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")], ids=repr
)
def test_results_have_no_graph_and_one_precision(backend):
    w, h = backend.array(W[:3]), backend.array(H)
    found = derivatives(backend, lambda w, h: (w * w * h).sum(), w, h, w, h)
    results = [x for several in found.values() for x in several]
    results += [backend.evaluate(lambda w: w @ w, w), *backend.jvp(lambda h: (h * h,), h)[1](h)]
    results += [*backend.vjp(lambda h: (h * h,), h)[0], *backend.vjp(lambda h: (h,), h)[1]((h,))]
    assert not any(getattr(x, "requires_grad", False) or hasattr(x, "_node") for x in results)
    assert {str(backend.numpy(x).dtype) for x in results} == {backend.dtype}


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float32, torch.tensor])
def test_array_takes_anything_with_numbers(backend, kind):
    """And floats returns a list of numbers."""
    vector = backend.array(kind([1, 2, 3]))
    assert type(vector) is type(backend.xp.asarray([0.0]))
    assert backend.numpy(vector).dtype == np.float64 and vector.tolist() == [1, 2, 3]
    assert backend.floats([]) == []
    assert backend.floats([backend.array(2.0), backend.array(3.0)]) == [2.0, 3.0]
    assert backend.host_view(backend.array(2.0)) == 2.0
    assert np.array_equal(backend.host_view(backend.array(W)), W)


def test_list_of_scalars_keeps_derivatives(backend):
    def f(h):
        return (backend.traced([h[0] ** 2, h[1]]),)

    (values,), pull = backend.vjp(f, backend.array([3.0, 5.0]))
    assert values.tolist() == [9, 5]
    assert pull((backend.array([1.0, 10.0]),))[0].tolist() == [6, 10]
