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
from featurestore.store.paths import Places
from featurestore.store.table.packing import list_keys, track_ids_of
from featurestore.store.table.stamps import Stamp
from featurestore.store.table.table import PackedTable, TableChangedError
from featurestore.store.track_reader import TrackReader

_ATTEMPTS = 20
# A folder's time of change tells nothing about changes within the clock's tick: wait until it is over.
_SETTLED_NS = 2_000_000_000
# Fewer rows of a chunk than this share of it are read from their tracks.
_FEW = 64


@dataclass(frozen=True)
class Known:
    """What is known of a store at one moment.

    Parameters
    ----------
    track_ids : sequence of str
        All tracks: in the order of the packed table, then the others by id.
    table : PackedTable, optional
        The table, if there is one and it can be trusted.
    direct : frozenset of str
        Tracks of the table whose row must not be used.
    signature : tuple, optional
        As long as the store has it, nothing of this changes.
    """

    track_ids: Sequence[str]
    table: PackedTable | None
    direct: frozenset[str]
    signature: tuple[Any, ...] | None


class Catalogue:
    """The tracks of a store, looked up again when it changes. Holds no file open.

    Parameters
    ----------
    reader : TrackReader
        Of the store.
    """

    def __init__(self, reader: TrackReader) -> None:
        self._reader = reader
        self._places = reader.places
        self._cached: Known | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def known(self) -> Known:
        """What is known now."""
        signature = self._signature()
        cached = self._cached
        if cached is None or signature is None or cached.signature != signature:
            cached = self._cached = self._load(signature)
        return cached

    def _signature(self) -> tuple[Any, ...] | None:
        """Changes whenever the catalogue does; None while it cannot be told."""
        try:
            aggregated = self._places.kind("aggregated").stat().st_mtime_ns
            stale = self._places.stale.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        now = time.time_ns()
        # Each by itself: a clock that jumped may have left one of them far ahead.
        if any(abs(now - changed) < _SETTLED_NS for changed in (aggregated, stale)):
            return None
        return aggregated, stale, *_signature_of_table(self._places)

    def _load(self, signature: tuple[Any, ...] | None) -> Known:
        try:
            marks = set(os.listdir(self._places.stale))
        except FileNotFoundError:
            table, marks = None, set()  # nothing says which rows of the table are superseded
        else:
            table = _table(self._reader)
        folder = self._places.kind("aggregated")
        if table is not None and not marks and Stamp.of(folder) == table.stamp:
            return Known(table.ids, table, frozenset(), signature)
        by_key = track_ids_of(self._reader, list_keys(self._places))
        present = set(by_key.values())
        packed = [] if table is None else [track_id for track_id in table.track_ids if track_id in present]
        rest = sorted(present.difference(packed))
        direct = {by_key[key] for key in marks & by_key.keys()}
        if table is not None:
            direct |= set(table.track_ids).difference(packed)  # removed since
        return Known(packed + rest, table, frozenset(direct), signature)

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
        for _ in range(_ATTEMPTS):
            try:
                return self._gather(self.known(), ids, positions)
            except TableChangedError:
                self._cached = None
        raise CorruptTrackError("the packed table is incomplete: build it again with `fs-extract pack`")

    def _gather(self, known: Known, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        table = known.table
        if table is None:
            rows = np.full(len(ids), -1, np.int64)
        elif ids is table.ids:
            rows = np.arange(len(ids), dtype=np.int64)
        else:
            numbers, direct = table.rows, known.direct
            rows = np.array([-1 if t in direct else numbers.get(t, -1) for t in ids], np.int64)
        if table is not None and len(ids):
            chunks, counts = np.unique(rows // table.rows_per_chunk, return_counts=True)
            few = chunks[(counts * _FEW < table.rows_per_chunk) & (chunks >= 0)]
            rows[np.isin(rows // table.rows_per_chunk, few)] = -1
        packed = np.flatnonzero(rows >= 0)
        root = filesystem.open_root(self._places.root, follow_links=self._places.follow_links)
        try:
            if table is not None and len(packed) == len(ids) and len(ids):
                return table.read(root, rows, positions)
            out = np.empty((len(ids), len(positions), self._reader.spec.dim), np.dtype(self._reader.spec.dtype))
            if table is not None and len(packed):
                out[packed] = table.read(root, rows[packed], positions)
        finally:
            os.close(root)
        unpacked = np.flatnonzero(rows < 0).tolist()
        out[unpacked] = self._reader.read_rows([ids[i] for i in unpacked], positions)
        return out


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
        signature = _signature_of_table(self._reader.places)
        if signature != self._seen[0]:
            try:
                table = _table(self._reader)
                rows: Container[str] = () if table is None else table.rows
            except CorruptTrackError:  # nobody reads from it
                rows = ()
            self._seen = signature, rows
        return track_id in self._seen[1]


def _table(reader: TrackReader) -> PackedTable | None:
    root = filesystem.open_root(reader.places.root, follow_links=reader.places.follow_links)
    try:
        return PackedTable.open(root, reader.spec)
    finally:
        os.close(root)


def _signature_of_table(places: Places) -> tuple[int, ...]:
    """Changes whenever the packed table does; empty while there is none."""
    try:
        packed = places.packed.stat()
    except FileNotFoundError:
        return ()
    return packed.st_ino, packed.st_ctime_ns, packed.st_mtime_ns
