"""The metadata that is the same in every store of a spec."""

from __future__ import annotations

import os
from typing import Any

from featurestore.spec import FeatureSpec
from featurestore.store import reading
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    SEALED_VERSION,
    decode_document,
    group_document,
    hidden_document,
    root_document,
    structure,
)
from featurestore.store.paths import BUNDLES, HIDDEN, REMOVED, StorePaths


def damaged_structure(paths: StorePaths, spec: FeatureSpec) -> list[str]:
    """Folders whose metadata, the same in every store of a spec, is not as it should be."""
    damaged = []
    for folder, expected in whole_structure(paths, spec).items():
        if folder == HIDDEN and not os.path.lexists(paths.hidden):
            continue  # copies may leave out what is hidden: a writer makes it again
        try:
            with paths.open(*filter(None, folder.split("/"))) as opened:
                document = decode_document(opened.read(METADATA, MAX_METADATA_BYTES))
            own = expected["attributes"]
            # What others have added to the attributes is theirs.
            document["attributes"] = {k: v for k, v in document["attributes"].items() if k in own}
            others = (SEALED_VERSION,) if os.path.lexists(paths.bundles) else (1, SEALED_VERSION)
            if not folder and document in (root_document(spec, version) for version in others):
                continue  # an earlier release made the store, or it had bundles
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            document = {}
        if document != expected:
            damaged.append(folder)
    return damaged


def whole_structure(paths: StorePaths, spec: FeatureSpec) -> dict[str, dict[str, Any]]:
    """Documents of the nodes that a store of a spec has, by their folder; of bundles, if there are some."""
    found = structure(spec)
    if os.path.lexists(paths.bundles):  # earlier releases must not take the store for theirs
        found[""] = root_document(spec, SEALED_VERSION)
    if reading.is_dir(paths.bundles):
        found |= {BUNDLES: group_document({}), f"{BUNDLES}/{REMOVED}": hidden_document(REMOVED)}
    return found
