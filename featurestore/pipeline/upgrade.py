"""Layers for a store that has others: a store of all of them is built beside it, and takes its place at the end.

Readers have the old store until the new one is whole, and from then on that: both are exchanged in one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore.audio import AudioFile
from featurestore.errors import BuildStoppedError
from featurestore.pipeline.alone import alone
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.orphans import find_moved, find_orphans
from featurestore.pipeline.plan import Job
from featurestore.pipeline.tally import Tally
from featurestore.spec import KINDS, is_whole
from featurestore.store import StoreReader, filesystem
from featurestore.store.commit.staging import clean_stale
from featurestore.store.format.metadata import METADATA
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import BUNDLES, HIDDEN, QUARANTINE, StorePaths

_SHOWN = 3  # tracks


def beside(path: Path) -> Path:
    """Where the store of more layers is built."""
    root = StorePaths.of(path).root
    return root.with_name(root.name + ".upgrading")


def with_layers(there: StoreReader, layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the layers of a store together with those that are asked for; None if none are."""
    try:
        wanted = set(layers or ())
    except TypeError:
        return None  # whoever checks layers says so
    if not wanted or not all(map(is_whole, wanted)):
        return None
    return tuple(sorted({*map(int, wanted), *there.spec.layers}))


def remove_replaced(there: StoreReader) -> None:
    """Remove what a store has replaced, if a build was killed before it could."""
    if (folder := beside(Path(there.path))).exists() and (folder / METADATA).exists():
        old = StoreReader(folder).spec
        if set(old.layers) < set(there.spec.layers) and not _differences(there, old):
            filesystem.remove_tree(folder)


def _differences(there: StoreReader, spec: Any) -> dict[str, tuple[Any, Any]]:
    """Settings other than layers."""
    return there.spec.differences(replace(spec, layers=there.spec.layers))


@contextmanager
def upgrading(
    job: Job, there: StoreReader, tracks: Sequence[AudioFile], interrupts: Interrupts, tally: Tally
) -> Iterator[tuple[Job, StoreReader | None]]:
    """Have a build work on the store beside another one, which it replaces when the block ends.

    `job` is that of the store that lacks layers, and says whether they are allowed; `tracks` is the whole source.

    Yields
    ------
    job : Job
        Of the store beside it.
    begun : StoreReader or None
        That store, as far as an earlier build has come.

    Raises
    ------
    SpecMismatchError
        If other layers were begun there.
    StoreAccessError
        If another build exchanges them.
    BuildStoppedError
        If the new store lacks tracks of the old one, or cannot be put in its place.
    """
    folder = beside(Path(there.path))
    begun = StoreReader(folder) if (folder / METADATA).exists() else None
    job = replace(job, store=folder, extends=there.spec)
    yield job, begun
    if job.dry_run or job.refused:
        return
    with interrupts.deferred(), translate_os_errors(Path(there.path)), alone(folder, Path(there.path)):
        if (folder / METADATA).exists():  # else another build has just done it
            _replace(job, there, tracks, tally)


def _replace(job: Job, there: StoreReader, tracks: Sequence[AudioFile], tally: Tally) -> None:
    old, new = StorePaths.of(Path(there.path)), StorePaths.of(job.store)
    orphans = {} if job.root is None else find_orphans(there, tracks, job.root)
    gone = {*(orphans if job.prune else ()), *find_moved(there, tracks, orphans).values()}

    def check(replaced: StoreReader, whole: Path) -> None:
        if missing := sorted(set(replaced.track_ids) - set(StoreReader(whole).track_ids) - gone):
            named = ", ".join(map(repr, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
            raise _stopped(
                f"{len(missing)} tracks of it were not extracted with the new layers ({named}): run the same for "
                "the source that they come from, or remove them",
                there,
                tally,
            )

    check(there, new.root)
    for paths in (old, new):
        clean_stale(paths)
        if any(paths.staging.iterdir()):
            raise _stopped(
                "another process is at work on it, which puts it in place at its end; or run the same again then",
                there,
                tally,
            )
    if old.runs.exists():
        shutil.copytree(old.runs, new.runs, dirs_exist_ok=True)
    if not filesystem.exchange(new.root, old.root):
        raise _stopped(
            f"its file system cannot exchange two folders: move {old.root} away, and {new.root} to its place",
            there,
            tally,
        )
    try:
        check(StoreReader(new.root), old.root)  # a track may have come in the very last moment
    except BuildStoppedError:
        filesystem.exchange(new.root, old.root)
        raise
    for name in set(os.listdir(new.root)) - {METADATA, HIDDEN, "packed", BUNDLES, *KINDS}:  # somebody else's
        filesystem.rename(new.root / name, old.root / name)
    if (new.hidden / QUARANTINE).exists():
        filesystem.rename(new.hidden / QUARANTINE, old.hidden / QUARANTINE)
    filesystem.sync_parent(old.root)
    filesystem.remove_tree(new.root)


def _stopped(why: str, there: StoreReader, tally: Tally) -> BuildStoppedError:
    return BuildStoppedError(
        f"the store {Path(there.path)} stays as it was, and what is extracted is kept beside it: {why}",
        report=tally.report(),
    )
