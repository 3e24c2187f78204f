"""View: a lazy array of features. Making one reads no feature; indexing it reads what is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from featurestore._html import html_table
from featurestore.amounts import bytes_in_words
from featurestore.errors import MissingDependencyError, SettingError
from featurestore.store.array_reader import ReplacedError
from featurestore.store.selection import Layers, full_index
from featurestore.store.source import Source

if TYPE_CHECKING:
    import dask.array
    import pandas
    import torch
    import xarray

_CHUNK_BYTES = 64 * 2**20
"""About as much as is read at once: by a task of dask, or for an iteration."""


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
        self._layer_sizes = () if self._drop else (len(self.layers),)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""

    @property
    @abstractmethod
    def coords(self) -> Mapping[str, npt.NDArray[Any]]:
        """Labels of the dimensions, by their names; others are of the first dimension."""

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

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        size = self._rows_at_once()
        for first in range(0, len(self), size):
            yield from self[first : first + size]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in zip(self.dims, self.shape, strict=True))
        return f"<{type(self).__name__} ({sizes}) {self.dtype} of {str(self._source.path)!r}>"

    def _repr_html_(self) -> str:
        sizes = {name: f"{size:,}" for name, size in zip(self.dims, self.shape, strict=True)}
        rows = {**sizes, "layers": self.layers, "type": self.dtype, "size": bytes_in_words(self.nbytes)}
        return html_table(f"{type(self).__name__} of {self._source.path}", rows)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a view is read from disk: it cannot be an array without a copy")
        return self.to_numpy().astype(dtype or self.dtype, copy=False)

    # numpy.from_dlpack, torch.tensor and others take an array as a whole through these, and not row by row.

    def __dlpack__(self, **options: Any) -> Any:
        return self.to_numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the memory of the CPU

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        told = self._is_described
        while True:
            try:
                return self._indexed(index)
            except ReplacedError:
                if told:
                    raise
                self._forget()  # nobody has seen the shape: it may be another

    @property
    def _is_described(self) -> bool:
        """Whether the shape was looked up, and may not change any more."""
        return "_described" in self.__dict__

    def _forget(self) -> None:
        self.__dict__.pop("_described", None)

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
        if isinstance(item, int):
            return np.array([range(self.shape[0])[item]], np.int64)
        if isinstance(item, slice):
            return np.arange(*item.indices(self.shape[0]), dtype=np.int64)
        return np.atleast_1d(np.arange(self.shape[0], dtype=np.int64)[item])

    def _rows_at_once(self) -> int:
        return max(1, _CHUNK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))

    def _layer_coords(self) -> dict[str, npt.NDArray[Any]]:
        return {"layer": np.array(self.layers)} if "layer" in self.dims else {}

    def to_numpy(self) -> npt.NDArray[Any]:
        """Read everything into memory.

        Examples
        --------
        >>> FeatureStore("features.zarr").aggregated(layer=7).to_numpy().shape
        (3, 768)
        """
        block = self._read(None, self._positions)
        return block[:, 0] if self._drop else block

    def to_pandas(self) -> pandas.DataFrame:
        """Read everything into a DataFrame: a row for each track or segment, a column for each value (pandas).

        Several layers make columns of two levels, ``layer`` and ``feature``.

        Raises
        ------
        SettingError
            If the view has frames: reduce them first.
        MissingDependencyError
            If pandas is not installed.

        Examples
        --------
        >>> FeatureStore("features.zarr").aggregated(layer=7).to_pandas().loc["rock/song"].shape
        (768,)
        >>> FeatureStore("features.zarr").segments(layer=7).to_pandas().groupby("track").mean().shape
        (3, 768)
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError("pandas is needed: pip install pandas") from error
        if "frame" in self.dims:
            raise SettingError("a table has no frames: take a mean of them first, or `segments`")
        values = self.to_numpy().reshape(len(self), -1)
        labels = {name: x for name, x in self.coords.items() if name not in self.dims[1:]}
        index: pandas.Index | None = None
        if labels:
            index = pandas.MultiIndex.from_arrays(list(labels.values()), names=list(labels))
            index = index if len(labels) > 1 else index.get_level_values(0)
        columns = pandas.RangeIndex(self.shape[-1], name="feature")
        if not self._drop:
            columns = pandas.MultiIndex.from_product([self.layers, columns], names=["layer", "feature"])
        return pandas.DataFrame(values, index=index, columns=columns)

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
        >>> FeatureStore("features.zarr").segments(layer=7).to_xarray().groupby("track").mean().shape
        (3, 768)
        """
        try:
            import xarray
        except ImportError as error:
            raise MissingDependencyError("xarray is needed: pip install 'featurestore[xarray]'") from error
        coords = {
            name: (name if name in self.dims else self.dims[0], values) for name, values in self.coords.items()
        }
        return xarray.DataArray(self.to_dask(), dims=self.dims, coords=coords, name="features")

    def to_dask(self, chunks: Any = "auto") -> dask.array.Array:
        """Make a dask array, which reads when it is computed; needs the extra ``xarray``.

        The view is pickled to workers, which read for themselves. If it is of all tracks, they list these anew,
        and refuse to read a store that has others by then.

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
            chunks = (max(1, min(self.shape[0], self._rows_at_once())), *self.shape[1:])
        return dask.array.from_array(self._for_graph(), chunks=chunks, name=False, asarray=False)

    def _for_graph(self) -> Self:
        """Return this view as the tasks of a graph are to get it."""
        return self

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
