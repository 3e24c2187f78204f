"""OpenArray: an array of a track that can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurestore.store.byte_source import ByteFile
from featurestore.store.format.metadata import ArrayMetadata
from featurestore.store.format.shards import ShardReader


class Chunks(Protocol):
    """The inner chunks of an array, wherever they are."""

    @property
    def chunks(self) -> int:
        """Number of inner chunks."""

    def read(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Inner chunks by their number in C order of the grid."""

    def checksums(self) -> str:
        """SHA-256 of their CRC-32C values."""

    def close(self) -> None:
        """Close whatever is open."""


@dataclass
class OpenArray:
    """An array of a track, open for reading, whatever happens to its folder from now on."""

    metadata: ArrayMetadata
    shard: Chunks

    def __enter__(self) -> OpenArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shard.close()

    @property
    def file(self) -> ByteFile:
        """Its file, where it has one of its own."""
        assert isinstance(self.shard, ShardReader)
        return self.shard.file

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.metadata.shape) * np.dtype(self.metadata.dtype).itemsize

    @property
    def revision(self) -> str:
        return str(self.metadata.attributes["revision"])

    @property
    def starts(self) -> npt.NDArray[np.float64]:
        """Where its segments start, seconds; empty if the store was not told."""
        return np.array(self.metadata.attributes["starts"], np.float64)

    def read(self, layers: Sequence[int], segments: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Layers (by position), of some or all segments where it is raw."""
        positions, shape = np.asarray(layers, np.int64), self.metadata.shape
        if len(shape) == 4:
            rows = np.arange(shape[0]) if segments is None else np.asarray(segments, np.int64)
            numbers = (rows[:, None] * shape[1] + positions[None, :]).reshape(-1)
            return self.shard.read(numbers).reshape(len(rows), len(positions), *shape[2:])
        found = self.shard.read(positions)
        return found[:, :, 0].swapaxes(0, 1) if len(shape) == 3 else found[:, 0]
