"""The same solvers on a GPU: agreement with the CPU, exact reversal with integers on the device. Skipped where there is none."""

import catalogue
import numpy as np
import pytest
from test_solvers import CASES, EXACT, gap

import hgcore as hg

torch = pytest.importorskip("torch")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Stranger(hg.Torch):
    """A CPU treated like a GPU: integers in torch's own memory, a look at the numbers only now and then."""

    patience = 64

    def exact(self, array):
        return array.detach()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_path_of_a_device_gives_the_bits_of_the_path_of_a_cpu(case):
    for there, here in zip(*(hg.Reverse(hg.reversible)(*case(backend)) for backend in (Stranger(), hg.Torch())), strict=True):
        assert np.array_equal(there, here)


def test_the_path_of_a_device_names_the_step_that_diverged():
    problem, hyper = catalogue.everything(Stranger(), steps=200)
    hyper[:200] = 5.0
    with pytest.raises(hg.Diverged, match="at step [0-3]:|at step [0-3];"):
        hg.Reverse(hg.reversible)(problem, hyper)


@gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
def test_gpu_equals_cpu(solver, case):
    on_cpu, on_gpu = hg.Torch(), hg.Torch("cuda")
    expected = hg.Reverse()(*case(on_cpu))
    found = solver(*case(on_gpu))
    assert gap(on_gpu.numpy(found.value), on_cpu.numpy(expected.value)) < 1e-11
    assert gap(on_gpu.numpy(found.grad), on_cpu.numpy(expected.grad)) < 1e-10  # other sums, other order


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
        ends.append((np.asarray(value.bits.cpu() if hasattr(value.bits, "cpu") else value.bits), buffer.nbytes))
        for t in reversed(range(500)):
            decay = decays[t % 7]
            value.subtract(place(kicks[t % 7]))
            value.bits = buffer.divide(value.bits, decay if np.ndim(decay) == 0 else place(decay))
        assert buffer.empty() and bool((value.bits == hg.FixedPoint(place(start)).bits).all())
    assert (ends[0][0] == ends[1][0]).all() and ends[0][1] == ends[1][1]

