"""Which tracks a store has, by the names of their folders."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable

from featurestore.errors import CorruptTrackError
from featurestore.store import reading
from featurestore.store.array_reader import ArrayReader
from featurestore.store.commit.changes import Position, changed_keys, end_of_log
from featurestore.store.commit.transaction import BACKUP, is_backed_up
from featurestore.store.format.keys import decode_key
from featurestore.store.format.metadata import METADATA
from featurestore.store.paths import StorePaths
from featurestore.store.table.table import PackedTable
from featurestore.store.track_reader import TrackReader


def list_keys(reader: TrackReader) -> Collection[str]:
    """Keys of all published tracks, each once."""
    while True:
        # One may move from a folder to a bundle, or back, meanwhile, and marks go with their bundle.
        names, sealed = reader.sealed.names(), reader.sealed.keys()
        folders = _list_folders(reader.paths)
        if reader.sealed.names() == names:
            return sealed.union(folders) if sealed else folders


def _list_folders(paths: StorePaths) -> list[str]:
    """Keys of all tracks that are in folders."""
    folder = paths.kind("aggregated")
    keys = os.listdir(folder)
    begun = reading.list_names(paths.journal)
    moved = [key for key in begun if (paths.journal / key / ("aggregated" + BACKUP)).exists()]
    if moved:  # aside for an instant, or by now in its place
        backed_up = {key for key in moved if is_backed_up(paths, key)}
        keys = list(backed_up.union(keys, os.listdir(folder)))
    with contextlib.suppress(ValueError):
        keys.remove(METADATA)
    return keys


def compare_keys(reader: TrackReader, table: PackedTable | None) -> tuple[set[str], set[str]]:
    """Keys of published tracks that are not in a table, and those in it that are of none.

    What may be in a bundle that is damaged is not of none, unless it was marked.
    """
    listed = list_keys(reader)
    if table is None:
        return set(listed), set()
    fresh, lost = _logged_changes(reader.paths, listed, table) or _compare(listed, table.key_set)
    if lost and not reader.sealed.are_all_known:
        with contextlib.suppress(FileNotFoundError):
            lost &= set(os.listdir(reader.paths.stale))
    return fresh, lost


def _compare(listed: Collection[str], known: frozenset[str]) -> tuple[set[str], set[str]]:
    fresh = set(itertools.filterfalse(known.__contains__, listed))
    every = len(listed) - len(fresh) == len(known)
    return fresh, set() if every else set(known.difference(listed))


def _logged_changes(
    paths: StorePaths, listed: Collection[str], table: PackedTable
) -> tuple[set[str], set[str]] | None:
    """What `_compare` gives, if it is what writers have logged; None if there is more, or it cannot be told.

    To look up a million keys takes many times as long as to add up their hashes. These have 64 bits, and are other
    ones in each process: that sums are equal and keys are not does not happen.
    """
    logged = changed_keys(paths, Position(0, 0), end_of_log(paths))
    if logged is None:
        return None
    there, packed = set(filter(logged.__contains__, listed)), table.among(logged)
    fresh, lost = there - packed, packed - there
    if len(listed) != table.tracks + len(fresh) - len(lost):
        return None
    expected = table.hash_sum + sum(map(hash, fresh)) - sum(map(hash, lost))
    return (fresh, lost) if sum(map(hash, listed)) == expected else None


def track_ids_of(reader: ArrayReader, keys: Iterable[str]) -> dict[str, str]:
    """Track id of each key; what is no key of a track, or of one whose id is lost, is left out."""
    found = {}
    for key in keys:
        try:
            track_id = decode_key(key)
        except ValueError:
            continue
        if track_id is None:
            try:
                current = reader.current(key)
            except CorruptTrackError:
                continue
            if current is None:
                continue
            track_id = str(current.attributes["track_id"])
        found[key] = track_id
    return found
