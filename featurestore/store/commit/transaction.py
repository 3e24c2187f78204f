"""Publishing: how a staged track becomes visible as a whole, and how an interrupted change is finished.

A change of a track is first staged in a folder of its own and made durable.

A track that is new is then placed, `aggregated` last: it is there if and only if `aggregated` is. What was placed
before, of a writer that died, is taken back by the next one: `aggregated` in the staged folder tells its revision.

Any other change goes through the journal. Renaming the staged folder to
``.featurestore/journal/<key>`` is the decision: from then on the change is rolled forward, by its writer or by
the next one, until everything is in its place. ``aggregated`` is placed last (and removed first): it says which
revision of the track is current. What a change supersedes waits in the journal folder until the end, where
readers of the older revision still find it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import SettingError, TrackLockedError
from featurestore.spec import KINDS
from featurestore.store import filesystem
from featurestore.store.commit.locks import TrackLocks
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.paths import Places

INTENT = "intent.json"
ASIDE = ".old"


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
    """
    entry = places.journal / key
    if entry.exists():  # left by a writer that died
        roll_forward(places, key, durable=durable)
    if has_row or places.array("aggregated", key).exists():
        mark_stale(places, key, durable=durable)
    if intent.kinds and not any(os.path.lexists(places.array(kind, key)) for kind in KINDS):
        _add(places, folder, key, intent.kinds, durable=durable)
        return True
    intent.write(folder)
    if durable:
        filesystem.sync_tree(folder)
    filesystem.rename(folder, entry)
    if durable:
        filesystem.sync_dir(places.journal)
    _carry_out(places, key, intent, durable=durable, begun=False)
    return False


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


def recover(places: Places, locks: TrackLocks) -> set[str]:
    """Finish the changes that dead writers had decided on, and take back what they had only begun to place.

    Returns
    -------
    set of str
        Names of staging folders that are needed still: another writer has the lock of one of their tracks.
    """
    # What is decided waits, if there is no place for it, until the store is repaired.
    whole = all(filesystem.is_dir(places.kind(kind)) for kind in KINDS)
    for entry in list(places.journal.iterdir()) if whole else []:
        with contextlib.suppress(TrackLockedError), locks.holding(entry.name):
            roll_forward(places, entry.name, durable=True)
    needed = set()
    for folder, key in placed_in_part(places):
        try:
            with locks.holding(key):
                take_back(places, folder)
        except TrackLockedError:
            needed.add(folder.parent.name)
    return needed


def roll_forward(places: Places, key: str, *, durable: bool) -> None:
    """Carry out the change in the journal, from wherever it stopped; the caller holds the track's lock."""
    entry = places.journal / key
    intent = Intent.read(entry) if filesystem.is_dir(entry) else None
    if intent is not None:
        _carry_out(places, key, intent, durable=durable, begun=True)
    else:  # no change of ours, or one that was finished: nothing of it is needed
        filesystem.discard(entry, places.trash)


def _carry_out(places: Places, key: str, intent: Intent, *, durable: bool, begun: bool) -> None:
    entry, kinds = places.journal / key, intent.kinds
    dropped = [kind for kind in reversed(KINDS) if kind not in kinds and places.array(kind, key).exists()]
    for kind in kinds:
        if not begun or revision_of(entry / kind) == intent.revision:
            filesystem.replace_dir(entry / kind, places.array(kind, key), entry / (kind + ASIDE))
        # Nothing follows, and what is superseded does not go, before this is sure to stay.
        if durable:
            filesystem.sync_dir(places.kind(kind))
    for kind in dropped:
        filesystem.rename(places.array(kind, key), entry / (kind + ASIDE))
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
