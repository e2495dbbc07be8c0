"""The verbs of kernels.py by operations on whole vectors, with the same bits: on NumPy where numba is missing, on torch's integers on a GPU.

Arguments are those of kernels.py, but nothing is changed in place. `compiled` has torch.compile make one kernel of each verb, so that on a GPU
every vector is read and written once.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from types import SimpleNamespace

import numpy as np

from hgcore.arrays import namespace

UNIT = 2.0**-52
BITS = 16
LOW = 2**BITS - 1
LARGE = (
    2**17
)  # numbers; for fewer, starting a kernel costs more than the reading, and nobody waits for a compiler


def integers(values, scale: float = 1 / UNIT):
    """round(values * scale), ties to even, as int64."""
    xp = namespace(values)
    return xp.asarray(xp.round(values * scale), dtype=xp.int64)


def floats(bits, dtype=None):
    """The values of bits in units of 2**-52, rounded to nearest; dtype: float64 if None."""
    xp = namespace(bits)
    values = xp.asarray(bits, dtype=xp.float64) * UNIT
    return values if dtype is None else xp.asarray(values, dtype=dtype)


def _double(number):
    """The same in double; a number of Python is."""
    return (
        number
        if isinstance(number, (int, float))
        else namespace(number).asarray(number, dtype=namespace(number).float64)
    )


def _reach(values, amount):
    """The largest |value| + |amount|, NaN if there is one."""
    return namespace(values).amax(abs(values) + abs(amount))


def add(bits, amount) -> tuple:
    """(bits + amount, the largest magnitude met)"""
    amount = _double(amount)
    return bits + integers(amount), _reach(floats(bits), amount)


def subtract(bits, amount):
    """Undo `add`."""
    return bits - integers(_double(amount))


def multiply(values, state, numerator) -> tuple:
    """(values * numerator / 2**16, state with what rounding loses); see `ReversalBuffer`."""
    share = state // numerator
    carry = (values & LOW) * numerator + (state - share * numerator)
    return (values >> BITS) * numerator + (carry >> BITS), (share << BITS) + (carry & LOW)


def divide(values, state, numerator) -> tuple:
    """Undo `multiply`."""
    high = values // numerator
    rest = ((values - high * numerator) << BITS) + (state & LOW)
    low = rest // numerator
    return (high << BITS) + low, (state >> BITS) * numerator + (rest - low * numerator)


def forth(position, velocity, state, gradient, numerator, gain, rate, dtype) -> tuple:
    """One step of momentum: (position, velocity, state, weights, speed, magnitude met)."""
    velocity, state = multiply(velocity, state, numerator)
    velocity, kicked = add(velocity, _double(gain) * _double(gradient))
    position, drifted = add(position, _double(rate) * floats(velocity))
    return (
        position,
        velocity,
        state,
        floats(position, dtype),
        floats(velocity, dtype),
        namespace(velocity).maximum(kicked, drifted),
    )


def back_position(position, velocity, rate, dtype) -> tuple:
    """Undo what `forth` did to the position: (position, weights)."""
    position = subtract(position, _double(rate) * floats(velocity))
    return position, floats(position, dtype)


def back_velocity(velocity, state, gradient, numerator, gain, dtype) -> tuple:
    """Undo what `forth` did to the velocity: (velocity, state, speed)."""
    velocity, state = divide(
        subtract(velocity, _double(gain) * _double(gradient)), state, numerator
    )
    return velocity, state, floats(velocity, dtype)


@functools.cache
def compiled(device) -> SimpleNamespace:
    """These verbs for torch's vectors on `device`, each a kernel by torch.compile: some seconds for each at first use."""
    verbs = add, subtract, multiply, divide, forth, back_position, back_velocity
    return SimpleNamespace(**{verb.__name__: _Compiled(verb, device) for verb in verbs})


class _Compiled:
    """A verb that is compiled for each kind of arguments, and then has to give the plain one's bits of the hardest numbers before it is used."""

    def __init__(self, verb, device):
        self.verb, self.device, self.names, self.ways = (
            verb,
            device,
            list(inspect.signature(verb).parameters),
            {},
        )

    def __call__(self, *arguments):
        import torch

        # a number becomes a tensor where it is used, without a transfer to wait for: as a constant it would be compiled for anew
        arguments = [
            torch.full(
                (),
                x,
                device=self.device,
                dtype=torch.int64 if isinstance(x, int) else torch.float64,
            )
            if isinstance(x, (int, float))
            else x
            for x in arguments
        ]
        kind = tuple((x.ndim, x.dtype) if hasattr(x, "ndim") else x for x in arguments)
        if kind not in self.ways:
            self.ways[kind] = self._checked(torch, arguments)
        return self.ways[kind](*arguments)

    def _checked(self, torch, arguments):
        """The verb compiled; or as it is, with a warning, where torch cannot compile it or makes something else of it."""
        samples = [_hard(torch, name, x) for name, x in zip(self.names, arguments, strict=True)]
        try:
            fast = torch.compile(self.verb, fullgraph=True, dynamic=True)
            pairs = zip(_tuple(fast(*samples)), _tuple(self.verb(*samples)), strict=True)
            alike = all(
                torch.equal(a, b) if a.ndim else torch.allclose(a, b) for a, b in pairs
            )  # a single number is but a bound
            reason = "" if alike else "its bits are not those of the operations one by one"
        except Exception as error:  # noqa: BLE001  torch and the compilers under it raise all kinds
            reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
        if not reason:
            return fast
        warnings.warn(
            f"torch.compile cannot fuse `{self.verb.__name__}` of exact reversal on {self.device} ({reason});"
            " it runs operation by operation, correct and some times slower",
            RuntimeWarning,
            stacklevel=4,
        )
        return self.verb


def _tuple(results) -> tuple:
    return results if isinstance(results, tuple) else (results,)


def _hard(torch, name: str, like):
    """Numbers of the same kind as an argument, that test what a compiler may do to integers and to roundings.

    About as many, too: the compiler cuts the work to the sizes that it sees first.
    """
    if not hasattr(like, "ndim"):
        return like
    rng, few = np.random.default_rng(0), (4099,) if like.ndim else ()
    if like.dtype.is_floating_point:
        values = rng.standard_normal(few) * 2.0 ** rng.integers(-60, 8, few)
    else:
        values = rng.integers(
            *{"numerator": (1, 2**BITS + 1), "state": (0, 2**53)}.get(name, (-(2**62), 2**62)), few
        )
    return torch.as_tensor(np.resize(values, min(len(like), 2**20)) if like.ndim else values).to(
        like
    )
