"""Views as dask and xarray arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from featurestore.errors import MissingDependencyError

if TYPE_CHECKING:
    import dask.array
    import xarray

    from featurestore.store.views import View

# About as much as one task should read.
_CHUNK_BYTES = 64 * 2**20


def to_dask(view: View, chunks: Any = "auto") -> dask.array.Array:
    """Dask array of a view.

    Parameters
    ----------
    view : View
        Of a store; it is pickled to workers, which read for themselves.
    chunks : optional
        As in `dask.array.from_array`; by default whole rows of about 64 MiB.

    Raises
    ------
    MissingDependencyError
        If dask is not installed.
    """
    try:
        import dask.array
    except ImportError as error:
        raise MissingDependencyError("dask is needed: pip install 'featurestore[xarray]'") from error
    if chunks == "auto":
        row = max(1, math.prod(view.shape[1:]) * view.dtype.itemsize)
        chunks = (max(1, min(view.shape[0], _CHUNK_BYTES // row)), *view.shape[1:])
    return dask.array.from_array(view, chunks=chunks, name=False, asarray=False)


def to_xarray(view: View) -> xarray.DataArray:
    """DataArray of a view, with its coordinates, read when it is computed.

    Raises
    ------
    MissingDependencyError
        If xarray or dask is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingDependencyError("xarray is needed: pip install 'featurestore[xarray]'") from error
    return xarray.DataArray(to_dask(view), dims=view.dims, coords=view.coords)
