"""Which tracks there are and where their aggregated features are, and reading these."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptTrackError
from featurestore.store.commit.changes import Position, changed_keys, end_of_log
from featurestore.store.format.keys import is_hashed
from featurestore.store.paths import StorePaths
from featurestore.store.table.gathering import TableIndex
from featurestore.store.table.listing import compare_keys, track_ids_of
from featurestore.store.table.mtime_token import MtimeToken
from featurestore.store.table.snapshot import Listed, Snapshot
from featurestore.store.table.table import PackedTable
from featurestore.store.track_reader import TrackReader

# A folder's time of change tells nothing about changes within the clock's tick: wait until it is over.
_COARSE_NS = 2_000_000_000
_FINE_NS = 25_000_000
# So few tracks are listed again whenever something changes; more of them, only so often while changes are logged.
_MANY_TRACKS = 1_000
_MOMENT = 0.0005
"""Seconds that a writer needs from a change to its line in the log."""
_PAUSE, _SHARE = 10.0, 20
"""Seconds between two such listings, and how many times as long as the last one took at least."""


class TrackIndex(TableIndex):
    """The tracks of a store that is a folder, looked up again when it changes: see `TableIndex`."""

    reader: TrackReader

    def __init__(self, reader: TrackReader) -> None:
        super().__init__(reader)
        self._paths = reader.paths
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
        return TrackIndex, (self.reader,)

    def forget(self) -> None:
        self._cached, self._table = None, ((), None)

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
            modified = (time.time_ns(),) if signature is None else (signature[0], *signature[2:4])
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
        sealed = _modified(self._paths.bundles), _modified(self._paths.removed)
        return aggregated, stale, *sealed, *end_of_log(self._paths), *_signature_of_table(self._paths)

    def _is_settled(self, signature: tuple[int, ...]) -> bool:
        """Whether whatever changes from now on will change the signature."""
        _, stale, *_ = moments = signature[:4]
        now = time.time_ns()
        # Each by itself: a clock that jumped may have left one of them far ahead.
        if all(abs(now - changed) >= _COARSE_NS for changed in moments):
            return True
        coarse = stale % 10**9 == 0  # times of whole seconds, or of two
        return time.monotonic() - self._seen_at >= (_COARSE_NS if coarse else _FINE_NS) / 1e9

    def _load(self, signature: tuple[int, ...] | None, modified: tuple[int, ...]) -> Snapshot:
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
            and MtimeToken.of(self._paths, self.reader.sealed.names()) == table.mtime_token
        ):
            listed = Listed(table, frozenset(), frozenset(), modified, log)
            self._due = time.monotonic() + self._pause
        elif (followed := self._follow(table, modified, log)) is not None:
            listed, until = followed, self._due
        else:
            listed = self._list(table, modified, log)
        self._listed = listed
        known = set[str]() if table is None else table.among(stale_markers)
        marked = frozenset(self._ids_of(known).values())
        return Snapshot(listed.track_ids, table, listed.gone | marked, signature, until)

    def _follow(self, table: PackedTable | None, modified: tuple[int, ...], log: Position) -> Listed | None:
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
            try:
                there = self.reader.is_there(key)
            except CorruptTrackError:  # it may be in a bundle that is damaged
                return None
            if packed:
                (gone.discard if there else gone.add)(track_id)
            else:
                (more.add if there else more.discard)(track_id)
        return Listed(table, frozenset(gone), frozenset(more), modified, log)

    def _list(self, table: PackedTable | None, modified: tuple[int, ...], log: Position) -> Listed:
        begun = time.monotonic()
        fresh, lost = compare_keys(self.reader, table)
        gone, more = (frozenset(self._ids_of(keys).values()) for keys in (lost, fresh))
        self._pause = max(_PAUSE, _SHARE * (time.monotonic() - begun))
        self._due = time.monotonic() + self._pause
        return Listed(table, gone, more, modified, log)

    def open_table(self) -> PackedTable | None:
        """The table as it is now."""
        signature = _signature_of_table(self._paths)
        if signature != self._table[0]:
            with self._paths.open() as root:
                self._table = signature, PackedTable.open(root, self.reader.spec)
        return self._table[1]

    def _ids_of(self, keys: Set[str]) -> dict[str, str]:
        """Track id of each key that has one."""
        table = self._table[1]
        if table is not None and table is not self._hashed and any(map(is_hashed, keys - self._by_key.keys())):
            # Of a track that is gone only the table knows the id.
            pairs = zip(table.keys, table.track_ids, strict=True)
            self._by_key |= {key: track_id for key, track_id in pairs if is_hashed(key)}
            self._hashed = table
        self._by_key |= track_ids_of(self.reader, keys - self._by_key.keys())
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
        return 0 if table is None else table.tracks


def _modified(folder: Path) -> int:
    """When a folder changed, nanoseconds; 0 if there is none."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _signature_of_table(paths: StorePaths) -> tuple[int, ...]:
    """Changes whenever the packed table does; empty while there is none."""
    try:
        packed = paths.packed.stat()
    except FileNotFoundError:
        return ()
    return packed.st_ino, packed.st_ctime_ns, packed.st_mtime_ns
