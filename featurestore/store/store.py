"""StoreReader: reading a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.addresses import StoreUrl
from featurestore.errors import SettingError, StoreAccessError, StoreError
from featurestore.store.folder_source import FolderSource
from featurestore.store.format.root import read_root
from featurestore.store.hdf5.layout import is_hdf5
from featurestore.store.paths import resolve_address
from featurestore.store.tracks import StoreTracks
from featurestore.store.verify import VerifyReport
from featurestore.store.writer import StoreWriter

_PATIENCE = 600.0
"""Seconds to wait for another writer that is packing."""


class StoreReader(StoreTracks):
    """Reads a feature store: `featurestore.FeatureStore`, which is made in the same way, without its questions.

    Parameters
    ----------
    path, follow_links, storage_options
        As for `featurestore.FeatureStore`, and so are the errors.

    Examples
    --------
    >>> from featurestore.store import StoreReader
    >>> StoreReader("features.zarr").track_ids
    ['folk/air', 'jazz/blue', 'rock/song']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        follow_links: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = resolve_address(path)
        if isinstance(self.path, StoreUrl):
            from featurestore.store.bucket import BucketSource

            self._source = BucketSource(self.path, storage_options)
        elif storage_options:
            raise SettingError(f"`storage_options` are for a bucket, and {self.path} is none: leave them out")
        elif is_hdf5(self.path) and not self.path.is_dir():
            from featurestore.store.hdf5.source import Hdf5Source

            self._source = Hdf5Source(self.path)
        else:
            self._source = FolderSource(self.path, follow_links=follow_links)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.path)!r}>"

    def info(self) -> dict[str, Any]:
        """Return a summary of the store: path, format, tracks, packed and sealed tracks, spec and fingerprint.

        Examples
        --------
        >>> FeatureStore("features.zarr").info()["tracks"]
        3
        """
        return {
            "path": str(self.path),
            "format": self._source.format,
            "tracks": len(self),
            "packed": self._source.packed,
            "sealed": self._source.sealed,
            "fingerprint": self.spec.fingerprint,
            "spec": self.spec.to_dict(),
        }

    def verify(self, deep: bool = False) -> VerifyReport:
        """Check the store, with `deep` every byte against its checksum, and return a `VerifyReport`.

        Examples
        --------
        >>> FeatureStore("features.zarr").verify(deep=True).ok
        True
        """
        return self._source.verify(deep=deep)

    def pack(self, *, seal: bool | None = None) -> None:
        """Bring the packed table up to date, and seal tracks, or unseal them.

        Parameters
        ----------
        seal : bool, optional
            True moves all tracks from their folders into bundles of thousands, in a few large files, from which
            they are read quicker; `raw` stays. Bundles of which more than half is superseded or removed, and small
            ones, are written anew with them. False brings all back. By default they stay where they are.

        Raises
        ------
        StoreError
            If another writer was packing all the time, for ten minutes.
        SettingError
            If features that are compressed are to be sealed.
        TrackLockedError
            If other writers are at work on tracks that are to be unsealed: the others are.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.pack(seal=True)
        >>> store.info()["sealed"]
        3
        >>> store.pack(seal=False)
        >>> store.info()["sealed"]
        0
        """
        with self._writer() as writer:
            if not writer.pack(wait=_PATIENCE, seal=seal):
                raise StoreError(f"{self.path} was not packed for {_PATIENCE:.0f} s: {writer.session.packer()}")

    def remove(self, track_id: str) -> None:
        """Remove a track.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track.
        TrackLockedError
            If a writer is at work on it.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.remove("jazz/blue")
        >>> store.track_ids
        ['folk/air', 'rock/song']
        """
        self._choose([track_id])
        with self._writer() as writer:
            writer.remove(track_id)

    def state(self) -> object:
        """Return what is equal as long as nothing in the store changes; None where that cannot be told."""
        return self._source.state()

    def export_hdf5(
        self, path: Path, tracks: Sequence[str], *, layers: Sequence[int], kinds: Sequence[str]
    ) -> None:
        """Write a file of HDF5; `featurestore.FeatureStore.export` says more."""
        from featurestore.store.hdf5.export import export_hdf5

        export_hdf5(self._source, path, tracks, layers=layers, kinds=kinds)

    def _writer(self) -> StoreWriter:
        """A writer of this very store, wherever the process is by now; NotAStoreError if it is gone."""
        if isinstance(self.path, StoreUrl):
            raise StoreAccessError(
                f"{self.path} is read only: change the store in a folder that was pushed there, and push it again"
            )
        if not isinstance(self._source, FolderSource):
            raise StoreAccessError(
                f"{self.path} is one file, which never changes: change the store that it was exported from, and "
                "export that again"
            )
        read_root(self._source.paths)
        return StoreWriter(self._source.paths.root, spec=self.spec)
