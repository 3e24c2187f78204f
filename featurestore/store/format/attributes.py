"""Attributes of the arrays of a track."""

from __future__ import annotations

import math

from featurestore.spec import KINDS
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import ArrayMetadata


def check_attributes(metadata: ArrayMetadata, kind: str, key: str) -> None:
    """Raise ValueError unless the attributes are those of a kind of the track with a key."""
    attributes = metadata.attributes
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
    if kind != "aggregated" and len(starts) not in (0, metadata.shape[0]):
        raise ValueError(f"{len(starts)} starts for {metadata.shape[0]} segments")
