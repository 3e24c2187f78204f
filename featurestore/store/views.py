"""The views of a store: of one row for each track, of one track, and of the segments of many."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, StoreError, TrackNotFoundError
from featurestore.store.array_reader import Described
from featurestore.store.lazy_array import View
from featurestore.store.selection import Layers
from featurestore.store.source import Source, joined_starts

_BLOCK_BYTES = 64 * 2**20
"""About as many segments are read at once, where only what is made of them is kept."""


class ManyTracksView(View):
    """A view of many tracks.

    Those that are removed before anybody has seen the shape are left out if these are simply `every` track.
    """

    _row: str  # what the first dimension is called
    _digest: bytes  # of all ids, if tasks list them anew

    def __init__(self, source: Source, layers: Layers, track_ids: Sequence[str], *, every: bool = False) -> None:
        super().__init__(source, layers)
        self.dims = (self._row, "feature") if self._drop else (self._row, "layer", "feature")
        self._given_ids: Sequence[str] | None = track_ids
        self._may_leave_out = self._every = every

    @property
    def track_ids(self) -> list[str]:
        """The tracks, in order."""
        self._may_leave_out = False
        return list(self._ids)

    @property
    def _ids(self) -> Sequence[str]:
        if self._given_ids is None:
            self._given_ids = self._source.track_ids()
            if _digest(self._given_ids) != self._digest:
                self._given_ids = None
                raise StoreError(
                    f"the tracks of the store {self._source.path} have changed since this array was made: "
                    "make it anew, or name the tracks"
                )
        return self._given_ids

    def _for_graph(self) -> Self:
        """Return this view as tasks get it: they know all tracks of a store by a digest, and list them anew."""
        view = copy(self)
        if self._every:
            view._digest = _digest(self.track_ids)
        return view

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if "_digest" in state:
            state["_given_ids"] = None
            state.pop("row_tracks", None)
        return state

    def _leave_out_removed(self) -> bool:
        """Leave out tracks that are gone by now, if that is allowed; whether there were some."""
        if not self._may_leave_out:
            return False
        present = set(self._source.track_ids())
        before = self._ids
        self._given_ids = kept = [track_id for track_id in before if track_id in present]
        return len(kept) < len(before)


class AggregatedView(ManyTracksView):
    """One row per track: [track, feature], or [track, layer, feature]. Made by `FeatureStore.aggregated`.

    Examples
    --------
    >>> FeatureStore("features.zarr").aggregated(layer=7).track_ids
    ['folk/air', 'jazz/blue', 'rock/song']
    """

    _row = "track"

    @property
    def shape(self) -> tuple[int, ...]:
        self._may_leave_out = False
        return (len(self._ids), *self._layer_sizes, self._source.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"track": np.array(self.track_ids, dtype=object), **self._layer_coords()}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        while True:
            ids = self._ids if rows is None else [self._ids[row] for row in rows]
            try:
                return self._read_tracks(ids, positions)
            except TrackNotFoundError:
                if rows is not None or not self._leave_out_removed():
                    raise

    def _read_tracks(self, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        return self._source.read_aggregated(ids, positions)


class MeanStdView(AggregatedView):
    """Mean and standard deviation of the stored segments, one behind the other, as float32.

    Made by ``FeatureStore.aggregated(pooling="mean+std")``; the dimension feature is twice as long.

    Examples
    --------
    >>> FeatureStore("features.zarr").aggregated(layer=7, pooling="mean+std").shape
    (3, 1536)
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, dim = super().shape
        return (*outer, 2 * dim)

    def _read_tracks(self, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        counts = self._source.count_segments(ids)
        dim = self._source.spec.dim
        out = np.empty((len(ids), len(positions), 2 * dim), np.float32)
        rows = max(1, _BLOCK_BYTES // (max(1, len(positions)) * dim * 4))
        blocks = np.flatnonzero(np.diff(np.cumsum(counts) // rows)) + 1
        for block in np.split(np.arange(len(ids)), blocks):
            segments, own_counts, _ = self._source.read_ragged([ids[row] for row in block], positions)
            for row, count in zip(block, own_counts, strict=True):
                own, segments = segments[:count], segments[count:]
                out[row, :, :dim] = own.mean(axis=0, dtype=np.float64)
                out[row, :, dim:] = own.std(axis=0, dtype=np.float64)
        return out


POOLINGS: dict[str, type[AggregatedView]] = {"mean": AggregatedView, "mean+std": MeanStdView}
"""What makes one row of the segments of a track."""


class TrackView(View):
    """Segments of one track: made by `FeatureStore.segments` and `FeatureStore.raw`.

    [segment, feature] or [segment, layer, feature]; raw has the dimension frame before feature.

    Examples
    --------
    >>> FeatureStore("features.zarr").segments("rock/song", layer=7).starts.tolist()
    [0.0, 2.5, 5.0, 7.0]
    """

    def __init__(self, source: Source, layers: Layers, kind: str, track_id: str) -> None:
        super().__init__(source, layers)
        self.track_id = track_id
        self._kind = kind
        inner = ("frame", "feature") if kind == "raw" else ("feature",)
        self.dims = ("segment", *(() if self._drop else ("layer",)), *inner)

    @cached_property
    def _described(self) -> Described:
        return self._source.describe(self._kind, self.track_id)

    @property
    def shape(self) -> tuple[int, ...]:
        segments, _, *inner = self._described[0]
        return (segments, *self._layer_sizes, *inner)

    @property
    def starts(self) -> npt.NDArray[np.float64]:
        """Where the segments start in the track, seconds; empty if the store was not told."""
        return self._described[1]

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        starts = {"segment": self.starts} if len(self.starts) else {}
        return {**starts, **self._layer_coords()}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        told: Described | None = self.__dict__.get("_described")
        block, described = self._source.read_segments(
            self._kind, self.track_id, positions, rows=rows, shape=told and told[0]
        )
        self.__dict__.setdefault("_described", described)
        return block


class RaggedView(ManyTracksView):
    """Segments of many tracks, one after the other: [row, feature] or [row, layer, feature].

    Made by `FeatureStore.segments` without a track.

    Examples
    --------
    >>> store = FeatureStore("features.zarr")
    >>> view = store.segments(layer=7)
    >>> view.dims, view.shape, view.row_starts[:5].tolist()
    (('row', 'feature'), (12, 768), [0.0, 2.5, 5.0, 7.0, 0.0])
    """

    _row = "row"

    @cached_property
    def _described(self) -> npt.NDArray[np.int64]:
        """Number of segments of each track."""
        while True:
            try:
                counts = self._source.count_segments(self._ids)
            except TrackNotFoundError:
                if not self._leave_out_removed():
                    raise
            else:
                self._may_leave_out = False
                return counts

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Behind the last row of each track."""
        return np.cumsum(self._described, dtype=np.int64)

    def _forget(self) -> None:
        super()._forget()
        for name in ("_ends", "row_tracks", "row_starts"):
            self.__dict__.pop(name, None)

    @cached_property
    def row_tracks(self) -> npt.NDArray[Any]:
        """Track id of each row."""
        return np.repeat(np.array(self.track_ids, dtype=object), self._described)

    @cached_property
    def row_starts(self) -> npt.NDArray[np.float64]:
        """Where each row's segment starts in its track, seconds; NaN where the store was not told."""
        counts = self._described
        described = self._source.describe_segments(self._ids)
        return joined_starts([starts for _, starts in described], counts)

    def of_tracks(self, numbers: Sequence[int]) -> list[npt.NDArray[Any]]:
        """Read the segments of some tracks, by their number in `track_ids`, together.

        Examples
        --------
        >>> view = FeatureStore("features.zarr").segments(layer=7)
        >>> [block.shape for block in view.of_tracks([2, 0])]
        [(4, 768), (4, 768)]
        """
        ids = [self._ids[number] for number in numbers]
        out, counts, _ = self._source.read_ragged(ids, self._positions)
        ends = np.cumsum(counts)
        return np.split(out[:, 0] if self._drop else out, ends[:-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._ends[-1]) if len(self._ends) else 0, *self._layer_sizes, self._source.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"track": self.row_tracks, "start": self.row_starts, **self._layer_coords()}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        if rows is None and not self._is_described:
            return self._read_all(positions)
        counts, ends = self._described, self._ends
        wanted = np.arange(self.shape[0], dtype=np.int64) if rows is None else rows
        tracks = np.searchsorted(ends, wanted, side="right")
        within = wanted - (ends - counts)[tracks]
        return self._source.read_rows(self._ids, counts, tracks, within, positions)

    def _read_all(self, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Everything and its description, in one look at each track."""
        while True:
            try:
                out, counts, starts = self._source.read_ragged(self._ids, positions)
                break
            except TrackNotFoundError:
                if not self._leave_out_removed():
                    raise
        self._may_leave_out = False
        self.__dict__["_described"] = counts
        with contextlib.suppress(OSError, CorruptTrackError):  # whoever asks for them will see
            self.__dict__["row_starts"] = starts()
        return out


def _digest(track_ids: Sequence[str]) -> bytes:
    return hashlib.sha256("\n".join(track_ids).encode("utf-8", "surrogatepass")).digest()
