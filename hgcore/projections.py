"""Euclidean projections onto the sets in which hyperparameters are allowed, as functions of a
vector.
"""

from __future__ import annotations

from collections.abc import Callable

from hgcore.arrays import namespace


def box(low, high) -> Callable:
    """Projection onto low <= hyper <= high (numbers or vectors)."""

    def project(hyper):
        xp = namespace(hyper)
        least, most = (
            xp.asarray(bound, dtype=hyper.dtype, device=hyper.device) for bound in (low, high)
        )
        return xp.minimum(xp.maximum(hyper, least), most)

    return project


def simplex(total: float = 1.0) -> Callable:
    """Euclidean projection onto {hyper >= 0, sum = total > 0}: Michelot 1986, exact in finitely
    many passes.
    """
    if not total > 0:
        raise ValueError(f"the sum must be positive, got {total}")

    def project(hyper):
        hyper = (
            hyper - hyper.max()
        )  # moves no projection, and keeps the largest above the shift whatever is rounded
        shift, active, count = (hyper.sum() - total) / len(hyper), hyper == hyper, len(hyper)
        while True:
            active = hyper > shift
            if int(active.sum()) == count:
                return (hyper - shift) * active
            count = int(active.sum())
            shift = ((hyper * active).sum() - total) / count

    return project


def l1_ball(radius: float = 1.0) -> Callable:
    """Euclidean projection onto {sum |hyper_i| <= radius}, radius > 0 (Duchi et al. 2008)."""
    onto = simplex(radius)

    def project(hyper):
        if float(abs(hyper).sum()) <= radius:
            return hyper
        return namespace(hyper).sign(hyper) * onto(abs(hyper))

    return project


def box_l1(low, high, radius: float) -> Callable:
    """Euclidean projection onto {low <= hyper <= high, sum of hyper <= radius}, for 0 <= low: a box
    cut off by an L1 ball.

    It is clip(hyper - m, low, high) with the least m >= 0 that brings the sum down to the radius.
    As m grows, the sum falls in straight lines between the 2n places where a coordinate leaves
    `high` or comes to `low`: these are sorted and bisected, O(n log n).
    """
    if not radius >= 0:
        raise ValueError(f"the radius must be a number >= 0, got {radius}")
    inside, lowest, highest = box(low, high), box(low, low), box(high, high)

    def project(hyper):
        more, less, most = (
            inside(hyper),
            lowest(hyper),
            highest(hyper),
        )  # more, less: sums on either side of the radius
        _require_points(less, most, radius)
        within = max(radius, float(less.sum()))  # more than the radius by rounding at most
        if float(more.sum()) <= within:
            return more
        xp = namespace(hyper)
        places = xp.maximum(
            xp.concatenate([hyper - most, hyper - less]), 0 * xp.concatenate([hyper, hyper])
        )
        places = places[xp.argsort(places)]
        first, last = -1, len(places) - 1
        while last - first > 1:
            middle = (first + last) // 2
            point = inside(hyper - places[middle])
            if float(point.sum()) > within:
                first, more = middle, point
            else:
                last, less = middle, point
        share = (more.sum() - within) / (more.sum() - less.sum())
        return inside(more + share * (less - more))

    return project


def _require_points(least, most, radius: float) -> None:
    """Raise ValueError if no vector lies between the bounds and has a sum up to the radius."""
    if bool((least < 0).any()):
        raise ValueError(
            f"low must be >= 0, got {float(least.min()):.6g}; for points of either sign see box or"
            " l1_ball"
        )
    if bool((least > most).any()):
        raise ValueError(
            f"low must be <= high, but exceeds it by {float((least - most).max()):.6g}"
        )
    if float(least.sum()) > radius * (1 + len(least) * namespace(least).finfo(least.dtype).eps):
        raise ValueError(
            f"nothing lies in the set: low alone adds up to {float(least.sum()):.6g}, more than the"
            f" radius {radius:.6g}"
        )
