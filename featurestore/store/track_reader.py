"""Reading the tracks of a folder, whatever writers do: which revision is current, where it is, and its arrays."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.spec import FeatureSpec
from featurestore.store import reading
from featurestore.store.array_reader import ATTEMPTS, ArrayReader, corrupt, retried
from featurestore.store.bundles.places import SealedPlaces
from featurestore.store.bundles.sealed import SealedTracks
from featurestore.store.bundles.sealed_array import open_sealed
from featurestore.store.commit.transaction import BACKUP, is_published
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import METADATA, ArrayMetadata, shard_name
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.root import RootCheck
from featurestore.store.format.shards import plain_index
from featurestore.store.format.small_chunks import CRC_BYTES
from featurestore.store.paths import HIDDEN, StorePaths

_MANY = 2_000  # tracks
_AGGREGATED_SHARD = shard_name(2)


class TrackReader(ArrayReader):
    """Reads the tracks of a store that is a folder. Holds no file open."""

    def __init__(self, paths: StorePaths, spec: FeatureSpec) -> None:
        super().__init__(paths, spec)
        self.paths = paths
        row = spec.dim * np.dtype(spec.dtype).itemsize
        self._index = plain_index(len(spec.layers), row)  # of every uncompressed `aggregated`
        self.root = RootCheck(paths, spec)
        self.sealed = SealedTracks(paths, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackReader, (self.paths, self.spec)

    def current(self, key: str) -> ArrayMetadata | None:
        for attempt in range(ATTEMPTS):
            found = self._at(key, "aggregated", key)
            if found is None and (self.paths.journal / key / "aggregated").exists():
                # Where folders cannot be exchanged, the old one is aside until the new one is in its place.
                found = self._at(key, HIDDEN, "journal", key, "aggregated" + BACKUP)
            if found is None and (place := self.sealed.find(key)) is not None:
                with contextlib.suppress(FileNotFoundError):  # brought back to a folder just now
                    found = place.bundle.metadata("aggregated", place.row)
            if found is not None:
                return found
            # It may move from the journal to its place between two looks.
            if attempt and not os.path.lexists(self.paths.array("aggregated", key)):
                return None
        if reading.is_dir(self.paths.journal / key):  # it is being removed, file by file
            return None
        raise corrupt(f"aggregated/{key}", "no metadata")

    def is_there(self, key: str) -> bool:
        """Whether there is such a track."""
        # It may move between a folder and a bundle between two looks.
        return any(is_published(self.paths, key) or self.sealed.find(key) is not None for _ in range(2))

    def _open_revision(self, kind: str, key: str, revision: str | None) -> OpenArray | None:
        found = super()._open_revision(kind, key, revision)
        place = None if found is not None or kind == "raw" else self.sealed.find(key)
        if place is not None and revision in (None, place.revision):
            if kind == "aggregated" and os.path.lexists(self.paths.array(kind, key) / METADATA):
                return None  # overwritten just now
            with contextlib.suppress(FileNotFoundError):  # brought back to a folder just now
                return open_sealed(place.bundle, kind, place.row)
        return found

    def _places(self, kind: str, key: str, revision: str | None) -> list[tuple[str, ...]]:
        journal = (HIDDEN, "journal", key)
        places = [(kind, key), (*journal, kind + BACKUP)]
        return places if revision is None else [*places, (*journal, kind)]

    def read_rows(self, track_ids: Sequence[str], layers: Sequence[int]) -> npt.NDArray[Any]:
        out = np.empty((len(track_ids), len(layers), self.spec.dim), self.spec.dtype)
        size = self.spec.dim * out.itemsize + CRC_BYTES
        offsets = [layer * size for layer in layers]
        crc = bytearray(CRC_BYTES)
        sealed = retried(self._read_sealed_rows)(track_ids, layers, out)
        read_aggregated = retried(self._read_aggregated)
        with self.paths.open("aggregated") as opened:
            folder = opened.fd
            # No link may be followed: to list the folders once is quicker than to open each of many.
            plain = self.spec.codec == "none" and sys.byteorder == "little"
            folders = reading.list_dirs(folder) if plain and len(track_ids) >= _MANY else None
            for row, track_id in enumerate(track_ids):
                if sealed is not None and sealed[row]:
                    continue
                block, key = out[row], encode_key(track_id)
                real = plain and (reading.is_dir(key, dir_fd=folder) if folders is None else key in folders)
                if not (real and self._read_row(folder, key, offsets, block, crc)):
                    block[...] = read_aggregated(key, track_id, layers)
        return out

    def sealed_places(self, track_ids: Sequence[str]) -> SealedPlaces | None:
        """Where tracks are that are in bundles and in no folder; None if none is."""
        found = self.sealed.find_all(track_ids)
        if found is None:
            return None
        keys, aggregated = found.keys(), self.paths.kind("aggregated")
        if len(keys) >= _MANY:
            folders = set(reading.list_names(aggregated))
        else:
            folders = {key for key in keys.values() if reading.exists(f"{aggregated}/{key}")}
        folders.update(reading.list_names(self.paths.journal))  # nearly always empty; last, as they move there
        found.numbers[[track for track, key in keys.items() if key in folders]] = -1
        return found if (found.numbers >= 0).any() else None

    def _read_sealed_rows(
        self, track_ids: Sequence[str], layers: Sequence[int], out: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_] | None:
        """Fill the rows of tracks that are in bundles, and say which these are."""
        places = self.sealed_places(track_ids)
        if places is None:
            return None
        places.read_aggregated(out, layers)
        return places.numbers >= 0

    def _read_row(
        self, folder: int, key: str, offsets: Sequence[int], block: npt.NDArray[Any], crc: bytearray
    ) -> bool:
        """Read from where uncompressed layers lie, without a look at the metadata; False if they do not."""
        size = block.shape[1] * block.itemsize + CRC_BYTES
        try:
            fd = reading.open_file(f"{key}/{_AGGREGATED_SHARD}", dir_fd=folder)
            try:
                if os.pread(fd, len(self._index) + 1, len(self.spec.layers) * size) != self._index:
                    return False
                for row, offset in zip(block, offsets, strict=True):
                    if os.preadv(fd, (row.data, crc), offset) != size:
                        return False
                    if google_crc32c.value(row) != int.from_bytes(crc, "little"):
                        return False
            finally:
                os.close(fd)
        except OSError:
            return False
        return True
