"""Putting aside what is damaged, so that what is left is a sound store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from featurestore.errors import CorruptTrackError, TrackAccessError, TrackLockedError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import filesystem, reading
from featurestore.store.bundles.checking import damaged_documents
from featurestore.store.bundles.layout import KINDS as SEALED_KINDS
from featurestore.store.bundles.layout import mark_name
from featurestore.store.bundles.sealed_array import open_sealed
from featurestore.store.commit.changes import log_change
from featurestore.store.commit.locks import TrackLocks, exclusive
from featurestore.store.commit.sealed import forget_marks, marks_of
from featurestore.store.commit.sealing_lock import removing
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.transaction import FAILED, mark_stale, revision_of
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    decode_document,
    encode_document,
)
from featurestore.store.paths import QUARANTINE, REMOVED, StorePaths
from featurestore.store.structure import damaged_structure, whole_structure
from featurestore.store.table.index import TrackIndex
from featurestore.store.table.packing import pack
from featurestore.store.track_reader import TrackReader
from featurestore.store.verify import (
    SEALED,
    Problem,
    VerifyReport,
    check_chunks,
    damaged_kinds,
    stray_files,
    verify,
)

_LONGEST_NAME = 200
_PATIENCE = 600.0  # seconds to wait for another writer that packs


def repair(reader: TrackReader, session: WriterSession, *, deep: bool) -> tuple[VerifyReport, list[Path]]:
    """Verify a store, finish or take back what is unfinished, put aside what is damaged, and pack.

    What was wrong, and where the folders of damaged tracks are now.
    """
    paths = reader.paths
    report = verify(reader, deep=deep)
    found = {problem.what for problem in report.problems}
    moved = _put_bundles_aside(reader) if "bundle" in found else []
    if moved:
        later = verify(reader, deep=deep)
        report = replace(later, problems=(*report.problems, *later.problems))
    if "structure" in found:
        staged = session.staging.folder()
        restore_structure(paths, reader.spec, staged)
        _restore_documents(reader, staged)
        filesystem.discard(staged, paths.trash)
    # Only now: they may have waited for a bundle, or for a folder.
    for key in {name.removesuffix(FAILED) for name in sorted(os.listdir(paths.journal))}:
        with contextlib.suppress(TrackLockedError, TrackAccessError), session.lock(key, removing=True):
            pass
    moved += quarantine(reader, session.locks, report.problems, deep=deep)
    wrong = "packed" in found
    if moved or wrong:
        pack(TrackIndex(reader), session, wait=_PATIENCE, anew=wrong)
    return report, moved


def quarantine(reader: TrackReader, locks: TrackLocks, problems: Iterable[Problem], *, deep: bool) -> list[Path]:
    """Move the folders of damaged tracks, and what is of none, to ``.featurestore/quarantine``.

    Where they are now, one folder per track; a track that a writer is at work on is left alone.
    """
    moved = []
    for key in sorted({problem.key for problem in problems if problem.key}):
        with contextlib.suppress(TrackLockedError), locks.holding(key):
            # Looked at again: it may have been written anew since it was found to be damaged.
            paths = reader.paths
            kinds = damaged_kinds(reader, key, deep=deep)
            marked = [_mark(reader, key)] if SEALED in kinds else []
            kinds = [kind for kind in kinds if kind != SEALED]
            moves = {paths.array(kind, key): kind for kind in kinds}
            strays = [
                (kind, name) for kind in KINDS if kind not in kinds for name in stray_files(paths, kind, key)
            ]
            for number, (kind, name) in enumerate(strays):
                moves[paths.array(kind, key) / name] = _short(f"{kind}.{number}.{name}")
            if not moves:
                moved += marked
            else:
                moved.append(_put_aside(reader, key, moves))
    return moved


def _mark(reader: TrackReader, key: str) -> Path:
    """Say that what a bundle has of a track is not there any more: it stays where it is; where that is said."""
    place = reader.sealed.find(key)
    assert place is not None
    mark_stale(reader.paths, key, durable=True)
    reader.sealed.mark_removed(key, durable=True)
    log_change(reader.paths, key)
    return reader.paths.removed / mark_name(place.bundle.name, place.row)


def _put_bundles_aside(reader: TrackReader) -> list[Path]:
    """Move bundles that cannot be opened to ``.featurestore/quarantine``; where they are now."""
    paths, moved = reader.paths, []
    with exclusive(paths.locks / "pack.lock", timeout=_PATIENCE) as held:
        for name, error in reader.sealed.problems().items() if held else ():
            if not isinstance(error, CorruptTrackError):
                continue
            target = paths.hidden / QUARANTINE / f"{name}.{uuid.uuid4().hex[:12]}"
            filesystem.make_parents(target.parent, durable=True)
            _copy_marks(paths, name, target.with_name(f"{target.name}.{REMOVED}"))
            filesystem.rename(paths.bundles / name, target)
            filesystem.sync_dir(target.parent)
            filesystem.sync_dir(paths.bundles)
            forget_marks(paths, name)
            moved.append(target)
    return moved


def _copy_marks(paths: StorePaths, name: str, folder: Path) -> None:
    """Copy the marks of a bundle to a new folder: whoever brings it back by hand brings them back first."""
    marks = marks_of(paths, name)
    if marks:
        filesystem.make_parents(folder, durable=True)
        for mark in marks:
            filesystem.touch(folder / mark)
        filesystem.sync_dir(folder)


def _restore_documents(reader: TrackReader, staged: Path) -> None:
    """Write metadata of arrays of bundles anew."""
    for bundle in reader.sealed.bundles():
        for name in damaged_documents(bundle):
            place = reader.paths.bundles / bundle.name / name
            if reading.is_dir(place):
                content = encode_document(bundle.sizes.arrays()[name])
                filesystem.replace_file(place / METADATA, content, staged / METADATA)


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def _put_aside(reader: TrackReader, key: str, moves: Mapping[Path, str]) -> Path:
    """Move folders and files of a track, each to a name of its own, into a new folder."""
    paths = reader.paths
    folder = paths.hidden / QUARANTINE / f"{_short(key)}.{uuid.uuid4().hex[:12]}"
    with removing(paths):
        # Made sure of before anything goes there, or it could be lost on the way.
        filesystem.make_parents(folder, durable=True)
        if paths.array("aggregated", key) in moves:
            mark_stale(paths, key, durable=True)
            sound = "" if paths.array("raw", key) in moves else _sound_in_bundle(reader, key)
            reader.sealed.mark_removed(key, durable=True, but=sound)
        for source, target in moves.items():
            filesystem.rename(source, folder / target)
        log_change(paths, key)
        for changed in dict.fromkeys([folder, *(source.parent for source in moves)]):
            filesystem.sync_dir(changed)
    return folder


def _sound_in_bundle(reader: TrackReader, key: str) -> str:
    """Revision of a track in a folder if a bundle has the same, and sound: it was being sealed or brought back."""
    place = reader.sealed.find(key, if_known=True)
    if place is None or revision_of(reader.paths.array("aggregated", key)) != place.revision:
        return ""
    try:
        for kind in place.bundle.metadata("aggregated", place.row).attributes["kinds"]:
            if kind in SEALED_KINDS:
                with open_sealed(place.bundle, kind, place.row) as array:
                    check_chunks(array, f"{kind}/{key}")
    except (CorruptTrackError, OSError):
        return ""
    return place.revision


def restore_structure(paths: StorePaths, spec: FeatureSpec, staged: Path) -> None:
    """Write the metadata anew that is the same in every store of a spec; `staged` is an empty folder."""
    for folder in damaged_structure(paths, spec):
        document = whole_structure(paths, spec)[folder]
        place = paths.root / folder
        if not os.path.lexists(place):
            filesystem.make_parents(place, durable=True)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = decode_document(reading.read_file(place / METADATA, limit=MAX_METADATA_BYTES))
            # What others have added to the attributes is theirs.
            document["attributes"] = {**found["attributes"], **document["attributes"]}
        filesystem.replace_file(place / METADATA, encode_document(document), staged / METADATA)
