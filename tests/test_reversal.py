"""Arithmetic that can be undone: the same bits back, the same bits from three implementations, the right product, little memory."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import hgcore as hg
from hgcore import reversal
from hgcore.reversal import DENOMINATOR, ExactMomentum, ratio, round_decay
from hgcore.vectors import UNIT

N = 6
RNG = np.random.default_rng(0)
COORDINATES = RNG.uniform(0.05, 1, N)
CHANGING = RNG.uniform(2**-16, 1, (997, N))
DECAYS = {  # step -> decay
    "0.9": lambda t: 0.9,
    "7/8": lambda t: 0.875,
    "0.98": lambda t: 0.98,
    "0.99998": lambda t: 0.99998,
    "half": lambda t: 0.5,
    "none lost": lambda t: 1.0,
    "the least": lambda t: 2.0**-16,
    "alternating": lambda t: (0.9, 1.0, 0.5, 2.0**-16, 0.99998)[t % 5],
    "changing": lambda t: CHANGING[t % 997, 0],
    "per coordinate": lambda t: COORDINATES,
    "per coordinate, changing": lambda t: CHANGING[t % 997],
    "extremes side by side": lambda t: np.array([2.0**-16, 1.0, 0.5, 0.9, 0.99998, 1.0]),
}


@pytest.fixture(params=["numba", "numpy", "torch"])
def place(request, monkeypatch):
    """How vectors are made: the path of loops, the generic path on NumPy, the generic path on integers of another library."""
    if request.param == "numba" and reversal.loops() is None:
        pytest.skip("numba is not installed")
    if request.param == "numpy":
        monkeypatch.setattr(reversal, "loops", lambda: None)
    return torch.as_tensor if request.param == "torch" else np.asarray


def put(place, number):
    return place(number) if np.ndim(number) else number


def there(decay, place, steps, kicks):
    """(start, value, buffer) after that many multiplications and additions."""
    start = place(RNG_START.copy())
    value, buffer = hg.FixedPoint(start), hg.ReversalBuffer()
    for t in range(steps):
        value.bits = buffer.multiply(value.bits, put(place, decay(t)))
        value.add(kicks[t % len(kicks)])
    return start, value, buffer


def back(decay, place, steps, kicks, value, buffer):
    for t in reversed(range(steps)):
        value.subtract(kicks[t % len(kicks)])
        value.bits = buffer.divide(value.bits, put(place, decay(t)))


RNG_START = RNG.standard_normal(N) * np.array([1, 1e-9, 100, 0, -3, 1])
KICKS = RNG.standard_normal((7, N)) * 0.3


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_twenty_thousand_steps_are_undone_to_the_last_bit(decay):
    start, value, buffer = there(decay, np.asarray, 20_000, KICKS)
    back(decay, np.asarray, 20_000, KICKS, value, buffer)
    assert np.array_equal(value.bits, hg.FixedPoint(start).bits) and buffer.empty()


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_every_path_is_undone_to_the_last_bit(decay, place):
    kicks = place(KICKS)
    start, value, buffer = there(decay, place, 400, kicks)
    back(decay, place, 400, kicks, value, buffer)
    assert bool((value.bits == hg.FixedPoint(start).bits).all()) and buffer.empty()


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_every_path_gives_the_bits_of_the_generic_one(decay, place, monkeypatch):
    _, value, buffer = there(decay, place, 400, place(KICKS))
    monkeypatch.setattr(reversal, "loops", lambda: None)
    _, plain, other = there(decay, np.asarray, 400, KICKS)
    assert np.array_equal(np.asarray(value.bits), plain.bits) and np.array_equal(
        np.asarray(buffer.state), other.state
    )
    assert len(buffer.words) == len(other.words) and buffer.nbytes == other.nbytes
    assert all(
        np.array_equal(np.asarray(a), b) for a, b in zip(buffer.words, other.words, strict=True)
    )


@pytest.mark.parametrize("decay", [0.9, 0.3, COORDINATES], ids=["0.9", "0.3", "per coordinate"])
def test_a_state_moved_by_momentum_has_the_same_bits_on_every_path(decay, place, monkeypatch):
    def run(place):
        exact, used = (
            ExactMomentum(place(RNG_START), place(KICKS[0])),
            ratio(put(place, round_decay(decay))),
        )
        gain, rate = put(place, round_decay(decay) - 1), put(place, 0.01 + 0.1 * np.asarray(decay))
        slopes = place(KICKS)
        for t in range(300):
            exact.forth(slopes[t % 7], used, gain, rate)
        end = [
            np.asarray(x).copy()
            for x in (
                exact.position.bits,
                exact.velocity.bits,
                exact.buffer.state,
                exact.weights,
                exact.speed,
            )
        ]
        for t in reversed(range(300)):
            exact.back_position(rate)
            exact.back_velocity(slopes[t % 7], used, gain)
        assert exact.misses(ExactMomentum(place(RNG_START), place(KICKS[0]))) == 0
        return end

    here = run(place)
    monkeypatch.setattr(reversal, "loops", lambda: None)
    assert all(np.array_equal(a, b) for a, b in zip(here, run(np.asarray), strict=True))


@pytest.mark.parametrize("decay", [0.9, COORDINATES], ids=["0.9", "per coordinate"])
def test_single_precision_is_multiplied_in_double_on_every_path(decay, place):
    """A run in float32 has the integers of a run in float64 that is given the same numbers, and hands out their float32."""
    decay = round_decay(np.asarray(decay, np.float32))
    start, slopes, rates = (
        part.astype(np.float32) for part in (RNG_START, KICKS, 0.1 * COORDINATES)
    )

    def run(place, dtype):
        at = lambda part: place(part.astype(dtype))  # noqa: E731
        exact, used, gain = (
            ExactMomentum(at(start), at(slopes[0])),
            ratio(at(decay)),
            at(decay - 1) if decay.ndim else float(decay - 1),
        )
        for t in range(100):
            exact.forth(at(slopes[t % 7]), used, gain, at(rates))
        ends = [
            np.asarray(x).copy()
            for x in (exact.position.bits, exact.velocity.bits, exact.weights, exact.speed)
        ]
        for t in reversed(range(100)):
            exact.back_position(at(rates))
            exact.back_velocity(at(slopes[t % 7]), used, gain)
        assert exact.misses(ExactMomentum(at(start), at(slopes[0]))) == 0
        return ends

    single, double = run(place, np.float32), run(np.asarray, np.float64)
    assert all(np.array_equal(a, b) for a, b in zip(single[:2], double[:2], strict=True))
    assert all(
        a.dtype == np.float32 and np.array_equal(a, b.astype(np.float32))
        for a, b in zip(single[2:], double[2:], strict=True)
    )


def test_the_product_is_right_to_one_unit_for_any_value(place):
    rng = np.random.default_rng(1)
    bits = np.concatenate(
        [
            rng.integers(-(2**62), 2**62, 200),
            rng.integers(-(2**20), 2**20, 200),
            [0, 1, -1, 2**63 - 1, -(2**63)],
        ]
    )
    for decay in (2.0**-16, 0.1, 0.5, 0.9, 0.99998, 1.0):
        numerator = round(decay * DENOMINATOR)
        buffer, values = hg.ReversalBuffer(), place(bits)
        for _ in range(4):  # with a buffer that is empty, and then is not
            after = buffer.multiply(values, decay)
            errors = [
                abs(int(v) - Fraction(int(u) * numerator, DENOMINATOR))
                for u, v in zip(values, after, strict=True)
            ]
            assert max(errors) < 1
            values = after


def test_any_value_comes_back_even_the_least_and_the_largest(place):
    bits = place(
        np.array([0, 1, -1, 2**16 - 1, -(2**16), 2**62, -(2**62) - 1, 2**63 - 1, -(2**63)])
    )
    for decay in (2.0**-16, 3 * 2.0**-16, 1 / 3, 0.9, 1 - 2.0**-16, 1.0):
        buffer, value = hg.ReversalBuffer(), bits
        for _ in range(50):
            value = buffer.multiply(value, decay)
        for _ in range(50):
            value = buffer.divide(value, decay)
        assert bool((value == bits).all()) and buffer.empty()


@pytest.mark.parametrize("decay, bound", [(0.875, 0.199), (0.9, 0.157), (0.98, 0.036), (0.5, 1.01)])
def test_memory_is_close_to_what_the_decay_loses(decay, bound):
    """log2(1/decay) bits a step, and 64 for the state and what waits for a spill: 0.0064 a step at T = 10,000."""
    value, buffer = (
        hg.FixedPoint(np.random.default_rng(2).standard_normal(5000)),
        hg.ReversalBuffer(),
    )
    kick = np.full(5000, 0.01)
    for _ in range(10_000):
        value.bits = buffer.multiply(value.bits, decay)
        value.add(kick)
    bits = 8 * buffer.nbytes / 5000 / 10_000
    assert math.log2(1 / round_decay(decay)) <= bits <= bound


def test_nbytes_is_the_size_of_everything_held(place):
    _, value, buffer = there(DECAYS["per coordinate, changing"], place, 300, place(KICKS))
    arrays = [v for v in vars(buffer.schedule).values() if hasattr(v, "append")]
    held = sum(len(a) * a.itemsize for a in arrays) + N * 8 + sum(2 * N for _ in buffer.words)
    assert buffer.nbytes == held and value.nbytes == 8 * N
    assert {type(v).__name__ for v in vars(buffer.schedule).values()} <= {
        "array",
        "int",
        "NoneType",
    }  # nothing else holds data
    assert hg.ReversalBuffer().nbytes < 16


def test_a_decay_that_changes_every_step_is_logged_in_eight_bytes():
    buffer, values = hg.ReversalBuffer(), hg.FixedPoint(np.ones(1)).bits
    before = buffer.nbytes
    for t in range(1000):
        values = buffer.multiply(values, 0.9 + 0.05 * (t % 2))
    assert buffer.nbytes - before <= 1000 * (8 + 4)  # and the schedule since the last spill


def test_dividing_by_another_decay_or_once_too_often_is_an_error(place):
    buffer, value = hg.ReversalBuffer(), hg.FixedPoint(place(RNG_START)).bits
    value = buffer.multiply(value, 0.9)
    value = buffer.multiply(value, 0.8)
    with pytest.raises(hg.ReversalError, match="reverse order"):
        buffer.divide(value, 0.9)
    value = buffer.divide(buffer.divide(value, 0.8), 0.9)
    with pytest.raises(hg.ReversalError):
        buffer.divide(value, 0.9)
    assert bool(
        (value == hg.FixedPoint(place(RNG_START)).bits).all()
    )  # the refused calls changed nothing


def test_a_buffer_with_something_left_says_so(place):
    buffer = hg.ReversalBuffer()
    assert buffer.empty()
    buffer.multiply(hg.FixedPoint(place(RNG_START)).bits, 0.9)
    assert not buffer.empty()


@pytest.mark.parametrize(
    "decay",
    [
        0.0,
        -0.5,
        1.5,
        2.0**-18,
        float("nan"),
        np.array([0.5] * 5 + [1.1]),
        np.array([0.5] * 5 + [0.0]),
    ],
)
def test_a_decay_that_cannot_be_undone_is_refused(decay, place):
    with pytest.raises(ValueError, match=r"decay must lie in \[2\*\*-16, 1\]"):
        hg.ReversalBuffer().multiply(hg.FixedPoint(place(RNG_START)).bits, put(place, decay))


@pytest.mark.parametrize("shape", [(1,), (2,), (7,)])
def test_a_decay_of_another_length_never_gives_a_wrong_number(shape):
    """NumPy broadcasts one number to all; the kernels, which do not look at shapes, must not read beyond its end."""
    value, buffer = hg.FixedPoint(RNG_START), hg.ReversalBuffer()
    if shape == (1,):
        expected = hg.ReversalBuffer().multiply(value.bits, 0.7)
        assert np.array_equal(buffer.multiply(value.bits, np.full(1, 0.7)), expected)
    else:
        with pytest.raises(ValueError, match="broadcast"):
            buffer.multiply(value.bits, np.full(shape, 0.7))


def test_an_amount_of_another_length_never_gives_a_wrong_number():
    value = hg.FixedPoint(RNG_START)
    value.add(np.ones(1))
    assert np.array_equal(value.bits, hg.FixedPoint(RNG_START).bits + 2**52)
    with pytest.raises(ValueError, match="broadcast"):
        value.add(np.ones(2))


def test_a_sum_is_exact_and_is_undone(place):
    value = hg.FixedPoint(place(RNG_START))
    before = np.asarray(value.bits).copy()
    for amount in place(KICKS):
        value.add(amount)
    exact = before.astype(object) + sum(
        np.round(k / UNIT).astype(np.int64).astype(object) for k in KICKS
    )
    assert [int(x) for x in value.bits] == list(exact)
    for amount in place(KICKS[::-1].copy()):
        value.subtract(amount)
    assert np.array_equal(np.asarray(value.bits), before)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
@pytest.mark.parametrize("amount", [2047.9, 3000.0, -3000.0, 1e300, math.inf, -math.inf, math.nan])
def test_a_sum_out_of_range_is_reported(amount, place):
    value = hg.FixedPoint(place(np.array([0.0, 1.0, -1.0])))
    reach = float(value.add(place(np.array([0.0, amount, 0.0]))))
    assert not reach < 2048


def test_a_sum_just_inside_the_range_is_not_reported(place):
    value = hg.FixedPoint(place(np.array([0.0, 2000.0])))
    assert float(value.add(place(np.array([-2047.0, 47.0])))) < 2048
    assert np.array_equal(np.asarray(value.floats()), [-2047.0, 2047.0])


def test_rounding_a_decay_is_the_same_everywhere():
    decays = np.random.default_rng(3).uniform(2**-16, 1, 1000)
    exact = [Fraction(round(Fraction(d) * DENOMINATOR), DENOMINATOR) for d in decays]
    assert (
        [Fraction(d) for d in round_decay(decays)]
        == exact
        == [Fraction(round_decay(float(d))) for d in decays]
    )
    assert [Fraction(d) for d in round_decay(torch.as_tensor(decays)).tolist()] == exact
    assert [int(x) for x in ratio(decays).numerator] == [d * DENOMINATOR for d in exact]


def test_a_number_is_kept_to_the_nearest_unit(place):
    values = np.random.default_rng(4).uniform(-2000, 2000, 100)
    fixed = hg.FixedPoint(place(values))
    assert [int(b) for b in fixed.bits] == [round(Fraction(v) * 2**52) for v in values]
    assert np.array_equal(np.asarray(fixed.floats()), values)  # above 1 a double has no finer units
