"""Publishing: how a staged track becomes visible as a whole, and how an interrupted change is finished.

A change of a track is first staged in a folder of its own and made durable.

A track that is new is then placed, `aggregated` last: it is there if and only if `aggregated` is. What was placed
before, of a writer that died, is taken back by the next one: `aggregated` in the staged folder tells its revision.

Any other change goes through the journal. Renaming the staged folder to
``.featurestore/journal/<key>`` is the decision: from then on the change is rolled forward, by its writer or by
the next one, until everything is in its place. ``aggregated`` is placed last (and removed first): it says which
revision of the track is current. What a change supersedes waits in the journal folder until the end, where
readers of the older revision still find it.

Whether the change can be carried out is found out before it is decided. If it cannot be all the same (somebody
changed permissions meanwhile), its entry stays, with a note of the reason, and all other tracks go on. A decision
can be taken back while nothing of it is placed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import SettingError, TrackAccessError, TrackLockedError
from featurestore.spec import KINDS
from featurestore.store import fallbacks, filesystem
from featurestore.store.commit.locks import TrackLocks
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.paths import Places

INTENT = "intent.json"
ASIDE = ".old"
FAILED = ".failed"
"""Behind the key, the name of a note in the journal why its entry could not be carried out; no key has a dot."""

_OF_ONE_TRACK = (
    *(errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP),
)
_log = logging.getLogger("featurestore")


@dataclass(frozen=True)
class Intent:
    """What a staged change is to do: replace a track by a revision that has some kinds, or, by none, remove it."""

    kinds: tuple[str, ...]
    revision: str

    def write(self, folder: Path) -> None:
        """Write it down in a staged folder."""
        content = json.dumps({"kinds": self.kinds, "revision": self.revision})
        filesystem.write_file(folder / INTENT, content.encode())

    @classmethod
    def read(cls, folder: Path) -> Intent | None:
        """The intent in a folder, None if there is no readable one."""
        try:
            values = json.loads(filesystem.read_file(folder / INTENT, limit=MAX_METADATA_BYTES))
            return cls(tuple(kind for kind in KINDS if kind in values["kinds"]), str(values["revision"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None


def commit(places: Places, folder: Path, key: str, intent: Intent, *, has_row: bool, durable: bool) -> bool:
    """Decide on a staged change and carry it out; the caller holds the track's lock.

    Parameters
    ----------
    places : Places
        Of the store.
    folder : Path
        The staged change.
    key : str
        Of the track.
    intent : Intent
        What to do with it.
    has_row : bool
        Whether the packed table has a row of the track: it may, though the track is gone, removed by hand.
    durable : bool
        Whether the change must survive a loss of power.

    Returns
    -------
    bool
        Whether the staged folder is still there, and empty.

    Raises
    ------
    TrackAccessError
        If the change cannot be carried out, and is not decided.
    """
    entry = places.journal / key
    if entry.exists():  # left by a writer that died
        roll_forward(places, key, durable=durable)
    present = [kind for kind in KINDS if os.path.lexists(places.array(kind, key))]
    if present:
        intent.write(folder)
        _check(places, folder, key, intent, present)
    if has_row or "aggregated" in present:
        mark_stale(places, key, durable=durable)
    if intent.kinds and not present:
        _add(places, folder, key, intent.kinds, durable=durable)
        return True
    if not present:
        intent.write(folder)
    if durable:
        filesystem.sync_tree(folder)
    filesystem.rename(folder, entry)
    if durable:
        filesystem.sync_dir(places.journal)
    try:
        _carry_out(places, key, intent, durable=durable, begun=False)
    except OSError as error:
        # Some file systems only copy what is superseded, for which there may be no room.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if (full or error.errno in _OF_ONE_TRACK) and roll_back(places, key) and not full:
            raise _refused(places, key, error) from error
        raise
    return False


def _check(places: Places, folder: Path, key: str, intent: Intent, present: list[str]) -> None:
    """Find out whether a staged change can be carried out.

    Raises
    ------
    TrackAccessError
        If it cannot.
    """
    try:
        for kind in present:
            fallbacks.check_movable(places.array(kind, key), folder / INTENT)
        for kind in intent.kinds:
            if kind not in present:
                fallbacks.check_target(places.kind(kind), folder)
    except OSError as error:
        if error.errno not in _OF_ONE_TRACK:
            raise
        raise _refused(places, key, error) from error


def _refused(places: Places, key: str, error: OSError) -> TrackAccessError:
    place = error.filename or places.array("aggregated", key)
    return TrackAccessError(
        f"the track with key {key} cannot be changed, and stays as it is: {error.strerror} ({place}). Its folders "
        "have to be on the disk of the store and open for writing: ask whoever owns them for chmod -R g+rwX"
    )


def _add(places: Places, folder: Path, key: str, kinds: tuple[str, ...], *, durable: bool) -> None:
    """Place a track of which the store has nothing."""
    if durable:
        filesystem.sync_tree(folder)
        filesystem.sync_dir(folder.parent)  # or nobody would know what to take back
        # An older change of the track is finished for good, or it would be carried out once more.
        filesystem.sync_dir(places.journal)
    for kind in kinds:
        filesystem.rename(folder / kind, places.array(kind, key))
        if durable:
            filesystem.sync_dir(places.kind(kind))


def take_back(places: Places, folder: Path) -> None:
    """Remove what was placed of a staged track that was not published; the caller holds the track's lock."""
    key, kinds = _placed(places, folder)
    for kind in kinds:
        filesystem.discard(places.array(kind, key), places.trash)
        filesystem.sync_dir(places.kind(kind))


def placed_in_part(places: Places) -> Iterator[tuple[Path, str]]:
    """Staged folders, and keys, of tracks of which some arrays are in their place and `aggregated` is not."""
    for owner in _folders(places.staging):
        for folder in _folders(owner):
            key, kinds = _placed(places, folder)
            if kinds:
                yield folder, key


def _placed(places: Places, folder: Path) -> tuple[str, list[str]]:
    """Key of the track whose `aggregated` waits in a staged folder, and its kinds that are in their place."""
    if not filesystem.is_dir(folder / "aggregated"):
        return "", []
    attributes = _attributes(folder / "aggregated")
    try:
        key, revision = encode_key(attributes["track_id"]), str(attributes["revision"])
    except (KeyError, TypeError, AttributeError, SettingError):
        return "", []
    *placed, published = (revision_of(places.array(kind, key)) == revision for kind in KINDS)
    if published:
        return key, []
    return key, [kind for kind, there in zip(KINDS[:-1], placed, strict=True) if there]


def _folders(path: Path) -> list[Path]:
    try:
        return [below for below in path.iterdir() if filesystem.is_dir(below)]
    except (FileNotFoundError, PermissionError):
        return []


def recover(places: Places, locks: TrackLocks, *, told: set[str]) -> set[str]:
    """Finish the changes that dead writers had decided on, and take back what they had only begun to place.

    A change that cannot be finished is left where it is.

    Parameters
    ----------
    places : Places
        Of the store.
    locks : TrackLocks
        Of the writer.
    told : set of str
        Keys of changes that cannot be finished, of which the user was told; grows.

    Returns
    -------
    set of str
        Names of staging folders that are needed still: another writer has the lock of one of their tracks.
    """
    # What is decided waits, if there is no place for it, until the store is repaired.
    whole = all(filesystem.is_dir(places.kind(kind)) for kind in KINDS)
    for name in sorted(os.listdir(places.journal)) if whole else []:
        key = name.removesuffix(FAILED)
        if key != name and os.path.lexists(places.journal / key):  # a note of what comes anyway
            continue
        try:
            with locks.holding(key):
                roll_forward(places, key, durable=True)
        except TrackLockedError:
            continue
        except (TrackAccessError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _OF_ONE_TRACK:
                raise
            if key not in told:
                _log.warning("store %s: %s", places.root, unfinished(key, str(error)))
            told.add(key)
    needed = set()
    for folder, key in placed_in_part(places):
        try:
            with locks.holding(key):
                take_back(places, folder)
        except (TrackLockedError, TrackAccessError, PermissionError):
            needed.add(folder.parent.name)
    return needed


def unfinished(key: str, reason: str) -> str:
    """What is to be said of an entry of the journal that cannot be carried out."""
    return (
        f"the change of the track with key {key} that a writer has decided on cannot be finished ({reason}): let "
        "its folders be written by who writes the store (chmod -R g+rwX), and the next writer does; or take it "
        "back by fs-extract rm or verify --repair"
    )


def failures(places: Places) -> Iterator[tuple[str, str]]:
    """Keys of the entries of the journal that could not be carried out, and why."""
    for name in sorted(os.listdir(places.journal)) if filesystem.is_dir(places.journal) else []:
        key = name.removesuffix(FAILED)
        if key != name and filesystem.is_dir(places.journal / key):
            with contextlib.suppress(OSError, ValueError):
                reason = filesystem.read_file(places.journal / name, limit=MAX_METADATA_BYTES)
                yield key, reason.decode(errors="replace")


def roll_forward(places: Places, key: str, *, durable: bool) -> None:
    """Carry out the change in the journal, from wherever it stopped; the caller holds the track's lock.

    Raises
    ------
    OSError
        If that fails; a note of the reason is in the journal then.
    """
    entry, note = places.journal / key, places.journal / (key + FAILED)
    try:
        intent = Intent.read(entry) if filesystem.is_dir(entry) else None
        if intent is not None:
            _carry_out(places, key, intent, durable=durable, begun=True)
        else:  # no change of ours, or one that was finished: nothing of it is needed
            filesystem.discard(entry, places.trash)
    except OSError as error:
        if error.errno in _OF_ONE_TRACK:
            with contextlib.suppress(OSError):
                filesystem.write_file(note, os.fsencode(f"{error.strerror}: {error.filename}"))
        raise
    if os.path.lexists(note):
        filesystem.discard(note, places.trash)


def finish(places: Places, key: str, *, durable: bool, back: bool) -> None:
    """Leave no change of a track in the journal; the caller holds the track's lock.

    Parameters
    ----------
    places : Places
        Of the store.
    key : str
        Of the track.
    durable : bool
        Whether the change must survive a loss of power.
    back : bool
        Whether a change that cannot be carried out is taken back, if nothing of it is placed.

    Raises
    ------
    TrackAccessError
        If it can neither be carried out nor taken back.
    """
    try:
        roll_forward(places, key, durable=durable)
    except OSError as error:
        if error.errno not in _OF_ONE_TRACK:
            raise
        with contextlib.suppress(OSError):
            if back and roll_back(places, key):
                return
        raise TrackAccessError(unfinished(key, str(error))) from error


def roll_back(places: Places, key: str) -> bool:
    """Take a decision back, if nothing of it is placed; the caller holds the track's lock.

    Returns
    -------
    bool
        False if something is in its place by now: the change can only be finished.
    """
    entry = places.journal / key
    intent = Intent.read(entry)
    if intent is None:
        return False
    waiting = all(revision_of(entry / kind) == intent.revision for kind in intent.kinds)
    # What is superseded may be there as a copy: what matters is whether it is also where it was.
    moved = [kind for kind in KINDS if filesystem.is_dir(entry / (kind + ASIDE))]
    whole = all(
        revision_of(places.array(kind, key)) == revision_of(entry / (kind + ASIDE)) is not None for kind in moved
    )
    if not (waiting and whole):
        return False
    gone = places.trash / uuid.uuid4().hex
    filesystem.rename(entry, gone)
    filesystem.sync_dir(places.journal)
    filesystem.unlink(places.journal / (key + FAILED))
    filesystem.remove_tree(gone)
    return True


def _carry_out(places: Places, key: str, intent: Intent, *, durable: bool, begun: bool) -> None:
    entry, kinds = places.journal / key, intent.kinds
    dropped = [kind for kind in reversed(KINDS) if kind not in kinds and places.array(kind, key).exists()]
    for kind in kinds:
        if not begun or revision_of(entry / kind) == intent.revision:
            fallbacks.replace_dir(entry / kind, places.array(kind, key), entry / (kind + ASIDE))
        # Nothing follows, and what is superseded does not go, before this is sure to stay.
        if durable:
            filesystem.sync_dir(places.kind(kind))
    for kind in dropped:
        fallbacks.set_aside(places.array(kind, key), entry / (kind + ASIDE))
        if durable:
            filesystem.sync_dir(places.kind(kind))
    filesystem.unlink(entry / INTENT)
    if not filesystem.remove_empty(entry):
        filesystem.discard(entry, places.trash)


def mark_stale(places: Places, key: str, *, durable: bool) -> None:
    """Say that the packed row of a track is not to be used, until the table is packed again."""
    filesystem.touch(places.stale / key)
    if durable:
        filesystem.sync_dir(places.stale)


def is_aside(places: Places, key: str) -> bool:
    """Whether the current `aggregated` is aside until the new one is in its place: folders were not exchanged."""
    entry = places.journal / key
    return (entry / "aggregated").exists() and (entry / ("aggregated" + ASIDE)).exists()


def is_published(places: Places, key: str) -> bool:
    """Whether there is such a track."""
    # It may come to its place between two looks.
    return any(filesystem.is_dir(places.array("aggregated", key)) or is_aside(places, key) for _ in range(2))


def revision_of(array: Path) -> str | None:
    """Revision of the array in a folder, or None if there is no readable one."""
    revision = _attributes(array).get("revision")
    return revision if isinstance(revision, str) else None


def _attributes(array: Path) -> dict[str, Any]:
    """Attributes of the array in a folder, none if they cannot be read."""
    try:
        document = decode_document(filesystem.read_file(array / METADATA, limit=MAX_METADATA_BYTES))
        return dict(document["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
