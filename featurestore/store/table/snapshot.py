"""What is known of the tracks of a store at one moment."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from featurestore.store.commit.changes import Position
from featurestore.store.table.table import PackedTable


class TrackList(Sequence[str]):
    """Ids of all tracks: those of a table's rows, but for some, and then others. Decoded when they are asked for.

    Parameters
    ----------
    table : PackedTable, optional
        The table.
    gone : frozenset of str
        Tracks of the table that are left out.
    more : sequence of str
        Tracks that the table does not have.
    """

    def __init__(self, table: PackedTable | None, gone: frozenset[str], more: Sequence[str]) -> None:
        self.table = table
        self._gone = gone
        self._more = more

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    @cached_property
    def _decoded(self) -> list[str]:
        packed = [] if self.table is None else self.table.track_ids
        if self._gone:
            packed = [track_id for track_id in packed if track_id not in self._gone]
        return packed + list(self._more) if self._more else packed

    @property
    def is_packed(self) -> bool:
        """Whether these are the tracks of the table."""
        return self.table is not None and not self._gone and not self._more

    def rows(self, unusable: Collection[str]) -> npt.NDArray[np.int64]:
        """Row of each track in the table; -1 where it has none, or it is not to be used."""
        rows = np.arange(0 if self.table is None else self.table.tracks, dtype=np.int64)
        if self.table is not None and (self._gone or unusable):
            found, numbers = rows.copy(), self.table.rows
            found[[numbers[track_id] for track_id in unusable]] = -1
            rows = np.delete(found, [numbers[track_id] for track_id in self._gone])
        return np.append(rows, np.full(len(self._more), -1))

    def __len__(self) -> int:
        packed = 0 if self.table is None else self.table.tracks
        return packed - len(self._gone) + len(self._more)

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._decoded[index]


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
    until : float
        When to look again all the same, on the monotonic clock, seconds.
    """

    track_ids: TrackList
    table: PackedTable | None
    stale_rows: frozenset[str]
    signature: tuple[int, ...] | None
    until: float = math.inf

    def rows(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row of each of some tracks in the table, -1 where it must be read from the track itself."""
        if self.table is None:
            return np.full(len(ids), -1, np.int64)
        if isinstance(ids, TrackList) and ids.table is self.table:
            return ids.rows(self.stale_rows)
        numbers, stale_rows = self.table.rows, self.stale_rows
        return np.array([-1 if t in stale_rows else numbers.get(t, -1) for t in ids], np.int64)


@dataclass(frozen=True)
class Listed:
    """Which tracks there were at one moment.

    Parameters
    ----------
    table : PackedTable, optional
        What they are compared with.
    gone, more : frozenset of str
        Tracks of the table that were not there, and tracks that were and are not in the table.
    modified : tuple of int
        When the folders of tracks, bundles and marks had changed, nanoseconds.
    log : Position
        How far the log of changes went.
    """

    table: PackedTable | None
    gone: frozenset[str]
    more: frozenset[str]
    modified: tuple[int, ...]
    log: Position

    @cached_property
    def track_ids(self) -> TrackList:
        """All tracks in order."""
        return TrackList(self.table, self.gone, sorted(self.more))
