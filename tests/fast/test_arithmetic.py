"""The fast arithmetic of exact reversal has the bits of the plain one, for every argument."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hgcore.fast import arithmetic, compiled_kernels
from hgcore.fixed_point import DENOMINATOR, PLAIN

numba_kernels = pytest.importorskip("hgcore.fast.numba_kernels")
KERNELS = numba_kernels.KERNELS
N = 1003  # not a multiple of any number of lanes
VECTOR = np.random.default_rng(0).integers(1, DENOMINATOR + 1, N)
VECTOR[:5] = 1, 2, 3, 65535, 65536
NUMERATORS = [None, 1, 2, 3, 7, 32768, 58982, 65470, 65535, 65536, np.int64(40000), VECTOR]
UNITS = [2.0**-k for k in (0, 20, 52, 63, 80, 163)]
WIDE_OR_NOT = [(None, False), (2.0**-80, True), *((unit, False) for unit in UNITS)]


def values() -> np.ndarray:
    """Return int64 (N,) of all magnitudes, the extreme ones first."""
    rng, powers = np.random.default_rng(1), 2 ** np.arange(63)
    bits = rng.integers(-(2**63), 2**63 - 1, N, endpoint=True) >> rng.integers(0, 63, N)
    edges = [[0, -(2**63), 2**63 - 1], powers, -powers, powers - 1, 1 - powers]
    return np.concatenate([*edges, bits])[:N]


def amounts(unit: float, dtype: str) -> np.ndarray:
    """Return floats from far below a unit to 2**62 units, and halves of a unit."""
    rng = np.random.default_rng(3)
    units = rng.standard_normal(N) * 2.0 ** rng.integers(-4, 60, N)
    units[:8] = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31 + 0.5, -(2.0**62), 2.0**62]
    units[8:16] = np.round(units[8:16]) + 0.5
    return (units * unit).astype(dtype)


def arguments(numerator, unit: float | None, dtype: str, wide: bool = False) -> tuple:
    """Return (bits, low, state, numerator, amount, unit, type); unit None: without an amount.

    States are those that a buffer allows: below 2**53, and below it after a product. wide: two
    integers a value, to which squares from 1e-60 to 1e3, and zeros, are added.
    """
    rng, bits, low, state = np.random.default_rng(0), values(), None, None
    if numerator is not None:
        bound = np.minimum(2**53, numerator * np.int64(2**37)) * np.ones(N, np.int64)
        state = np.where(np.arange(N) % 3, rng.integers(0, bound), bound - 1 - np.arange(N) % 4)
        state[1::7] = 0
    amount = None if unit is None else amounts(unit, dtype)
    if wide:
        bits, low = rng.integers(-(2**45), 2**45, N), rng.integers(0, 2**45, N)
        amount = (np.exp(rng.uniform(-140, 7, N)) * (rng.random(N) > 0.1)).astype(dtype)
    return bits, low, state, numerator, amount, unit or 1.0, np.dtype(dtype)


def copies(arguments) -> list:
    return [x.copy() if isinstance(x, np.ndarray) else x for x in arguments]


def assert_equal(found, expected) -> None:
    """Compare arrays by type and bit."""
    for a, b in zip(found, expected, strict=True):
        if np.ndim(b):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def assert_same_verdict(reach, expected, limit: float) -> None:
    """`not reach < limit` is what callers ask; 0 says that no number is large."""
    assert (not reach < limit) == (not expected < limit)
    assert reach == 0 or np.array_equal(reach, expected, equal_nan=True)


def assert_same_as_plain(*arguments) -> None:
    """And nothing is changed that is only read: decays, amounts, and bits without an amount."""
    limit = arguments[5] * 2.0 ** (63 if arguments[1] is None else 91)
    for fast, plain in zip(KERNELS, PLAIN, strict=True):
        given = copies(arguments)
        (*found, reach), (*expected, bound) = fast(*given), plain(*arguments)
        assert_equal(found, expected)
        assert_same_verdict(reach or 0, bound or 0, limit)
        assert_equal(given[3:5], arguments[3:5])
        if arguments[4] is None:
            assert_equal(given[:1], arguments[:1])


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Long vectors are cut into pieces; here all are long."""
    monkeypatch.setattr(numba_kernels, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("unit, wide", WIDE_OR_NOT)
@pytest.mark.parametrize("numerator", NUMERATORS, ids=str)
def test_kernels_have_the_plain_bits(numerator, unit, wide, dtype, threads):
    """And undo each other; sums wrap around alike; floats have the type asked for, or float64."""
    given = arguments(numerator, unit, dtype, wide)
    for kind in (given[-1], None):
        assert_same_as_plain(*given[:-1], kind)
    after = KERNELS.decay_add(*copies(given))
    assert_equal(KERNELS.undo_decay_add(*after[:3], *given[3:])[:3], given[:3])


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
@pytest.mark.parametrize("unit, wide", [(2.0**-80, True), *((unit, False) for unit in UNITS[2:5])])
def test_kernels_have_the_plain_verdict(unit, wide, threads):
    """For NaN too, and just inside and outside of the range; no piece's verdict is lost."""
    limit, shift = (2.0**91 * unit, 17) if wide else (2.0**63 * unit, 0)
    shares = [0.1, 0.25, 0.4999, 0.5, 0.75, 1 - 2.0**-53, 1.0, 1.5, 1e300, np.inf, np.nan]
    kept = [0, 2**61, 2**62, -(2**62), 2**63 - 1, -(2**63)]
    for share, sign, bits, n in itertools.product(shares, [1, -1], kept, [None, 65536]):
        amount, bits = np.array([0, sign * share * limit, unit]), np.array([0, bits >> shift, 5])
        low, state = (0 * bits if used else None for used in (wide, n))
        given = bits, low, state, n, amount, unit, None
        found, expected = (which.decay_add(*copies(given))[-1] for which in (KERNELS, PLAIN))
        assert_same_verdict(found, expected, limit)


@pytest.mark.parametrize("length", [1, 2, N - 1, N + 1])
def test_kernels_broadcast_as_plain_does(length):
    """One number is repeated; any other length raises, and nothing is read past an end."""
    bits, zeros = values(), np.zeros(length, np.int64)
    n, amount, state = zeros + 40000, zeros + 0.25, 0 * bits
    for case in (None, None, amount), (state, n, None), (zeros, 40000, None), (state, n, amount):
        if length == 1:
            assert_same_as_plain(bits, None, *case, 2.0**-52, None)
        else:
            with pytest.raises(ValueError, match="broadcast"):
                KERNELS.decay_add(bits.copy(), None, *case, 2.0**-52, None)


def test_vectors_get_the_arithmetic_that_fits(monkeypatch):
    """Numba for NumPy's vectors, kernels for many numbers on a GPU, else the plain functions."""
    frozen = values()
    frozen.setflags(write=False)
    KERNELS.decay_add(frozen, None, None, None, 1.0, 1.0, None)  # by the plain functions
    assert arithmetic.fitting(values(), PLAIN) is KERNELS
    few, many = (
        SimpleNamespace(is_cuda=True, device="cpu", numel=lambda n=n: n) for n in (10, 2**20)
    )
    for bits in (np.array(5), values().reshape(1, -1), torch.zeros(10, dtype=torch.int64), few):
        assert arithmetic.fitting(bits, PLAIN) is PLAIN
    assert arithmetic.fitting(many, PLAIN) is compiled_kernels.compiled("cpu")
    monkeypatch.setattr(arithmetic, "KERNELS", None)
    assert arithmetic.fitting(values(), PLAIN) is PLAIN


@pytest.fixture
def compiled():
    compiled_kernels.compiled.cache_clear()
    yield compiled_kernels.compiled("cpu")
    compiled_kernels.compiled.cache_clear()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("numerator, dtype", [(58982, "float64"), (VECTOR, "float32")], ids=str)
def test_compiled_kernels_have_the_plain_bits(numerator, dtype, compiled, compiler):
    """A function that cannot be compiled, or has other bits, would warn."""
    forms = (None, 2.0**-60), (numerator, None), (numerator, 2.0**-60), (numerator, 2.0**-80, True)
    for n, unit, *wide in forms:
        given = [torch.as_tensor(x) if np.ndim(x) else x for x in arguments(n, unit, dtype, *wide)]
        given[-1] = getattr(torch, dtype)
        for fast, plain in zip(compiled, PLAIN, strict=True):
            pairs = zip(fast(*given), plain(*given), strict=True)
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
