"""Which tracks there are and where their aggregated features are, and reading these."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store.byte_source import LocalFolder
from featurestore.store.commit.changes import Position, changed_keys, end_of_log
from featurestore.store.commit.transaction import is_published
from featurestore.store.format.keys import is_hashed
from featurestore.store.paths import StorePaths
from featurestore.store.table.listing import compare_keys, track_ids_of
from featurestore.store.table.mtime_token import MtimeToken
from featurestore.store.table.rows import UNKNOWN
from featurestore.store.table.snapshot import Listed, Snapshot, TrackList
from featurestore.store.table.table import PackedTable, TableChangedError, is_padding
from featurestore.store.track_reader import TrackReader

_ATTEMPTS = 20
# A folder's time of change tells nothing about changes within the clock's tick: wait until it is over.
_COARSE_NS = 2_000_000_000
_FINE_NS = 25_000_000
# So few tracks are read as they are, without a look at the table or at what else the store has.
_FEW_TRACKS = 16
# Fewer rows of a chunk than this share of it are read from their tracks.
_FEW = 64
# So few tracks are listed again whenever something changes; more of them, only so often while changes are logged.
_MANY_TRACKS = 1_000
_MOMENT = 0.0005
"""Seconds that a writer needs from a change to its line in the log."""
_PAUSE, _SHARE = 10.0, 20
"""Seconds between two such listings, and how many times as long as the last one took at least."""


class TrackIndex:
    """The tracks of a store, looked up again when it changes. Holds no file open.

    Parameters
    ----------
    reader : TrackReader
        Of the store.

    Attributes
    ----------
    untold : set of str
        Tracks that have another number of segments than the table says: they were replaced by hand.
    """

    def __init__(self, reader: TrackReader) -> None:
        self.untold: set[str] = set()
        self._reader = reader
        self._paths = reader.paths
        self._forget()

    def _forget(self) -> None:
        self._cached: Snapshot | None = None
        self._seen: tuple[int, ...] | None = None
        self._seen_at = 0.0
        self._table: tuple[tuple[int, ...], PackedTable | None] = (), None
        self._by_key: dict[str, str] = {}
        self._hashed: PackedTable | None = None  # whose hashed keys are among these
        self._listed: Listed | None = None
        self._pause = _PAUSE
        self._due = -math.inf  # when to list again, whatever the log says, on the monotonic clock

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackIndex, (self._reader,)

    def snapshot(self) -> Snapshot:
        """The store as it is now, looked up again only where it changed."""
        signature = self._signature()
        if signature is None or signature != self._seen:
            self._seen, self._seen_at = signature, time.monotonic()
        cached = self._cached
        if (
            cached is None
            or signature is None
            or cached.signature != signature
            or time.monotonic() >= cached.until
        ):
            settled = signature is not None and self._is_settled(signature)
            modified = time.time_ns() if signature is None else signature[0]
            cached = self._cached = self._load(signature if settled else None, modified)
        elif cached.until == math.inf:  # nothing has changed until now
            self._due = time.monotonic() + self._pause
        return cached

    def _signature(self) -> tuple[int, ...] | None:
        """Changes, but for changes within one tick of the clock, whenever the tracks do; None without one."""
        try:
            aggregated = self._paths.kind("aggregated").stat().st_mtime_ns
            stale = self._paths.stale.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        return aggregated, stale, *end_of_log(self._paths), *_signature_of_table(self._paths)

    def _is_settled(self, signature: tuple[int, ...]) -> bool:
        """Whether whatever changes from now on will change the signature."""
        aggregated, stale, *_ = signature
        now = time.time_ns()
        # Each by itself: a clock that jumped may have left one of them far ahead.
        if all(abs(now - changed) >= _COARSE_NS for changed in (aggregated, stale)):
            return True
        coarse = stale % 10**9 == 0  # times of whole seconds, or of two
        return time.monotonic() - self._seen_at >= (_COARSE_NS if coarse else _FINE_NS) / 1e9

    def _load(self, signature: tuple[int, ...] | None, modified: int) -> Snapshot:
        log = end_of_log(self._paths)  # first: what is logged from now on is read the next time
        try:
            stale_markers = set(os.listdir(self._paths.stale))
        except FileNotFoundError:
            table, stale_markers = None, set()  # nothing says which rows of the table are superseded
        else:
            table = self.open_table()
        until = math.inf
        if (
            table is not None
            and not stale_markers
            and MtimeToken.of(self._paths.kind("aggregated")) == table.mtime_token
        ):
            listed = Listed(table, frozenset(), frozenset(), modified, log)
            self._due = time.monotonic() + self._pause
        elif (followed := self._follow(table, modified, log)) is not None:
            listed, until = followed, self._due
        else:
            listed = self._list(table, modified, log)
        self._listed = listed
        known = frozenset[str]() if table is None or not stale_markers else table.key_set
        marked = frozenset(self._ids_of(stale_markers & known).values())
        return Snapshot(listed.track_ids, table, listed.gone | marked, signature, until)

    def _follow(self, table: PackedTable | None, modified: int, log: Position) -> Listed | None:
        """What was listed with the changes since that writers logged; None if that does not tell it all."""
        before = self._listed
        if before is None or before.table is not table or time.monotonic() >= self._due:
            return None
        keys = None if len(before.track_ids) < _MANY_TRACKS else changed_keys(self._paths, before.log, log)
        if keys == set() and modified != before.modified:  # its line may be about to be written
            time.sleep(_MOMENT)
            log = end_of_log(self._paths)
            keys = changed_keys(self._paths, before.log, log)
        if keys is None or (not keys and modified != before.modified):
            return None  # somebody changed the folder without a word
        if not keys:
            return before
        ids = self._ids_of(keys)
        if any(map(is_hashed, keys - ids.keys())):
            return None  # removed, and who knows what
        gone, more = set(before.gone), set(before.more)
        for key, track_id in ids.items():
            packed = table is not None and key in table.key_set
            there = is_published(self._paths, key)
            if packed:
                (gone.discard if there else gone.add)(track_id)
            else:
                (more.add if there else more.discard)(track_id)
        return Listed(table, frozenset(gone), frozenset(more), modified, log)

    def _list(self, table: PackedTable | None, modified: int, log: Position) -> Listed:
        begun = time.monotonic()
        fresh, lost = compare_keys(self._paths, frozenset() if table is None else table.key_set)
        gone, more = (frozenset(self._ids_of(keys).values()) for keys in (lost, fresh))
        self._pause = max(_PAUSE, _SHARE * (time.monotonic() - begun))
        self._due = time.monotonic() + self._pause
        return Listed(table, gone, more, modified, log)

    def open_table(self) -> PackedTable | None:
        """The table as it is now."""
        signature = _signature_of_table(self._paths)
        if signature != self._table[0]:
            self._table = signature, _table(self._reader)
        return self._table[1]

    def _ids_of(self, keys: Set[str]) -> dict[str, str]:
        """Track id of each key that has one."""
        table = self._table[1]
        if table is not None and table is not self._hashed and any(map(is_hashed, keys - self._by_key.keys())):
            # Of a track that is gone only the table knows the id.
            pairs = zip(table.keys, table.track_ids, strict=True)
            self._by_key |= {key: track_id for key, track_id in pairs if is_hashed(key)}
            self._hashed = table
        self._by_key |= track_ids_of(self._reader, keys - self._by_key.keys())
        return {key: self._by_key[key] for key in keys & self._by_key.keys()}

    def has_row(self, key: str) -> bool:
        """Whether the packed table has a row of a track, which may be gone, as far as the table can be read."""
        try:
            table = self.open_table()
        except CorruptTrackError:  # nobody reads from it
            return False
        return table is not None and key in table.key_set

    @property
    def packed_rows(self) -> int:
        """Rows of the packed table, 0 if it cannot be read."""
        try:
            table = self.open_table()
        except CorruptTrackError:
            return 0
        return 0 if table is None else len(table.ids)

    def segments(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """How many segments each of some tracks has, as far as the table tells; `UNKNOWN` for the others."""
        snapshot = self.snapshot()
        rows = snapshot.rows(ids)
        if snapshot.table is None or not len(snapshot.table.ids):
            return rows
        counts = np.where(rows < 0, UNKNOWN, snapshot.table.described["segments"][rows]).astype(np.int64)
        if self.untold:
            counts[[row for row, track_id in enumerate(ids) if track_id in self.untold]] = UNKNOWN
        return counts

    def read(self, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        """Layers (by position) of `aggregated` of some tracks.

        Returns
        -------
        ndarray, shape (tracks, layers, dim)

        Raises
        ------
        TrackNotFoundError, CorruptTrackError
            If a track is gone or damaged, or the packed table is.
        """
        if len(ids) <= _FEW_TRACKS and not (isinstance(ids, TrackList) and ids.is_packed):
            return self._reader.read_rows(ids, positions)
        for _ in range(_ATTEMPTS):
            try:
                return self._gather(self.snapshot(), ids, positions)
            except TableChangedError:
                self._cached, self._table = None, ((), None)
        raise CorruptTrackError("the packed table is incomplete: build it again with `fs-extract pack`")

    def _gather(self, snapshot: Snapshot, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        table, rows = snapshot.table, snapshot.rows(ids)
        if table is not None and len(ids):
            chunks = rows // table.rows_per_chunk
            few = np.bincount(chunks + 1) * _FEW < table.rows_per_chunk
            rows[few[chunks + 1]] = -1
        packed = np.flatnonzero(rows >= 0)
        if table is not None and len(packed):
            out = found = self._read_table(table, rows[packed], positions)
            rows[packed[is_padding(found)]] = -1  # the table was copied while it grew
        if len(packed) < len(ids) or not len(packed):
            out = np.empty((len(ids), len(positions), self._reader.spec.dim), np.dtype(self._reader.spec.dtype))
            if len(packed):
                out[packed] = found
        if unpacked := np.flatnonzero(rows < 0).tolist():
            out[unpacked] = self._reader.read_rows([ids[i] for i in unpacked], positions)
        return out

    def _read_table(
        self, table: PackedTable, rows: npt.NDArray[np.int64], positions: Sequence[int]
    ) -> npt.NDArray[Any]:
        with LocalFolder.root(self._paths.root, follow_links=self._paths.follow_links) as root:
            return table.read(root, rows, positions)


def _table(reader: TrackReader) -> PackedTable | None:
    with LocalFolder.root(reader.paths.root, follow_links=reader.paths.follow_links) as root:
        return PackedTable.open(root, reader.spec)


def _signature_of_table(paths: StorePaths) -> tuple[int, ...]:
    """Changes whenever the packed table does; empty while there is none."""
    try:
        packed = paths.packed.stat()
    except FileNotFoundError:
        return ()
    return packed.st_ino, packed.st_ctime_ns, packed.st_mtime_ns
