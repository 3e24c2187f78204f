"""The log of changes: the keys of tracks that writers added, replaced or removed, one on a line.

It is a hint for readers: whoever knows all tracks need not list them again, only look at those. A line is written
when its change is in place. Nothing else depends on the log: a line may be torn or lost, or the log removed, and
readers see the change at their next listing. Packing removes it.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from featurestore.store import filesystem, reading
from featurestore.store.paths import StorePaths

_MAX_BYTES = 2**22  # a listing is quicker than to look at more


class Position(NamedTuple):
    """How far a log goes."""

    inode: int
    size: int


def log_change(paths: StorePaths, key: str) -> None:
    """Log that a track was changed, if that can be done."""
    with contextlib.suppress(OSError):
        # A line break before it ends what a writer that died has written of a line.
        filesystem.append_to(paths.changes, f"\n{key}\n".encode())


def end_of_log(paths: StorePaths) -> Position:
    """How far the log goes now."""
    try:
        status = os.stat(paths.changes, follow_symlinks=False)
    except OSError:
        return Position(0, 0)
    return Position(status.st_ino, status.st_size)


def changed_keys(paths: StorePaths, begin: Position, end: Position) -> set[str] | None:
    """Read what is between two positions; None if the log is another one by now."""
    size = end.size - begin.size
    if size == 0 and begin == end:
        return set()
    if begin.inode not in (0, end.inode) or not 0 < size <= _MAX_BYTES:
        return None
    try:
        fd = reading.open_file(paths.changes)
        try:
            same = os.fstat(fd).st_ino == end.inode
            lines = reading.read_exactly(fd, size, begin.size).decode(errors="replace")
        finally:
            os.close(fd)
    except OSError:  # removed meanwhile, or no file
        return None
    return set(lines.split("\n")) - {""} if same else None
