"""StoreReader: reading a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from featurestore.addresses import StoreUrl
from featurestore.errors import SettingError, StoreAccessError, StoreError, TrackNotFoundError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store.format.metadata import FORMAT_VERSION, read_root
from featurestore.store.hdf5.layout import is_hdf5
from featurestore.store.paths import resolve_address
from featurestore.store.selection import resolve_layers, resolve_tracks
from featurestore.store.source import FolderSource, Source
from featurestore.store.verify import VerifyReport
from featurestore.store.views import POOLINGS, AggregatedView, RaggedView, TrackView
from featurestore.store.writer import StoreWriter

_PATIENCE = 600.0
"""Seconds to wait for another writer that is packing."""


class StoreReader:
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
        if isinstance(self.path, Path) and storage_options:
            raise SettingError(f"`storage_options` are for a bucket, and {self.path} is none: leave them out")
        self._source = open_source(self.path, follow_links=follow_links, storage_options=storage_options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.path)!r}>"

    @property
    def spec(self) -> FeatureSpec:
        """Everything that identifies the store's features."""
        return self._source.spec

    @property
    def track_ids(self) -> list[str]:
        """Ids of all tracks: in the order of the packed table, then the others by id."""
        return list(self._source.track_ids())

    def __len__(self) -> int:
        return len(self._source.track_ids())

    def __iter__(self) -> Iterator[str]:
        return iter(self.track_ids)

    def __contains__(self, track_id: object) -> bool:
        if not isinstance(track_id, str):
            return False
        try:
            return self._source.has(track_id)
        except SettingError:  # no track can have this id
            return False

    def aggregated(
        self,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
        *,
        pooling: str = "mean",
    ) -> AggregatedView:
        """Return a view of one row for each track: the mean over its segments.

        Parameters
        ----------
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Track ids, in this order; by default all, in the order of `track_ids`.
        pooling : {"mean", "mean+std"}
            ``mean+std`` calculates the mean and the standard deviation of the stored segments (population, 0 of a
            single one), one behind the other: twice as many features, float32.

        Returns
        -------
        AggregatedView
            [track, feature] or [track, layer, feature].

        Raises
        ------
        SettingError
            If the store has no such layer, or there is no such pooling.
        TrackNotFoundError
            If the store has no such track; the message names ids that look alike. Of ``mean+std``, when it is
            read, also if a track has no segments.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.aggregated(layer=7).shape
        (3, 768)
        >>> store.aggregated(layer=[3, 7], tracks=["rock/song", "folk/air"]).shape
        (2, 2, 768)
        """
        layers = resolve_layers(layer, self.spec, self.path)
        if pooling not in POOLINGS:
            raise SettingError(f"`pooling` must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        return POOLINGS[pooling](self._source, layers, self._choose(tracks), every=tracks is None)

    @overload
    def segments(self, track: str, layer: int | Sequence[int] | None = None) -> TrackView: ...

    @overload
    def segments(
        self,
        track: None = None,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> RaggedView: ...

    def segments(
        self,
        track: str | None = None,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> TrackView | RaggedView:
        """Return a view of the segments of one track, or of all: each the mean over its frames.

        Parameters
        ----------
        track : str, optional
            Id of one track.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Where `track` is not given: ids of some tracks, in this order, instead of all.

        Returns
        -------
        TrackView or RaggedView
            [segment, (layer,) feature] of one track; [row, (layer,) feature] of many, with `row_tracks` and
            `row_starts`.

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no segments of it.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.segments("rock/song", layer=7).shape
        (4, 768)
        >>> rows = store.segments(layer=7)
        >>> rows.shape, rows.row_tracks[4], float(rows.row_starts[5])
        ((12, 768), 'jazz/blue', 2.5)
        """
        if track is not None:
            return self._view_of_track("segments", track, layer)
        layers = resolve_layers(layer, self.spec, self.path)
        return RaggedView(self._source, layers, self._choose(tracks), every=tracks is None)

    def raw(self, track: str, layer: int | Sequence[int] | None = None) -> TrackView:
        """Return a view of every frame of one track.

        Parameters
        ----------
        track : str
            Id of the track.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.

        Returns
        -------
        TrackView
            [segment, (layer,) frame, feature].

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no raw features of it.

        Examples
        --------
        >>> FeatureStore("features.zarr").raw("rock/song", layer=7).dims
        ('segment', 'frame', 'feature')
        """
        return self._view_of_track("raw", track, layer)

    def has(self, track_id: str, kinds: Sequence[str] = ("aggregated",)) -> bool:
        """Tell whether the store has these kinds of features of a track.

        Examples
        --------
        >>> FeatureStore("features.zarr").has("rock/song", kinds=("raw", "segments"))
        True
        """
        if unknown := set(kinds) - set(KINDS):
            raise SettingError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        if track_id not in self:
            return False
        try:
            return set(kinds) <= set(self._source.attributes(track_id)["kinds"])
        except TrackNotFoundError:  # removed just now
            return False

    def provenance(self, track_id: str) -> dict[str, Any]:
        """Return what is known of a track: audio, decoder, revision, fingerprint, starts of windows, checksums.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track.

        Examples
        --------
        >>> FeatureStore("features.zarr").provenance("rock/song")["starts"]
        [0.0, 2.5, 5.0, 7.0]
        """
        self._choose([track_id])
        return dict(self._source.attributes(track_id))

    def info(self) -> dict[str, Any]:
        """Return a summary of the store: path, format, tracks, packed tracks, spec and fingerprint.

        Examples
        --------
        >>> FeatureStore("features.zarr").info()["tracks"]
        3
        """
        return {
            "path": str(self.path),
            "format": FORMAT_VERSION,
            "tracks": len(self),
            "packed": self._source.packed,
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

    def pack(self) -> None:
        """Bring the packed table up to date.

        Raises
        ------
        StoreError
            If another writer was packing all the time, for ten minutes.

        Examples
        --------
        >>> FeatureStore("features.zarr").pack()
        """
        with self._writer() as writer:
            if not writer.pack(wait=_PATIENCE):
                raise StoreError(
                    f"another writer has been packing {self.path} for {_PATIENCE:.0f} s: try again when it is done"
                )

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
        read_root(self._source.paths.root)
        return StoreWriter(self._source.paths.root, spec=self.spec)

    # What views are made of.

    def _view_of_track(self, kind: str, track_id: str, layer: int | Sequence[int] | None) -> TrackView:
        self._choose([track_id])
        layers = resolve_layers(layer, self.spec, self.path)
        if not self.has(track_id, (kind,)):
            known = ", ".join(self.provenance(track_id)["kinds"])  # or no such track
            raise TrackNotFoundError(
                f"the store has no {kind} of {track_id!r:.200}, only {known}: "
                "build again with a higher feature level"
            )
        return TrackView(self._source, layers, kind, track_id)

    def _choose(self, tracks: Sequence[str] | None) -> Sequence[str]:
        return resolve_tracks(tracks, self._source.track_ids, self, self.path)


def open_source(
    path: Path | StoreUrl, *, follow_links: bool = False, storage_options: Mapping[str, Any] | None = None
) -> Source:
    """The tracks at a path: a folder, or a file of HDF5; or at an address."""
    if isinstance(path, StoreUrl):
        from featurestore.store.bucket import BucketSource

        return BucketSource(path, storage_options)
    if is_hdf5(path) and not path.is_dir():
        from featurestore.store.hdf5.source import Hdf5Source

        return Hdf5Source(path)
    return FolderSource(path, follow_links=follow_links)
