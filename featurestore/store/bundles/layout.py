"""How a bundle lies on disk: its Zarr documents, and where in its files each row is.

Features are arrays [row, layer, feature] in shards of many rows, with inner chunks of a few rows of one layer. In
the file of a shard, all chunks of a layer lie one after the other: a layer of many rows is one range, and a row is
in one small chunk with a checksum of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.spec import FeatureSpec
from featurestore.store.format.metadata import (
    ArrayMetadata,
    array_document,
    checksum,
    group_document,
    hidden_document,
)
from featurestore.store.format.shards import CRC_BYTES, with_crc
from featurestore.store.paths import REMOVED

MOST_TRACKS = 4096
"""Of a bundle that is written; readers take up to 65,536."""
TRACK_BITS = 16
SHARD_BYTES = 2**29
CHUNK_BYTES = 2**15
"""About as many bytes has an inner chunk: so few that a random row does not cost much, and so many that the checks
of all do not."""
ATTRIBUTE_ROWS = 256
"""Of a chunk: all of it is read for one track."""
MAX_ATTRIBUTE_BYTES = 2**18
"""Of one track, in a bundle."""
ABSENT = 2**64 - 1
"""In the index of a shard, offset and size of a chunk that is not there."""

NAME = re.compile("[0-9a-f]{32}")
MARK = re.compile("[0-9a-f]{32}[.](0|[1-9][0-9]{0,5})")
REVISION_BYTES = 16
KINDS = ("segments", "aggregated")
"""What a bundle holds of a track. Raw is as large as a file likes to be, and stays where it is."""

_CRC = {"name": "crc32c"}
_BYTES = {"name": "bytes"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_TEXT = {"name": "vlen-utf8"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a bundle.

    Parameters
    ----------
    tracks, rows : int
        Numbers of tracks, and of segments of all of them.
    spec : FeatureSpec
        Of the store.
    """

    tracks: int
    rows: int
    spec: FeatureSpec

    def features(self, kind: str) -> ArrayMetadata:
        """Metadata of the array of a kind."""
        rows, own = (self.rows, "start") if kind == "segments" else (self.tracks, "track_id")
        layers, dim = len(self.spec.layers), self.spec.dim
        value = np.dtype(self.spec.dtype).itemsize
        per_chunk = rows_per_chunk(dim * value)
        most = max(1, SHARD_BYTES // (layers * dim * value * per_chunk)) * per_chunk
        per_shard = min(most, -(-max(1, rows) // per_chunk) * per_chunk)
        dims = ("row" if kind == "segments" else "track", "layer", "feature")
        shape, shard, chunk = ((n, layers, dim) for n in (rows, per_shard, per_chunk))
        return ArrayMetadata(shape, shard, (chunk[0], 1, dim), self.spec.dtype, dims, {"coordinates": own})

    def documents(self, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The Zarr documents of the bundle's group ("") and of its arrays.

        Parameters
        ----------
        own : dict
            What the attributes of the group say: text only, as netCDF can hold it.
        """
        tracks, rows = self.tracks, self.rows
        attribute_rows = min(ATTRIBUTE_ROWS, tracks)
        arrays = {
            "aggregated": self.features("aggregated").document(),
            "attributes": array_document([tracks], [attribute_rows], "string", "", [_TEXT, _CRC], ["track"], {}),
            "revision": array_document(
                [tracks, REVISION_BYTES],
                [tracks, REVISION_BYTES],
                "uint8",
                0,
                [_BYTES, _CRC],
                ["track", "byte"],
                {},
            ),
            "row_splits": array_document([tracks + 1], [tracks + 1], "int64", 0, [_LITTLE, _CRC], ["split"], {}),
            "segments": self.features("segments").document(),
            "start": array_document([rows], [max(1, rows)], "float64", "NaN", [_LITTLE, _CRC], ["row"], {}),
            "track_id": array_document([tracks], [tracks], "string", "", [_TEXT, _CRC], ["track"], {}),
        }
        group = group_document(own)
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
        group["attributes"]["checksum"] = checksum(group)
        return {"": group, **arrays}


def rows_per_chunk(row_bytes: int) -> int:
    """Rows of an inner chunk: a power of two."""
    return 1 << max(0, min(10, (CHUNK_BYTES // max(1, row_bytes)).bit_length() - 1))


def removed_document() -> dict[str, Any]:
    """The node at `bundles/removed`, as that at `.featurestore`."""
    return hidden_document(REMOVED)


def mark_name(bundle: str, row: int) -> str:
    """File in `bundles/removed` that says that a track of a bundle is not there any more."""
    return f"{bundle}.{row}"


@dataclass(frozen=True)
class ShardLayout:
    """Where chunks lie in the shard of some number of an array of features.

    Parameters
    ----------
    metadata : ArrayMetadata
        Of the array.
    number : int
        Of the shard.
    """

    metadata: ArrayMetadata
    number: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"c.{self.number}.0.0"

    @property
    def first(self) -> int:
        """The first row."""
        return self.number * self.metadata.shard_shape[0]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return min(self.metadata.shard_shape[0], self.metadata.shape[0] - self.first)

    @property
    def chunks(self) -> int:
        """How many chunks there are of each layer."""
        return -(-self.rows // self.metadata.chunk_shape[0])

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk, without its checksum."""
        return math.prod(self.metadata.chunk_shape) * np.dtype(self.metadata.dtype).itemsize

    @property
    def layers(self) -> int:
        return self.metadata.shape[1]

    def offset(self, layer: int, chunk: int) -> int:
        """Where a chunk of a layer begins."""
        return (layer * self.chunks + chunk) * (self.chunk_bytes + CRC_BYTES)

    def index(self) -> bytes:
        """Index at the end of the file, with its checksum."""
        grid = self.metadata.shard_shape[0] // self.metadata.chunk_shape[0]
        found = np.full((grid, self.layers, 2), ABSENT, "<u8")
        size = self.chunk_bytes + CRC_BYTES
        numbers = np.arange(self.chunks)[:, None] + np.arange(self.layers)[None, :] * self.chunks
        found[: self.chunks, :, 0] = numbers * size
        found[: self.chunks, :, 1] = size
        content = found.tobytes()
        return with_crc(content)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        grid = self.metadata.shard_shape[0] // self.metadata.chunk_shape[0]
        return self.offset(self.layers, 0) + grid * self.layers * 16 + CRC_BYTES


def shard_count(metadata: ArrayMetadata) -> int:
    """How many shards an array has."""
    return -(-metadata.shape[0] // metadata.shard_shape[0])


def shards_of(metadata: ArrayMetadata) -> Iterator[ShardLayout]:
    """The shards of an array, one by one: metadata may speak of any number."""
    for number in range(shard_count(metadata)):
        yield ShardLayout(metadata, number)
