"""Putting aside what is damaged, so that what is left is a sound store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from featurestore.errors import TrackLockedError
from featurestore.spec import KINDS
from featurestore.store import files
from featurestore.store.layout import QUARANTINE, Places
from featurestore.store.locks import TrackLocks
from featurestore.store.verification import Problem


def quarantine(places: Places, locks: TrackLocks, problems: Iterable[Problem]) -> list[Path]:
    """Move the folders of damaged tracks and orphans to ``.featurestore/quarantine``.

    Returns
    -------
    list of Path
        Where they are now, one folder per track; a track that a writer is at work on is left alone.
    """
    moved = []
    for key in sorted({problem.key for problem in problems if problem.what != "packed" and problem.key}):
        with contextlib.suppress(TrackLockedError), locks.holding(key):
            # Aggregated first: without it there is no such track.
            arrays = [kind for kind in reversed(KINDS) if os.path.lexists(places.array(kind, key))]
            if arrays:
                moved.append(_put_aside(places, key, arrays))
    return moved


def _put_aside(places: Places, key: str, kinds: list[str]) -> Path:
    quarantined = places.hidden / QUARANTINE
    if not quarantined.exists():
        with contextlib.suppress(FileExistsError):
            files.make_dir(quarantined)
    folder = quarantined / f"{key}.{uuid.uuid4().hex[:12]}"
    files.make_dir(folder)
    files.touch(places.stale / key)
    for kind in kinds:
        files.rename(places.array(kind, key), folder / kind)
    for changed in [folder, quarantined, places.stale, *map(places.kind, kinds)]:
        files.sync_dir(changed)
    return folder
