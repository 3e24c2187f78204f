"""How a bundle lies on disk: its Zarr documents, and where in its files each row is.

Features are arrays [row, layer, feature] in shards of many rows, with inner chunks of a few rows of one layer. In
the file of a shard, all chunks of a layer lie one after the other: a layer of many rows is one range, and a row is
in one small chunk with a checksum of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.spec import FeatureSpec
from featurestore.store.format.metadata import (
    ArrayMetadata,
    array_document,
    axes,
)
from featurestore.store.format.shards import MAX_CHUNKS
from featurestore.store.format.small_chunks import CRC_BYTES, with_crc

MOST_TRACKS = 4096
"""Of a bundle that is written; readers take up to 65,536."""
TRACK_BITS = 16
SHARD_BYTES = 2**30
CHUNK_BYTES = 2**14
"""An inner chunk that is written has so many bytes at most, or one row: so few that a random row does not cost
much, and so many that other readers, to whom each chunk is work, do not take long."""
MAX_CHUNK_ROWS = 1024
ATTRIBUTE_ROWS = 1024
"""Of a chunk that is written: all of it is read for one track, in about a millisecond."""
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
    chunk_rows, shard_rows : int
        How many rows an inner chunk of features has, and a shard, unless the array has fewer.
    attribute_rows : int
        How many tracks a chunk of attributes has.
    """

    tracks: int
    rows: int
    spec: FeatureSpec
    chunk_rows: int
    shard_rows: int
    attribute_rows: int

    @classmethod
    def to_write(cls, tracks: int, rows: int, spec: FeatureSpec) -> Sizes:
        """Those of a bundle that is written."""
        row = spec.dim * np.dtype(spec.dtype).itemsize
        most = max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // max(1, row)))
        chunk_rows = 1 << (most.bit_length() - 1)
        chunks = max(1, SHARD_BYTES // (len(spec.layers) * row * chunk_rows))
        return cls(tracks, rows, spec, chunk_rows, chunks * chunk_rows, min(ATTRIBUTE_ROWS, tracks))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], spec: FeatureSpec) -> Sizes:
        """Those of a bundle whose arrays have this metadata; ValueError if a bundle cannot have such.

        Whoever reads has to compare: of the metadata, only what is not known otherwise is looked at here.
        """
        (tracks,) = axes(arrays["track_id"]["shape"], 1)
        rows = axes(arrays["segments"]["shape"], 0)[0]
        features = [arrays[kind] for kind in KINDS]
        shards = [axes(array["chunk_grid"]["configuration"]["chunk_shape"], 1)[0] for array in features]
        chunks = {axes(array["codecs"][0]["configuration"]["chunk_shape"], 1)[0] for array in features}
        chunk_rows, shard_rows = min(chunks), max(shards)
        if tracks > 1 << TRACK_BITS or len(chunks) > 1 or chunk_rows > MAX_CHUNK_ROWS or shard_rows % chunk_rows:
            raise ValueError("impossible numbers of tracks or rows")
        if shard_rows // chunk_rows * len(spec.layers) > MAX_CHUNKS:
            raise ValueError("more chunks than a shard has")
        (attribute_rows,) = axes(arrays["attributes"]["chunk_grid"]["configuration"]["chunk_shape"], 1)
        if attribute_rows > tracks:
            raise ValueError("a chunk of more attributes than there are")
        return cls(tracks, rows, spec, chunk_rows, shard_rows, attribute_rows)

    def features(self, kind: str) -> ArrayMetadata:
        """Metadata of the array of a kind."""
        rows, own = (self.rows, "start") if kind == "segments" else (self.tracks, "track_id")
        layers, dim = len(self.spec.layers), self.spec.dim
        per_chunk = self.chunk_rows
        per_shard = min(self.shard_rows, -(-max(1, rows) // per_chunk) * per_chunk)
        dims = ("row" if kind == "segments" else "track", "layer", "feature")
        shape, shard, chunk = ((n, layers, dim) for n in (rows, per_shard, per_chunk))
        return ArrayMetadata(shape, shard, (chunk[0], 1, dim), self.spec.dtype, dims, {"coordinates": own})

    def arrays(self) -> dict[str, dict[str, Any]]:
        """The Zarr documents of the bundle's arrays."""
        tracks, rows = self.tracks, self.rows
        return {
            "aggregated": self.features("aggregated").document(),
            "attributes": array_document(
                [tracks], [self.attribute_rows], "string", "", [_TEXT, _CRC], ["track"], {}
            ),
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


def mark_name(bundle: str, row: int) -> str:
    """File in `bundles/removed` that says that a track of a bundle is not there any more."""
    return f"{bundle}.{row}"


@dataclass(frozen=True)
class ShardLayout:
    """Where chunks lie in the shard of some number of an array of features."""

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

    @cached_property
    def rows(self) -> int:
        """How many rows it has."""
        return min(self.metadata.shard_shape[0], self.metadata.shape[0] - self.first)

    @cached_property
    def chunks(self) -> int:
        """How many chunks there are of each layer."""
        return -(-self.rows // self.metadata.chunk_shape[0])

    @cached_property
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


def shards_of(metadata: ArrayMetadata) -> Iterator[ShardLayout]:
    """The shards of an array, one by one: metadata may speak of any number."""
    for number in range(-(-metadata.shape[0] // metadata.shard_shape[0])):
        yield ShardLayout(metadata, number)
