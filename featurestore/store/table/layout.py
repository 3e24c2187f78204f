"""How the packed table lies on disk: the shape and the names of its chunks, and its Zarr documents.

Readers of Zarr open metadata and numbers one after the other, and hold the metadata for as long as they like. A
state of the table that only appends rows changes nothing that older metadata speaks of. Any other state has the
next layout version: the files of its chunks are named in the other of two ways that Zarr knows, and the files of
the layout before stay beside them. Names come back with every second layout, but then with chunks of another
number of rows, so that whoever holds older metadata gets an error of its own reader, never rows of other tracks.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from featurestore.errors import CorruptTrackError
from featurestore.spec import FeatureSpec
from featurestore.store.format.metadata import array_document, dataset_documents
from featurestore.store.format.small_chunks import with_crc

DIMS = ("track", "layer", "feature")
ENCODINGS = ("default", "v2")
"""The chunk key encodings of Zarr: c.0.0, and 0.0."""

SMALL_ROWS, LARGE_ROWS, HUGE_ROWS = 128, 1024, 4096
SMALL_TRACKS, LARGE_TRACKS = 4096, 65_536
"""A table of more tracks has large chunks, or huge ones: each state of the table links all of its files."""
_SIZES = LARGE_ROWS - SMALL_ROWS
"""How many numbers of rows follow each other before the first comes back, after twice as many layouts."""

_FIRST = 64
"""From how many layouts the first one is chosen."""

OWN = ("fingerprint", "generation", "layout", "rows_crc32c")
"""What the attributes of the table's group always say of it."""
TOMBSTONE = b"This state of the table is gone: open it again.\n"
"""Content of a file that takes the name of a chunk which is gone."""

_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def damaged(error: object) -> CorruptTrackError:
    """Make an error that says what is wrong with the table, and the way out."""
    return CorruptTrackError(f"packed: {error}; build the table again with `fs-extract pack`")


def chunk_rows(layout: int, size: int) -> int:
    """Give the rows of a chunk of a layout version; no other version of the same encoding has as many."""
    return size + layout // 2 % _SIZES


def chunk_size(tracks: int, before: int) -> int:
    """Choose the size of chunks; a table whose chunks had `before` keeps that while it shrinks by half."""
    for size, least in (HUGE_ROWS, LARGE_TRACKS), (LARGE_ROWS, SMALL_TRACKS):
        if tracks > (least // 2 if before >= size else least):
            return size
    return SMALL_ROWS


def size_of(rows: int) -> int:
    """Give the size of chunks that have so many rows; 0 if there are none such."""
    return next((size for size in (HUGE_ROWS, LARGE_ROWS, SMALL_ROWS) if size <= rows < size + _SIZES), 0)


def first_layout() -> int:
    """Choose the layout version of a first table at random: somebody may hold one that is not there any more."""
    return 2 * secrets.randbelow(_FIRST)


def encoding_of(layout: int) -> str:
    """Give the chunk key encoding of a layout version."""
    return ENCODINGS[layout % len(ENCODINGS)]


def chunk_name(encoding: str, *index: int) -> str:
    """Name the file of a chunk."""
    name = ".".join(map(str, index))
    return f"c.{name}" if encoding == "default" else name


def encoding_of_name(name: str) -> str | None:
    """Give the encoding by which a file is a chunk, None if it is none."""
    return "default" if name.startswith("c.") else "v2" if name[:1].isdigit() else None


def table_documents(tracks: int, rows: int, spec: FeatureSpec, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Make the Zarr documents of the table's group ("") and of its three arrays, of chunks of so many rows."""
    encoding = encoding_of(own["layout"])
    layers = len(spec.layers)
    # One chunk is one file, so that xarray writes a dataset again as it has read it. A missing one is NaN.
    features = array_document(
        [tracks, layers, spec.dim],
        [rows, 1, spec.dim],
        spec.dtype,
        "NaN",
        [_LITTLE, _CRC],
        DIMS,
        {"coordinates": "track_id"},
        encoding=encoding,
    )
    ids = [{"name": "vlen-utf8"}, _CRC]
    arrays = {
        "features": features,
        "track_id": array_document([tracks], [rows], "string", "", ids, ["track"], {}, encoding=encoding),
        "layer": array_document([layers], [layers], "int64", 0, [_LITTLE, _CRC], ["layer"], {}),
    }
    return dataset_documents(own, arrays)


def encode_layers(spec: FeatureSpec) -> bytes:
    """Layers as the one chunk of a Zarr array."""
    return with_crc(np.array(spec.layers, "<i8").tobytes())
