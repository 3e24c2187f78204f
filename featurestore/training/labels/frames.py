"""The frames of a track, one after the other: what overlapping windows hold, stitched into one sequence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError
from featurestore.store import StoreReader
from featurestore.store.views import TrackView

_EPSILON = 1e-6
"""Of a frame: what rounding may do to the starts of windows."""


def stitch(starts: Sequence[float], frames: int, frame_rate: float) -> list[npt.NDArray[np.int64]]:
    """Which frames of each window make up the sequence of the track.

    Frame t of the track lies t / frame_rate after its first one. It is taken from the window whose middle is
    nearest (of two, the earlier one), because a window knows least about its edges; and in it from the frame that
    is nearest in time. Where windows start at a whole number of frames, that is the same instant. Otherwise it
    is up to half a frame away, and up to about a frame where windows do not overlap.

    Parameters
    ----------
    starts : sequence of float
        Where the windows start, seconds, ascending from 0.
    frames : int
        Of each window.
    frame_rate : float
        Frames a second.

    Returns
    -------
    list of ndarray of int64
        Positions of the frames of each window. Their lengths sum to as many frames as the windows cover: those of
        the whole track encoded at once, or one fewer.
    """
    first = np.asarray(starts, np.float64) * frame_rate
    total = int(np.floor(first[-1] + frames + _EPSILON))
    # The last frame of each window: half-way between its middle and the next one's.
    last = np.floor((first[:-1] + first[1:] + frames - 1) / 2 + _EPSILON).astype(np.int64)
    bounds = np.concatenate([[0], last + 1, [total]])
    return [
        np.clip(np.floor(np.arange(begin, end) - at + 0.5 + _EPSILON), 0, frames - 1).astype(np.int64)
        for at, begin, end in zip(first, bounds[:-1], bounds[1:], strict=True)
    ]


def frame_rate_of(store: StoreReader) -> float:
    """Frames a second of a store.

    Raises
    ------
    SettingError
        If the store does not say, so that its windows cannot be put together.
    """
    if store.spec.frame_rate is None:
        raise SettingError(
            f"the store {store.path} does not say how many frames a second it has (frame_rate in its spec), so "
            "its windows cannot be put together: build it with fs-extract build"
        )
    return store.spec.frame_rate


def track_frames(store: StoreReader, track_id: str, layer: int) -> Iterator[npt.NDArray[np.float32]]:
    """Frames of one layer of a track in order, a window at a time.

    Parameters
    ----------
    store : StoreReader
        With raw features.
    track_id : str
        Of one track.
    layer : int
        Which of its hidden states.

    Yields
    ------
    ndarray of float32, shape (frames, feature)

    Raises
    ------
    TrackNotFoundError
        If the store has no such track, or no raw features of it.
    SettingError
        If the store does not say its frame rate, or where the windows of the track start.
    CorruptTrackError
        If the track is damaged.
    """
    view = store.raw(track_id, layer=layer)
    for segment, chosen in enumerate(_stitched(store, view)):
        yield np.asarray(view[segment], np.float32)[chosen]


def count_frames(store: StoreReader, track_id: str, layer: int) -> int:
    """How many frames `track_frames` gives; no feature is read. Raises the same errors."""
    return sum(map(len, _stitched(store, store.raw(track_id, layer=layer))))


def _stitched(store: StoreReader, view: TrackView) -> list[npt.NDArray[np.int64]]:
    segments, frames, _ = view.shape
    starts = view.starts.tolist() or [0.0]
    if len(starts) != segments or any(b <= a for a, b in itertools.pairwise(starts)):
        raise SettingError(
            f"the store {store.path} does not say, in ascending order, where the windows of {view.track_id!r} "
            "start"
        )
    return stitch(starts, frames, frame_rate_of(store))
