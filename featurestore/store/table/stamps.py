"""How a folder tells that nothing was added to it or removed since, without a look at what is in it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import NamedTuple

from featurestore.store import filesystem


class Stamp(NamedTuple):
    """Times of change of a folder, nanoseconds: one that was given to it, and when that was.

    The first may come with a copy of another folder, where other entries are; the second never does.
    """

    modified: int
    changed: int | None

    @classmethod
    def of(cls, folder: Path) -> Stamp:
        """That of a folder now."""
        status = folder.stat()
        return cls(status.st_mtime_ns, status.st_ctime_ns)


def give_stamp(folder: Path) -> Stamp | None:
    """Give a folder a time of change that no later change can give it again.

    As long as the folder has this stamp, nothing was added to it or removed. None where this is not allowed.
    """
    moment = time.time_ns() - 1_000_000_000 - random.randrange(10**9)
    try:
        filesystem.set_modified(folder, moment)
    except PermissionError:
        return None
    found = Stamp.of(folder)
    # Some file systems round; another second is a change in between.
    return found if found.modified // 10**9 == moment // 10**9 else None
