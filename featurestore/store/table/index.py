"""Which tracks there are and where their aggregated features are, and reading these."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store import filesystem
from featurestore.store.paths import StorePaths
from featurestore.store.table.coordinates import TrackIds
from featurestore.store.table.mtime_token import MtimeToken
from featurestore.store.table.packing import list_keys, track_ids_of
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


@dataclass(frozen=True)
class Snapshot:
    """A store at one moment.

    Parameters
    ----------
    track_ids : sequence of str
        All tracks: in the order of the packed table, then the others by id.
    table : PackedTable, optional
        The table, if there is one and it can be trusted.
    stale_rows : frozenset of str
        Tracks of the table whose row must not be used.
    signature : tuple, optional
        As long as the store has it, nothing of this changes.
    """

    track_ids: Sequence[str]
    table: PackedTable | None
    stale_rows: frozenset[str]
    signature: tuple[int, ...] | None


class TrackIndex:
    """The tracks of a store, looked up again when it changes. Holds no file open.

    Parameters
    ----------
    reader : TrackReader
        Of the store.
    """

    def __init__(self, reader: TrackReader) -> None:
        self._reader = reader
        self._paths = reader.paths
        self._forget()

    def _forget(self) -> None:
        self._cached: Snapshot | None = None
        self._seen: tuple[int, ...] | None = None
        self._seen_at = 0.0
        self._table: tuple[tuple[int, ...], PackedTable | None] = (), None
        self._by_key: dict[str, str] = {}
        self._order: tuple[PackedTable | None, list[str], frozenset[str]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackIndex, (self._reader,)

    def snapshot(self) -> Snapshot:
        """The store as it is now, looked up again only where it changed."""
        signature = self._signature()
        if signature is None or signature != self._seen:
            self._seen, self._seen_at = signature, time.monotonic()
        cached = self._cached
        if cached is None or signature is None or cached.signature != signature:
            settled = signature is not None and self._is_settled(signature)
            cached = self._cached = self._load(signature if settled else None)
        return cached

    def _signature(self) -> tuple[int, ...] | None:
        """Changes, but for changes within one tick of the clock, whenever the tracks do; None without one."""
        try:
            aggregated = self._paths.kind("aggregated").stat().st_mtime_ns
            stale = self._paths.stale.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        return aggregated, stale, *_signature_of_table(self._paths)

    def _is_settled(self, signature: tuple[int, ...]) -> bool:
        """Whether whatever changes from now on will change the signature."""
        aggregated, stale, *_ = signature
        now = time.time_ns()
        # Each by itself: a clock that jumped may have left one of them far ahead.
        if all(abs(now - changed) >= _COARSE_NS for changed in (aggregated, stale)):
            return True
        coarse = stale % 10**9 == 0  # times of whole seconds, or of two
        return time.monotonic() - self._seen_at >= (_COARSE_NS if coarse else _FINE_NS) / 1e9

    def _load(self, signature: tuple[int, ...] | None) -> Snapshot:
        try:
            stale_markers = set(os.listdir(self._paths.stale))
        except FileNotFoundError:
            table, stale_markers = None, set()  # nothing says which rows of the table are superseded
        else:
            table = self._open_table()
        folder = self._paths.kind("aggregated")
        if table is not None and not stale_markers and MtimeToken.of(folder) == table.mtime_token:
            return Snapshot(table.ids, table, frozenset(), signature)
        if self._list() or self._order is None or self._order[0] is not table:
            present = set(self._by_key.values())
            packed = [] if table is None else [track_id for track_id in table.track_ids if track_id in present]
            removed = frozenset() if table is None else frozenset(table.rows.keys() - present)
            self._order = table, packed + sorted(present.difference(packed)), removed
        _, track_ids, removed = self._order
        marked = {self._by_key[key] for key in stale_markers & self._by_key.keys()}
        return Snapshot(track_ids, table, removed | marked, signature)

    def _open_table(self) -> PackedTable | None:
        """The table as it is now."""
        signature = _signature_of_table(self._paths)
        if signature != self._table[0]:
            self._table = signature, _table(self._reader)
        return self._table[1]

    def _list(self) -> bool:
        """Look up the track id of each key, where it was not there the last time; whether there are other keys."""
        keys = list_keys(self._paths)
        if keys == self._by_key.keys():
            return False
        for gone in self._by_key.keys() - keys:
            del self._by_key[gone]
        self._by_key |= track_ids_of(self._reader, keys - self._by_key.keys())
        return True

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
        if len(ids) <= _FEW_TRACKS and not isinstance(ids, TrackIds):
            return self._reader.read_rows(ids, positions)
        for _ in range(_ATTEMPTS):
            try:
                return self._gather(self.snapshot(), ids, positions)
            except TableChangedError:
                self._cached, self._table = None, ((), None)
        raise CorruptTrackError("the packed table is incomplete: build it again with `fs-extract pack`")

    def _gather(self, snapshot: Snapshot, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        table = snapshot.table
        if table is None:
            rows = np.full(len(ids), -1, np.int64)
        elif ids is snapshot.track_ids and ids is table.ids:
            rows = np.arange(len(ids), dtype=np.int64)
        else:
            numbers, stale_rows = table.rows, snapshot.stale_rows
            rows = np.array([-1 if t in stale_rows else numbers.get(t, -1) for t in ids], np.int64)
        if table is not None and len(ids):
            chunks, counts = np.unique(rows // table.rows_per_chunk, return_counts=True)
            few = chunks[(counts * _FEW < table.rows_per_chunk) & (chunks >= 0)]
            rows[np.isin(rows // table.rows_per_chunk, few)] = -1
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
        root = filesystem.open_root(self._paths.root, follow_links=self._paths.follow_links)
        try:
            return table.read(root, rows, positions)
        finally:
            os.close(root)


class PackedIds:
    """Which tracks the packed table has rows of, whether they are there or not; looked up again when it changes.

    Parameters
    ----------
    reader : TrackReader
        Of the store.
    """

    def __init__(self, reader: TrackReader) -> None:
        self._reader = reader
        self._seen: tuple[tuple[int, ...], Container[str]] = (), ()

    def have(self, track_id: str) -> bool:
        """Whether one is among them, as far as the table can be read."""
        signature = _signature_of_table(self._reader.paths)
        if signature != self._seen[0]:
            try:
                table = _table(self._reader)
                rows: Container[str] = () if table is None else table.rows
            except CorruptTrackError:  # nobody reads from it
                rows = ()
            self._seen = signature, rows
        return track_id in self._seen[1]


def _table(reader: TrackReader) -> PackedTable | None:
    root = filesystem.open_root(reader.paths.root, follow_links=reader.paths.follow_links)
    try:
        return PackedTable.open(root, reader.spec)
    finally:
        os.close(root)


def _signature_of_table(paths: StorePaths) -> tuple[int, ...]:
    """Changes whenever the packed table does; empty while there is none."""
    try:
        packed = paths.packed.stat()
    except FileNotFoundError:
        return ()
    return packed.st_ino, packed.st_ctime_ns, packed.st_mtime_ns
