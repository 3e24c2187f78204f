"""The table that is to be replaced, and what has become of the tracks in it."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np

from featurestore.errors import CorruptTrackError
from featurestore.store import reading
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.table.rows import digest, times_of_change
from featurestore.store.table.table import PackedTable
from featurestore.store.track_reader import TrackReader


class PreviousTable:
    """A table beside the tracks as they are now.

    Parameters
    ----------
    reader : TrackReader
        Of the store.
    table : PackedTable
        The table.

    Attributes
    ----------
    ids, keys : list of str
        Track of each row, and its key.
    changed : ndarray of int64
        When the metadata of each track last changed, nanoseconds.
    """

    def __init__(self, reader: TrackReader, table: PackedTable) -> None:
        self._reader = reader
        self.table = table
        self.ids = table.track_ids
        self.keys = table.keys()
        self.changed = times_of_change(reader.paths, self.keys)

    def superseded(self, keys: Container[str]) -> set[str]:
        """Find tracks, among some keys, that have another revision than their row, though nothing marked them.

        Only tracks whose metadata changed are looked at: one that was restored, or all of a store that was copied.
        """
        found = set()
        for row in np.flatnonzero(self.changed != self.table.described["changed"]).tolist():
            key, revision = self.keys[row], self.table.described["revision"][row]
            if key in keys and not self._has_revision(key, revision):
                found.add(self.ids[row])
        return found

    def _has_revision(self, key: str, revision: bytes) -> bool:
        try:
            current = self._reader.current(key)
        except CorruptTrackError:
            return False
        return current is not None and digest(str(current.attributes["revision"])) == revision

    @property
    def looks_different(self) -> bool:
        """Whether the times of change are no longer those that the table knows."""
        return bool((self.changed != self.table.described["changed"]).any())


def layout_on_disk(packed: Path) -> int | None:
    """Look up the layout version that a table says it has, though it may be damaged; None if it says nothing."""
    try:
        document = decode_document(reading.read_file(packed / METADATA, limit=MAX_METADATA_BYTES))
        layout = document["attributes"]["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return layout if type(layout) is int and layout >= 0 else None
