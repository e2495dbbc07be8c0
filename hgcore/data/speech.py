"""Features of speech: logarithms of mel-band energies and their derivatives by time."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE, WINDOW, HOP = 16_000, 400, 160  # samples: 25 ms windows every 10 ms
_FFT = 512


def centers(samples: int) -> np.ndarray:
    """Return the sample in the middle of each window (n,); n = 0 if there is none."""
    return np.arange(WINDOW // 2, samples - WINDOW // 2 + 1, HOP)


def speech_features(samples: np.ndarray, derivatives: int = 1) -> np.ndarray:
    """Return features (n, 41 * (1 + derivatives)) of n windows of int16 samples at 16 kHz.

    Of each window log energies of 40 mel bands and of the whole window, then their first, second,
    ... derivatives by time. Franceschi et al. 2017 have two derivatives, so 123 features.
    """
    blocks = [_log_energies(samples / 32768)]
    for _ in range(derivatives):
        blocks.append(slope(blocks[-1]))
    return np.concatenate(blocks, axis=1)


def _log_energies(signal: np.ndarray) -> np.ndarray:
    """Return (n, 41), of Hamming windows after a pre-emphasis of 0.97."""
    sharpened = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    windows, plain = (sliding_window_view(x, WINDOW)[::HOP] for x in (sharpened, signal))
    power = abs(np.fft.rfft(windows * np.hamming(WINDOW), _FFT)) ** 2
    energies = np.column_stack([power @ mel_filters(40).T, (plain**2).sum(axis=1)])
    return np.log(energies + 1e-8)


def mel_filters(bands: int) -> np.ndarray:
    """Return the triangular filters (bands, 257), equally wide in mel from 0 to 8 kHz."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(_FFT, 1 / RATE)
    low, middle, high = (edges[i : i + bands, None] for i in range(3))
    rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.clip(np.minimum(rise, fall), 0, None)


def slope(values: np.ndarray) -> np.ndarray:
    """Return the slope (n, f) of the regression line over two windows on either side.

    The first and the last window count for those beyond.
    """
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    return sum(i * padded[2 + i : 2 + i + len(values)] for i in range(-2, 3)) / 10
