"""The Zarr metadata of a store's nodes, the documents of `zarr.json`, written and checked.

Nothing that is read is trusted: a document is taken only if it is, field by field, one that this library could
have written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.spec import DIMS, DTYPES, KINDS, FeatureSpec
from featurestore.store.format.compression import COMPRESSORS, compressor_of, zarr_codecs
from featurestore.store.format.keys import encode_key
from featurestore.store.paths import HIDDEN

FORMAT_VERSION = 2
SEALED_VERSION = 3
"""Of a store from the moment on that it has, or had, bundles: releases that do not know these must not open it."""
METADATA = "zarr.json"
MAX_METADATA_BYTES = 8 * 2**20  # a track of 400,000 segments
_MAX_AXIS = 2**40
_CRC = {"name": "crc32c"}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class ArrayMetadata:
    """Metadata of an array of one shard per `shard_shape`, with inner chunks of `chunk_shape`."""

    shape: tuple[int, ...]
    shard_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    compressor: str = "none"

    def document(self) -> dict[str, Any]:
        """The array as a Zarr v3 document."""
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": list(self.chunk_shape),
                "codecs": [_BYTES, *zarr_codecs(self.compressor, np.dtype(self.dtype).itemsize), _CRC],
                "index_codecs": [_BYTES, _CRC],
                "index_location": "end",
            },
        }
        # A reader that misses a shard sees NaN, not numbers.
        return array_document(
            self.shape, self.shard_shape, self.dtype, "NaN", [sharding], self.dims, self.attributes
        )

    @classmethod
    def from_document(cls, document: Any) -> ArrayMetadata:
        """Metadata of a document.

        Raises
        ------
        ValueError
            If it is not, field by field, a document of this class.
        """
        try:
            sharding = document["codecs"][0]["configuration"]
            found = cls(
                shape=axes(document["shape"], 0),
                shard_shape=axes(document["chunk_grid"]["configuration"]["chunk_shape"], 1),
                chunk_shape=axes(sharding["chunk_shape"], 1),
                dtype=document["data_type"],
                dims=tuple(document["dimension_names"]),
                attributes=dict(document["attributes"]),
                compressor=_compressor(sharding["codecs"]),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"not the metadata of a feature array ({error!r})") from None
        known = found.dtype in DTYPES and found.compressor in COMPRESSORS
        if not known or found.document() != document:
            raise ValueError("not the metadata of a feature array of this format")
        if any(n % c for n, c in zip(found.shard_shape, found.chunk_shape, strict=True)):
            raise ValueError("the inner chunks do not fill the shard")
        return found


def _compressor(codecs: list[Any]) -> str:
    return str(codecs[1]["configuration"]["cname"]) if len(codecs) > 2 else "none"


def axes(value: Any, smallest: int) -> tuple[int, ...]:
    """A shape from a document, checked."""
    if not isinstance(value, list) or any(type(n) is not int or not smallest <= n <= _MAX_AXIS for n in value):
        raise ValueError(f"impossible shape {value!r:.100}")
    return tuple(value)


def array_document(
    shape: Sequence[int],
    chunks: Sequence[int],
    data_type: str,
    fill_value: Any,
    codecs: Sequence[Mapping[str, Any]],
    dims: Sequence[str],
    attributes: Mapping[str, Any],
    *,
    encoding: str = "default",
) -> dict[str, Any]:
    """A Zarr v3 array whose chunk keys are separated by a dot, so that it is one folder."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": encoding, "configuration": {"separator": "."}},
        "fill_value": fill_value,
        "codecs": list(codecs),
        "dimension_names": list(dims),
        "attributes": dict(attributes),
    }


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A Zarr v3 group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def dataset_documents(own: Mapping[str, Any], arrays: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Documents of arrays and of their group (""), of which `own` is known: text and whole numbers, as in netCDF.

    The group has the arrays' inline, so that a reader sees one whole dataset from one file, and a checksum.
    """
    group = group_document(own)
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    group["attributes"]["checksum"] = checksum(group)
    return {"": group, **arrays}


def dataset_attributes(group: Mapping[str, Any]) -> dict[str, Any]:
    """What the document of a dataset's group says is known of it."""
    return {name: value for name, value in group["attributes"].items() if name != "checksum"}


def hidden_document(name: str = HIDDEN) -> dict[str, Any]:
    """The node at `.featurestore`: an array without elements, so that no Zarr reader looks below it."""
    return array_document([0], [1], "uint8", 0, [{"name": "bytes"}], [name], {})


def track_metadata(
    kind: str, shape: tuple[int, ...], spec: FeatureSpec, attributes: Mapping[str, Any]
) -> ArrayMetadata:
    """Metadata of one kind of a track: one shard, one inner chunk per layer (of one segment, for raw)."""
    if kind == "raw":
        chunk = (1, 1, *shape[2:])
    elif kind == "segments":
        chunk = (shape[0], 1, shape[2])
    else:
        chunk = (1, shape[1])
    compressor = compressor_of(spec.codec)
    dims = track_dims(kind, encode_key(attributes["track_id"]))
    return ArrayMetadata(shape, shape, chunk, spec.dtype, dims, attributes, compressor)


def track_dims(kind: str, key: str) -> tuple[str, ...]:
    """Names of the dimensions of a track's array.

    Tracks differ in their segments and frames, and one group holds them all: xarray opens it, as it takes equal
    names for equal sizes, only if each track has its own.
    """
    return tuple(f"{name}_{key}" if name in ("segment", "frame") else name for name in DIMS[kind])


def shard_name(ndim: int) -> str:
    """File of the only shard of an array."""
    return "c" + ".0" * ndim


def check_track_metadata(metadata: ArrayMetadata, kind: str, key: str, spec: FeatureSpec) -> None:
    """Raise ValueError unless the metadata is that of a kind of the track with a key in a store of this spec."""
    if len(metadata.shape) != len(DIMS[kind]) or math.prod(metadata.shape) == 0:
        raise ValueError(f"not the shape of {kind}: {metadata.shape}")
    _check_attributes(metadata.attributes, kind, key)
    if metadata.attributes["fingerprint"] != spec.fingerprint:
        raise ValueError("features of another spec")
    starts = metadata.attributes["starts"]
    if kind != "aggregated" and len(starts) not in (0, metadata.shape[0]):
        raise ValueError(f"{len(starts)} starts for {metadata.shape[0]} segments")
    expected = track_metadata(kind, metadata.shape, spec, metadata.attributes)
    if metadata.dims == DIMS[kind]:  # of format 1
        expected = replace(expected, dims=DIMS[kind])
    layers, dim = metadata.shape[DIMS[kind].index("layer")], metadata.shape[-1]
    if metadata != expected or (layers, dim) != (len(spec.layers), spec.dim):
        raise ValueError(f"not the metadata of {kind} in a store of this spec")


def _check_attributes(attributes: Mapping[str, Any], kind: str, key: str) -> None:
    for name in ("track_id", "revision", "fingerprint", "kinds", "starts"):
        if name not in attributes:
            raise ValueError(f"no {name} in the attributes")
    track_id, kinds, starts = attributes["track_id"], attributes["kinds"], attributes["starts"]
    if not isinstance(track_id, str) or encode_key(track_id) != key:
        raise ValueError(f"it says that it is the track {track_id!r:.200}")
    if not isinstance(attributes["revision"], str) or not isinstance(kinds, list) or kind not in kinds:
        raise ValueError("impossible revision or kinds")
    if "aggregated" not in kinds or kinds != [known for known in KINDS if known in kinds]:
        raise ValueError(f"impossible kinds {kinds!r:.200}")
    if not isinstance(starts, list) or not all(type(start) is float and math.isfinite(start) for start in starts):
        raise ValueError("impossible starts")


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Document as the bytes of a `zarr.json`."""
    return json.dumps(document).encode()


def decode_document(content: bytes) -> dict[str, Any]:
    """Document of a `zarr.json`; ValueError if it is none."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document as canonical JSON."""
    try:
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return hashlib.sha256(canonical.encode()).hexdigest()


def metadata_checksum(document: Mapping[str, Any]) -> str:
    """Checksum of a node's document without the checksum itself."""
    attributes = dict(document["attributes"])
    attributes["checksums"] = {k: v for k, v in attributes.get("checksums", {}).items() if k != "metadata"}
    return checksum({**document, "attributes": attributes})


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its checksum among its attributes."""
    sums = dict(document["attributes"].get("checksums", {}))
    attributes = {**document["attributes"], "checksums": sums}
    sums["metadata"] = metadata_checksum(document)
    return {**document, "attributes": attributes}


def check_seal(document: Mapping[str, Any]) -> None:
    """Raise ValueError unless the document is as it was sealed."""
    try:
        sound = document["attributes"]["checksums"]["metadata"] == metadata_checksum(document)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ValueError("the metadata fails its checksum")


def root_document(spec: FeatureSpec, version: int = FORMAT_VERSION) -> dict[str, Any]:
    """The store's root group."""
    own = {"format": version, "spec": spec.to_dict(), "fingerprint": spec.fingerprint}
    return group_document({"featurestore": {**own, "checksum": checksum(own)}})


def structure(spec: FeatureSpec) -> dict[str, dict[str, Any]]:
    """Documents of the nodes that every store has, by their folder."""
    groups = {kind: group_document({}) for kind in KINDS}
    return {"": root_document(spec), **groups, HIDDEN: hidden_document()}


_LEAST_ROWS = 160
"""Rows for which the smallest packed table takes room: about one chunk."""


def estimate_bytes(spec: FeatureSpec, kinds: Sequence[str], *, tracks: int, segments: int, frames: int) -> int:
    """Size on disk of tracks that are not stored yet, with their rows in the packed table.

    Parameters
    ----------
    spec : FeatureSpec
        Gives layers, dim and dtype.
    kinds : sequence of str
        What is stored of each track.
    tracks, segments, frames : int
        Numbers of all tracks together; frames are those of all segments.

    Returns
    -------
    int
        Bytes.
    """
    row = len(spec.layers) * spec.dim * (4 if spec.dtype == "float32" else 2)
    rows = {"raw": frames, "segments": segments, "aggregated": tracks}
    numbers = sum(rows[kind] for kind in KINDS if kind in kinds) * row
    index = len(spec.layers) * 20 * (segments if "raw" in kinds else 0)
    overhead = tracks * len(kinds) * 12_288  # folder, metadata, half-filled blocks
    packed = max(tracks, _LEAST_ROWS) * row if tracks else 0
    return numbers + index + overhead + packed
