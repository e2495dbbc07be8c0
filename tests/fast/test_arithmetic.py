"""The fast arithmetic of exact reversal has the bits of the plain one, for every argument."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hgcore.fast import arithmetic, compiled_kernels
from hgcore.fixed_point import DENOMINATOR, PLAIN, ReversalBuffer

numba_kernels = pytest.importorskip("hgcore.fast.numba_kernels")
KERNELS = numba_kernels.KERNELS
N = 1003  # not a multiple of any number of lanes
RNG = np.random.default_rng(0)
VECTOR = np.concatenate([[1, 2, 3, 65535, 65536], RNG.integers(1, DENOMINATOR + 1, N - 5)])
NUMERATORS = [1, 2, 3, 7, 32768, 58982, 65535, 65536, np.int64(40000), VECTOR]
UNITS = [2.0**-k for k in (0, 20, 52, 63, 80, 163)]
POWERS = 2 ** np.arange(63)
EDGES = np.concatenate([[0, -(2**63), 2**63 - 1], POWERS, -POWERS, POWERS - 1, 1 - POWERS])


def values(n: int = N) -> np.ndarray:
    """Return int64 (n,) of all magnitudes, the extreme ones first."""
    rng = np.random.default_rng(1)
    random = rng.integers(-(2**63), 2**63 - 1, n, endpoint=True) >> rng.integers(0, 63, n)
    return np.concatenate([EDGES, random])[:n] if n >= len(EDGES) else random


def states(numerator, n: int = N) -> np.ndarray:
    """Return states that ReversalBuffer allows: below 2**53, and below it after `multiply`."""
    bound = np.minimum(2**53, numerator * np.int64(2**37)) * np.ones(n, np.int64)
    state = np.random.default_rng(2).integers(0, bound)
    state[::3] = bound[::3] - 1 - np.arange(len(state[::3])) % 4
    state[1::7] = 0
    return np.maximum(state, 0)


def amounts(unit: float, dtype: str, n: int = N) -> np.ndarray:
    """Return floats from far below a unit to 2**62 units, and halves of a unit."""
    rng = np.random.default_rng(3)
    units = rng.standard_normal(n) * 2.0 ** rng.integers(-4, 60, n)
    units[:8] = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31 + 0.5, -(2.0**62), 2.0**62]
    units[8:16] = np.round(units[8:16]) + 0.5
    return (units * unit).astype(dtype)


def assert_equal(found: tuple, expected: tuple) -> None:
    """Compare arrays by type and bit; leave out the reach."""
    for a, b in zip(found, expected, strict=True):
        if np.ndim(b):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def copies(*arguments) -> list:
    return [x.copy() if isinstance(x, np.ndarray) else x for x in arguments]


def assert_same_as_plain(*arguments) -> None:
    for fast, plain in zip(KERNELS, PLAIN, strict=True):
        assert_equal(fast(*copies(*arguments)), plain(*arguments))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("unit", UNITS)
def test_sums_have_the_plain_bits(unit, dtype):
    """Values wrap around alike; a number may stand in for a vector of amounts."""
    bits = values()
    for amount, out in itertools.product(
        [amounts(unit, dtype), 3.7 * unit, np.float32(unit), 2], [None, np.float32, np.dtype("f8")]
    ):
        if np.ndim(amount) == 0 and amount > 2**62 * unit:
            continue  # out of range: the bits are whatever the CPU makes of it
        assert_same_as_plain(bits, None, None, None, amount, unit, out)


def assert_undone_and_same_as_plain(parts, *rest) -> None:
    assert_same_as_plain(*parts, *rest)
    after = KERNELS.decay_add(*copies(*parts), *rest)
    assert_equal(KERNELS.undo_decay_add(*after[:3], *rest)[:3], parts)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("numerator", NUMERATORS, ids=str)
def test_steps_have_the_plain_bits(numerator, dtype):
    """And undo each other, for any value and any state of a buffer; also without an amount."""
    parts = values(), None, states(numerator)
    assert_undone_and_same_as_plain(parts, numerator, None, 1.0, None)
    for unit in (2.0**-52, 2.0**-80):
        rest = numerator, amounts(unit, dtype), unit, np.dtype(dtype)
        assert_undone_and_same_as_plain(parts, *rest)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("numerator", [1, 2, 58982, 65470, 65535, 65536, VECTOR], ids=str)
def test_wide_steps_have_the_plain_bits(numerator, dtype):
    """And undo each other, for squares from 1e-60 to 1e3 and for zeros."""
    rng, n = np.random.default_rng(0), len(VECTOR)
    high, low = rng.integers(-(2**45), 2**45, n), rng.integers(0, 2**45, n)
    state = rng.integers(0, min(2**52, int(np.min(numerator)) * 2**30), n)
    amount = (np.exp(rng.uniform(-140, 7, n)) * (rng.random(n) > 0.1)).astype(dtype)
    rest = numerator, amount, 2.0**-80, np.dtype(dtype)
    assert_undone_and_same_as_plain((high, low, state), *rest)
    reach, expected = (
        float(which.decay_add(*copies(high, low, state), *rest)[-1]) for which in (KERNELS, PLAIN)
    )
    assert (reach < 2048) == (expected < 2048)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
@pytest.mark.parametrize("unit", UNITS[2:5])
def test_the_verdict_on_the_range_is_the_plain_one(unit):
    """`not reach < limit` is what callers ask: for NaN too, and just inside and outside."""
    limit = 2.0**63 * unit
    shares = [0.1, 0.25, 0.4999, 0.5, 0.75, 1 - 2.0**-53, 1.0, 1.5, 1e300, np.inf, np.nan]
    kept = [0, 2**61, 2**62, -(2**62), 2**63 - 1, -(2**63)]
    for share, sign, bits in itertools.product(shares, [1, -1], kept):
        bits = np.array([0, bits, 5])
        amount = np.array([0, sign * share * limit, unit])
        for numerator in (None, 65536):
            state = None if numerator is None else np.zeros_like(bits)
            reach, expected = (
                which.decay_add(*copies(bits, None, state), numerator, amount, unit, None)[-1]
                for which in (KERNELS, PLAIN)
            )
            assert (not reach < limit) == (not expected < limit)
            assert reach == 0 or np.array_equal(reach, expected, equal_nan=True)


def test_arrays_of_the_caller_are_not_changed():
    """Products are new arrays, amounts and decays are only read, read-only bits are taken."""
    bits, amount, numerator = values(), amounts(2.0**-52, "float64"), VECTOR.copy()
    given = copies(bits, amount, numerator)
    buffer = ReversalBuffer()
    buffer.divide(buffer.multiply(bits, numerator / DENOMINATOR), numerator / DENOMINATOR)
    KERNELS.decay_add(bits.copy(), None, 0 * bits, numerator, amount, 2.0**-52, None)
    bits.setflags(write=False)
    KERNELS.decay_add(bits, None, None, None, amount, 2.0**-52, None)
    assert_equal((bits, amount, numerator), tuple(given))


def test_long_vectors_are_cut_without_a_trace(monkeypatch):
    """One thread or several: the same bits, and no piece's verdict is lost."""
    bits, state, amount = values(), states(VECTOR), amounts(2.0**-52, "float64")
    expected = PLAIN.decay_add(bits, None, state, VECTOR, amount, 2.0**-52, None)
    monkeypatch.setattr(numba_kernels, "LARGE", 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = KERNELS.decay_add(*copies(bits, None, state), VECTOR, amount, 2.0**-52, None)
    assert_equal(found, expected)
    assert found[-1] == expected[-1]


@pytest.mark.parametrize("length", [1, 2, N - 1, N + 1])
def test_other_lengths_do_as_plain_arithmetic_does(length):
    """One number is broadcast; any other length raises, and nothing is read past an end."""
    bits, amount, numerator = values(), np.full(length, 0.25), np.full(length, 40000)
    for case in (
        (None, None, amount),
        (0 * bits, numerator, None),
        (np.zeros(length, np.int64), 40000, None),
        (0 * bits, numerator, amount),
    ):
        if length == 1:
            assert_same_as_plain(bits, None, *case, 2.0**-52, None)
        else:
            with pytest.raises(ValueError, match="broadcast"):
                KERNELS.decay_add(bits.copy(), None, *case, 2.0**-52, None)


def test_vectors_get_the_arithmetic_that_fits(monkeypatch):
    """Numba for NumPy's vectors, kernels for many numbers on a GPU, else the plain functions."""
    assert arithmetic.fitting(values(), PLAIN) is KERNELS
    for bits in (np.array(5), values().reshape(1, -1), torch.zeros(10, dtype=torch.int64)):
        assert arithmetic.fitting(bits, PLAIN) is PLAIN
    gpu = [SimpleNamespace(is_cuda=True, device="cpu", numel=lambda n=n: n) for n in (10, 2**20)]
    assert arithmetic.fitting(gpu[0], PLAIN) is PLAIN
    assert arithmetic.fitting(gpu[1], PLAIN) is compiled_kernels.compiled("cpu")
    monkeypatch.setattr(arithmetic, "KERNELS", None)
    assert arithmetic.fitting(values(), PLAIN) is PLAIN


# ---- torch.compile, on a CPU


@pytest.fixture
def compiled():
    compiled_kernels.compiled.cache_clear()
    yield compiled_kernels.compiled("cpu")
    compiled_kernels.compiled.cache_clear()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("numerator, dtype", [(58982, "float64"), (VECTOR, "float32")], ids=str)
def test_compiled_kernels_have_the_plain_bits(numerator, dtype, compiled, compiler):
    """A function that cannot be compiled, or has other bits, would warn."""
    unit = 2.0**-60
    arrays = values(), states(numerator), numerator, amounts(unit, dtype)
    bits, state, decay, amount = (torch.as_tensor(x) if np.ndim(x) else x for x in arrays)
    rest = unit, getattr(torch, dtype)
    for arguments in [
        (bits, None, None, None, amount, *rest),
        (bits, None, state, decay, None, *rest),
        (bits, None, state, decay, amount, *rest),
        (bits >> 18, bits & (2**45 - 1), state, decay, amount, *rest),
    ]:
        for fast, plain in zip(compiled, PLAIN, strict=True):
            pairs = zip(fast(*arguments), plain(*arguments), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs if b is not None and b.ndim)


@pytest.mark.parametrize("reason", ["bits are not those", "no compiler here"])
def test_kernels_that_fail_are_not_used(reason, compiled, monkeypatch):
    """Because of other bits, or an error of torch: it warns, and the plain function runs."""

    def compile(function, **_):
        if reason == "no compiler here":
            raise RuntimeError(reason)
        return lambda *arguments: tuple(x if x is None else 1 + x for x in function(*arguments))

    monkeypatch.setattr(torch, "compile", compile)
    arguments = torch.arange(5), None, torch.arange(5), 3, None, 1.0, None
    with pytest.warns(RuntimeWarning, match=f"cannot fuse `decay_add`.*{reason}"):
        after = compiled.decay_add(*arguments)
    assert torch.equal(after[0], PLAIN.decay_add(*arguments)[0])
