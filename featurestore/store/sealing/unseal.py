"""Unsealing: tracks of bundles move back into folders.

Each track is published from its bundle as any new track is, under its lock. Once all of a bundle that are there
still have a folder, the bundle goes.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from featurestore.errors import CorruptTrackError, TrackAccessError, TrackLockedError
from featurestore.store import filesystem, reading
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.layout import KINDS
from featurestore.store.bundles.sealed import Place
from featurestore.store.bundles.sealed_array import open_sealed
from featurestore.store.commit.sealed import finish_bundles, forget_marks
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.transaction import add, revision_of
from featurestore.store.format.metadata import METADATA, encode_document, seal, shard_name
from featurestore.store.format.shards import ShardWriter
from featurestore.store.track_reader import TrackReader


class Unsealing:
    """One unsealing of a store; the caller holds `pack.lock`.

    Parameters
    ----------
    reader : TrackReader
        Of the store.
    session : WriterSession
        Of the writer.
    """

    def __init__(self, reader: TrackReader, session: WriterSession) -> None:
        self._paths = reader.paths
        self._sealed = reader.sealed
        self._session = session

    def run(self) -> tuple[int, list[str]]:
        """Bring the tracks of all bundles back into folders.

        Returns
        -------
        int
            How many tracks were brought back.
        list of str
            Tracks that other writers are at work on, for which their bundles stay: try again.
        """
        finish_bundles(self._paths, self._sealed, self._session.locks)
        done, locked = 0, []
        for bundle in self._sealed.bundles():
            left = []
            for row, key in self._sealed.live(bundle):
                try:
                    with self._session.lock(key):
                        done += self._bring_back(Place(bundle, row), key)
                except (TrackLockedError, TrackAccessError):
                    left.append(bundle.ids[row])
            if not left:
                self._remove(bundle)
            locked += left
        return done, locked

    def _bring_back(self, place: Place, key: str) -> bool:
        """Make the folders of a track, whose lock is held; False if it has them, or is not there any more."""
        paths = self._paths
        if self._sealed.is_removed(place) or reading.is_dir(paths.array("aggregated", key)):
            return False
        own = place.bundle.metadata("aggregated", place.row).attributes["kinds"]
        kinds = tuple(kind for kind in KINDS if kind in own)
        for kind in kinds:  # what a writer has left that died while it sealed or unsealed
            if revision_of(paths.array(kind, key)) == place.revision:
                filesystem.discard(paths.array(kind, key), paths.trash)
        folder = self._session.staging.folder()
        for kind in kinds:
            _write(place, kind, folder / kind)
        add(paths, folder, key, kinds, durable=True)
        self._session.staging.reuse(folder)
        return True

    def _remove(self, bundle: Bundle) -> None:
        """Remove a bundle, all of whose tracks have folders."""
        paths = self._paths
        if any(not reading.is_dir(paths.array("aggregated", key)) for _, key in self._sealed.live(bundle)):
            return  # one was removed by hand just now
        gone = paths.trash / uuid.uuid4().hex
        filesystem.rename(paths.bundles / bundle.name, gone)
        # Before anything in it goes: it must not come back in part.
        filesystem.sync_dir(paths.bundles)
        filesystem.remove_tree(gone)
        forget_marks(paths, bundle.name)


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
