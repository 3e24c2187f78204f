"""Views: lazy arrays of features. Making one reads no feature; indexing it reads what is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import StoreError

if TYPE_CHECKING:
    import dask.array
    import torch
    import xarray

    from featurestore.store.reader import FeatureStore


Described = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape of an array of a track, and where its segments start, seconds."""


class ReplacedError(StoreError):
    """A track was replaced by one of another shape since a view told its own."""


class View(ABC):
    """A lazy array of features with named dimensions.

    Attributes
    ----------
    dims : tuple of str
        Names of the dimensions.
    layers : tuple of int
        The layers, in this order.
    """

    dims: tuple[str, ...]

    def __init__(self, store: FeatureStore, layer: int | Sequence[int] | None) -> None:
        self._store = store
        self.layers, self._positions, self._drop = store._resolve_layers(layer)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""

    @property
    @abstractmethod
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        """Labels of the dimensions that have some."""

    @abstractmethod
    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Rows of the first dimension (all if None) of layers by position, the layer dimension kept second."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return np.dtype(self._store.spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Size when read, bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in zip(self.dims, self.shape, strict=True))
        return f"<{type(self).__name__} ({sizes}) {self.dtype} of {str(self._store.path)!r}>"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a view is read from disk: it cannot be an array without a copy")
        return self.to_numpy().astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        told = "_described" in self.__dict__
        while True:
            try:
                return self._indexed(index)
            except ReplacedError:
                if told:
                    raise
                del self.__dict__["_described"]  # nobody has seen the shape: it may be another

    def _indexed(self, index: Any) -> npt.NDArray[Any]:
        axes = self._full_index(index)
        if axes is None:  # newaxis, masks over several dimensions and the like: numpy knows how
            np.broadcast_to(np.empty((), bool), self.shape)[index]  # refused before anything is read
            return np.asarray(self.to_numpy()[index])
        rows, rest = self._rows(axes[0]), axes[1:]
        positions = self._positions
        if not self._drop and isinstance(rest[0], int | slice):
            chosen = np.arange(len(positions))[rest[0]]
            positions = [positions[i] for i in np.atleast_1d(chosen)]
            rest = (0 if chosen.ndim == 0 else slice(None), *rest[1:])
        block = self._read(rows, positions)
        if self._drop:
            block = block[:, 0]
        first = 0 if isinstance(axes[0], int) else slice(None)
        return np.asarray(block[(first, *rest)])

    def _full_index(self, index: Any) -> tuple[Any, ...] | None:
        """Index as one item per dimension, with at most one array; None if it is of another form."""
        items = list(index) if isinstance(index, tuple) else [index]
        ellipses = sum(item is Ellipsis for item in items)
        if not ellipses:
            items.append(Ellipsis)
        if ellipses > 1 or len(items) - 1 > self.ndim:
            return None
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (self.ndim - len(items) + 1)
        arrays = 0
        for i, item in enumerate(items):
            if isinstance(item, slice):
                continue
            if isinstance(item, int | np.integer) and not isinstance(item, bool | np.bool_):
                items[i] = int(item)
                continue
            if item is None or isinstance(item, bool | np.bool_):
                return None
            items[i] = np.asarray(item, np.intp if isinstance(item, list) and not item else None)
            if items[i].ndim != 1 or items[i].dtype.kind not in "iub":
                return None
            arrays += 1
        # An array beside an integer is broadcast by numpy in its own way.
        plain = arrays == 0 or (arrays == 1 and not any(isinstance(item, int) for item in items))
        return tuple(items) if plain else None

    def _rows(self, item: Any) -> npt.NDArray[np.int64] | None:
        if isinstance(item, slice) and item == slice(None):
            return None
        return np.atleast_1d(np.arange(self.shape[0], dtype=np.int64)[item])

    def to_numpy(self) -> npt.NDArray[Any]:
        """Read everything into memory."""
        block = self._read(None, self._positions)
        return block[:, 0] if self._drop else block

    def to_xarray(self) -> xarray.DataArray:
        """DataArray with coordinates, read when it is computed. Needs the extra ``xarray``."""
        from featurestore.interop.arrays import to_xarray

        return to_xarray(self)

    def to_dask(self, chunks: Any = "auto") -> dask.array.Array:
        """Dask array, read when it is computed. Needs the extra ``xarray``."""
        from featurestore.interop.arrays import to_dask

        return to_dask(self, chunks)

    def to_torch(self) -> torch.Tensor:
        """Read everything into a tensor. Needs torch."""
        from featurestore.interop.tensors import to_torch

        return to_torch(self)


class AggregatedView(View):
    """One row per track: [track, feature], or [track, layer, feature]. Made by `FeatureStore.aggregated`."""

    def __init__(self, store: FeatureStore, layer: int | Sequence[int] | None, track_ids: Sequence[str]) -> None:
        super().__init__(store, layer)
        self._ids = track_ids
        self.dims = ("track", "feature") if self._drop else ("track", "layer", "feature")

    @property
    def track_ids(self) -> list[str]:
        """Track of each row."""
        return list(self._ids)

    @property
    def shape(self) -> tuple[int, ...]:
        layers = () if self._drop else (len(self.layers),)
        return (len(self._ids), *layers, self._store.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"track": np.array(list(self._ids), dtype=object), **_layer_coords(self)}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        ids = self._ids if rows is None else [self._ids[row] for row in rows]
        return self._store._read_aggregated(ids, positions)


class TrackView(View):
    """Segments of one track: made by `FeatureStore.segments` and `FeatureStore.raw`.

    [segment, feature] or [segment, layer, feature]; raw has the dimension frame before feature.
    """

    def __init__(self, store: FeatureStore, kind: str, track_id: str, layer: int | Sequence[int] | None) -> None:
        super().__init__(store, layer)
        self.track_id = track_id
        self._kind = kind
        inner = ("frame", "feature") if kind == "raw" else ("feature",)
        self.dims = ("segment", *(() if self._drop else ("layer",)), *inner)
        store._require(kind, track_id)

    @cached_property
    def _described(self) -> Described:
        return self._store._describe(self._kind, self.track_id)

    @property
    def shape(self) -> tuple[int, ...]:
        segments, _, *inner = self._described[0]
        return (segments, *(() if self._drop else (len(self.layers),)), *inner)

    @property
    def starts(self) -> npt.NDArray[np.float64]:
        """Where the segments start in the track, seconds; empty if the store was not told."""
        return self._described[1]

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        starts = {"segment": self.starts} if len(self.starts) else {}
        return {**starts, **_layer_coords(self)}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        told: Described | None = self.__dict__.get("_described")
        block, described = self._store._read_track(self._kind, self.track_id, told and told[0], rows, positions)
        self.__dict__.setdefault("_described", described)
        return block


class RaggedView(View):
    """Segments of many tracks, one after the other: [row, feature] or [row, layer, feature].

    Made by `FeatureStore.segments` without a track.
    """

    def __init__(self, store: FeatureStore, layer: int | Sequence[int] | None, track_ids: Sequence[str]) -> None:
        super().__init__(store, layer)
        self._ids = track_ids
        self.dims = ("row", "feature") if self._drop else ("row", "layer", "feature")

    @cached_property
    def _described(self) -> list[Described]:
        return [self._store._describe("segments", track_id) for track_id in self._ids]

    @property
    def _counts(self) -> npt.NDArray[np.int64]:
        return np.array([shape[0] for shape, _ in self._described], np.int64)

    @property
    def track_ids(self) -> list[str]:
        """The tracks, in order."""
        return list(self._ids)

    @property
    def row_tracks(self) -> npt.NDArray[Any]:
        """Track id of each row."""
        return np.repeat(np.array(list(self._ids), dtype=object), self._counts)

    @property
    def row_starts(self) -> npt.NDArray[np.float64]:
        """Where each row's segment starts in its track, seconds; NaN where the store was not told."""
        parts = [
            starts if len(starts) == shape[0] else np.full(shape[0], np.nan) for shape, starts in self._described
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def shape(self) -> tuple[int, ...]:
        layers = () if self._drop else (len(self.layers),)
        return (int(self._counts.sum()), *layers, self._store.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return _layer_coords(self)

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        if rows is None and "_described" not in self.__dict__:
            return self._read_all(positions)
        described, counts = self._described, self._counts
        ends = np.cumsum(counts)
        wanted = np.arange(counts.sum(), dtype=np.int64) if rows is None else rows
        out = np.empty((len(wanted), len(positions), self._store.spec.dim), self.dtype)
        tracks = np.searchsorted(ends, wanted, side="right")
        order = np.argsort(tracks, kind="stable")
        chosen, begins = np.unique(tracks[order], return_index=True)
        for track, where in zip(chosen, np.split(order, begins[1:]), strict=False):
            shape = described[track][0]
            block, _ = self._store._read_track("segments", self._ids[track], shape, None, positions)
            out[where] = block[wanted[where] - (ends[track] - counts[track])]
        return out

    def _read_all(self, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Everything and its description, in one look at each track."""
        blocks: list[Any] = []
        described = []
        for track_id in self._ids:
            block, shape_and_starts = self._store._read_track("segments", track_id, None, None, positions)
            blocks.append(block)
            described.append(shape_and_starts)
        self.__dict__["_described"] = described
        out = np.empty((int(self._counts.sum()), len(positions), self._store.spec.dim), self.dtype)
        first = 0
        for i, block in enumerate(blocks):
            out[first : first + len(block)] = block
            first += len(block)
            blocks[i] = None  # so that there is never twice as much
        return out


def _layer_coords(view: View) -> dict[str, npt.NDArray[Any]]:
    return {"layer": np.array(view.layers)} if "layer" in view.dims else {}
