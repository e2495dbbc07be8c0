"""The verbs of a backend, against each other and against finite differences."""

import catalogue
import numpy as np
import pytest
import torch

import hgcore as hg
from hgcore.arrays import namespace
from hgcore.backend import make

BACKENDS = [hg.Autograd(), hg.Torch()]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
RNG = np.random.default_rng(0)
W, H, MATRIX = RNG.standard_normal(4), RNG.standard_normal(3), RNG.standard_normal((4, 4))


def curved(backend):
    """A function of (w (4,), h (3,)) with every second derivative."""
    xp, matrix = backend.xp, backend.array(MATRIX)
    return lambda w, h: (
        xp.sum(xp.sin(matrix @ w) * xp.exp(h[0] * w)) + xp.sum(h**3) * xp.sum(w**2) + h[1] * h[2]
    )


def slope(f, x, step=1e-6):
    """Central differences: their error is some 1e-10 for numbers of size one."""
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


@both
def test_the_gradient_is_that_of_finite_differences(backend):
    f = curved(backend)
    number = lambda w, h: float(backend.evaluate(f, backend.array(w), backend.array(h)))  # noqa: E731
    value, by_w, by_h = backend.gradients(f, backend.array(W), backend.array(H))
    assert float(value) == number(W, H)
    assert np.allclose(backend.numpy(by_w), slope(lambda w: number(w, H), W), atol=1e-7)
    assert np.allclose(backend.numpy(by_h), slope(lambda h: number(W, h), H), atol=1e-7)


@both
def test_second_order_products_are_those_of_finite_differences(backend):
    f, q = curved(backend), RNG.standard_normal(4)
    gradient = lambda w, h: backend.numpy(backend.gradient(f, backend.array(w), backend.array(h)))  # noqa: E731
    joint = backend.second_order(f, backend.array(W), backend.array(H))
    curvature, mixed = joint.product(backend.array(q))
    assert np.allclose(backend.numpy(curvature), slope(lambda w: gradient(w, H) @ q, W), atol=1e-6)
    assert np.allclose(backend.numpy(mixed), slope(lambda h: gradient(W, h) @ q, H), atol=1e-6)
    (alone,) = joint.product(backend.array(q), mixed=False)
    assert np.array_equal(backend.numpy(alone), backend.numpy(curvature))


@both
def test_the_plain_gradient_has_the_bits_of_the_joint_one(backend):
    f, w, h = curved(backend), backend.array(W), backend.array(H)
    assert bool((backend.gradient(f, w, h) == backend.second_order(f, w, h).gradient).all())


@both
def test_gradients_along_tangents_are_products_with_the_hessian(backend):
    f, rows, columns = curved(backend), RNG.standard_normal((3, 4)), RNG.standard_normal((3, 3))
    args = tuple(map(backend.array, (W, H)))
    gradient, along = backend.gradient_along(f, *args)
    pushed = np.stack(
        [
            backend.numpy(along(backend.array(row), backend.array(column)))
            for row, column in zip(rows, columns, strict=True)
        ]
    )
    joint = backend.second_order(f, *args)
    units = [joint.product(row) for row in backend.array(np.eye(4))]
    hessian, mixed = (np.stack([backend.numpy(pair[i]) for pair in units]) for i in (0, 1))
    assert np.array_equal(backend.numpy(gradient), backend.numpy(joint.gradient))
    assert np.allclose(pushed, rows @ hessian + columns @ mixed.T, atol=1e-12)


@both
def test_a_pullback_is_the_transpose_of_a_pushforward(backend):
    xp = backend.xp
    parts = [
        lambda h: xp.exp(h[0]) * h[1],
        lambda h: xp.sin(h) * h[2],
        lambda h: 0.25,
    ]  # a scalar, a vector, a constant
    h, basis = backend.array(H), backend.array(np.eye(3))
    values, pull = backend.pullback(lambda h: tuple(f(h) for f in parts), h)
    cotangents = [backend.array(RNG.standard_normal(np.shape(v))) for v in values]
    again, push = backend.pushforward(lambda h: tuple(f(h) for f in parts), h)
    assert all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(values, again, strict=True)
    )
    pushed = [
        [0.0 if tangent is None else backend.numpy(tangent) for tangent in push(unit)]
        for unit in basis
    ]
    assert not any(tangents[2] for tangents in pushed)
    expected = [
        sum(np.sum(part * backend.numpy(c)) for part, c in zip(tangents, cotangents, strict=True))
        for tangents in pushed
    ]
    assert np.allclose(
        backend.numpy(pull([lambda c=c: c for c in cotangents])), expected, atol=1e-14
    )


class Cube(torch.autograd.Function):
    """x**3, once differentiable in reverse and in forward mode."""

    generate_vmap_rule = True
    forward = staticmethod(lambda x: x**3)
    jvp = staticmethod(lambda ctx, tangent: 3 * ctx.saved_tensors[0] ** 2 * tangent)
    backward = staticmethod(
        torch.autograd.function.once_differentiable(
            lambda ctx, cotangent: 3 * ctx.saved_tensors[0] ** 2 * cotangent
        )
    )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class Detached(Cube):
    """Of whose slope torch sees no graph, and says nothing."""

    backward = staticmethod(
        lambda ctx, cotangent: (3 * ctx.saved_tensors[0] ** 2 * cotangent).detach()
    )


@pytest.mark.parametrize("cube", [Cube.apply, Detached.apply])
def test_what_cannot_be_differentiated_twice_in_reverse_is_pushed_forward_all_the_same(cube):
    backend, tangent = hg.Torch(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    h = backend.array(H)
    values, push = backend.pushforward(
        lambda h: (torch.exp(h), cube(h), cube(h[0]) * h[1], torch.round(h)), h
    )
    expected = (
        torch.exp(h),
        3 * h**2,
        torch.stack([3 * h[0] ** 2 * h[1], h[0] ** 3, 0 * h[0]]),
        0 * h,
    )
    for found, wanted in zip(push(tangent), expected, strict=True):
        assert torch.allclose(
            found, wanted @ tangent if found.ndim == 0 else wanted * tangent, atol=1e-14
        )


@both
@pytest.mark.parametrize(
    "f",
    [lambda w, h: (h * h).sum(), lambda w, h: (w * 2.0).sum(), lambda w, h: (w * 0 + 1.0).sum()],
)
def test_what_does_not_depend_on_an_argument_has_zero_derivatives(backend, f):
    w, h = backend.array(W), backend.array(H)
    gradient, product = backend.second_order(f, w, h)
    assert gradient.shape == (4,) and all(float(abs(x).sum()) == 0 for x in product(w))
    assert backend.gradients(f, w, h)[2].shape == (3,)
    assert float(abs(backend.gradient_along(f, w, h)[1](w, h)).sum()) == 0


@both
@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        np.float32([1, 2, 3]),
        torch.tensor([1, 2, 3]),
    ],
)
def test_anything_with_numbers_comes_in_as_a_vector(backend, values):
    vector = backend.array(values)
    assert (
        namespace(vector) in (np, torch)
        and str(vector.dtype).endswith("float64")
        and backend.numpy(vector).tolist() == [1, 2, 3]
    )


@both
def test_no_graph_comes_out(backend):
    f, w, h = curved(backend), backend.array(W), backend.array(H)
    results = [
        *backend.gradients(f, w, h),
        backend.gradient(f, w, h),
        backend.evaluate(f, w, h),
        *backend.second_order(f, w, h).product(w),
        backend.gradient_along(f, w, h)[0],
        backend.gradient_along(f, w, h)[1](w, h),
    ]
    assert not any(getattr(x, "requires_grad", False) or hasattr(x, "_node") for x in results)


@both
@pytest.mark.parametrize("f", [lambda w, h: w, lambda w, h: w[:1], lambda w, h: 1.0])
def test_an_objective_that_is_not_a_scalar_is_refused(backend, f):
    w, h = backend.array(W), backend.array(H)
    for verb in (backend.gradients, backend.gradient, backend.second_order, backend.gradient_along):
        with pytest.raises(ValueError, match=r"must return a scalar of shape \(\)"):
            verb(f, w, h)


def test_a_backend_is_made_by_name_or_refused_with_the_way_out():
    assert make("autograd") == hg.Autograd() and make("torch", "cpu", "float32") == hg.Torch(
        "cpu", "float32"
    )
    with pytest.raises(ValueError, match="'autograd' or 'torch'"):
        make("jax")
    with pytest.raises(ValueError, match="use backend 'torch'"):
        make("autograd", "cpu", "float32")
    with pytest.raises(ValueError, match="'float32' or 'float64'"):
        hg.Torch(dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="sees no GPU; use 'cpu'"):
        hg.Torch("cuda")


def test_single_precision_stays_single():
    backend = hg.Torch(dtype="float32")
    f, w, h = curved(backend), backend.array(W), backend.array(H)
    assert {
        x.dtype for x in (*backend.gradients(f, w, h), *backend.second_order(f, w, h).product(w))
    } == {torch.float32}
    assert backend.exact(w).dtype == backend.numpy(w).dtype == np.float32


def test_the_thread_count_of_the_forward_pass_is_restored():
    before = torch.get_num_threads()
    try:
        with hg.Torch().pinned() as pin:
            torch.set_num_threads(before + 1)
            pin()
            assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_numbers_come_over_in_one_list():
    for backend in BACKENDS:
        assert backend.numbers([]) == [] and backend.numbers([backend.array(2.0)]) == [2.0]
        assert backend.numbers([backend.array(2.0), backend.array(3.0)]) == [2.0, 3.0]


def test_a_list_of_tensors_keeps_their_derivatives():
    backend = hg.Torch()
    (values,), pull = backend.pullback(lambda h: ([h[0] ** 2, h[1]],), backend.array([3.0, 5.0]))
    assert values.tolist() == [9, 5] and pull((lambda: backend.array([1.0, 10.0]),)).tolist() == [
        6,
        10,
    ]


def test_without_graphs_there_are_no_derivatives():
    problem, hyper = catalogue.everything(hg.Torch())
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="nothing has a derivative in it: leave it"),
    ):
        hg.Reverse()(problem, hyper)
    with torch.no_grad():
        assert torch.equal(
            hg.Reverse()(problem, hyper).grad, hg.Reverse()(*catalogue.everything(hg.Torch())).grad
        )
