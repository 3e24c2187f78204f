"""Reading aggregated features of many tracks: from the packed table where it has them, or from the tracks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store.array_reader import ArrayReader
from featurestore.store.table.rows import UNKNOWN
from featurestore.store.table.snapshot import Snapshot, TrackList
from featurestore.store.table.table import PackedTable, TableChangedError, is_padding

_ATTEMPTS = 20
# So few tracks are read as they are, without a look at the table or at what else the store has.
_FEW_TRACKS = 16
# Fewer rows of a chunk than this share of it are read from their tracks.
_FEW = 64


class TableIndex(ABC):
    """The tracks of a store, and reading them by way of its packed table. Holds no file open.

    Attributes
    ----------
    untold : set of str
        Tracks that have another number of segments than the table says: they were replaced by hand.
    """

    def __init__(self, reader: ArrayReader) -> None:
        self.untold: set[str] = set()
        self.reader = reader

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The store as it is now."""

    @abstractmethod
    def forget(self) -> None:
        """Look the table up again for the next snapshot."""

    def _prefers_table(self, positions: Sequence[int]) -> bool:  # noqa: ARG002
        """Whether so many layers are read from the table whatever there is to be read."""
        return False

    def segments(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """How many segments each of some tracks has, as far as the table tells; `UNKNOWN` for the others."""
        snapshot = self.snapshot()
        rows = snapshot.rows(ids)
        if snapshot.table is None or not snapshot.table.tracks:
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
        are_few = len(ids) <= _FEW_TRACKS and not (isinstance(ids, TrackList) and ids.is_packed)
        if are_few and not self._prefers_table(positions):
            return self.reader.read_rows(ids, positions)
        for _ in range(_ATTEMPTS):
            try:
                return self._gather(self.snapshot(), ids, positions)
            except TableChangedError:
                self.forget()
        raise CorruptTrackError("the packed table is incomplete: build it again with `fs-extract pack`")

    def _gather(self, snapshot: Snapshot, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        table, rows = snapshot.table, snapshot.rows(ids)
        if table is not None and len(ids) and not self._prefers_table(positions):
            chunks = rows // table.rows_per_chunk
            few = np.bincount(chunks + 1) < table.rows_per_chunk / _FEW
            rows[few[chunks + 1]] = -1
        packed = np.flatnonzero(rows >= 0)
        if table is not None and len(packed):
            out = found = self._read_table(table, rows[packed], positions)
            rows[packed[is_padding(found)]] = -1  # the table was copied while it grew
        if len(packed) < len(ids) or not len(packed):
            out = np.empty((len(ids), len(positions), self.reader.spec.dim), np.dtype(self.reader.spec.dtype))
            if len(packed):
                out[packed] = found
        if unpacked := np.flatnonzero(rows < 0).tolist():
            out[unpacked] = self.reader.read_rows([ids[i] for i in unpacked], positions)
        return out

    def _read_table(
        self, table: PackedTable, rows: npt.NDArray[np.int64], positions: Sequence[int]
    ) -> npt.NDArray[Any]:
        with self.reader.files.open() as root:
            return table.read(root, rows, positions)
