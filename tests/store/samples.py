"""Small features for the tests of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import encode_document, seal, shard_name, track_metadata
from featurestore.store.format.shards import ShardWriter

SPEC = FeatureSpec.for_arrays(layers=3, dim=4)
FRAMES = 4  # means over them are exact in binary


def features(
    seed: int = 0,
    *,
    segments: int = 2,
    frames: int = FRAMES,
    spec: FeatureSpec = SPEC,
    kinds: Sequence[str] = ("raw", "segments", "aggregated"),
) -> dict[str, np.ndarray]:
    """All kinds of one track, of small whole numbers, so that pooling them by and by rounds nothing."""
    rng = np.random.default_rng(seed)
    layers = len(spec.layers)
    raw = rng.integers(-500, 500, (segments, layers, frames, spec.dim)).astype(spec.dtype)
    pooled = raw.mean(axis=2, dtype=np.float64)
    everything = {
        "raw": raw,
        "segments": pooled.astype(spec.dtype),
        "aggregated": pooled.mean(axis=0).astype(spec.dtype),
    }
    return {kind: everything[kind] for kind in kinds}


def write_store(
    path: Path,
    tracks: Mapping[str, Mapping[str, Any]],
    *,
    spec: FeatureSpec = SPEC,
    pack: bool = False,
) -> FeatureStore:
    """A store of some tracks."""
    with StoreWriter(path, spec=spec, durable=False) as writer:
        for track_id, arrays in tracks.items():
            writer.put(track_id, arrays)
        if pack:
            writer.pack()
    return FeatureStore(path)


def place_aggregated(path: Path, tracks: Mapping[str, np.ndarray], spec: FeatureSpec) -> None:
    """Tracks with nothing but `aggregated`, put in their place without the care that takes a writer time."""
    for track_id, values in tracks.items():
        folder = path / "aggregated" / encode_key(track_id)
        folder.mkdir()
        shard = ShardWriter(folder / shard_name(2), track_id, 4)
        shard.append(values[:, None])
        attributes = {
            "track_id": track_id,
            "revision": "0",
            "fingerprint": spec.fingerprint,
            "kinds": ["aggregated"],
            "starts": [],
            "checksums": {"chunks": shard.finish()},
        }
        document = seal(track_metadata("aggregated", values.shape, spec, attributes).document())
        (folder / "zarr.json").write_bytes(encode_document(document))


def read_all(store: FeatureStore, track_id: str) -> dict[str, np.ndarray]:
    """Every kind that a store has of a track."""
    kinds = store.provenance(track_id)["kinds"]
    found = {"aggregated": np.asarray(store.aggregated(tracks=[track_id]))[0]}
    if "segments" in kinds:
        found["segments"] = np.asarray(store.segments(track_id))
    if "raw" in kinds:
        found["raw"] = np.asarray(store.raw(track_id))
    return found


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same kinds, bit for bit."""
    assert set(found) == set(expected)
    for kind, array in expected.items():
        assert found[kind].dtype == array.dtype, kind
        assert found[kind].shape == array.shape, kind
        assert found[kind].tobytes() == array.tobytes(), kind
