"""How a store tells that no track has come or gone since, without a look at what is in it."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from featurestore.store import filesystem
from featurestore.store.paths import StorePaths

_MOMENT = re.compile("-?[0-9]{1,20}")


class MtimeToken(NamedTuple):
    """Times of change of the folder `aggregated`, nanoseconds: one that was given to it, and when that was.

    The first may come with a copy of another folder, where other entries are; the second never does. And which
    bundles there are, as a digest; empty without any.
    """

    modified: int
    changed: int
    bundles: str = ""

    @classmethod
    def of(cls, paths: StorePaths, bundles: Collection[str]) -> MtimeToken:
        """That of a store, with the names of its bundles, now."""
        status = paths.kind("aggregated").stat()
        names = "\n".join(sorted(bundles)).encode()
        return cls(status.st_mtime_ns, status.st_ctime_ns, hashlib.sha256(names).hexdigest() if bundles else "")

    def to_attributes(self) -> dict[str, str]:
        """As attributes of the table: text, as netCDF of the classic formats has no numbers of 64 bits."""
        own = {"aggregated_mtime": str(self.modified), "aggregated_ctime": str(self.changed)}
        return {**own, "bundles": self.bundles} if self.bundles else own

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> MtimeToken | None:
        """From attributes of the table, None if they have none; ValueError if it is impossible."""
        moments = attributes.get("aggregated_mtime"), attributes.get("aggregated_ctime")
        if moments == (None, None):
            return None
        if not all(isinstance(moment, str) and _MOMENT.fullmatch(moment) for moment in moments):
            raise ValueError("impossible times of change")
        bundles = attributes.get("bundles", "")
        if not isinstance(bundles, str):
            raise ValueError("impossible digest of bundles")
        return cls(int(str(moments[0])), int(str(moments[1])), bundles)


def set_mtime_token(paths: StorePaths, bundles: Collection[str]) -> MtimeToken | None:
    """Give the folder `aggregated` a time of change that no later change can give it again.

    As long as the store has this token, no track has come or gone but for those that are marked. None where this
    is not allowed.
    """
    moment = time.time_ns() - 1_000_000_000 - random.randrange(10**9)
    try:
        filesystem.set_modified(paths.kind("aggregated"), moment)
    except PermissionError:
        return None
    found = MtimeToken.of(paths, bundles)
    # Some file systems round; another second is a change in between.
    return found if found.modified // 10**9 == moment // 10**9 else None
