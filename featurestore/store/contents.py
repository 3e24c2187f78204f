"""How much a store holds: hours of audio, and bytes of each kind; of a large store by a sample."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featurestore.addresses import StoreUrl
from featurestore.errors import CorruptTrackError, TrackNotFoundError
from featurestore.spec import KINDS
from featurestore.store.folder_source import FolderSource
from featurestore.store.format.metadata import METADATA
from featurestore.store.paths import BUNDLES
from featurestore.store.source import Source

T = TypeVar("T")

MOST = 10_000
"""Tracks, or folders of one kind, that are looked at."""


def contents(source: Source) -> dict[str, Any]:
    """Count hours and bytes; of more than `MOST` tracks by as many of them, spread evenly.

    Returns
    -------
    dict
        ``hours`` of audio, None where no track tells; ``bytes`` by kind, ``packed`` among them; and ``looked_at``,
        the number of tracks that this comes from: none of a store in a bucket.
    """
    if isinstance(source.path, StoreUrl):  # each look would be a request
        return {"hours": None, "bytes": {}, "looked_at": 0}
    ids = source.track_ids()
    some = _spread(ids)
    seconds = [length for track_id in some if (length := _seconds(source, track_id)) is not None]
    share = len(ids) / max(1, len(some))
    return {
        "hours": sum(seconds) * share / 3600 if seconds else None,
        "bytes": _bytes(source),
        "looked_at": len(some),
    }


def _spread(items: Sequence[T]) -> Sequence[T]:
    return items[:: -(-len(items) // MOST)] if len(items) > MOST else items


def _seconds(source: Source, track_id: str) -> float | None:
    try:
        audio = source.attributes(track_id).get("audio")
    except (TrackNotFoundError, CorruptTrackError):
        return None
    length = audio.get("duration") if isinstance(audio, Mapping) else None
    return length if isinstance(length, int | float) else None


def _bytes(source: Source) -> dict[str, int]:
    if not isinstance(source, FolderSource):
        return {"file": Path(source.path).stat().st_size}
    sizes = {name: _size(source.paths.root / name) for name in (*KINDS, "packed")}
    sizes[BUNDLES] = sum(_size(folder) for folder in source.paths.bundles.glob("*/"))
    return {name: size for name, size in sizes.items() if size}


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; of one with many folders by some of them."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((x for x in entries if x.name != METADATA), key=lambda entry: entry.name)
    except FileNotFoundError:
        return 0
    some = _spread(found)
    return round(sum(map(_entry_size, some)) * len(found) / max(1, len(some)))


def _entry_size(entry: os.DirEntry[str]) -> int:
    try:
        if not entry.is_dir(follow_symlinks=False):
            return entry.stat().st_size
        with os.scandir(entry.path) as entries:
            return sum(map(_entry_size, entries))
    except FileNotFoundError:  # replaced or removed just now
        return 0
