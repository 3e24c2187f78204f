"""Views: lazy arrays of features. Making one reads no feature; indexing it reads what is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import MissingDependencyError
from featurestore.spec import FeatureSpec
from featurestore.store import filesystem
from featurestore.store.selection import Layers, full_index
from featurestore.store.table.index import Catalogue
from featurestore.store.track_reader import Described, ReplacedError, TrackReader

if TYPE_CHECKING:
    import dask.array
    import torch
    import xarray

_CHUNK_BYTES = 64 * 2**20
"""About as much as one task of dask should read."""


@dataclass(frozen=True)
class Source:
    """What a view reads: the index and the tracks of a store, and its path as it was given, for errors."""

    path: Path
    index: Catalogue
    reader: TrackReader

    @property
    def spec(self) -> FeatureSpec:
        """Of the store."""
        return self.reader.spec

    def reading(self) -> AbstractContextManager[None]:
        """Around whatever is read: errors of the system name the store."""
        return filesystem.naming_the_store(self.path)


class View(ABC):
    """A lazy array of features with named dimensions.

    Attributes
    ----------
    dims : tuple of str
        Names of the dimensions.
    layers : tuple of int
        The layers, in this order.

    Examples
    --------
    >>> store = FeatureStore("features.zarr")
    >>> view = store.aggregated(layer=[3, 7])
    >>> view.dims, view.shape, view.layers
    (('track', 'layer', 'feature'), (3, 2, 768), (3, 7))
    >>> view[1:, 0].shape, np.asarray(view).nbytes
    ((2, 768), 18432)
    """

    dims: tuple[str, ...]

    def __init__(self, source: Source, layers: Layers) -> None:
        self._source = source
        self.layers, self._positions, self._drop = layers

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
        return np.dtype(self._source.spec.dtype)

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
        return f"<{type(self).__name__} ({sizes}) {self.dtype} of {str(self._source.path)!r}>"

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
        axes = full_index(index, self.ndim)
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

    def _rows(self, item: Any) -> npt.NDArray[np.int64] | None:
        if isinstance(item, slice) and item == slice(None):
            return None
        return np.atleast_1d(np.arange(self.shape[0], dtype=np.int64)[item])

    def to_numpy(self) -> npt.NDArray[Any]:
        """Read everything into memory.

        Examples
        --------
        >>> FeatureStore("features.zarr").aggregated(layer=7).to_numpy().shape
        (3, 768)
        """
        block = self._read(None, self._positions)
        return block[:, 0] if self._drop else block

    def to_xarray(self) -> xarray.DataArray:
        """Make a DataArray with coordinates, which reads when it is computed; needs the extra ``xarray``.

        Raises
        ------
        MissingDependencyError
            If xarray or dask is not installed.

        Examples
        --------
        >>> FeatureStore("features.zarr").aggregated(layer=7).to_xarray().sel(track="rock/song").shape
        (768,)
        """
        try:
            import xarray
        except ImportError as error:
            raise MissingDependencyError("xarray is needed: pip install 'featurestore[xarray]'") from error
        return xarray.DataArray(self.to_dask(), dims=self.dims, coords=self.coords)

    def to_dask(self, chunks: Any = "auto") -> dask.array.Array:
        """Make a dask array, which reads when it is computed; needs the extra ``xarray``.

        The view is pickled to workers, which read for themselves.

        Parameters
        ----------
        chunks : optional
            As in `dask.array.from_array`; by default whole rows of about 64 MiB.

        Raises
        ------
        MissingDependencyError
            If dask is not installed.

        Examples
        --------
        >>> FeatureStore("features.zarr").segments(layer=7).to_dask().mean(axis=0).shape
        (768,)
        """
        try:
            import dask.array
        except ImportError as error:
            raise MissingDependencyError("dask is needed: pip install 'featurestore[xarray]'") from error
        if chunks == "auto":
            row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
            chunks = (max(1, min(self.shape[0], _CHUNK_BYTES // row)), *self.shape[1:])
        return dask.array.from_array(self, chunks=chunks, name=False, asarray=False)

    def to_torch(self) -> torch.Tensor:
        """Read everything into a tensor; needs torch.

        Raises
        ------
        MissingDependencyError
            If torch is not installed.

        Examples
        --------
        >>> FeatureStore("features.zarr").aggregated(layer=7).to_torch().shape
        torch.Size([3, 768])
        """
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError("torch is needed: pip install 'featurestore[extract]'") from error
        return torch.from_numpy(self.to_numpy())


class AggregatedView(View):
    """One row per track: [track, feature], or [track, layer, feature]. Made by `FeatureStore.aggregated`.

    Examples
    --------
    >>> FeatureStore("features.zarr").aggregated(layer=7).track_ids
    ['folk/air', 'jazz/blue', 'rock/song']
    """

    def __init__(self, source: Source, layers: Layers, track_ids: Sequence[str]) -> None:
        super().__init__(source, layers)
        self._ids = track_ids
        self.dims = ("track", "feature") if self._drop else ("track", "layer", "feature")

    @property
    def track_ids(self) -> list[str]:
        """Track of each row."""
        return list(self._ids)

    @property
    def shape(self) -> tuple[int, ...]:
        layers = () if self._drop else (len(self.layers),)
        return (len(self._ids), *layers, self._source.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"track": np.array(list(self._ids), dtype=object), **_layer_coords(self)}

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        ids = self._ids if rows is None else [self._ids[row] for row in rows]
        with self._source.reading():
            return self._source.index.read(ids, positions)


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
        with self._source.reading():
            return self._source.reader.describe(self._kind, self.track_id)

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
        with self._source.reading():
            block, described = self._source.reader.read_segments(
                self._kind, self.track_id, positions, rows=rows, shape=told and told[0]
            )
        self.__dict__.setdefault("_described", described)
        return block


class RaggedView(View):
    """Segments of many tracks, one after the other: [row, feature] or [row, layer, feature].

    Made by `FeatureStore.segments` without a track.

    Examples
    --------
    >>> store = FeatureStore("features.zarr")
    >>> view = store.segments(layer=7)
    >>> view.dims, view.shape, view.row_starts[:5].tolist()
    (('row', 'feature'), (12, 768), [0.0, 2.5, 5.0, 7.0, 0.0])
    """

    def __init__(self, source: Source, layers: Layers, track_ids: Sequence[str]) -> None:
        super().__init__(source, layers)
        self._ids = track_ids
        self.dims = ("row", "feature") if self._drop else ("row", "layer", "feature")

    @cached_property
    def _described(self) -> list[Described]:
        with self._source.reading():
            return [self._source.reader.describe("segments", track_id) for track_id in self._ids]

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
        return (int(self._counts.sum()), *layers, self._source.spec.dim)

    @property
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        return _layer_coords(self)

    def _read(self, rows: npt.NDArray[np.int64] | None, positions: Sequence[int]) -> npt.NDArray[Any]:
        if rows is None and "_described" not in self.__dict__:
            return self._read_all(positions)
        described, counts = self._described, self._counts
        ends = np.cumsum(counts)
        wanted = np.arange(counts.sum(), dtype=np.int64) if rows is None else rows
        out = np.empty((len(wanted), len(positions), self._source.spec.dim), self.dtype)
        tracks = np.searchsorted(ends, wanted, side="right")
        order = np.argsort(tracks, kind="stable")
        chosen, begins = np.unique(tracks[order], return_index=True)
        for track, where in zip(chosen, np.split(order, begins[1:]), strict=False):
            shape = described[track][0]
            with self._source.reading():
                block, _ = self._source.reader.read_segments("segments", self._ids[track], positions, shape=shape)
            out[where] = block[wanted[where] - (ends[track] - counts[track])]
        return out

    def _read_all(self, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Everything and its description, in one look at each track."""
        blocks: list[Any] = []
        described = []
        for track_id in self._ids:
            with self._source.reading():
                block, shape_and_starts = self._source.reader.read_segments("segments", track_id, positions)
            blocks.append(block)
            described.append(shape_and_starts)
        self.__dict__["_described"] = described
        out = np.empty((int(self._counts.sum()), len(positions), self._source.spec.dim), self.dtype)
        first = 0
        for i, block in enumerate(blocks):
            out[first : first + len(block)] = block
            first += len(block)
            blocks[i] = None  # so that there is never twice as much
        return out


def _layer_coords(view: View) -> dict[str, npt.NDArray[Any]]:
    return {"layer": np.array(view.layers)} if "layer" in view.dims else {}
