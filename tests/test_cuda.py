"""The same solvers on a GPU: agreement with the CPU, exact reversal with integers on the device. Skipped where there is none."""

import shutil

import catalogue
import numpy as np
import pytest
from catalogue import CASES, EXACT, gap

import hgcore as hg
from hgcore import benchmarks, vectors

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Stranger(hg.Torch):
    """A CPU treated like a GPU: integers in torch's own memory, a look at the numbers only now and then."""

    patience = 64

    def exact(self, array):
        return array.detach()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_path_of_a_device_gives_the_bits_of_the_path_of_a_cpu(case):
    for there, here in zip(
        *(hg.Reverse(hg.reversible)(*case(backend)) for backend in (Stranger(), hg.Torch())),
        strict=True,
    ):
        assert np.array_equal(there, here)


def test_the_path_of_a_device_names_the_step_that_diverged():
    problem, hyper = catalogue.everything(Stranger(), steps=200)
    hyper[:200] = 5.0
    with pytest.raises(hg.Diverged, match="at step [0-3]:|at step [0-3];"):
        hg.Reverse(hg.reversible)(problem, hyper)


class OnDevice(TorchDispatchMode):
    """Refuses every operation on a tensor of the host: a transfer, for which a GPU would wait."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        tensors = [
            x for x in tree_leaves((arguments, keywords or {})) if isinstance(x, torch.Tensor)
        ]
        assert all(x.device.type == "meta" for x in tensors), f"{function} of a tensor on the host"
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("remember", [hg.reversible, hg.stored])
@pytest.mark.parametrize("form", ["known", "closure", "module"])
def test_no_step_waits_for_a_device_or_makes_it_wait(form, remember, monkeypatch):
    """On torch's device without numbers whatever asks for one raises. What is asked before, after and every 64 steps is left out here."""
    problem, hyper = benchmarks.peers.posed(
        benchmarks.peers.Task((5, 4, 3), 6, 9, "float32", "meta"), form
    )
    for owner, name, answer in [
        (hg.Problem, "hyper", hyper),
        (hg.Problem, "check", [0.9] * 9),
        (hg.problem.Watch, "look", None),
        (hg.reversible, "_agreeing", problem.gradient),
        (hg.reversal.ExactMomentum, "misses", 0),
        (hg.solvers, "require_finite", None),
    ]:
        monkeypatch.setattr(owner, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(
        torch, "as_tensor", lambda tensor, **keywords: tensor.to(**keywords)
    )  # a number would be brought there
    with OnDevice():
        assert hg.Reverse(remember)(problem, hyper).grad.device.type == "meta"


@pytest.fixture
def compiled(monkeypatch):
    """The verbs compiled whatever the number of weights, on the device that tensors are on."""
    reversal, plain = hg.reversal, hg.reversal._verbs
    monkeypatch.setattr(
        reversal,
        "_verbs",
        lambda bits, *others: (
            plain(bits, *others) if isinstance(bits, np.ndarray) else vectors.compiled(bits.device)
        ),
    )
    vectors.compiled.cache_clear()
    yield
    vectors.compiled.cache_clear()


@pytest.mark.filterwarnings(
    "error::RuntimeWarning"
)  # what cannot be compiled, or comes out otherwise, is warned of
@pytest.mark.parametrize("case", [catalogue.everything, catalogue.layered])
def test_verbs_compiled_into_kernels_give_the_bits_of_the_operations(case, compiled):
    pytest.importorskip("torch._inductor")
    if not shutil.which("g++"):
        pytest.skip("torch compiles for a CPU by a C++ compiler")
    for there, here in zip(
        *(hg.Reverse(hg.reversible)(*case(backend)) for backend in (Stranger(), hg.Torch())),
        strict=True,
    ):
        assert np.array_equal(there, here)


def test_a_verb_that_comes_out_otherwise_is_not_used(compiled, monkeypatch):
    monkeypatch.setattr(
        torch,
        "compile",
        lambda verb, **_: lambda *arguments: tuple(1 + part for part in verb(*arguments)),
    )
    with pytest.warns(RuntimeWarning, match="cannot fuse `multiply`.*bits are not those"):
        after, _ = vectors.compiled("cpu").multiply(torch.arange(5), torch.arange(5), 3)
    assert torch.equal(after, vectors.multiply(torch.arange(5), torch.arange(5), 3)[0])


def test_a_verb_that_cannot_be_compiled_is_used_as_it_is(compiled, monkeypatch):
    def compile(verb, **_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(RuntimeWarning, match="cannot fuse `subtract`.*no compiler here"):
        assert torch.equal(
            vectors.compiled("cpu").subtract(torch.arange(5), torch.zeros(5)), torch.arange(5)
        )


@gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_large_vector_is_moved_by_compiled_kernels_on_the_gpu(dtype):
    rng, n = np.random.default_rng(0), vectors.LARGE + 3
    start, slopes, rates = (
        rng.standard_normal(shape).astype(dtype) for shape in ((2, n), (3, n), n)
    )
    ends = []
    for place in (np.asarray, lambda x: torch.as_tensor(x, device="cuda")):
        exact, used = hg.reversal.ExactMomentum(*map(place, start)), hg.reversal.ratio(0.9)
        for t in range(20):
            exact.forth(place(slopes[t % 3]), used, 0.9 - 1, place(rates))
        ends.append(
            [
                np.asarray(torch.as_tensor(x).cpu()).copy()
                for x in (exact.position.bits, exact.velocity.bits, exact.weights)
            ]
        )
        for t in reversed(range(20)):
            exact.back_position(place(rates))
            exact.back_velocity(place(slopes[t % 3]), used, 0.9 - 1)
        assert exact.misses(hg.reversal.ExactMomentum(*map(place, start))) == 0
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


@gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_gpu_equals_cpu(solver, case):
    on_cpu, on_gpu = hg.Torch(), hg.Torch("cuda")
    expected = hg.Reverse()(*case(on_cpu))
    found = solver(*case(on_gpu))
    assert gap(on_gpu.numpy(found.value), on_cpu.numpy(expected.value)) < 1e-11
    assert (
        gap(on_gpu.numpy(found.grad), on_cpu.numpy(expected.grad)) < 1e-10
    )  # other sums, other order


@gpu
def test_float32_on_the_gpu_reverses_exactly_and_agrees_to_single_precision():
    single, double = hg.Torch("cuda", "float32"), hg.Torch()
    found = hg.Reverse(hg.reversible)(*catalogue.layered(single))
    expected = hg.Reverse()(*catalogue.layered(double))
    assert gap(single.numpy(found.grad), double.numpy(expected.grad)) < 1e-4


@gpu
def test_the_buffer_gives_the_same_bits_on_the_gpu():
    rng = np.random.default_rng(0)
    start, kicks = rng.standard_normal(1000), rng.standard_normal((7, 1000))
    decays = [0.9, 0.5, 1.0, 0.98, rng.uniform(0.3, 1, 1000), 0.1, 0.999]
    ends = []
    for place in (np.asarray, lambda x: torch.as_tensor(x, device="cuda")):
        value, buffer = hg.FixedPoint(place(start)), hg.ReversalBuffer()
        for t in range(500):
            decay = decays[t % 7]
            value.bits = buffer.multiply(value.bits, decay if np.ndim(decay) == 0 else place(decay))
            value.add(place(kicks[t % 7]))
        ends.append(
            (
                np.asarray(value.bits.cpu() if hasattr(value.bits, "cpu") else value.bits),
                buffer.nbytes,
            )
        )
        for t in reversed(range(500)):
            decay = decays[t % 7]
            value.subtract(place(kicks[t % 7]))
            value.bits = buffer.divide(value.bits, decay if np.ndim(decay) == 0 else place(decay))
        assert buffer.empty() and bool((value.bits == hg.FixedPoint(place(start)).bits).all())
    assert (ends[0][0] == ends[1][0]).all() and ends[0][1] == ends[1][1]
