"""What is left of dead writers: changes to be finished, and new tracks that were placed in part."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from featurestore.errors import CorruptTrackError, SettingError, TrackAccessError, TrackLockedError
from featurestore.spec import KINDS
from featurestore.store import filesystem, reading
from featurestore.store.bundles.layout import KINDS as SEALED_KINDS
from featurestore.store.bundles.sealed import SealedTracks
from featurestore.store.commit.locks import TrackLocks
from featurestore.store.commit.sealed import finish_sealing
from featurestore.store.commit.transaction import (
    FAILED,
    OF_ONE_TRACK,
    attributes_of,
    revision_of,
    revoke,
    roll_forward,
)
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import MAX_METADATA_BYTES
from featurestore.store.paths import StorePaths

_log = logging.getLogger("featurestore")


def recover(paths: StorePaths, sealed: SealedTracks, locks: TrackLocks, *, told: set[str]) -> set[str]:
    """Finish the changes that dead writers had decided on, and take back what they had only begun to place.

    A change that cannot be finished is left where it is; its key is added to those of which the user was `told`.

    Returns
    -------
    set of str
        Names of staging folders that are needed still: another writer has the lock of one of their tracks.
    """
    # What is decided waits, if there is no place for it, until the store is repaired.
    whole = all(reading.is_dir(paths.kind(kind)) for kind in KINDS)
    for name in sorted(os.listdir(paths.journal)) if whole else []:
        key = name.removesuffix(FAILED)
        if key != name and os.path.lexists(paths.journal / key):  # a note of what comes anyway
            continue
        try:
            with locks.holding(key):
                roll_forward(paths, sealed, key, durable=True)
        except TrackLockedError:
            continue
        except (TrackAccessError, CorruptTrackError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in OF_ONE_TRACK:
                raise
            if key not in told:
                _log.warning("store %s: %s", paths.root, unfinished(key, str(error)))
            told.add(key)
    if whole:
        finish_sealing(paths, sealed, locks)
    needed = set()
    for folder, key in placed_in_part(paths, sealed):
        try:
            with locks.holding(key):
                rollback(paths, sealed, folder)
        except (TrackLockedError, TrackAccessError, PermissionError):
            needed.add(folder.parent.name)
    return needed


def rollback(paths: StorePaths, sealed: SealedTracks, folder: Path) -> None:
    """Remove what was placed of a staged track that was not published; the caller holds the track's lock."""
    key, kinds = _placed(paths, sealed, folder)
    for kind in kinds:
        gone = filesystem.move_to_trash(paths.array(kind, key), paths.trash)
        filesystem.sync_dir(paths.kind(kind))  # first: without its metadata nobody would know what it is
        filesystem.remove_tree(gone)


def placed_in_part(paths: StorePaths, sealed: SealedTracks) -> Iterator[tuple[Path, str]]:
    """Staged folders, and keys, of tracks of which some arrays are in their place and `aggregated` is not."""
    for owner in _folders(paths.staging):
        for folder in _folders(owner):
            key, kinds = _placed(paths, sealed, folder)
            if kinds:
                yield folder, key


def _placed(paths: StorePaths, sealed: SealedTracks, folder: Path) -> tuple[str, list[str]]:
    """Key of the track whose `aggregated` waits in a staged folder, and its kinds that are in their place."""
    if not reading.is_dir(folder / "aggregated"):
        return "", []
    attributes = attributes_of(folder / "aggregated")
    try:
        key, revision = encode_key(attributes["track_id"]), str(attributes["revision"])
    except (KeyError, TypeError, AttributeError, SettingError):
        return "", []
    *placed, published = (revision_of(paths.array(kind, key)) == revision for kind in KINDS)
    if published:
        return key, []
    own = _beside_bundle(sealed, key, revision) if any(placed) else ()
    return key, [kind for kind, there in zip(KINDS[:-1], placed, strict=True) if there and kind not in own]


def _beside_bundle(sealed: SealedTracks, key: str, revision: str) -> Collection[str]:
    """Kinds that a track of a bundle has in a folder of its own: it may be just about to leave the bundle."""
    try:
        place = sealed.find(key)
        if place is None or place.revision != revision:
            return ()
        kinds = place.bundle.metadata("aggregated", place.row).attributes["kinds"]
    except (CorruptTrackError, FileNotFoundError):
        return KINDS  # nothing is removed while that cannot be told
    return set(kinds).difference(SEALED_KINDS)


def _folders(path: Path) -> list[Path]:
    try:
        return [below for below in path.iterdir() if reading.is_dir(below)]
    except (FileNotFoundError, PermissionError):
        return []


def finish(paths: StorePaths, sealed: SealedTracks, key: str, *, durable: bool, back: bool) -> None:
    """Leave no change of a track in the journal; the caller holds the track's lock.

    One that cannot be carried out is taken `back`, if that is wanted, and nothing of it is placed.

    Raises
    ------
    TrackAccessError
        If it can neither be carried out nor taken back.
    """
    try:
        roll_forward(paths, sealed, key, durable=durable)
    except (CorruptTrackError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in OF_ONE_TRACK:
            raise
        with contextlib.suppress(OSError):
            if back and revoke(paths, sealed, key):
                return
        raise TrackAccessError(unfinished(key, str(error))) from error


def failures(paths: StorePaths) -> Iterator[tuple[str, str]]:
    """Keys of the entries of the journal that could not be carried out, and why."""
    for name in sorted(reading.list_names(paths.journal)):
        key = name.removesuffix(FAILED)
        if key != name and reading.is_dir(paths.journal / key):
            with contextlib.suppress(OSError, ValueError):
                reason = reading.read_file(paths.journal / name, limit=MAX_METADATA_BYTES)
                yield key, reason.decode(errors="replace")


def unfinished(key: str, reason: str) -> str:
    """What is to be said of an entry of the journal that cannot be carried out."""
    return (
        f"the change of the track with key {key} that a writer has decided on cannot be finished ({reason}): let "
        "its folders be written by who writes the store (chmod -R g+rwX), and the next writer does; or take it "
        "back by fs-extract rm or verify --repair"
    )
