"""The table that is to be replaced, and what has become of the tracks in it."""

from __future__ import annotations

import os
from collections.abc import Set

import numpy as np

from featurestore.errors import CorruptTrackError
from featurestore.store.table.rows import digest, times_of_change
from featurestore.store.table.table import PackedTable
from featurestore.store.track_reader import TrackReader


class PreviousTable:
    """A table beside the tracks as they are now; unless it is `thorough`, it believes what the table says of them.

    Attributes
    ----------
    changed : ndarray of int64
        When the metadata of the track of each row last changed, nanoseconds.
    """

    def __init__(self, reader: TrackReader, table: PackedTable, *, thorough: bool) -> None:
        self._reader = reader
        self.table = table
        self.changed = times_of_change(reader.paths, table.keys) if thorough else table.described["changed"]

    def __len__(self) -> int:
        return self.table.tracks

    def rows_of(self, keys: Set[str]) -> list[int]:
        """Rows of the tracks with some keys."""
        return [row for row, key in enumerate(self.table.keys) if key in keys] if keys else []

    def superseded(self) -> list[int]:
        """Rows of another revision than their track has, though nothing marked them.

        Only tracks whose metadata changed are looked at: one that was restored, or all of a store that was copied.
        """
        looked_at = np.flatnonzero(self.changed != self.table.described["changed"]).tolist()
        return [row for row in looked_at if not self._is_current(row)]

    def _is_current(self, row: int) -> bool:
        key, reader = self.table.keys[row], self._reader
        try:
            current = reader.current(key)
        except CorruptTrackError:
            # While a bundle is damaged that may have it, the row is all that there is.
            return not reader.sealed.are_all_known and not os.path.lexists(reader.paths.array("aggregated", key))
        own = self.table.described["revision"][row]
        return current is not None and digest(str(current.attributes["revision"])) == own

    @property
    def looks_different(self) -> bool:
        """Whether the times of change are no longer those that the table knows."""
        return bool((self.changed != self.table.described["changed"]).any())
