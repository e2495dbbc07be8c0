"""Random numbers by address: those of torch, NumPy and `random`, drawn from whole numbers."""

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch

ALONE = threading.RLock()  # each library has one generator, for all threads
_spare = []  # generators for NumPy's own draws, which are slow to make


@contextlib.contextmanager
def drawn_from(seed, device=None) -> Iterator[None]:
    """Draw the random numbers of torch, NumPy and `random` from whole numbers such as (k, t).

    One thread at a time.
    """
    cuda = device is not None and device.type == "cuda"
    with ALONE, torch.random.fork_rng([device] if cuda else []):
        state, own = random.getstate(), np.random.get_bit_generator()
        spare = _spare.pop() if _spare else np.random.MT19937()
        np.random.set_bit_generator(spare)  # 100 times faster than to save its state
        try:
            set_seed(seed, device)
            yield
        finally:
            random.setstate(state)
            np.random.set_bit_generator(own)
            _spare.append(spare)


def set_seed(seed, device=None) -> None:
    """Seed the three libraries, and `device` if it is a GPU; ValueError for other seeds."""
    try:
        sequence = np.random.SeedSequence(seed)
    except (TypeError, ValueError) as error:
        what = f"seed must be whole numbers >= 0 such as (t,), got {seed!r}"
        raise ValueError(f"{what}; for t=None use a fixed seed") from error
    number = int(sequence.generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(number)  # torch.manual_seed looks for devices first
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)


def generators(weights) -> tuple:
    """Return the states of the generators that `drawn_from` seeds."""
    cuda = weights.is_cuda
    state = torch.cuda.get_rng_state(weights.device) if cuda else torch.get_rng_state()
    numpy = np.random.get_state()
    return state.numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2:]
