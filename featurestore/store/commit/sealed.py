"""Tracks in bundles, and their folders: making one of two.

A folder of a track supersedes what a bundle has of it. When tracks are sealed, their folders go once the bundle is
in its place: `aggregated` first, from when on the row in the bundle counts, and `segments` when that is sure to
stay. A file in `.featurestore/sealing` says that this is not finished: whoever comes next does it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from featurestore.errors import CorruptTrackError, TrackAccessError, TrackLockedError
from featurestore.store import fallbacks, filesystem, reading
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.sealed import Place, SealedTracks
from featurestore.store.commit.changes import log_change
from featurestore.store.commit.locks import TrackLocks, exclusive
from featurestore.store.commit.transaction import OF_ONE_TRACK, attributes_of, revision_of
from featurestore.store.format.metadata import METADATA
from featurestore.store.paths import StorePaths

_BATCH = 256  # tracks


def finish_sealing(paths: StorePaths, sealed: SealedTracks, locks: TrackLocks) -> None:
    """Remove the folders of tracks that dead writers have sealed, unless another writer is at it."""
    if not reading.list_names(paths.sealing):
        return
    with exclusive(paths.locks / "pack.lock", timeout=0) as held:
        if not held:
            return
        with contextlib.suppress(CorruptTrackError):  # a bundle is damaged: that is for repair
            finish_bundles(paths, sealed, locks)


def finish_bundles(paths: StorePaths, sealed: SealedTracks, locks: TrackLocks) -> None:
    """Finish what dead writers have begun to seal; the caller holds `pack.lock`."""
    bundles = {bundle.name: bundle for bundle in sealed.bundles()}
    for name in sorted(reading.list_names(paths.sealing)):
        finish_bundle(paths, sealed, locks, name, bundles.get(name))


def finish_bundle(
    paths: StorePaths, sealed: SealedTracks, locks: TrackLocks, name: str, bundle: Bundle | None
) -> None:
    """Remove the folders of the tracks of a bundle, or what is left of one that was not put in its place."""
    if bundle is None:
        forget_marks(paths, name)
    elif not _drop_folders(paths, sealed, bundle, locks):
        return
    filesystem.unlink(paths.sealing / name)


def marks_of(paths: StorePaths, name: str) -> list[str]:
    """Names of the marks of a bundle."""
    return [mark for mark in reading.list_names(paths.removed) if mark.startswith(f"{name}.")]


def forget_marks(paths: StorePaths, name: str) -> None:
    """Remove the marks of a bundle that is not there."""
    for mark in marks_of(paths, name):
        filesystem.unlink(paths.removed / mark)


def remove_bundle(paths: StorePaths, name: str) -> None:
    """Remove a bundle of which nothing is needed any more, and its marks; the caller holds `pack.lock`."""
    gone = paths.trash / uuid.uuid4().hex
    filesystem.rename(paths.bundles / name, gone)
    # Before anything in it goes: it must not come back in part, nor without its marks.
    filesystem.sync_dir(paths.bundles)
    filesystem.remove_tree(gone)
    forget_marks(paths, name)


def _drop_folders(paths: StorePaths, sealed: SealedTracks, bundle: Bundle, locks: TrackLocks) -> bool:
    """Remove the folders of the tracks of a bundle that is in its place; False if some are locked."""
    whole = True
    rows = [Place(bundle, row) for row, _ in sealed.live(bundle)]
    for first in range(0, len(rows), _BATCH):
        for kind in ("aggregated", "segments"):
            gone: list[Path] = []
            for place in rows[first : first + _BATCH]:
                key = bundle.keys[place.row]
                if reading.exists(paths.array(kind, key)):
                    try:
                        with locks.holding(key):
                            gone += _drop(paths, sealed, place, kind)
                    except (TrackLockedError, TrackAccessError):
                        whole = False
            if gone:
                # Before anything in them goes, and before segments follow.
                filesystem.sync_dir(paths.kind(kind))
            for folder in gone:
                filesystem.remove_tree(folder)
    return whole


def _drop(paths: StorePaths, sealed: SealedTracks, place: Place, kind: str) -> Sequence[Path]:
    """Move the folder of a track out of the way if a bundle has the same; the caller holds the track's lock."""
    key = place.bundle.keys[place.row]
    if (paths.journal / key).exists() or sealed.is_removed(place):
        return ()
    folder, there = paths.array(kind, key), reading.is_dir(paths.array("aggregated", key))
    if kind == "segments" and (there or revision_of(folder) != place.revision):
        return ()
    if kind == "aggregated":
        if not _is_sealed(folder, place):  # another revision
            sealed.mark_removed(key, durable=True)
            return ()
        sealed.mark([other for other in sealed.places(key) if other != place], durable=True)
    aside = paths.trash / uuid.uuid4().hex
    try:
        fallbacks.set_aside(folder, aside, keep=False)
    except FileNotFoundError:  # a writer to which our lock does not show has done so
        return ()
    except OSError as error:
        if error.errno not in OF_ONE_TRACK:
            raise
        if kind == "aggregated":  # it cannot be moved, and goes on as a folder
            sealed.mark_removed(key, durable=True)
        return ()
    if not _is_sealed(aside, place) and not os.path.lexists(folder):
        # A writer to which our lock does not show has replaced it since it was looked at.
        filesystem.rename(aside, folder)
        if kind == "aggregated":
            sealed.mark_removed(key, durable=True)
        return ()
    if kind == "aggregated":
        log_change(paths, key)
    return (aside,)


def _is_sealed(folder: Path, place: Place) -> bool:
    """Whether a folder of a track says what a bundle says, or nothing any more."""
    with contextlib.suppress(PermissionError):  # who knows what it says: it goes on as a folder
        if not reading.exists(folder / METADATA):
            return True
    found, own = attributes_of(folder), place.bundle.metadata("aggregated", place.row).attributes
    return all(found.get(name) == own[name] for name in ("revision", "kinds"))
