"""What a view reads: the tracks of a store, whatever they are kept in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.addresses import StoreUrl
from featurestore.errors import TrackNotFoundError
from featurestore.spec import FeatureSpec
from featurestore.store.array_reader import ArrayReader, Described, ReplacedError
from featurestore.store.format.keys import encode_key
from featurestore.store.table.gathering import TableIndex
from featurestore.store.table.rows import UNKNOWN
from featurestore.store.verify import VerifyReport

T = TypeVar("T")


class Ragged(NamedTuple):
    """Segments of some tracks, one after the other.

    Attributes
    ----------
    rows : ndarray, shape (row, layer, feature)
        The segments.
    counts : ndarray of int64
        How many each track has.
    starts : callable
        Gives where they start, of the same revisions, as `joined_starts` does: it may be another read.
    """

    rows: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    starts: Callable[[], npt.NDArray[np.float64]]


def joined_starts(
    starts: Sequence[npt.NDArray[np.float64]], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Starts of the segments of many tracks; NaN for those of a track that tells another number of them."""
    out, ends = np.full(int(counts.sum()), np.nan), np.cumsum(counts).tolist()
    for own, count, end in zip(starts, counts.tolist(), ends, strict=True):
        if len(own) == count:
            out[end - count : end] = own
    return out


def place_blocks(
    rows: npt.NDArray[Any], ends: npt.NDArray[np.int64], found: list[tuple[npt.NDArray[Any], Described]]
) -> None:
    """Put what was read of some tracks where it ends in an array; the list is empty then."""
    while found:
        block, _ = found.pop()  # so that there is never twice as much
        end = int(ends[len(found)])
        rows[end - len(block) : end] = block


class Source(ABC):
    """Tracks that can be read. It holds no file open and can be pickled.

    Attributes
    ----------
    path : Path or StoreUrl
        Where they are, as it was given.
    spec : FeatureSpec
        Of what they are.
    """

    path: Path | StoreUrl
    spec: FeatureSpec

    @abstractmethod
    def track_ids(self) -> Sequence[str]:
        """All tracks, in order."""

    @abstractmethod
    def has(self, track_id: str) -> bool:
        """Whether there is such a track."""

    @abstractmethod
    def attributes(self, track_id: str) -> Mapping[str, Any]:
        """What is known of a track; TrackNotFoundError if there is none."""

    @abstractmethod
    def read_aggregated(self, track_ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        """Layers (by position) of `aggregated` of some tracks: [track, layer, feature].

        Raises
        ------
        TrackNotFoundError, CorruptTrackError
            If a track is gone or damaged.
        """

    @abstractmethod
    def describe(self, kind: str, track_id: str) -> Described:
        """Shape and starts of one kind of a track."""

    @abstractmethod
    def read_segments(
        self,
        kind: str,
        track_id: str,
        positions: Sequence[int],
        *,
        rows: npt.NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[npt.NDArray[Any], Described]:
        """Layers (by position) of some or all segments of a track, and what `describe` says of them.

        Raises
        ------
        TrackNotFoundError, CorruptTrackError
            If the track is gone or damaged.
        ReplacedError
            If a shape is given, and there is another by now.
        """

    @property
    @abstractmethod
    def format(self) -> int:
        """Version of the format in which they are stored."""

    @property
    @abstractmethod
    def packed(self) -> int:
        """How many tracks can be read together with others."""

    @property
    def sealed(self) -> int:
        """How many tracks are in bundles."""
        return 0

    @abstractmethod
    def verify(self, *, deep: bool) -> VerifyReport:
        """Check everything, with `deep` every byte against its checksum."""

    def state(self) -> object:
        """Equal as long as nothing changes; None where that cannot be told."""
        return None

    def each(self, read: Callable[[str], T], track_ids: Iterable[str]) -> Iterable[T]:
        """What `read` gives for each of some tracks, in this order; as many at once as pays."""
        return map(read, track_ids)

    def describe_segments(self, track_ids: Sequence[str]) -> list[Described]:
        """What `describe` says of the segments of each of some tracks."""
        return list(self.each(partial(self.describe, "segments"), track_ids))

    def count_segments(self, track_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """How many segments each of some tracks has."""
        return np.array([shape[0] for shape, _ in self.describe_segments(track_ids)], np.int64)

    def read_ragged(self, track_ids: Sequence[str], positions: Sequence[int]) -> Ragged:
        """All segments of some tracks, one after the other."""
        read = partial(self.read_segments, "segments", positions=positions)
        found = list(self.each(read, track_ids))
        counts = np.array([shape[0] for _, (shape, _) in found], np.int64)
        starts = partial(joined_starts, [own for _, (_, own) in found], counts)
        rows = np.empty((int(counts.sum()), len(positions), self.spec.dim), self.spec.dtype)
        place_blocks(rows, np.cumsum(counts), found)
        return Ragged(rows, counts, starts)

    def read_rows(
        self,
        track_ids: Sequence[str],
        counts: npt.NDArray[np.int64],
        tracks: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
        positions: Sequence[int],
    ) -> npt.NDArray[Any]:
        """Read segments of many tracks, [row, layer, feature]; ReplacedError if one has another count by now.

        Parameters
        ----------
        track_ids, counts
            The tracks, and how many segments each has.
        tracks, within : ndarray of int64
            For each row, the number of its track among these, and of the segment in that.
        positions : sequence of int
            Of the layers.
        """
        out = np.empty((len(tracks), len(positions), self.spec.dim), self.spec.dtype)
        order = np.argsort(tracks, kind="stable")
        chosen, begins = np.unique(tracks[order], return_index=True)
        ids = [track_ids[track] for track in chosen.tolist()]
        sizes = dict(zip(ids, counts[chosen].tolist(), strict=True))

        def read(track_id: str) -> npt.NDArray[Any]:
            shape = sizes[track_id], len(self.spec.layers), self.spec.dim
            return self.read_segments("segments", track_id, positions, shape=shape)[0]

        blocks = zip(np.split(order, begins[1:]), self.each(read, ids), strict=False)
        for where, block in blocks:
            out[where] = block[within[where]]
        return out


class TrackSource(Source):
    """The tracks of a store, array by array and by way of its packed table."""

    reader: ArrayReader
    index: TableIndex

    @abstractmethod
    def reading(self) -> AbstractContextManager[None]:
        """Surround whatever is read: errors name the store, and it must still be there."""

    def track_ids(self) -> Sequence[str]:
        with self.reading():
            return self.index.snapshot().track_ids

    @property
    def packed(self) -> int:
        """How many tracks have a row in the packed table that is up to date."""
        with self.reading():
            snapshot = self.index.snapshot()
        return 0 if snapshot.table is None else len(snapshot.table.rows.keys() - snapshot.stale_rows)

    def state(self) -> object:
        with self.reading():
            return self.index.snapshot().signature

    def attributes(self, track_id: str) -> Mapping[str, Any]:
        with self.reading():
            current = self.reader.current(encode_key(track_id))
        if current is None:
            raise TrackNotFoundError(f"the store {self.path} has no track {track_id!r:.200}")
        return current.attributes

    def read_aggregated(self, track_ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        with self.reading():
            return self.index.read(track_ids, positions)

    def describe(self, kind: str, track_id: str) -> Described:
        with self.reading():
            return self.reader.describe(kind, track_id)

    def read_segments(
        self,
        kind: str,
        track_id: str,
        positions: Sequence[int],
        *,
        rows: npt.NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[npt.NDArray[Any], Described]:
        with self.reading():
            try:
                return self.reader.read_segments(kind, track_id, positions, rows=rows, shape=shape)
            except ReplacedError:
                self.index.untold.add(track_id)
                raise

    def count_segments(self, track_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        with self.reading():
            counts = self.index.segments(track_ids)
        missing = np.flatnonzero(counts == UNKNOWN)
        if len(missing):
            counts[missing] = super().count_segments([track_ids[row] for row in missing.tolist()])
        return counts
