"""The tracks of a store that is a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.store.array_reader import Described, retried
from featurestore.store.format.keys import encode_key
from featurestore.store.format.root import read_root
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import StorePaths
from featurestore.store.source import Ragged, TrackSource, joined_starts, place_blocks
from featurestore.store.table.index import TrackIndex
from featurestore.store.track_reader import TrackReader
from featurestore.store.verify import VerifyReport, verify

P = ParamSpec("P")
T = TypeVar("T")


def _again(
    read: Callable[Concatenate[FolderSource, P], T],
) -> Callable[Concatenate[FolderSource, P], T]:
    """Read again where a track has moved between a folder and a bundle meanwhile; errors name the store."""
    retrying = retried(read)

    @wraps(read)
    def reading(source: FolderSource, /, *args: P.args, **options: P.kwargs) -> T:
        with source.reading():
            return retrying(source, *args, **options)

    return reading


class FolderSource(TrackSource):
    """The tracks of a store that is a folder, whose files may be links if `follow_links`."""

    path: Path

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path = path
        self.paths = StorePaths.of(path, follow_links=follow_links)
        with translate_os_errors(path):
            self.spec = read_root(self.paths).spec
        self.reader: TrackReader = TrackReader(self.paths, self.spec)
        self.index = TrackIndex(self.reader)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        with translate_os_errors(self.path):
            self.reader.root.look()
            yield

    def has(self, track_id: str) -> bool:
        with self.reading():
            return self.reader.is_there(encode_key(track_id))

    @property
    def format(self) -> int:
        with self.reading():
            return read_root(self.paths).format

    @property
    def sealed(self) -> int:
        with self.reading():
            if not self.reader.sealed.names():
                return 0
            folders = set(os.listdir(self.paths.kind("aggregated")))
            return len(self.reader.sealed.keys() - folders)

    @_again
    def describe_segments(self, track_ids: Sequence[str]) -> list[Described]:
        places = self.reader.sealed_places(track_ids)
        if places is None:
            return super().describe_segments(track_ids)
        counts, starts = places.counts().tolist(), places.starts()
        rest = [track_id for track_id, count in zip(track_ids, counts, strict=True) if not count]
        others = iter(super().describe_segments(rest))
        of_one = len(self.spec.layers), self.spec.dim
        return [((count, *of_one), starts[row]) if count else next(others) for row, count in enumerate(counts)]

    @_again
    def read_ragged(self, track_ids: Sequence[str], positions: Sequence[int]) -> Ragged:
        places = self.reader.sealed_places(track_ids)
        if places is None:
            return super().read_ragged(track_ids, positions)
        counts = places.counts()
        rest = np.flatnonzero(counts == 0).tolist()
        places.numbers[rest] = -1
        read = partial(self.read_segments, "segments", positions=positions)
        found = list(self.each(read, [track_ids[row] for row in rest]))
        own = {row: starts for row, (_, (_, starts)) in zip(rest, found, strict=True)}
        counts[rest] = [len(block) for block, _ in found]
        ends = np.cumsum(counts)
        tracks = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(tracks)) - np.repeat(ends - counts, counts)
        rows = np.empty((len(tracks), len(positions), self.spec.dim), self.spec.dtype)
        place_blocks(rows, ends[rest], found)
        targets = np.flatnonzero((places.numbers >= 0)[tracks])
        places.read_segments(rows, targets, tracks[targets], within[targets], positions)

        def starts() -> npt.NDArray[np.float64]:
            known = own | places.starts()
            return joined_starts([known[row] for row in range(len(counts))], counts)

        return Ragged(rows, counts, starts)

    @_again
    def read_rows(
        self,
        track_ids: Sequence[str],
        counts: npt.NDArray[np.int64],
        tracks: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
        positions: Sequence[int],
    ) -> npt.NDArray[Any]:
        chosen, numbers = np.unique(tracks, return_inverse=True)
        places = self.reader.sealed_places([track_ids[track] for track in chosen.tolist()])
        if places is None:
            return super().read_rows(track_ids, counts, tracks, within, positions)
        # One of another size is left to the other way, which says so.
        places.numbers[places.counts() != counts[chosen]] = -1
        out = np.empty((len(tracks), len(positions), self.spec.dim), self.spec.dtype)
        is_sealed = (places.numbers >= 0)[numbers]
        targets, rest = np.flatnonzero(is_sealed), np.flatnonzero(~is_sealed)
        places.read_segments(out, targets, numbers[targets], within[targets], positions)
        if len(rest):
            out[rest] = super().read_rows(track_ids, counts, tracks[rest], within[rest], positions)
        return out

    def verify(self, *, deep: bool) -> VerifyReport:
        with translate_os_errors(self.path):
            return verify(self.reader, deep=deep)
