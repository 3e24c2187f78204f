"""Rooms, microphones and bad speakers: what happens to clean renderings, so that a network does not learn them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.training.midi import Samples

RATE = 24_000
"""Hz."""


def coloured(samples: Samples, draw: np.random.Generator) -> Samples:
    """Samples [n] after a random chain of effects, with a random level of at most 1."""
    from scipy.signal import fftconvolve, sosfilt

    out = np.asarray(samples, dtype=np.float64)
    if draw.random() < 0.5:
        for _ in range(draw.integers(1, 4)):
            hertz = np.exp(draw.uniform(np.log(80), np.log(9_000)))
            out = sosfilt(_peak(hertz, draw.uniform(-9, 9), draw.uniform(0.4, 2.0)), out)
    if draw.random() < 0.3:
        out = out + draw.uniform(0.1, 0.6) * fftconvolve(out, _room(draw))[: len(out)]
    if draw.random() < 0.1:
        out = np.tanh(out * (draw.uniform(1, 4) / (np.abs(out).max() + 1e-9)))
    if draw.random() < 0.1:
        out = sosfilt(_low_pass(np.exp(draw.uniform(np.log(2_000), np.log(9_000)))), out)
    out = out / (np.abs(out).max() + 1e-9) * 10 ** (draw.uniform(-24, -1) / 20)
    if draw.random() < 0.3:
        loudness = out.std() * 10 ** (-draw.uniform(20, 60) / 20)
        out = out + draw.normal(size=len(out)) * loudness
    return out.astype(np.float32).clip(-1, 1)


def _room(draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """A decaying noise of unit energy."""
    seconds = draw.uniform(0.1, 0.8)
    time = np.arange(int(seconds * RATE)) / seconds / RATE
    noise = draw.normal(size=len(time)) * np.exp(-6.9 * time)
    return np.asarray(noise / np.linalg.norm(noise))


def _peak(hertz: float, gain_db: float, octaves: float) -> npt.NDArray[np.float64]:
    """A peaking filter (R. Bristow-Johnson, Audio EQ Cookbook)."""
    gain, omega = 10 ** (gain_db / 40), 2 * np.pi * hertz / RATE
    alpha = np.sin(omega) * np.sinh(np.log(2) / 2 * octaves * omega / np.sin(omega))
    cosine = -2 * np.cos(omega)
    values = np.array([1 + alpha * gain, cosine, 1 - alpha * gain, 1 + alpha / gain, cosine, 1 - alpha / gain])
    return np.asarray(values / values[3])[None]


def _low_pass(hertz: float) -> npt.NDArray[np.float64]:
    from scipy.signal import butter

    return np.asarray(butter(2, hertz, fs=RATE, output="sos"))
