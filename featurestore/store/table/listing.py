"""Which tracks a store has, by the names of their folders."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable

from featurestore.errors import CorruptTrackError
from featurestore.store.array_reader import ArrayReader
from featurestore.store.commit.transaction import BACKUP, is_backed_up
from featurestore.store.format.keys import decode_key
from featurestore.store.format.metadata import METADATA
from featurestore.store.paths import StorePaths
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
    try:
        moved = [
            key for key in os.listdir(paths.journal) if (paths.journal / key / ("aggregated" + BACKUP)).exists()
        ]
    except FileNotFoundError:
        moved = []
    if moved:  # aside for an instant, or by now in its place
        backed_up = {key for key in moved if is_backed_up(paths, key)}
        keys = list(backed_up.union(keys, os.listdir(folder)))
    with contextlib.suppress(ValueError):
        keys.remove(METADATA)
    return keys


def compare_keys(reader: TrackReader, known: frozenset[str]) -> tuple[set[str], set[str]]:
    """Keys of published tracks that are not known, and known ones that are of none.

    What may be in a bundle that is damaged is not of none, unless it was marked.
    """
    listed = list_keys(reader)
    fresh = set(itertools.filterfalse(known.__contains__, listed))
    every = len(listed) - len(fresh) == len(known)
    lost = set() if every else set(known.difference(listed))
    if lost and not reader.sealed.are_all_known:
        with contextlib.suppress(FileNotFoundError):
            lost &= set(os.listdir(reader.paths.stale))
    return fresh, lost


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
