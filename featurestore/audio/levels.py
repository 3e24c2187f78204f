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
    """Levels of a mono signal, gathered block by block; `samples` is how many there were so far."""

    def __init__(self) -> None:
        self.samples = 0
        self._peak = self._power = self._channels_power = 0.0
        self._clipped = 0

    def add(self, mono: npt.NDArray[np.float32], channels: npt.NDArray[np.float32]) -> None:
        """Take the next block, finite samples of shape (samples,) that are the mean of (channels, samples)."""
        power = float(np.dot(mono, mono))
        self.samples += len(mono)
        self._power += power
        if len(channels) > 1:
            power = sum(float(np.dot(x, x)) for x in channels) / len(channels)
        self._channels_power += power
        peak = float(max(mono.max(initial=0), -mono.min(initial=0)))
        if peak >= _FULL_SCALE:
            self._clipped += int(np.count_nonzero(np.abs(mono) >= _FULL_SCALE))
        self._peak = max(self._peak, peak)

    def to_dict(self) -> dict[str, float]:
        """The levels as they are stored with a track: ``rms``, ``peak``, and ``clipped``, a share of samples."""
        samples = max(1, self.samples)
        return {"rms": math.sqrt(self._power / samples), "peak": self._peak, "clipped": self._clipped / samples}

    def warnings(self) -> list[str]:
        """What is wrong with a track of these levels, a sentence each."""
        found, levels = [], self.to_dict()
        cancelled = self._power < _CANCELLED * self._channels_power
        if cancelled and math.sqrt(self._channels_power / max(1, self.samples)) >= _SILENCE:
            found.append(
                "its channels cancel each other out: their mean, of which features are made, is all but silent"
            )
        elif levels["rms"] < _SILENCE:
            found.append(f"it is silent (root mean square {levels['rms']:.1e})")
        if levels["clipped"] > _MOST_CLIPPED:
            found.append(f"{100 * levels['clipped']:.1f} % of its samples are clipped")
        return found
