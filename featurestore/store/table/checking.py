"""Comparing the packed table with the tracks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featurestore.errors import CorruptTrackError, TrackNotFoundError
from featurestore.store import reading
from featurestore.store.byte_source import ByteFolder
from featurestore.store.table.listing import list_keys, track_ids_of
from featurestore.store.table.mtime_token import MtimeToken
from featurestore.store.table.rows import digest
from featurestore.store.table.table import PackedTable, TableChangedError
from featurestore.store.track_reader import TrackReader

_COMPARE_BYTES = 64 * 2**20
_ATTEMPTS = 5


class TableCheck:
    """One check of the packed table of a store; `revisions` are those of the sound tracks, by their keys.

    Attributes
    ----------
    problems : list of tuple
        Track id, where one is concerned, and what is wrong.
    bytes : int
        Bytes of numbers that were compared: none unless it is `deep`.
    """

    def __init__(self, reader: TrackReader, revisions: Mapping[str, str], *, deep: bool) -> None:
        self.problems: list[tuple[str | None, str]] = []
        self.bytes = 0
        self._reader = reader
        self._paths = reader.paths
        self._revisions = revisions
        self._deep = deep

    def run(self) -> int:
        """Check the table.

        Returns
        -------
        int
            Number of its rows; 0 where it cannot be told.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self._paths.open() as root:
                    return self._compare(root)
            except (TableChangedError, TrackNotFoundError):
                self.problems.clear()  # it was packed, or a track removed, meanwhile
            except CorruptTrackError as error:
                self.problems.append((None, str(error)))
                return 0
        self.problems.append((None, "the store changes too fast to compare the table with it"))
        return 0

    def _compare(self, root: ByteFolder) -> int:
        table = PackedTable.open(root, self._reader.spec)
        if table is None:
            return 0
        keys = table.keys
        table.check(root)
        present = set(list_keys(self._reader))
        superseded = self._superseded(table, keys)
        differing = self._differing(root, table, keys) if self._deep else set()
        # Marks last: a row that was superseded meanwhile has one by now.
        stale_markers = set(reading.list_names(self._paths.stale))
        table.check(root)  # unless the table was packed anew, which removes it
        lacking = track_ids_of(self._reader, present - table.key_set)
        # Unchanged since, or the table was copied here together with the time of change.
        token = MtimeToken.of(self._paths, self._reader.sealed.names())
        if lacking and table.mtime_token is not None and table.mtime_token.modified == token.modified:
            self.problems.append(
                (None, f"the table says that it holds all tracks, and lacks {len(lacking)} of them")
            )
        all_known = self._reader.sealed.are_all_known
        for row, (key, track_id) in enumerate(zip(keys, table.track_ids, strict=True)):
            if key in stale_markers or (key not in present and not all_known):
                continue
            if key not in present:
                self.problems.append((track_id, f"row {row} is of a track that the store does not have"))
            elif row in superseded:
                self.problems.append((track_id, f"row {row} is of another revision than the track: pack again"))
            elif row in differing:
                self.problems.append((track_id, f"row {row} differs from the track"))
        return len(keys)

    def _superseded(self, table: PackedTable, keys: list[str]) -> set[int]:
        """Rows of another revision than their track has."""
        found = set()
        for row, (key, packed) in enumerate(zip(keys, table.described["revision"], strict=True)):
            if key in self._revisions and digest(self._revisions[key]) != packed:
                current = self._reader.current(key)  # it may have been replaced, and packed, since
                if current is not None and digest(str(current.attributes["revision"])) != packed:
                    found.add(row)
        return found

    def _differing(self, root: ByteFolder, table: PackedTable, keys: list[str]) -> set[int]:
        """Rows of the table that differ from their tracks, where these are sound."""
        spec = self._reader.spec
        size = table.rows_per_chunk
        step = max(1, _COMPARE_BYTES // (size * spec.dim * 4))
        different: set[int] = set()
        for first in range(0, len(keys), size):
            chunk = range(first, min(first + size, len(keys)))
            rows = [row for row in chunk if keys[row] in self._revisions]
            ids = [table.track_ids[row] for row in rows]
            for layer in range(0, len(spec.layers), step):
                layers = range(len(spec.layers))[layer : layer + step]
                stored = table.read(root, np.array(rows, np.int64), layers)
                self.bytes += stored.nbytes
                own = self._reader.read_rows(ids, layers)
                different.update(
                    row for row, a, b in zip(rows, stored, own, strict=True) if a.tobytes() != b.tobytes()
                )
        return different
