"""Features of speech: logarithms of mel-band energies and their derivatives by time."""

import numpy as np

RATE, WINDOW, HOP = 16_000, 400, 160  # samples: 25 ms windows every 10 ms
_FFT = 512


def centers(samples: int) -> np.ndarray:
    """Return the sample in the middle of each window (n,); n = 0 if there is none."""
    return np.arange(WINDOW // 2, samples - WINDOW // 2 + 1, HOP)


def speech_features(samples: np.ndarray, bands: int = 40, derivatives: int = 1) -> np.ndarray:
    """Return features (n, (bands + 1) * (1 + derivatives)) of n windows of int16 samples at 16 kHz.

    Of each window log energies of `bands` mel bands and of the whole window, then their first,
    second, ... derivatives by time. 40 bands and two derivatives make the 123 of Franceschi et al.
    2017.
    """
    blocks = [_log_energies(samples / 32768, bands)]
    for _ in range(derivatives):
        blocks.append(slope(blocks[-1]))
    return np.concatenate(blocks, axis=1)


def _log_energies(signal: np.ndarray, bands: int) -> np.ndarray:
    """Return (n, bands + 1). Hamming windows after a pre-emphasis of 0.97."""
    sharpened = np.append(signal[:1], signal[1:] - 0.97 * signal[:-1])
    pieces = [
        np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] for x in (sharpened, signal)
    ]
    power = abs(np.fft.rfft(pieces[0] * np.hamming(WINDOW), _FFT)) ** 2
    energies = np.column_stack([power @ mel_filters(bands).T, (pieces[1] ** 2).sum(axis=1)])
    return np.log(energies + 1e-8)


def mel_filters(bands: int) -> np.ndarray:
    """Return the triangular filters (bands, 257), equally wide in mel from 0 to 8 kHz."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(_FFT, 1 / RATE)
    low, middle, high = (edges[i : i + bands, None] for i in range(3))
    rise, fall = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.clip(np.minimum(rise, fall), 0, None)


def slope(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """Return the slope (n, f) of the regression line over `reach` windows on either side.

    The first and the last window count for those beyond.
    """
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    steps = range(-reach, reach + 1)
    total = sum(i * padded[reach + i : reach + i + len(values)] for i in steps)
    return total / sum(i * i for i in steps)
