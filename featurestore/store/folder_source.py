"""The tracks of a store that is a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.store.array_reader import Described, again
from featurestore.store.bundles.places import SealedPlaces
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import read_root
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import StorePaths
from featurestore.store.source import TrackSource
from featurestore.store.table.index import TrackIndex
from featurestore.store.track_reader import TrackReader
from featurestore.store.verify import VerifyReport, verify

P = ParamSpec("P")
T = TypeVar("T")


def _again(
    read: Callable[Concatenate[FolderSource, P], T],
) -> Callable[Concatenate[FolderSource, P], T]:
    """Read again where a track has moved between a folder and a bundle meanwhile; errors name the store."""

    @wraps(read)
    def reading(source: FolderSource, /, *args: P.args, **options: P.kwargs) -> T:
        with source.reading():
            return again(lambda: read(source, *args, **options))

    return reading


class FolderSource(TrackSource):
    """The tracks of a store that is a folder.

    Parameters
    ----------
    path : Path
        The folder, as it was given.
    follow_links : bool
        Whether its files may be links.
    """

    path: Path

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path = path
        self.paths = StorePaths.of(path, follow_links=follow_links)
        with translate_os_errors(path):
            self.spec = read_root(self.paths.root, follow_links=follow_links)
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
    def sealed(self) -> int:
        with self.reading():
            if not self.reader.sealed.names():
                return 0
            folders = set(os.listdir(self.paths.kind("aggregated")))
            return len(self.reader.sealed.keys() - folders)

    @_again
    def describe_segments(self, track_ids: Sequence[str]) -> list[Described]:
        known = self._sealed_segments(self.reader.sealed_places(track_ids), starts=True)
        if not known:
            return super().describe_segments(track_ids)
        rest = super().describe_segments([x for row, x in enumerate(track_ids) if row not in known])
        others = iter(rest)
        return [known[row] if row in known else next(others) for row in range(len(track_ids))]

    def _sealed_segments(self, places: SealedPlaces | None, *, starts: bool) -> dict[int, Described]:
        """What `describe` says of the segments of those tracks that are in bundles, by their numbers."""
        if places is None:
            return {}
        # Those of all tracks of a bundle are read together.
        own, none = places.starts() if starts else {}, np.empty(0)
        counts = places.counts()
        shapes = {count: (count, len(self.spec.layers), self.spec.dim) for count in np.unique(counts).tolist()}
        known = enumerate(counts.tolist())
        return {track: (shapes[count], own.get(track, none)) for track, count in known if count}

    @_again
    def read_ragged(
        self, track_ids: Sequence[str], positions: Sequence[int], *, starts: bool = False
    ) -> tuple[npt.NDArray[Any], list[Described]]:
        places = self.reader.sealed_places(track_ids)
        known = self._sealed_segments(places, starts=starts)
        out, described = self._read_ragged(track_ids, positions, known)
        if places is not None and known:
            counts = np.array([shape[0] for shape, _ in described], np.int64)
            tracks = np.repeat(np.arange(len(counts)), counts)
            within = np.arange(len(out)) - np.repeat(np.cumsum(counts) - counts, counts)
            is_known = np.zeros(len(counts), np.bool_)
            is_known[list(known)] = True
            targets = np.flatnonzero(is_known[tracks])
            places.read_segments(out, targets, tracks[targets], within[targets], positions)
        return out, described

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
