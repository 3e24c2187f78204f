"""Sealing: tracks move from their folders into bundles.

A bundle is written in staging. One rename puts it in its place, and decides: from then on it counts wherever a
track has no folder, and the folders go. What was removed while the bundle was written is marked as removed before.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featurestore.amounts import bytes_in_words
from featurestore.errors import SettingError, StoreAccessError
from featurestore.store import filesystem, reading
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.layout import MOST_TRACKS, mark_name
from featurestore.store.commit.sealed import finish_bundle, finish_bundles
from featurestore.store.commit.sealing_lock import placing
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.staging import refuse_others
from featurestore.store.commit.transaction import revision_of
from featurestore.store.format.keys import encode_key, encode_keys
from featurestore.store.format.metadata import (
    METADATA,
    SEALED_VERSION,
    encode_document,
    group_document,
    hidden_document,
)
from featurestore.store.format.root import upgrade_root
from featurestore.store.paths import BUNDLES, REMOVED, StorePaths
from featurestore.store.sealing.unseal import Unsealing
from featurestore.store.sealing.wear import (
    LEAST_TRACKS,
    MOST_BYTES,
    remove_dead_bundles,
    small_bundles,
    worn_bundles,
)
from featurestore.store.sealing.writing import (
    ChangedError,
    Found,
    check_bundle,
    look_at,
    spec_is_sealable,
    write_bundle,
)
from featurestore.store.track_reader import TrackReader


class Sealing:
    """One sealing of a store; the caller holds `pack.lock`."""

    def __init__(self, reader: TrackReader, session: WriterSession) -> None:
        self._reader = reader
        self._paths = reader.paths
        self._sealed = reader.sealed
        self._staging = session.staging
        self._locks = session.locks
        self._unsealing = Unsealing(reader, session)
        self._no_room: StoreAccessError | None = None

    def run(self, track_ids: Sequence[str], *, least: int = 1) -> None:
        """Seal all tracks that are in folders, in this order, and those of bundles that are worn or small.

        Tracks of such bundles come back into folders first, one bundle after the other. Fewer than `least` tracks
        stay where they are.

        Raises
        ------
        SettingError
            If the features are compressed.
        StoreAccessError
            If there is no room, or a writer of another host may be at work to which locks of this one do not show.
        """
        if not spec_is_sealable(self._reader.spec):
            raise SettingError(
                f"the store {self._paths.name} is compressed ({self._reader.spec.codec}), and compressed tracks "
                "cannot be sealed: leave them in their folders, or copy them to a store without compression"
            )
        refuse_others(self._paths.staging)
        finish_bundles(self._paths, self._sealed, self._locks)
        remove_dead_bundles(self._paths, self._sealed)
        folders = set(os.listdir(self._paths.kind("aggregated")))
        keys = encode_keys(track_ids)
        waiting = [track_id for track_id, key in zip(track_ids, keys, strict=True) if key in folders]
        for tracks in self._groups(waiting, least):
            if len(tracks) >= least:
                self._seal(tracks)
        remove_dead_bundles(self._paths, self._sealed)
        if self._no_room is not None:
            raise self._no_room

    def _unsealed(self, bundles: Iterable[Bundle]) -> Iterator[str]:
        """Tracks of bundles, which have folders again."""
        for bundle in bundles:
            rows = [row for row, _ in self._sealed.live(bundle)]
            try:
                check_room(self._paths, bundle.nbytes(rows))
            except StoreAccessError as error:  # first, what waits is sealed
                self._no_room = error
                return
            left = set(self._unsealing.unseal(bundle))
            yield from (bundle.ids[row] for row in rows if bundle.ids[row] not in left)

    def _groups(self, track_ids: Sequence[str], least: int) -> Iterator[list[Found]]:
        """Tracks of one bundle each."""
        group: list[Found] = []
        size = 0

        def more() -> Iterator[str]:
            yield from self._unsealed(worn_bundles(self._sealed))
            if self._no_room is None:
                yield from self._unsealed(small_bundles(self._sealed, len(group), least))

        seen = set[str]()
        for track_id in itertools.chain(track_ids, more()):
            if track_id in seen:  # in a folder and in a bundle, by a writer that died while it unsealed
                continue
            seen.add(track_id)
            if (self._paths.journal / encode_key(track_id)).exists():
                continue  # being changed
            found = look_at(self._reader, track_id)
            if found is None:
                continue
            group.append(found)
            size += found.nbytes
            if len(group) == MOST_TRACKS or (len(group) >= LEAST_TRACKS and size >= MOST_BYTES):
                yield group
                group, size = [], 0
        if group:
            yield group

    def _seal(self, tracks: list[Found]) -> None:
        """Seal tracks into one bundle, but for those that change meanwhile."""
        check_room(self._paths, sum(track.nbytes for track in tracks))
        name = uuid.uuid4().hex
        folder = self._staging.folder()
        staged = folder / BUNDLES / name
        try:
            filesystem.make_dir(staged.parent)
            while True:
                try:
                    write_bundle(self._reader, tracks, staged)
                    break
                except ChangedError as error:
                    filesystem.discard(staged, self._paths.trash)
                    tracks = [track for track in tracks if track.track_id != error.track_id]
                    if not tracks:
                        return
            check_bundle(StorePaths(folder), name, self._reader.spec)
            filesystem.sync_tree(staged)
            self._make_places(folder)
            self._place(tracks, staged, name)
        finally:
            filesystem.discard(folder, self._paths.trash)
        bundle = next(bundle for bundle in self._sealed.bundles() if bundle.name == name)
        finish_bundle(self._paths, self._sealed, self._locks, name, bundle)

    def _make_places(self, staged: Path) -> None:
        """Make the folders of bundles, if there are none, in a store that older releases refuse."""
        upgrade_root(self._paths, staged, SEALED_VERSION)
        refuse_others(self._paths.staging)  # from now on no earlier release comes
        make_bundles_folder(self._paths, staged)
        if not reading.is_dir(self._paths.sealing):
            filesystem.make_parents(self._paths.sealing, durable=True)

    def _place(self, tracks: Sequence[Found], folder: Path, name: str) -> None:
        paths = self._paths
        filesystem.touch(paths.sealing / name)
        filesystem.sync_dir(paths.sealing)
        changed = {row for row, track in enumerate(tracks) if not self._is_still(track)}
        keys = encode_keys([track.track_id for track in tracks])
        with placing(paths):  # for an instant: whoever removes a track waits
            there, begun = set(os.listdir(paths.kind("aggregated"))), set(os.listdir(paths.journal))
            changed.update(row for row, key in enumerate(keys) if key not in there or key in begun)
            for row in sorted(changed):
                filesystem.touch(paths.removed / mark_name(name, row))
            if changed:
                filesystem.sync_dir(paths.removed)
            filesystem.rename(folder, paths.bundles / name)
            filesystem.sync_dir(paths.bundles)

    def _is_still(self, track: Found) -> bool:
        return revision_of(self._paths.array("aggregated", encode_key(track.track_id))) == track.revision


def check_room(paths: StorePaths, size: int) -> None:
    """Raise StoreAccessError if a disk has no room for a bundle of so many bytes of features."""
    free = reading.free_bytes(paths.root)
    if free < size:
        raise StoreAccessError(
            f"store {paths.name}: {bytes_in_words(size)} of features are written before what they replace goes, "
            f"and only {bytes_in_words(free)} are free: free some space and run again"
        )


def make_bundles_folder(paths: StorePaths, staged: Path) -> None:
    """Make the folder of bundles with that of marks, or of marks alone, where they are missing."""
    new = staged / "new"
    if not os.path.lexists(paths.bundles):
        place, made = paths.bundles, {new: group_document({}), new / REMOVED: hidden_document(REMOVED)}
    elif not os.path.lexists(paths.removed):
        place, made = paths.removed, {new: hidden_document(REMOVED)}
    else:
        return
    for folder, document in made.items():
        filesystem.make_dir(folder)
        filesystem.write_file(folder / METADATA, encode_document(document))
    filesystem.sync_tree(new)
    filesystem.rename(new, place)
    filesystem.sync_dir(place.parent)
