"""How a folder tells that nothing was added to it or removed since, without a look at what is in it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.store import filesystem

_MOMENT = re.compile("-?[0-9]{1,20}")


class MtimeToken(NamedTuple):
    """Times of change of a folder, nanoseconds: one that was given to it, and when that was.

    The first may come with a copy of another folder, where other entries are; the second never does.
    """

    modified: int
    changed: int

    @classmethod
    def of(cls, folder: Path) -> MtimeToken:
        """That of a folder now."""
        status = folder.stat()
        return cls(status.st_mtime_ns, status.st_ctime_ns)

    def to_attributes(self) -> dict[str, str]:
        """As attributes of the table: text, as netCDF of the classic formats has no numbers of 64 bits."""
        return {"aggregated_mtime": str(self.modified), "aggregated_ctime": str(self.changed)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> MtimeToken | None:
        """From attributes of the table, None if they have none; ValueError if it is impossible."""
        moments = attributes.get("aggregated_mtime"), attributes.get("aggregated_ctime")
        if moments == (None, None):
            return None
        if not all(isinstance(moment, str) and _MOMENT.fullmatch(moment) for moment in moments):
            raise ValueError("impossible times of change")
        return cls(int(str(moments[0])), int(str(moments[1])))


def set_mtime_token(folder: Path) -> MtimeToken | None:
    """Give a folder a time of change that no later change can give it again.

    As long as the folder has this token, nothing was added to it or removed. None where this is not allowed.
    """
    moment = time.time_ns() - 1_000_000_000 - random.randrange(10**9)
    try:
        filesystem.set_modified(folder, moment)
    except PermissionError:
        return None
    found = MtimeToken.of(folder)
    # Some file systems round; another second is a change in between.
    return found if found.modified // 10**9 == moment // 10**9 else None
