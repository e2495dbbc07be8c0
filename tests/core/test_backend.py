"""The derivatives of a backend: finite differences, each other, and closed forms."""

import numpy as np
import pytest

import hgcore as hg

RNG = np.random.default_rng(0)
W, H, MATRIX = RNG.standard_normal(4), RNG.standard_normal(3), RNG.standard_normal((4, 4))


def differences(f, x, step=1e-6):
    """Central differences (len(x), ...), error about 1e-10 for numbers of size 1."""
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def derivatives(backend, f, w, h, q, dh):
    at, (gradient, push) = backend.linearize(f, w, h), backend.pushforward(f, w, h)
    return {
        "gradients": backend.gradients(f, w, h),
        "gradient": (backend.gradient(f, w, h), at.gradient, gradient),
        "products": (*at.product(q), at.hvp(q), at.mixed(q)),
        "push": (push(q, dh),),
    }


def test_derivatives_equal_finite_differences(backend):
    """The separate derivatives have the bits of the joint ones: Reversible depends on these."""
    xp, matrix = backend.xp, backend.array(MATRIX)

    def f(w, h):
        quadratic = xp.sum(h**3) * xp.sum(w**2) + h[1] * h[2]
        return xp.sum(xp.sin(matrix @ w) * xp.exp(h[0] * w)) + quadratic

    def value(w, h):
        return float(backend.evaluate(f, backend.array(w), backend.array(h)))

    def gradient(w, h):
        return backend.numpy(backend.gradient(f, backend.array(w), backend.array(h)))

    q, dh = RNG.standard_normal(4), RNG.standard_normal(3)
    found = derivatives(backend, f, *map(backend.array, (W, H, q, dh)))
    here, by_w, by_h = found["gradients"]
    assert float(here) == value(W, H)
    assert np.allclose(by_w, differences(lambda w: value(w, H), W), atol=1e-7)
    assert np.allclose(by_h, differences(lambda h: value(W, h), H), atol=1e-7)
    curvature, mixed, hvp, mixed_alone = found["products"]
    hessian = differences(lambda w: gradient(w, H), W)
    by_hyper = differences(lambda h: gradient(W, h), H)
    assert np.allclose(curvature, hessian @ q, atol=1e-6)
    assert np.allclose(mixed, by_hyper @ q, atol=1e-6)
    assert np.allclose(found["push"][0], hessian @ q + dh @ by_hyper, atol=1e-6)
    assert np.array_equal(hvp, curvature) and np.array_equal(mixed_alone, mixed)
    alone, joint, pushed = found["gradient"]
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


def test_missing_dependence_gives_zeros(backend):
    w, h = backend.array(W), backend.array(H)
    losses = lambda w, h: (h * h).sum(), lambda w, h: (w * 2.0).sum(), lambda w, h: (w * 0).sum()
    for f in losses:
        found = derivatives(backend, f, w, h, w, h)
        assert [tuple(x.shape) for x in found["gradients"]] == [(), (4,), (3,)]
        assert [len(x) for x in found["products"]] == [4, 3, 4, 3]
        assert not any(x.any() for x in (*found["products"], *found["push"]))


BACKENDS = hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_results_have_no_graph_and_one_precision(backend):
    w, h = backend.array(W[:3]), backend.array(H)
    found = derivatives(backend, lambda w, h: (w * w * h).sum(), w, h, w, h)
    results = [x for several in found.values() for x in several]
    results += [backend.evaluate(lambda w: w @ w, w), *backend.jvp(lambda h: (h * h,), h)[1](h)]
    results += [*backend.vjp(lambda h: (h * h,), h)[0], *backend.vjp(lambda h: (h,), h)[1]((h,))]
    assert not any(getattr(x, "requires_grad", False) or hasattr(x, "_node") for x in results)
    assert {str(backend.numpy(x).dtype) for x in results} == {backend.dtype}


def test_list_of_scalars_keeps_derivatives(backend):
    f = lambda h: (backend.traced([h[0] ** 2, h[1]]),)  # noqa: E731
    (values,), pull = backend.vjp(f, backend.array([3.0, 5.0]))
    assert values.tolist() == [9, 5]
    assert pull((backend.array([1.0, 10.0]),))[0].tolist() == [6, 10]
