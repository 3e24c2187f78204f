"""What is wrong with a bundle as a whole; what is wrong with a track in it, reading the track tells."""

from __future__ import annotations

from collections.abc import Iterator

from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.layout import KINDS, shards_of
from featurestore.store.byte_source import ByteFolder
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.paths import BUNDLES


def damaged_documents(bundle: Bundle) -> list[str]:
    """Arrays of a bundle whose own metadata, which only other readers read, is not as it should be."""
    damaged = []
    with bundle.files.open(BUNDLES, bundle.name) as folder:
        for name, expected in documents(bundle).items():
            try:
                with folder.folder(name) as inner:
                    found = decode_document(inner.read(METADATA, MAX_METADATA_BYTES))
            except (OSError, ValueError):
                found = {}
            if found != expected:
                damaged.append(name)
    return damaged


def documents(bundle: Bundle) -> dict[str, dict[str, object]]:
    """Metadata of the arrays of a bundle, by their names."""
    found = bundle.sizes.documents({})
    del found[""]
    return found


def damaged_shards(bundle: Bundle) -> Iterator[str]:
    """Say which files of features have a damaged index, which only other readers read, or which one is missing."""
    for kind in KINDS:
        with bundle.files.open(BUNDLES, bundle.name, kind) as folder:
            for shard in shards_of(bundle.sizes.features(kind)):
                index = shard.index()
                found = _end(folder, shard.name, len(index))
                if found != index:
                    yield f"{BUNDLES}/{bundle.name}/{kind}/{shard.name}"
                if found is None:
                    break  # of a bundle that lies, there may be any number


def _end(folder: ByteFolder, name: str, size: int) -> bytes | None:
    """The last bytes of a file; None if it cannot be opened."""
    try:
        file = folder.open(name)
    except OSError:
        return None
    try:
        return file.read(size, max(0, file.size - size))
    finally:
        file.close()
