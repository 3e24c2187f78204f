"""Raising the format version of a store, before anything is in it that older releases do not know."""

from __future__ import annotations

from pathlib import Path

from featurestore.store import filesystem, reading
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    checksum,
    decode_document,
    encode_document,
)
from featurestore.store.paths import StorePaths


def upgrade_root(paths: StorePaths, staged: Path, version: int) -> None:
    """Let releases that know no such version refuse the store; `staged` is a folder for the new metadata."""
    document = decode_document(reading.read_file(paths.root / METADATA, limit=MAX_METADATA_BYTES))
    before = document["attributes"]["featurestore"]
    if before["format"] >= version:
        return
    own = {**{name: value for name, value in before.items() if name != "checksum"}, "format": version}
    document["attributes"]["featurestore"] = {**own, "checksum": checksum(own)}
    filesystem.write_file(staged / METADATA, encode_document(document))
    filesystem.sync_file(staged / METADATA)
    filesystem.rename(staged / METADATA, paths.root / METADATA)
    filesystem.sync_dir(paths.root)
