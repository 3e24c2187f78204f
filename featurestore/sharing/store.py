"""A store whose features can be given to others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from featurestore.sharing.copying import common_spec, copy_tracks
from featurestore.sharing.export import export
from featurestore.spec import kinds_of_level
from featurestore.store import StoreReader, StoreWriter


class SharingStore(StoreReader):
    """A store that can be read, copied and exported: a part of `featurestore.FeatureStore`.

    Examples
    --------
    >>> FeatureStore("features.zarr").export("features.parquet", level="aggregated").name
    'features.parquet'
    """

    def copy_to(
        self,
        path: str | Path,
        *,
        tracks: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        level: str = "all",
        dtype: str | None = None,
    ) -> Self:
        """Copy tracks into another store, new or of the same settings, with all that is known of them.

        What is there already is not copied again: an interrupted copy goes on where it was.

        Parameters
        ----------
        path : str or Path
            The other store.
        tracks : sequence of str, optional
            By default all.
        layers : sequence of int, optional
            By default all.
        level : str
            The highest level that is copied: ``all``, ``segments`` or ``aggregated``.
        dtype : str, optional
            ``float16`` to store half the bytes.

        Returns
        -------
        FeatureStore
            The other store.

        Raises
        ------
        TrackExistsError
            If the other store has a track of this id with other features.

        Examples
        --------
        >>> part = FeatureStore("features.zarr").copy_to("part.zarr", layers=[7], level="segments")
        >>> part.spec.layers, len(part)
        ((7,), 3)
        """
        with StoreWriter(path, spec=common_spec([self], layers, dtype)) as writer:
            for _ in copy_tracks(self, writer, tracks=tracks, level=level):
                pass
            writer.pack()
        return type(self)(path)

    def export(
        self,
        path: str | Path,
        to: str | None = None,
        *,
        level: str = "segments",
        layers: Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> Path:
        """Write features for other tools, whole or not at all.

        Parameters
        ----------
        path : str or Path
            The file, or for ``npy`` the folder. What is there is replaced.
        to : str, optional
            ``hdf5`` and ``netcdf`` (one file that MATLAB, R, xarray and `FeatureStore` read), ``parquet`` (a
            column for each layer), ``csv``, or ``npy`` (a tree of arrays); by default what the suffix says.
        level : str
            The highest level that is written: ``all``, ``segments`` or ``aggregated``. Tables (csv, parquet) have
            one: a row for each segment, or for each track.
        layers : sequence of int, optional
            By default all.
        tracks : sequence of str, optional
            By default all.

        Raises
        ------
        SettingError
            If the suffix says nothing, or the format cannot hold the level.

        Examples
        --------
        >>> FeatureStore("features.zarr").export("features.h5", layers=[7]).name
        'features.h5'
        >>> FeatureStore("features.h5").aggregated(layer=7).shape
        (3, 768)
        """
        kinds_of_level(level)  # there is such a level
        chosen = self.aggregated(layer=layers, tracks=tracks)
        export(self, Path(path), to, chosen.track_ids, level, chosen.layers)
        return Path(path)
