"""Marks: which tracks of bundles are not there any more."""

from __future__ import annotations

import os
import time
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from featurestore.store import reading
from featurestore.store.bundles.layout import MARK

_SETTLED_NS = 3 * 10**9
"""A folder that was changed so long ago gets another time of change from whatever changes in it."""
_FEW = 10
"""Of so many marks a look at one costs as much as all in a list."""


class _Listed(NamedTuple):
    changed: tuple[int, int, int]
    names: frozenset[str]


class Marks:
    """The files in `bundles/removed`, which are listed again only where some may have come or gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: _Listed | None = None
        self._count = 0  # when they were listed the last time

    def __contains__(self, name: object) -> bool:
        return reading.exists(self._folder / str(name))

    def names(self) -> frozenset[str]:
        """Names of all."""
        changed, listed = self._changed(), self._listed
        if listed is not None and listed.changed == changed:
            return listed.names
        found = frozenset(name for name in reading.list_names(self._folder) if MARK.fullmatch(name))
        is_settled = changed is not None and abs(time.time_ns() - max(changed[1:])) >= _SETTLED_NS
        self._listed = _Listed(changed, found) if changed is not None and is_settled else None
        self._count = len(found)
        return found

    def for_some(self, count: int) -> Container[str]:
        """What says of so many names whether they are there."""
        return self if count * _FEW < self._count else self.names()

    def _changed(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
