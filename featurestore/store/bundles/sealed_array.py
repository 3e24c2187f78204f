"""An array of a track that is in a bundle, as one of a folder is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.store.bundles.bundle import Bundle
from featurestore.store.format.open_array import OpenArray


class SealedChunks:
    """The inner chunks that an array of a track had before it was sealed: all rows of one layer each.

    Raises
    ------
    FileNotFoundError
        If the bundle is gone.
    CorruptTrackError
        If its files are not of the size that they have, or missing.
    """

    def __init__(self, bundle: Bundle, kind: str, row: int) -> None:
        first, end = (row, row + 1) if kind == "aggregated" else bundle.splits[row : row + 2].tolist()
        self.bundle, self.kind, self.row = bundle.name, kind, row
        self._rows = np.arange(first, end)
        self._is_row = kind == "aggregated"
        self.chunks = len(bundle.sizes.spec.layers)
        with ExitStack() as stack:
            self._reader = stack.enter_context(bundle.reading(kind))
            per_shard = bundle.sizes.features(kind).shard_shape[0]
            for number in range(first // per_shard, (end - 1) // per_shard + 1):
                self._reader.open(number)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def read(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Inner chunks by their number, which is that of the layer: [chunk, (segment,) 1, feature]."""
        layers = [int(position) for position in positions]
        found = self._reader.read(self._rows, layers).swapaxes(0, 1)
        return np.ascontiguousarray(found if self._is_row else found[:, :, None])

    def checksums(self) -> str:
        """SHA-256 of the CRC-32C values of all inner chunks."""
        return chunks_checksum(self.read([layer]) for layer in range(self.chunks))


def chunks_checksum(chunks: Iterable[npt.NDArray[Any]]) -> str:
    """SHA-256 of the CRC-32C values of chunks."""
    sums = []
    for chunk in chunks:
        little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
        sums.append(google_crc32c.value(little.reshape(-1).view(np.uint8)))
    return hashlib.sha256(np.array(sums, "<u4").tobytes()).hexdigest()


def open_sealed(bundle: Bundle, kind: str, row: int) -> OpenArray:
    """Open a kind of a track of a bundle; FileNotFoundError if the bundle is gone."""
    return OpenArray(bundle.metadata(kind, row), SealedChunks(bundle, kind, row))
