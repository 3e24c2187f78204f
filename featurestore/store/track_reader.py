"""Reading one track of a folder, whatever writers are doing there: which revision is current, and its arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.spec import FeatureSpec
from featurestore.store import reading
from featurestore.store.array_reader import ATTEMPTS, ArrayReader, again, corrupt
from featurestore.store.commit.transaction import BACKUP
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import ArrayMetadata, shard_name
from featurestore.store.format.root import RootCheck
from featurestore.store.format.shards import CRC_BYTES, plain_index
from featurestore.store.paths import HIDDEN, StorePaths

_MANY = 2_000  # tracks
_AGGREGATED_SHARD = shard_name(2)


class TrackReader(ArrayReader):
    """Reads the tracks of a store that is a folder. Holds no file open.

    Parameters
    ----------
    paths : StorePaths
        Of the store.
    spec : FeatureSpec
        Of the store.
    """

    def __init__(self, paths: StorePaths, spec: FeatureSpec) -> None:
        super().__init__(paths, spec)
        self.paths = paths
        row = spec.dim * np.dtype(spec.dtype).itemsize
        self._index = plain_index(len(spec.layers), row)  # of every uncompressed `aggregated`
        self.root = RootCheck(paths, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackReader, (self.paths, self.spec)

    def current(self, key: str) -> ArrayMetadata | None:
        for attempt in range(ATTEMPTS):
            found = self._at(key, "aggregated", key)
            if found is None and (self.paths.journal / key / "aggregated").exists():
                # Where folders cannot be exchanged, the old one is aside until the new one is in its place.
                found = self._at(key, HIDDEN, "journal", key, "aggregated" + BACKUP)
            if found is not None:
                return found
            # It may move from the journal to its place between two looks.
            if attempt and not os.path.lexists(self.paths.array("aggregated", key)):
                return None
        if reading.is_dir(self.paths.journal / key):  # it is being removed, file by file
            return None
        raise corrupt(f"aggregated/{key}", "no metadata")

    def _places(self, kind: str, key: str, revision: str | None) -> list[tuple[str, ...]]:
        journal = (HIDDEN, "journal", key)
        places = [(kind, key), (*journal, kind + BACKUP)]
        return places if revision is None else [*places, (*journal, kind)]

    def read_rows(self, track_ids: Sequence[str], layers: Sequence[int]) -> npt.NDArray[Any]:
        out = np.empty((len(track_ids), len(layers), self.spec.dim), self.spec.dtype)
        size = self.spec.dim * out.itemsize + CRC_BYTES
        offsets = [layer * size for layer in layers]
        crc = bytearray(CRC_BYTES)
        with self.paths.open("aggregated") as opened:
            folder = opened.fd
            # No link may be followed: to list the folders once is quicker than to open each of many.
            plain = self.spec.codec == "none" and sys.byteorder == "little"
            folders = reading.list_dirs(folder) if plain and len(track_ids) >= _MANY else None
            for block, track_id in zip(out, track_ids, strict=True):
                key = encode_key(track_id)
                real = plain and (reading.is_dir(key, dir_fd=folder) if folders is None else key in folders)
                if not (real and self._read_row(folder, key, offsets, block, crc)):
                    block[...] = again(partial(self._read_aggregated, key, track_id, layers))
        return out

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
