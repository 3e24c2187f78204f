"""A store whose features can be given to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from featurestore.errors import SettingError
from featurestore.sharing.copying import common_spec, copy_tracks
from featurestore.sharing.export import export
from featurestore.sharing.push import Push
from featurestore.sharing.transfer import Notify, TransferReport, of_shard
from featurestore.spec import kinds_of_level
from featurestore.store import StoreReader, StoreWriter
from featurestore.store.bucket import Bucket
from featurestore.store.folder_source import FolderSource
from featurestore.store.paths import resolve_address


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

    def push(
        self,
        url: str,
        *,
        level: str = "all",
        shard: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        notify: Notify | None = None,
    ) -> TransferReport:
        """Copy the store into a bucket, from which it is read: `FeatureStore(url)`. Needs the extra ``s3``.

        What is there already is not copied again: an interrupted push goes on where it was, and several may push
        at once. A track in a bucket never changes: one that is there as another revision stays, and is noted.

        Parameters
        ----------
        url : str
            Where the store shall be, like ``s3://bucket/name``, ``gs://bucket/name`` or ``az://container/name``.
        level : str
            The highest level that is copied: ``all``, ``segments`` or ``aggregated``. More can be added later.
        shard : str, optional
            ``"1/8"``: only the first of eight parts, by a hash of the ids; ``auto`` in a job array of Slurm.
        storage_options : mapping, optional
            As for `FeatureStore`.
        notify : callable, optional
            Called with the numbers of tracks that are done, and of all.

        Returns
        -------
        TransferReport

        Raises
        ------
        StoreAccessError
            If the bucket cannot be written.
        SpecMismatchError
            If it has a store of other settings there.

        Examples
        --------
        >>> FeatureStore("features.zarr").push("s3://bucket/example")
        TransferReport(copied=3, there=0, failed=[])
        """
        address = resolve_address(url)
        if isinstance(address, Path):
            raise SettingError(f"{address} is no address of a bucket, like s3://bucket/name: use `copy_to`")
        if not isinstance(self._source, FolderSource):
            raise SettingError(f"{self.path} is no folder: push the store that it was made from")
        bucket = Bucket(address, storage_options)
        if not bucket.can_list:
            raise SettingError(f"{address} is a web server: push to a bucket, like s3://bucket/name")
        return Push(self._source, bucket, level=level).run(of_shard(self.track_ids, shard), notify)

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
