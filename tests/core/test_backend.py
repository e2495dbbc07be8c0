"""The derivatives of a backend: finite differences, each other, and closed forms."""

import numpy as np
import pytest
from catalogue import same_bits

import hgcore as hg

RNG = np.random.default_rng(0)
W, H, MATRIX = RNG.standard_normal(4), RNG.standard_normal(3), RNG.standard_normal((4, 4))
Q, DH = RNG.standard_normal(4), RNG.standard_normal(3)


def differences(f, x, step=1e-6):
    """Central differences (len(x), ...), error about 1e-10 for numbers of size 1."""
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def derivatives(backend, f, *at):
    """Return the value and both gradients, d/dw of other routines, (H q, B'q) twice, H q + B dh."""
    w, h, q, dh = map(backend.array, at)
    joint, (gradient, push) = backend.linearize(f, w, h), backend.pushforward(f, w, h)
    gradients = backend.gradient(f, w, h), joint.gradient, gradient
    products = *joint.product(q), joint.hvp(q), joint.mixed(q)
    return backend.gradients(f, w, h), gradients, products, [push(q, dh)]


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

    (here, by_w, by_h), gradients, products, (pushed,) = derivatives(backend, f, W, H, Q, DH)
    hessian = differences(lambda w: gradient(w, H), W)
    by_hyper = differences(lambda h: gradient(W, h), H)
    assert float(here) == value(W, H)
    assert np.allclose(by_w, differences(lambda w: value(w, H), W), atol=1e-7)
    assert np.allclose(by_h, differences(lambda h: value(W, h), H), atol=1e-7)
    assert np.allclose(products[0], hessian @ Q, atol=1e-6)
    assert np.allclose(products[1], by_hyper @ Q, atol=1e-6)
    assert np.allclose(pushed, hessian @ Q + DH @ by_hyper, atol=1e-6)
    assert same_bits(products[:2], products[2:]) and same_bits(gradients[1:], gradients[:1] * 2)


def test_vjp_is_the_transpose_of_jvp(backend):
    """Of a scalar, a vector, a constant and a sum; 1e-14 is rounding."""

    def f(h, w):
        return backend.xp.exp(h[0]) * h[1], h**2, backend.traced(0.25), w.sum() + h[0] * w

    point, tangents = ([backend.array(x) for x in pair] for pair in ((H, W), (DH, Q)))
    (values, pull), (again, push) = backend.vjp(f, *point), backend.jvp(f, *point)
    assert same_bits(values, again)
    pushed, cotangents = push(*tangents), [value + 0.3 for value in values]
    products = [(x * y).sum() for x, y in zip(pushed, cotangents, strict=True)]
    products += [-(x @ y) for x, y in zip(tangents, pull(cotangents), strict=True)]
    assert abs(sum(map(float, products))) < 1e-14
    assert float(pushed[2]) == 0 and np.allclose(pushed[1], 2 * H * DH)


@pytest.mark.parametrize("backend", [hg.Autograd(), hg.Torch(), hg.Torch(dtype="float32")])
def test_results_have_no_graph_and_one_precision(backend):
    w, h = backend.array(W[:3]), backend.array(H)
    results = sum(map(list, derivatives(backend, lambda w, h: (w * w * h).sum(), w, h, w, h)), [])
    results += [backend.evaluate(lambda w: w @ w, w), *backend.jvp(lambda h: (h * h,), h)[1](h)]
    results += [*backend.vjp(lambda h: (h * h,), h)[0], *backend.vjp(lambda h: (h,), h)[1]((h,))]
    assert not any(getattr(x, "requires_grad", False) or hasattr(x, "_node") for x in results)
    assert {str(backend.numpy(x).dtype) for x in results} == {backend.dtype}


def test_list_of_scalars_keeps_derivatives(backend):
    f = lambda h: (backend.traced([h[0] ** 2, h[1]]),)  # noqa: E731
    (values,), pull = backend.vjp(f, backend.array([3.0, 5.0]))
    assert values.tolist() == [9, 5]
    assert pull((backend.array([1.0, 10.0]),))[0].tolist() == [6, 10]
