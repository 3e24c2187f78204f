"""Tracks of a store whose files are gone: moved, which renames the track, or deleted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from featurestore.addresses import noted_path
from featurestore.audio import AudioFile, file_sha256
from featurestore.errors import FeatureStoreError, TrackExistsError, TrackLockedError, TrackNotFoundError
from featurestore.pipeline.plan import published_attributes
from featurestore.sharing.copying import copy_track
from featurestore.store import StoreReader, StoreWriter

TAKEN = (TrackLockedError, TrackExistsError, TrackNotFoundError)
"""Another build is doing the same, or has done it."""

Orphans = dict[str, Mapping[str, Any]]
"""What is known of each track whose file is gone, by its id."""


def source_root(source: str | os.PathLike[str], tracks: Sequence[AudioFile]) -> str:
    """Return the folder in which all files of a source are."""
    if os.path.isdir(source):
        return os.path.abspath(source)
    return os.path.commonpath([os.path.abspath(track.path.parent) for track in tracks])


def find_orphans(there: StoreReader, tracks: Sequence[AudioFile], root: str) -> Orphans:
    """Find the tracks that the source does not name, and whose files were below its root and are gone."""
    found: Orphans = {}
    named = {track.track_id for track in tracks}
    for track_id in there.track_ids:  # in this order many have their attributes in one chunk
        if track_id in named:
            continue
        known = published_attributes(there.provenance, track_id) or {}
        path = _noted_place(known.get("audio"))
        if path.startswith(os.path.join(root, "")) and not os.path.lexists(path):
            found[track_id] = known
    return dict(sorted(found.items()))


def _noted_place(audio: Any) -> str:
    """Return where a file of audio was, by what a store says of it; "/" if it does not say so."""
    if not isinstance(audio, Mapping):
        return "/"
    path, folder = audio.get("path"), audio.get("folder", "")
    if not (isinstance(path, str) and isinstance(folder, str)):
        return "/"
    # Stores of earlier releases have no folder: there, a relative path is one of where this process works.
    return os.path.abspath(os.path.join(folder, path))


def find_moved(there: StoreReader, tracks: Sequence[AudioFile], orphans: Orphans) -> dict[str, str]:
    """Find new tracks whose files have the bytes of an orphan's: the orphan's id by the new one."""
    by_size = defaultdict(list)
    for old, known in orphans.items():
        if isinstance(size := known["audio"].get("size"), int):
            by_size[size].append((known["audio"].get("sha256"), old))
    found: dict[str, str] = {}
    for track in tracks if orphans else ():
        if track.track_id in there:
            continue
        try:
            candidates = by_size.get(track.path.stat().st_size)
            digest = file_sha256(track.path) if candidates else None
        except (OSError, ValueError, FeatureStoreError):
            continue  # its plan says what is wrong with the file
        for sha256, old in candidates or ():
            if sha256 == digest and old not in found.values():
                found[track.track_id] = old
                break
    return found


def rename_moved(
    there: StoreReader,
    writer: StoreWriter,
    tracks: Sequence[AudioFile],
    moved: Mapping[str, str],
    orphans: Orphans,
) -> None:
    """Give the tracks of files that were moved their new ids."""
    for track in tracks:
        if (old := moved.get(track.track_id)) is not None:
            known = orphans[old]
            audio = {name: value for name, value in known["audio"].items() if name != "folder"}
            audio |= {**noted_path(track.path), "mtime_ns": track.path.stat().st_mtime_ns}
            with suppress(*TAKEN):
                copy_track(there, writer, old, {**known, "audio": audio}, track_id=track.track_id)
                writer.remove(old)
