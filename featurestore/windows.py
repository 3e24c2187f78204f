"""Sample bounds of the windows of a track: pure integer arithmetic.

Starts are 0, hop, 2 hop, ...; if the last window does not reach the end, one more is anchored at the end.
Every sample is covered, no window occurs twice, and all windows have the same length. A track that is
shorter than a window is one window of its own length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError

AUTO, FULL = "auto", "full"
"""Windows of the length that a model was trained with; as long as their track, or as the model allows."""

_GATHERED = 1 << 18
"""Samples beyond a window that are gathered in one array, so that most are copied once. Arrays of 4 MB and more
take twice the time: the system gives new memory for each."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_sample_rate(sample_rate: float) -> None:
    """Raise SettingError unless this is a whole number of Hz, of whatever type."""
    if not _is_number(sample_rate) or not 0 < sample_rate < 1e9 or sample_rate != int(sample_rate):
        raise SettingError(
            f"`sample_rate` must be a whole number of Hz, above 0 and below 1e9, not {sample_rate!r}"
        )


def window_samples(segment_duration: float, sample_rate: int) -> int:
    """Length of a window.

    Parameters
    ----------
    segment_duration : float
        Seconds, finite and above 0.
    sample_rate : int
        Hz.

    Returns
    -------
    int
        Samples, rounded to the nearest, at least 1.

    Raises
    ------
    SettingError
        If the duration is not a positive, finite number, or is shorter than half a sample, or the rate is not a
        whole number above 0.
    """
    _check_sample_rate(sample_rate)
    if not _is_number(segment_duration) or not 0 < segment_duration < 1e9:
        raise SettingError(f"`segment_duration` must be above 0 seconds and below 1e9, not {segment_duration!r}")
    samples = round(segment_duration * sample_rate)
    if samples < 1:
        raise SettingError(f"`segment_duration` {segment_duration} s is less than a sample at {sample_rate} Hz")
    return samples


def hop_samples(window: int, overlap: float, *, name: str = "overlap") -> int:
    """Distance between the starts of two windows.

    Parameters
    ----------
    window : int
        Length of a window, samples.
    overlap : float
        Share of a window that the next one repeats, in [0, 1).
    name : str
        What the caller calls this setting.

    Returns
    -------
    int
        Samples, rounded to the nearest, at least 1.

    Raises
    ------
    SettingError
        If the overlap is outside [0, 1).
    """
    if not _is_number(overlap) or not 0 <= overlap < 1:
        raise SettingError(f"`{name}` must be at least 0 and below 1, not {overlap!r}")
    return max(1, round(window * (1 - overlap)))


def check_windows(segment_duration: float | str, overlap: float | None) -> None:
    """Raise SettingError if no model could have these windows; an overlap of None is its default."""
    if isinstance(segment_duration, str) and segment_duration not in (AUTO, FULL):
        raise SettingError(
            f"`segment_duration` is a number of seconds, {AUTO} or {FULL}, not {segment_duration!r}"
        )
    window = 1.0 if isinstance(segment_duration, str) else segment_duration
    hop_samples(window_samples(window, 1_000_000), 0.0 if overlap is None else overlap)


def equal_windows(n_samples: int, longest: int, overlap: float) -> tuple[int, int]:
    """Window and hop of the fewest equal windows that cover a track: the track itself if it is short enough.

    Parameters
    ----------
    n_samples : int
        Length of the track, samples.
    longest : int
        Longest window, samples.
    overlap : float
        Share of a window that the next one repeats, in [0, 1).

    Returns
    -------
    window, hop : int
        Samples, as for `window_starts`.
    """
    if n_samples <= longest:
        return n_samples, n_samples
    share = 1 - overlap
    more = math.ceil((n_samples - longest) / (longest * share))
    window = min(longest, math.ceil(n_samples / (1 + more * share)))
    return window, -(-(n_samples - window) // more)


def window_starts(n_samples: int, window: int, hop: int) -> npt.NDArray[np.int64]:
    """First samples of the windows of a track.

    Parameters
    ----------
    n_samples : int
        Length of the track, samples, at least 1.
    window, hop : int
        Length of a window and distance between starts, samples, at least 1.

    Returns
    -------
    ndarray of int64, shape (segments,)
        Strictly increasing; window ``i`` is ``[starts[i], starts[i] + min(window, n_samples))``.

    Raises
    ------
    SettingError
        If one of the arguments is below 1.
    """
    if min(n_samples, window, hop) < 1:
        raise SettingError(f"a track of {n_samples} samples has no windows of {window} every {hop} samples")
    if n_samples <= window:
        return np.zeros(1, dtype=np.int64)
    starts = np.arange(0, n_samples - window + 1, hop, dtype=np.int64)
    tail = n_samples - window
    return starts if starts[-1] == tail else np.append(starts, tail)


def window_count(n_samples: int, window: int, hop: int) -> int:
    """How many windows `window_starts` gives."""
    return 1 + -(-max(0, n_samples - window) // hop)


def sliding_windows(
    blocks: Iterable[npt.NDArray[Any]], window: int, hop: int
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Windows of a track that comes in blocks: those of `window_starts`, in the same order.

    Parameters
    ----------
    blocks : iterable of ndarray, shape (samples,)
        The track, in blocks of any lengths.
    window, hop : int
        Length of a window and distance between starts, samples, at least 1.

    Yields
    ------
    start : int
        First sample of the window.
    samples : ndarray, shape (min(window, length of the track),)
        To be read only: windows share memory.

    Raises
    ------
    SettingError
        If the window or the hop is below 1, or the track has no sample.
    """
    if min(window, hop) < 1:
        raise SettingError(f"there are no windows of {window} every {hop} samples")
    kept: npt.NDArray[Any] = np.empty(0)
    first = size = 0  # kept[:size] are the samples of the track from `first` on
    start = 0
    for block in blocks:
        if size + len(block) > len(kept):
            # The last window of the track may be anchored at any sample from here on.
            last = kept[max(0, size - window) : size]
            first, size = first + size - len(last), len(last)
            length = max(size + len(block), min(2 * len(kept), window + max(window, _GATHERED)))
            kept = np.empty(length, block.dtype)
            kept[:size] = last
        kept[size : size + len(block)] = block
        size += len(block)
        while start + window <= first + size:
            yield start, kept[start - first : start - first + window]
            start += hop
    if not size:
        raise SettingError("a track of 0 samples has no windows")
    tail = first + size - window
    if start == 0:  # shorter than a window
        yield 0, kept[:size]
    elif start - hop < tail:
        yield tail, kept[tail - first : size]
