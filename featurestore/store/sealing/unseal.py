"""Unsealing: tracks of bundles move back into folders.

Each track is published from its bundle as any new track is, under its lock. Once all of a bundle that are there
still have a folder, the bundle goes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from featurestore.errors import CorruptTrackError, TrackAccessError, TrackLockedError
from featurestore.store import filesystem, reading
from featurestore.store.array_reader import corrupt
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.layout import KINDS
from featurestore.store.bundles.sealed import Place
from featurestore.store.bundles.sealed_array import open_sealed
from featurestore.store.commit.recovery import rollback
from featurestore.store.commit.sealed import finish_bundles, remove_bundle
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.transaction import add, losing_races, revision_of
from featurestore.store.format.metadata import METADATA, encode_document, seal, shard_name
from featurestore.store.format.shards import ShardWriter
from featurestore.store.track_reader import TrackReader

_log = logging.getLogger("featurestore")


class Unsealing:
    """One unsealing of a store; the caller holds `pack.lock`."""

    def __init__(self, reader: TrackReader, session: WriterSession) -> None:
        self._reader = reader
        self._paths = reader.paths
        self._sealed = reader.sealed
        self._session = session

    def run(self) -> list[str]:
        """Bring the tracks of all bundles back into folders.

        Returns
        -------
        list of str
            Tracks that are damaged, or that other writers are at work on, for which their bundles stay.
        """
        finish_bundles(self._paths, self._sealed, self._session.locks)
        return [track_id for bundle in self._sealed.bundles() for track_id in self.unseal(bundle)]

    def unseal(self, bundle: Bundle) -> list[str]:
        """Bring the tracks of a bundle back into folders; those for which it stays, as above."""
        left = []
        for row, key in self._sealed.live(bundle):
            try:
                with self._session.lock(key):
                    self._bring_back(Place(bundle, row), key)
            except (TrackLockedError, TrackAccessError):
                left.append(bundle.ids[row])
            except CorruptTrackError as error:
                _log.warning("%s: left in its bundle", error)
                left.append(bundle.ids[row])
        return left or self._remove(bundle)

    def _bring_back(self, place: Place, key: str) -> None:
        """Make the folders of a track, whose lock is held, unless it has them, or is not there any more."""
        paths = self._paths
        if self._sealed.is_removed(place):
            return
        own = place.bundle.metadata("aggregated", place.row).attributes["kinds"]
        kinds = tuple(kind for kind in KINDS if kind in own)
        if self._has_folder(key):
            if revision_of(paths.array("aggregated", key)) == place.revision:
                self._check_folders(place, key, kinds)
            return
        for kind in kinds:  # what a writer has left that died while it sealed or unsealed
            array = paths.array(kind, key)
            emptied = reading.is_dir(array) and not reading.exists(array / METADATA)
            if emptied or revision_of(array) == place.revision:
                filesystem.discard(array, paths.trash)
        folder = self._session.staging.folder()
        try:
            for kind in kinds:
                _write(place, kind, folder / kind)
            with losing_races(paths, key):
                add(paths, folder, key, kinds, durable=True)
        except BaseException:
            with contextlib.suppress(OSError):  # else it goes when the writer is closed
                rollback(paths, self._sealed, folder)
                filesystem.discard(folder, paths.trash)
            raise
        self._session.staging.reuse(folder)

    def _check_folders(self, place: Place, key: str, kinds: Iterable[str]) -> None:
        """Raise CorruptTrackError unless the folders that a dead writer has left have what a bundle has."""
        for kind in kinds:
            written = place.bundle.metadata(kind, place.row).attributes["checksums"]["chunks"]
            with self._reader.open(kind, key, place.bundle.ids[place.row]) as array:
                own = revision_of(self._paths.array(kind, key)) == place.revision
                if not own or array.shard.checksums() != written:
                    raise corrupt(f"{kind}/{key}", "it is not what was written")
                for number in range(array.shard.chunks):
                    array.shard.read([number])

    def _has_folder(self, key: str) -> bool:
        return reading.exists(self._paths.array("aggregated", key) / METADATA)

    def _remove(self, bundle: Bundle) -> list[str]:
        """Remove a bundle, all of whose tracks have folders; those that lack one, for which it stays."""
        lacking = [bundle.ids[row] for row, key in self._sealed.live(bundle) if not self._has_folder(key)]
        if lacking:  # out of their place for an instant, or removed by hand just now
            return lacking
        remove_bundle(self._paths, bundle.name)
        return []


def _write(place: Place, kind: str, folder: Path) -> None:
    """Write an array of a track of a bundle into a new folder, as it was before it was sealed."""
    with open_sealed(place.bundle, kind, place.row) as array:
        metadata = array.metadata
        dtype = np.dtype(metadata.dtype).newbyteorder("<")
        filesystem.make_dir(folder)
        writer = ShardWriter(folder / shard_name(len(metadata.shape)), f"{kind}/{folder.name}", dtype.itemsize)
        try:
            writer.append(array.shard.read([number])[0].astype(dtype) for number in range(array.shard.chunks))
            if writer.finish() != metadata.attributes["checksums"]["chunks"]:
                name, track_id = place.bundle.name, place.bundle.ids[place.row]
                raise CorruptTrackError(
                    f"{kind} of {track_id!r:.200} in bundles/{name}: the chunks are not those that were written; "
                    "run verify --deep --repair"
                )
        finally:
            writer.close()
        filesystem.write_file(folder / METADATA, encode_document(seal(metadata.document())))
