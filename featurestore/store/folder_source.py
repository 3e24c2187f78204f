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

from featurestore.store.array_reader import Described, ReplacedError, retried
from featurestore.store.bundles.places import SealedPlaces
from featurestore.store.format.keys import encode_key
from featurestore.store.format.root import read_root
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import StorePaths
from featurestore.store.source import Ragged, Source, TrackSource
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
        count: Callable[[Sequence[str]], npt.NDArray[np.int64]] = self.count_segments
        while (places := self.reader.sealed_places(track_ids)) is not None:
            counts = places.counts()
            if rest := np.flatnonzero(counts == 0).tolist():
                places.numbers[rest] = -1  # what is counted of them is in folders, and in no bundle
                counts[rest] = count([track_ids[row] for row in rest])
            tracks = np.repeat(np.arange(len(counts)), counts)
            within = np.arange(len(tracks)) - np.repeat(np.cumsum(counts) - counts, counts)
            try:
                return Ragged(self._read_rows(places, track_ids, counts, tracks, within, positions), counts, None)
            except ReplacedError:  # by hand, perhaps many of them, which the table does not know
                count = partial(Source.count_segments, self)
        return super().read_ragged(track_ids, positions)

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
        ids = [track_ids[track] for track in chosen.tolist()]
        places = self.reader.sealed_places(ids)
        if places is None:
            return super().read_rows(track_ids, counts, tracks, within, positions)
        # One of another size is left to the other way, which says so.
        places.numbers[places.counts() != counts[chosen]] = -1
        return self._read_rows(places, ids, counts[chosen], numbers, within, positions)

    def _read_rows(
        self,
        places: SealedPlaces,
        track_ids: Sequence[str],
        counts: npt.NDArray[np.int64],
        tracks: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
        positions: Sequence[int],
    ) -> npt.NDArray[Any]:
        """As `read_rows`, of tracks of which some are in these places."""
        out = np.empty((len(tracks), len(positions), self.spec.dim), self.spec.dtype)
        is_sealed = (places.numbers >= 0)[tracks]
        targets, rest = np.flatnonzero(is_sealed), np.flatnonzero(~is_sealed)
        places.read_segments(out, targets, tracks[targets], within[targets], positions)
        if len(rest):
            out[rest] = super().read_rows(track_ids, counts, tracks[rest], within[rest], positions)
        return out

    def verify(self, *, deep: bool) -> VerifyReport:
        with translate_os_errors(self.path):
            return verify(self.reader, deep=deep)
