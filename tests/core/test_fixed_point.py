"""Arithmetic that is undone to the last bit, on NumPy and on torch's integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from catalogue import same_bits, there_and_back

import hgcore as hg
from hgcore.fixed_point import DENOMINATOR, WIDE_UNIT, as_decay, pack, round_decay, unpack

START, *KICKS = np.random.default_rng(0).standard_normal((8, 6))
EXTREMES = [0, 1, -1, 2**16 - 1, -(2**16), 2**62, -(2**62) - 1, 2**63 - 1, -(2**63)]
DECAYS = {  # of steps, in turn
    "one number": [0.9],
    "changing": [0.5, 0.999, 0.1, 2.0**-16, 1.0, 0.9, 0.33],
    "per coordinate": [np.roll(np.linspace(2.0**-16, 1, 6), t) for t in range(6)],
}


@pytest.fixture(params=[np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def place(request):
    return request.param


@pytest.mark.parametrize("decays", DECAYS.values(), ids=DECAYS)
def test_buffer_undoes_every_step(decays):
    assert same_bits(*(there_and_back(place, decays) for place in (np.asarray, torch.as_tensor)))


@pytest.mark.parametrize("decay", [2.0**-16, 0.1, 1 / 3, 0.5, 0.99998, 1.0])
def test_product_is_right_to_one_unit(place, decay):
    """With a buffer that is empty, and then is not; every value comes back."""
    rng, buffer = np.random.default_rng(1), hg.ReversalBuffer()
    bits = np.concatenate([rng.integers(-(2**62), 2**62, 200), rng.integers(-99, 99, 99), EXTREMES])
    trail = [place(bits)]
    for count in range(50):
        trail.append(buffer.multiply(trail[-1], decay))
        if count < 4:
            exact = [Fraction(int(u) * round(decay * DENOMINATOR), DENOMINATOR) for u in trail[-2]]
            assert max(abs(int(v) - e) for v, e in zip(trail[-1], exact, strict=True)) < 1
    for before in trail[-2::-1]:
        assert bool((buffer.divide(trail.pop(), decay) == before).all())
    assert buffer.empty()


def test_packing_keeps_every_value(place):
    for largest in (0, 1, -1, 127, -128, 128, 2**39, -(2**63), 2**63 - 1):
        bits = place(np.array([largest, 0, largest // 3]))
        packed = pack(bits)
        assert bool((unpack(packed) == bits).all())
        assert packed.shape == (3, -(-(max(largest, ~largest).bit_length() + bool(largest)) // 8))


def test_wide_values_are_undone(place):
    """Squares of gradients from 1e-10 to 10: to 2**-80, and back to the last bit."""
    rng, buffer = np.random.default_rng(5), hg.ReversalBuffer()
    value, plain = hg.FixedPoint(place(np.zeros(50)), WIDE_UNIT, wide=True), np.zeros(50)
    kicks = np.exp(2 * rng.uniform(-23, 2, (150, 50)))
    steps = [(x, as_decay([0.999, 0.5, 2.0**-16][t % 3])) for t, x in enumerate(kicks)]
    for kick, decay in steps:
        floats, reach = value.decay_add(buffer, decay, place(kick), None)
        plain = plain * (decay.numerator / DENOMINATOR) + kick
        assert np.abs(np.asarray(floats) - plain).max() < 1e-12 and float(reach) < 2048
        assert (np.abs(np.asarray(floats) / plain - 1) < 1e-15 + 2.0**-78 / plain).all()
    for kick, decay in reversed(steps):
        value.undo_decay_add(buffer, decay, place(kick), None)
    assert buffer.empty() and not any(bool((part != 0).any()) for part in value.parts)
    assert value.mismatches(hg.FixedPoint(place(np.eye(50)[3] * WIDE_UNIT), WIDE_UNIT, True)) == 1


def test_wrong_divisions_are_noticed(place):
    buffer, start = hg.ReversalBuffer(), hg.FixedPoint(place(START)).bits
    assert buffer.empty()
    value = buffer.multiply(start, 0.9)
    assert not buffer.empty()
    buffer.divide(value, 0.9)
    with pytest.raises(hg.ReversalError, match="no multiplication left"):
        buffer.divide(value, 0.9)
    buffer = hg.ReversalBuffer()
    buffer.divide(buffer.multiply(0 * start, 0.9), 0.8)  # zeros leave nothing else
    assert not buffer.empty()


def test_sum_is_exact(place):
    value, unit = hg.FixedPoint(place(START), 2.0**-60), 2.0**-60
    before = np.asarray(value.bits).astype(object)
    for kick in KICKS:
        value.add(place(kick))
    added = sum(np.round(kick / unit).astype(np.int64).astype(object) for kick in KICKS)
    assert [int(x) for x in value.bits] == list(before + added)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
@pytest.mark.parametrize("amount", [2047.9, -3000.0, 1e300, -math.inf, math.nan])
def test_sum_out_of_range_is_reported(amount, place):
    value = hg.FixedPoint(place(np.array([0.0, 1.0, -1.0])))
    assert not float(value.add(place(np.array([0.0, amount, 0.0])))) < 2048
    inside = hg.FixedPoint(place(np.array([0.0, 2000.0])))
    assert float(inside.add(place(np.array([-2047.0, 47.0])))) < 2048
    assert np.array_equal(np.asarray(inside.floats()), [-2047.0, 2047.0])


def test_rounding_a_decay_is_the_same_everywhere():
    decays = np.random.default_rng(3).uniform(2**-16, 1, 1000)
    exact = [Fraction(round(Fraction(d) * DENOMINATOR), DENOMINATOR) for d in decays]
    assert [Fraction(d) for d in round_decay(decays)] == exact
    assert [Fraction(d) for d in round_decay(torch.as_tensor(decays)).tolist()] == exact
    assert [int(x) for x in as_decay(decays).numerator] == [d * DENOMINATOR for d in exact]
