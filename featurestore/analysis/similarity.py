"""Tracks and moments of a store that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.analysis.neighbours import NeighbourIndex
from featurestore.analysis.tracks import window_seconds
from featurestore.errors import SettingError

if TYPE_CHECKING:
    from featurestore.store import StoreReader, View


@dataclass(frozen=True)
class Match:
    """A track, or a moment of it, that is like the query.

    Attributes
    ----------
    track_id : str
        The track.
    score : float
        From -1 to 1.
    start : float, optional
        Where the segment starts, seconds; None of a whole track, or where the store was not told.

    Examples
    --------
    >>> match = FeatureStore("features.zarr").similar(("rock/song", 1.0), layer=7, k=1)[0]
    >>> match.start is None
    False
    """

    track_id: str
    score: float
    start: float | None = None


class _Rows:
    """The rows of one layer, and what a metric knows of them."""

    def __init__(self, store: StoreReader, layer: int, level: str, metric: str) -> None:
        view: View
        self.starts: npt.NDArray[np.float64] | None = None
        if level == "aggregated":
            view = every = store.aggregated(layer)
            self.track_ids = np.array(every.track_ids, dtype=object)
        else:
            view = rows = store.segments(layer=layer)
            self.track_ids, self.starts = rows.row_tracks, rows.row_starts
        self.index = NeighbourIndex(lambda first, last: view[first:last], (len(view), view.shape[-1]), metric)


class Similarity:
    """Answers of a store; what a metric needs to know of all rows is kept until the store changes."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._kept: dict[tuple[int, str, str], tuple[Any, _Rows]] = {}

    def _rows(self, layer: int, level: str, metric: str) -> _Rows:
        if level not in ("aggregated", "segments"):
            raise SettingError(f"`level` must be aggregated or segments, not {level!r}")
        state = self._store.state()
        kept = self._kept.get((layer, level, metric))
        if kept is None or state is None or kept[0] != state:
            kept = state, _Rows(self._store, layer, level, metric)
            self._kept[layer, level, metric] = kept
        return kept[1]

    def of(self, query: Any, layer: int, k: int, level: str, metric: str) -> list[Match]:
        """What is like a track, or a moment of one."""
        track_id, moment = query if isinstance(query, tuple) else (query, None)
        if moment is None:
            vector = self._store.aggregated(layer, tracks=[track_id]).to_numpy()[0]
            rows = self._rows(layer, level, metric)
            return _matches(rows, vector, k, np.flatnonzero(rows.track_ids == track_id))
        segments = self._store.segments(track_id, layer=layer)
        starts = segments.starts
        window = window_seconds(self._store, track_id, starts)
        if not len(starts) or not starts[0] <= moment <= starts[-1] + window:
            known = f"{starts[0]:g} to {starts[-1] + window:g} s" if len(starts) else "no times"
            raise SettingError(f"the segments of {track_id!r:.200} have {known}, not {moment!r} s")
        away = np.abs(starts + window / 2 - moment)
        row = int(np.flatnonzero(away == away.min())[-1])  # where one ends and the next begins, the next
        rows = self._rows(layer, level, metric)
        unwanted = rows.track_ids == track_id
        if rows.starts is not None:
            unwanted &= np.abs(rows.starts - starts[row]) < max(window, 1e-9)
        return _matches(rows, segments[row], k, np.flatnonzero(unwanted))

    def of_vector(self, vector: npt.NDArray[Any], layer: int, k: int, level: str, metric: str) -> list[Match]:
        """What is like features from elsewhere."""
        return _matches(self._rows(layer, level, metric), vector, k, np.empty(0, np.int64))


def _matches(rows: _Rows, vector: npt.NDArray[Any], k: int, unwanted: npt.NDArray[np.int64]) -> list[Match]:
    if k < 1:
        raise SettingError(f"`k` must be at least 1, not {k!r}")
    (numbers,), (scores,) = rows.index.search(vector[None], min(k, len(rows.track_ids)), [unwanted])
    return [
        Match(rows.track_ids[row], score, None if rows.starts is None else float(rows.starts[row]))
        for row, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        if score != -np.inf
    ]
