"""TrackWindows: the windows that a model sees of a track."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from featurestore.encode.memory import free_memory
from featurestore.errors import ExtractionError, SettingError
from featurestore.models.encoder import CONTEXT_SECONDS, Encoder, context_seconds, longest_window, window_bytes
from featurestore.windows import (
    AUTO,
    FULL,
    equal_windows,
    hop_samples,
    sliding_windows,
    window_count,
    window_samples,
    window_starts,
)

_LONG_SECONDS = 60
"""Windows beyond this are encoded one at a time by default."""


class TrackWindows:
    """How tracks are cut for a model.

    Parameters
    ----------
    model : Encoder
        Of which windows are at least `min_samples` long.
    segment_duration, overlap
        As in `WindowEncoder`.

    Attributes
    ----------
    segment_duration : float or "full"
        Length of a window, seconds.
    overlap : float
        Share of a window that the next one repeats.
    window : int
        Length of a window in samples; of "full", of what the model was trained with.
    are_long : bool
        Whether windows are to be encoded one at a time.
    """

    def __init__(self, model: Encoder, segment_duration: float | str, overlap: float | None) -> None:
        seconds = context = context_seconds(model)
        self.segment_duration: float | str = FULL
        if segment_duration != FULL:
            self.segment_duration = seconds = context if segment_duration == AUTO else float(segment_duration)
        if overlap is None:
            # Half, as MERT v0 and v1 want it; long windows lose little at their edges, and cost twice as much so.
            is_long = segment_duration == FULL or (segment_duration == AUTO and context > CONTEXT_SECONDS)
            overlap = 0.0 if is_long else 0.5
        self.overlap, self._longest = float(overlap), longest_window(model)
        self.window = window_samples(seconds, model.sample_rate)
        self._hop = hop_samples(self.window, overlap)
        self.are_long = segment_duration == FULL or seconds > _LONG_SECONDS
        if self.window < model.min_samples:
            raise SettingError(
                f"`segment_duration` {seconds:g} s is {self.window} samples; {model.name} needs at "
                f"least {model.min_samples} ({model.min_samples / model.sample_rate:.4f} s)"
            )

    def cut(
        self, blocks: Iterable[npt.NDArray[np.float32]], model: Encoder, device: torch.device
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Give the first sample and the samples of each window of a track that comes in blocks."""
        if self.segment_duration != FULL:
            yield from sliding_windows(blocks, self.window, self._hop)
            return
        samples = np.concatenate([np.zeros(0, np.float32), *blocks])
        window, hop = self._bounds(len(samples), model, device)
        for start in window_starts(len(samples), window, hop):
            yield int(start), samples[start : start + window]

    def count(self, n_samples: int, model: Encoder, device: torch.device) -> tuple[int, int]:
        """Count the windows of a track of this length, and the frames of all of them."""
        window, hop = self._bounds(n_samples, model, device)
        windows = window_count(n_samples, window, hop)
        return windows, windows * model.frames(min(window, n_samples))

    def _bounds(self, n_samples: int, model: Encoder, device: torch.device) -> tuple[int, int]:
        """Window and hop for a track of this length; ExtractionError if a window would not fit into memory."""
        if self.segment_duration != FULL:
            return self.window, self._hop
        window, hop = equal_windows(n_samples, self._longest or n_samples, self.overlap)
        needed, free = window_bytes(model, window), free_memory(device)
        if free is not None and needed > free:
            raise ExtractionError(
                f"one window of {window / model.sample_rate:.0f} s needs about {needed / 1e9:.1f} GB of "
                f"memory in {model.name}, and {device} has {free / 1e9:.1f} GB free: choose "
                f"`segment_duration='auto'` or a number of seconds instead of 'full'"
            )
        return window, hop
