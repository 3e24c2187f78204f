"""Reading the features of one file of HDF5, as those of a store."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, NotAStoreError, TrackNotFoundError
from featurestore.spec import FeatureSpec
from featurestore.store.array_reader import Described, ReplacedError
from featurestore.store.format.keys import encode_key
from featurestore.store.hdf5.chunks import ChunkReader
from featurestore.store.hdf5.layout import FORMAT, dataset, opened, read_spec, translate_damage
from featurestore.store.reading import FOLLOW
from featurestore.store.source import Ragged, Source, joined_starts
from featurestore.store.verify import Problem, VerifyReport

_MOST_ARRAYS = 1_000
"""Arrays, of raw tracks above all, of which it is known where their chunks lie."""


@dataclass(frozen=True)
class _Index:
    """What is known of a file, until another one is in its place."""

    signature: tuple[int, ...]
    track_ids: list[str]
    rows: dict[str, int]
    provenance: list[bytes]
    splits: npt.NDArray[np.int64]
    starts: npt.NDArray[np.float64]
    features: dict[str, ChunkReader] = field(default_factory=dict)


class Hdf5Source(Source):
    """What views read from a file; it holds no file open, and looks again when another was put in its place."""

    path: Path
    format = FORMAT

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            self.spec: FeatureSpec = read_spec(file, path)
        self._cached: _Index | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Hdf5Source, (self.path,)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[int, _Index]]:
        """The open file, and what is known of it."""
        try:
            fd = os.open(self.path, FOLLOW)
        except OSError:
            with opened(self.path):  # says what is wrong with it
                raise
        try:
            with translate_damage(self.path):
                yield fd, self._index_of(fd)
        finally:
            os.close(fd)

    def _index_of(self, fd: int) -> _Index:
        index, status = self._cached, os.fstat(fd)
        signature = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if index is None or index.signature != signature:
            with opened(self.path, fd) as file:
                if read_spec(file, self.path) != self.spec:
                    raise CorruptTrackError(f"{self.path} was replaced by features of another kind: open it again")
                index = self._cached = self._load(file, signature)
        return index

    def _index(self) -> _Index:
        with self._reading() as (_, index):
            return index

    def _load(self, file: Any, signature: tuple[int, ...]) -> _Index:
        found = dataset(file, "track_id", (None,), "S")
        tracks = len(found)
        ids = [value.decode() for value in found[:].tolist()]
        provenance = dataset(file, "provenance", (tracks,), "S")[:].tolist()
        sizes = dataset(file, "row_size", (tracks,), "i")[:]
        starts = dataset(file, "start", (None,), "f")[:]
        splits = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if (sizes < 0).any() or int(splits[-1]) != len(starts):
            raise ValueError("the rows of the tracks do not add up")
        layers = dataset(file, "layer", (None,), "i")[:].tolist()
        if tuple(layers) != self.spec.layers:
            raise ValueError(f"its layers are {layers}, not those of its spec")
        rows = {track_id: row for row, track_id in enumerate(ids)}
        if len(rows) < tracks or "" in rows:
            raise ValueError("a track id is there twice, or empty")
        return _Index(signature, ids, rows, provenance, splits, starts)

    def _features(self, fd: int, index: _Index, name: str, shape: tuple[int | None, ...]) -> ChunkReader:
        found = index.features.get(name)
        if found is None:
            with opened(self.path, fd) as file:
                found = ChunkReader(file, name, shape, self.spec.dtype)
            if len(index.features) >= _MOST_ARRAYS:
                index.features.clear()
            index.features[name] = found
        return found

    def track_ids(self) -> Sequence[str]:
        return self._index().track_ids

    def has(self, track_id: str) -> bool:
        return track_id in self._index().rows

    def attributes(self, track_id: str) -> Mapping[str, Any]:
        index = self._index()
        row = self._row(index, track_id)
        with translate_damage(self.path):
            found = json.loads(index.provenance[row])
            if not isinstance(found, dict) or not isinstance(found.get("kinds"), list):
                raise ValueError(f"the provenance of {track_id!r:.200} is damaged")
        found.setdefault("starts", self._starts(index, row).tolist())
        return found

    def _row(self, index: _Index, track_id: str) -> int:
        if track_id not in index.rows:
            raise TrackNotFoundError(f"{self.path} has no track {track_id!r:.200}")
        return index.rows[track_id]

    def _starts(self, index: _Index, row: int) -> npt.NDArray[np.float64]:
        starts = index.starts[slice(*index.splits[row : row + 2].tolist())]
        return starts[:0] if np.isnan(starts).any() else starts

    @property
    def packed(self) -> int:
        return len(self.track_ids())

    def state(self) -> object:
        return self._index().signature

    def verify(self, *, deep: bool) -> VerifyReport:
        began, problems, size, arrays = time.monotonic(), [], 0, 0
        ids: Sequence[str] = []
        try:
            ids = self.track_ids()
            kinds = [
                ("aggregated", None),
                *((k, x) for x in ids for k in self.attributes(x)["kinds"] if k != "aggregated"),
            ]
            for kind, track_id in kinds:
                arrays += 1
                if track_id is not None:
                    self.describe(kind, track_id)
                for position in range(len(self.spec.layers)) if deep else ():
                    if track_id is None:
                        size += self.read_aggregated(ids, [position]).nbytes
                    else:
                        size += self.read_segments(kind, track_id, [position])[0].nbytes
        except (NotAStoreError, CorruptTrackError) as error:
            problems.append(Problem("structure", "", None, str(error)))
        return VerifyReport(
            len(ids), arrays, size, len(ids), 0, 0, deep, time.monotonic() - began, tuple(problems)
        )

    def read_aggregated(self, track_ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        with self._reading() as (fd, index):
            rows = np.array([self._row(index, track_id) for track_id in track_ids], np.int64)
            shape = (len(index.track_ids), len(self.spec.layers), self.spec.dim)
            return self._features(fd, index, "aggregated", shape).take(fd, rows, positions)

    def describe(self, kind: str, track_id: str) -> Described:
        with self._reading() as (fd, index):
            return self._describe(fd, index, kind, track_id)

    def _describe(self, fd: int, index: _Index, kind: str, track_id: str) -> Described:
        row = self._row(index, track_id)
        starts = self._starts(index, row)
        if kind == "raw":
            shape = (None, len(self.spec.layers), None, self.spec.dim)
            return self._features(fd, index, f"raw/{encode_key(track_id)}", shape).shape, starts
        first, last = index.splits[row : row + 2].tolist()
        if first == last:
            raise TrackNotFoundError(f"{self.path} has no segments of {track_id!r:.200}: export a higher `level`")
        return (last - first, len(self.spec.layers), self.spec.dim), starts

    def read_segments(
        self,
        kind: str,
        track_id: str,
        positions: Sequence[int],
        *,
        rows: npt.NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[npt.NDArray[Any], Described]:
        with self._reading() as (fd, index):
            described = self._describe(fd, index, kind, track_id)
            if shape not in (None, described[0]):
                raise ReplacedError(
                    f"{kind} of track {track_id!r:.200} was replaced: ask the store for a new view"
                )
            wanted = np.arange(described[0][0]) if rows is None else rows
            if kind == "raw":
                found = self._features(fd, index, f"raw/{encode_key(track_id)}", described[0])
                return found.take(fd, wanted, positions), described
            first = int(index.splits[self._row(index, track_id)])
            return self._segments(fd, index).take(fd, wanted + first, positions), described

    def _segments(self, fd: int, index: _Index) -> ChunkReader:
        return self._features(fd, index, "segments", (len(index.starts), len(self.spec.layers), self.spec.dim))

    def read_ragged(self, track_ids: Sequence[str], positions: Sequence[int]) -> Ragged:
        if not track_ids:  # and perhaps no segments at all
            return super().read_ragged(track_ids, positions)
        with self._reading() as (fd, index):
            described = [self._describe(fd, index, "segments", track_id) for track_id in track_ids]
            rows = [index.rows[track_id] for track_id in track_ids]
            wanted = np.concatenate([np.arange(*index.splits[row : row + 2]) for row in rows])
            counts = np.array([shape[0] for shape, _ in described], np.int64)
            starts = partial(joined_starts, [own for _, own in described], counts)
            return Ragged(self._segments(fd, index).take(fd, wanted, positions), counts, starts)
