"""Euclidean projections onto the sets in which hyperparameters are allowed, as vector functions."""

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from hgcore.arrays import like, namespace


def box(low, high) -> Callable:
    """Return the projection onto low <= hyper <= high (numbers or vectors)."""
    lows, highs = np.broadcast_arrays(_host(low), _host(high))
    if (wrong := ~(lows <= highs)).any():  # so are None and NaN
        found = f"got {lows[wrong][0]:.6g} and {highs[wrong][0]:.6g}"
        raise ValueError(f"low <= high must hold, {found}; use -inf or inf for an open end")

    def project(hyper):
        if "float" not in str(getattr(hyper, "dtype", type(hyper))):
            kind = getattr(hyper, "dtype", type(hyper).__name__)
            raise TypeError(f"a projection takes a vector of floats, got {kind}; use backend.array")
        return namespace(hyper).clip(hyper, like(low, hyper), like(high, hyper))

    return project


def _host(bound) -> np.ndarray:
    """Return a bound as an array of NumPy."""
    return np.asarray(bound.detach().cpu() if hasattr(bound, "detach") else bound, dtype=float)


def simplex(total: float = 1.0) -> Callable:
    """Return the projection onto {hyper >= 0, sum = total >= 0}."""
    onto = box_l1(0.0, total, total)
    # a constant does not change the projection; with this one, the bound on the sum is active
    return lambda hyper: onto(hyper - hyper.max() + total)


def l1_ball(radius: float = 1.0) -> Callable:
    """Return the projection onto {sum |hyper_i| <= radius}, radius >= 0 (Duchi et al. 2008)."""
    onto = box_l1(0.0, radius, radius)
    return lambda hyper: namespace(hyper).sign(hyper) * onto(abs(hyper))


def box_l1(low, high, radius: float) -> Callable:
    """Return the projection onto {low <= hyper <= high, sum of hyper <= radius}, for 0 <= low.

    It is clip(hyper - m, low, high) with the least m >= 0 that brings the sum down to the radius.
    As m grows, the sum falls in straight lines between the 2n places where a coordinate leaves
    `high` or comes to `low`: these are sorted and bisected, O(n log n).
    """
    if not radius >= 0:
        raise ValueError(f"the radius must be a number >= 0, got {radius}")
    inside, lowest, highest = box(low, high), box(low, low), box(high, high)
    if (least := _host(low).min(initial=0.0)) < 0:
        raise ValueError(f"low must be >= 0, got {least:.6g}; for either sign see box or l1_ball")

    def project(hyper):
        more, least = inside(hyper), float(lowest(hyper).sum())
        rounding = len(more) * namespace(more).finfo(more.dtype).eps
        if least > radius * (1 + rounding):
            why = f"low alone adds up to {least:.6g}, more than the radius {radius:.6g}"
            raise ValueError(f"the set is empty: {why}")
        within = max(radius, least)  # larger by rounding at most
        return more if float(more.sum()) <= within else like(onto_sum(hyper, within), hyper)

    def onto_sum(hyper, within: float):
        """Return the point of the set whose sum is `within`, in double precision."""
        xp = namespace(hyper)
        shifted = xp.asarray(hyper, dtype=xp.float64)
        less, most = lowest(shifted), highest(shifted)
        for _ in range(2):  # the second time in numbers that are small where it matters
            starts, ends = shifted - most, shifted - less
            places = xp.concatenate([starts, ends])
            places = places[xp.argsort(places)]

            def fall(i: int, at=shifted, places=places) -> float:
                return -float(inside(at - places[i]).sum())

            place = places[bisect_left(range(len(places) - 1), -within, key=fall)]
            starts, ends, shifted = starts - place, ends - place, shifted - place
        # between two places some coordinates move, together: their mean follows from the sum
        moving, still = (starts < 0) & (ends >= 0), inside(shifted)
        if not bool(moving.any()):  # the sums differ by rounding
            return still
        rest = float(within - xp.where(moving, 0, still).sum()) / int(moving.sum())
        return inside(xp.where(moving, shifted - shifted[moving].mean() + rest, still))

    return project
