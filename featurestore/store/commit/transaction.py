"""Publishing: how a staged track becomes visible as a whole, and how an interrupted change is finished.

A change of a track is first staged in a folder of its own and made durable.

A track that is new is then placed, `aggregated` last: it is there if and only if `aggregated` is. What was placed
before, of a writer that died, is taken back by the next one: `aggregated` in the staged folder tells its revision.

Any other change goes through the journal. Renaming the staged folder to
``.featurestore/journal/<key>`` is the decision: from then on the change is rolled forward, by its writer or by
the next one, until everything is in its place. ``aggregated`` is placed last (and removed first): it says which
revision of the track is current. What a change supersedes waits in the journal folder until the end, where
readers of the older revision still find it.

A track of a bundle has no folder. The folder of a new revision supersedes what the bundle has, which is then
marked as removed; to remove a track, that mark comes first.

Whether the change can be carried out is found out before it is decided. If it cannot be all the same (somebody
changed permissions meanwhile), its entry stays, with a note of the reason, and all other tracks go on. A decision
can be taken back while nothing of it is placed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurestore.errors import TrackAccessError, TrackLockedError
from featurestore.spec import KINDS
from featurestore.store import fallbacks, filesystem, reading
from featurestore.store.bundles.sealed import SealedTracks
from featurestore.store.commit.changes import log_change
from featurestore.store.commit.record import INTENT, TransactionRecord
from featurestore.store.commit.sealing_lock import removing
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.paths import StorePaths, missing_directories

BACKUP = ".old"
FAILED = ".failed"
"""Behind the key, the name of a note in the journal why its entry could not be carried out; no key has a dot."""

OF_ONE_TRACK = (
    *(errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP),
)
_OF_A_RACE = errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT


def commit(
    paths: StorePaths,
    sealed: SealedTracks,
    folder: Path,
    key: str,
    record: TransactionRecord,
    *,
    has_row: bool,
    durable: bool,
) -> bool:
    """Decide on a staged change and carry it out; the caller holds the track's lock.

    The packed table may have a row of the track (`has_row`) though the track is gone, removed by hand.

    Returns
    -------
    bool
        Whether the staged folder is still there, and empty.

    Raises
    ------
    TrackAccessError
        If the change cannot be carried out, and is not decided.
    TrackLockedError
        If another writer, to which this one's lock does not show, was faster.
    CorruptTrackError
        If a track is to be removed that may be in a damaged bundle as well.
    """
    with losing_races(paths, key):
        if not record.kinds:
            sealed.check()
        entry = paths.journal / key
        if entry.exists():  # left by a writer that died
            roll_forward(paths, sealed, key, durable=durable)
        present = [kind for kind in KINDS if reading.exists(paths.array(kind, key))]
        place = sealed.find(key, if_known=True)
        # While it is exchanged, nobody may see what it has superseded; one without a track supersedes nothing.
        if place is not None and (revision := revision_of(paths.array("aggregated", key))) is not None:
            sealed.mark_removed(key, durable=durable, but=revision)
        if present:
            record.write(folder)
            _check(paths, folder, key, record, present)
        # What is in a bundle may have got its row just now, by a writer that packs.
        if has_row or "aggregated" in present or place is not None:
            mark_stale(paths, key, durable=durable)
        if record.kinds and not present:
            add(paths, folder, key, record.kinds, durable=durable)
            sealed.mark_removed(key, durable=durable)
            return True
        if not present:
            record.write(folder)
        if durable:
            filesystem.sync_tree(folder)
        filesystem.rename(folder, entry)
        if durable:
            filesystem.sync_dir(paths.journal)
        try:
            _carry_out(paths, sealed, key, record, durable=durable, begun=False)
        except OSError as error:
            # Some file systems only copy what is superseded, for which there may be no room.
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if (
                (full or error.errno in OF_ONE_TRACK)
                and revoke(paths, sealed, key)
                and not (full or is_lost_race(paths, error))
            ):
                raise _refused(paths, key, error) from error
            raise
        return False


@contextlib.contextmanager
def losing_races(paths: StorePaths, key: str) -> Iterator[None]:
    """Take it for a lock if another writer changes a track at the same time: locks may hold within a host only."""
    try:
        yield
    except OSError as error:
        if not is_lost_race(paths, error):
            raise
        raise TrackLockedError(f"another writer has changed the track with key {key} just now") from error


def is_lost_race(paths: StorePaths, error: OSError) -> bool:
    """Whether a step has failed since another writer, to which our lock does not show, has taken it."""
    whole = not missing_directories(paths) and all(reading.is_dir(paths.kind(kind)) for kind in KINDS)
    return error.errno in _OF_A_RACE and whole


def _check(paths: StorePaths, folder: Path, key: str, record: TransactionRecord, present: list[str]) -> None:
    """Find out whether a staged change can be carried out.

    Raises
    ------
    TrackAccessError
        If it cannot.
    """
    try:
        for kind in present:
            fallbacks.check_movable(paths.array(kind, key), folder / INTENT)
        for kind in record.kinds:
            if kind not in present:
                fallbacks.check_target(paths.kind(kind), folder)
    except OSError as error:
        if error.errno not in OF_ONE_TRACK:
            raise
        raise _refused(paths, key, error) from error


def _refused(paths: StorePaths, key: str, error: OSError) -> TrackAccessError:
    place = error.filename or paths.array("aggregated", key)
    return TrackAccessError(
        f"the track with key {key} cannot be changed, and stays as it is: {error.strerror} ({place}). Its folders "
        "have to be on the disk of the store and open for writing: ask whoever owns them for chmod -R g+rwX"
    )


def add(paths: StorePaths, folder: Path, key: str, kinds: tuple[str, ...], *, durable: bool) -> None:
    """Place a track of which the store has no folder; the caller holds the track's lock."""
    if durable:
        filesystem.sync_tree(folder)
        filesystem.sync_dir(folder.parent)  # or nobody would know what to take back
        # An older change of the track is finished for good, or it would be carried out once more.
        filesystem.sync_dir(paths.journal)
    for kind in kinds:
        filesystem.rename(folder / kind, paths.array(kind, key))
        if kind == "aggregated":
            log_change(paths, key)
        if durable:
            filesystem.sync_dir(paths.kind(kind))


def roll_forward(paths: StorePaths, sealed: SealedTracks, key: str, *, durable: bool) -> None:
    """Carry out the change in the journal, from wherever it stopped; the caller holds the track's lock.

    Raises
    ------
    OSError
        If that fails; a note of the reason is in the journal then.
    TrackLockedError
        If another writer, to which this one's lock does not show, does so at the same time.
    CorruptTrackError
        If it is to be removed, and may be in a bundle that is damaged.
    """
    with losing_races(paths, key):
        entry, note = paths.journal / key, paths.journal / (key + FAILED)
        try:
            record = TransactionRecord.read(entry) if reading.is_dir(entry) else None
            if record is not None:
                _carry_out(paths, sealed, key, record, durable=durable, begun=True)
            else:  # no change of ours, or one that was finished: nothing of it is needed
                filesystem.discard(entry, paths.trash)
        except OSError as error:
            if error.errno in OF_ONE_TRACK:
                with contextlib.suppress(OSError):
                    filesystem.write_file(note, os.fsencode(f"{error.strerror}: {error.filename}"))
            raise
        if os.path.lexists(note):
            filesystem.discard(note, paths.trash)


def revoke(paths: StorePaths, sealed: SealedTracks, key: str) -> bool:
    """Take a decision back, if nothing of it is placed; the caller holds the track's lock.

    Returns
    -------
    bool
        False if something is in its place by now: the change can only be finished.
    """
    entry = paths.journal / key
    record = TransactionRecord.read(entry)
    if record is None:
        return False
    waiting = all(revision_of(entry / kind) == record.revision for kind in record.kinds)
    # What is superseded may be there as a copy: what matters is whether it is also where it was.
    moved = [kind for kind in KINDS if reading.is_dir(entry / (kind + BACKUP))]
    whole = all(
        revision_of(paths.array(kind, key)) == revision_of(entry / (kind + BACKUP)) is not None for kind in moved
    )
    # Of a track that is in no folder, a mark is all that there is to be placed.
    removed = not reading.is_dir(paths.array("aggregated", key)) and sealed.find(key, if_known=True) is None
    if not (waiting and whole) or (removed and sealed.places(key)):
        return False
    gone = paths.trash / uuid.uuid4().hex
    filesystem.rename(entry, gone)
    filesystem.sync_dir(paths.journal)
    filesystem.unlink(paths.journal / (key + FAILED))
    filesystem.remove_tree(gone)
    return True


def _carry_out(
    paths: StorePaths, sealed: SealedTracks, key: str, record: TransactionRecord, *, durable: bool, begun: bool
) -> None:
    entry, kinds = paths.journal / key, record.kinds
    if not kinds:  # a bundle that is damaged may have it, and be brought back
        sealed.check()
    dropped = [kind for kind in reversed(KINDS) if kind not in kinds and paths.array(kind, key).exists()]
    for kind in kinds:
        if not begun or revision_of(entry / kind) == record.revision:
            fallbacks.replace_dir(entry / kind, paths.array(kind, key), entry / (kind + BACKUP))
        if kind == "aggregated":
            log_change(paths, key)
        # Nothing follows, and what is superseded does not go, before this is sure to stay.
        if durable:
            filesystem.sync_dir(paths.kind(kind))
    # What is removed from a folder must not be in a bundle that is put in its place just now.
    with removing(paths) if not kinds and "aggregated" in dropped else contextlib.nullcontext():
        if sealed.mark_removed(key, durable=durable) and not kinds:
            log_change(paths, key)
        for kind in dropped:
            fallbacks.set_aside(paths.array(kind, key), entry / (kind + BACKUP))
            if kind == "aggregated":
                log_change(paths, key)
            if durable:
                filesystem.sync_dir(paths.kind(kind))
    filesystem.unlink(entry / INTENT)
    if not filesystem.remove_empty(entry):
        filesystem.discard(entry, paths.trash)


def mark_stale(paths: StorePaths, key: str, *, durable: bool) -> None:
    """Say that the packed row of a track is not to be used, until the table is packed again."""
    filesystem.touch(paths.stale / key)
    if durable:
        filesystem.sync_dir(paths.stale)


def is_backed_up(paths: StorePaths, key: str) -> bool:
    """Whether the current `aggregated` is aside until the new one is in its place: folders were not exchanged."""
    entry = paths.journal / key
    return (entry / "aggregated").exists() and (entry / ("aggregated" + BACKUP)).exists()


def is_published(paths: StorePaths, key: str) -> bool:
    """Whether there is such a track."""
    # It may come to its place between two looks.
    return any(reading.is_dir(paths.array("aggregated", key)) or is_backed_up(paths, key) for _ in range(2))


def revision_of(array: Path) -> str | None:
    """Revision of the array in a folder, or None if there is no readable one."""
    revision = attributes_of(array).get("revision")
    return revision if isinstance(revision, str) else None


def attributes_of(array: Path) -> dict[str, Any]:
    """Attributes of the array in a folder, none if they cannot be read."""
    try:
        document = decode_document(reading.read_file(array / METADATA, limit=MAX_METADATA_BYTES))
        return dict(document["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
