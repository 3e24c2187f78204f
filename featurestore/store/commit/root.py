"""Raising the format version of a store, before anything is in it that older releases do not know."""

from __future__ import annotations

from pathlib import Path

from featurestore.spec import FeatureSpec
from featurestore.store import filesystem, reading
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    decode_document,
    encode_document,
    root_document,
)
from featurestore.store.paths import StorePaths


def upgrade_root(paths: StorePaths, spec: FeatureSpec, staged: Path, version: int) -> None:
    """Let releases that know no such version refuse the store; `staged` is a folder for the new metadata."""
    document = decode_document(reading.read_file(paths.root / METADATA, limit=MAX_METADATA_BYTES))
    if document["attributes"]["featurestore"]["format"] >= version:
        return
    own = root_document(spec, version)["attributes"]["featurestore"]
    document["attributes"] = {**document["attributes"], "featurestore": own}
    filesystem.write_file(staged / METADATA, encode_document(document))
    filesystem.sync_file(staged / METADATA)
    filesystem.rename(staged / METADATA, paths.root / METADATA)
    filesystem.sync_dir(paths.root)
