"""How loud a track is: what cannot be seen in its features later."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_FULL_SCALE = 0.9999
"""Magnitude from which a sample counts as clipped: the largest of 16 bits is 0.99997."""

_MOST_CLIPPED = 0.01
_SILENCE = 1e-5
"""Root mean square, -100 dB of full scale, below which a track is silent; that of 16 bits of noise is 9e-6."""

_CANCELLED = 1e-3
"""Power of a mono mix, relative to that of its channels, below which they cancel each other out."""


class Levels:
    """Levels of a mono signal, gathered block by block.

    Attributes
    ----------
    samples : int
        So far.
    peak : float
        Largest magnitude.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.peak = 0.0
        self._power = self._channels_power = 0.0
        self._clipped = 0

    def add(self, mono: npt.NDArray[np.float32], channels: npt.NDArray[np.float32]) -> None:
        """Take the next block.

        Parameters
        ----------
        mono : ndarray of float32, shape (samples,)
            Finite.
        channels : ndarray of float32, shape (channels, samples)
            Of which it is the mean.
        """
        power = float(np.dot(mono, mono))
        self.samples += len(mono)
        self._power += power
        if len(channels) == 1:
            self._channels_power += power
        else:
            self._channels_power += sum(float(np.dot(x, x)) for x in channels) / len(channels)
        peak = float(max(mono.max(initial=0), -mono.min(initial=0)))
        if peak >= _FULL_SCALE:
            self._clipped += int(np.count_nonzero(np.abs(mono) >= _FULL_SCALE))
        self.peak = max(self.peak, peak)

    @property
    def rms(self) -> float:
        """Root mean square."""
        return math.sqrt(self._power / self.samples) if self.samples else 0.0

    @property
    def clipped(self) -> float:
        """Share of samples at full scale or beyond."""
        return self._clipped / self.samples if self.samples else 0.0

    def to_dict(self) -> dict[str, float]:
        """The levels as they are stored with a track: ``rms``, ``peak`` and ``clipped``."""
        return {"rms": self.rms, "peak": self.peak, "clipped": self.clipped}

    def warnings(self) -> list[str]:
        """What is wrong with a track of these levels, a sentence each."""
        found = []
        cancelled = self._power < _CANCELLED * self._channels_power
        if cancelled and math.sqrt(self._channels_power / max(1, self.samples)) >= _SILENCE:
            found.append(
                "its channels cancel each other out: their mean, of which features are made, is all but silent"
            )
        elif self.rms < _SILENCE:
            found.append(f"it is silent (root mean square {self.rms:.1e})")
        if self.clipped > _MOST_CLIPPED:
            found.append(f"{100 * self.clipped:.1f} % of its samples are clipped")
        return found
