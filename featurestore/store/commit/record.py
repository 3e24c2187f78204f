"""What a staged change is to do, in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from featurestore.spec import KINDS
from featurestore.store import filesystem, reading
from featurestore.store.format.metadata import MAX_METADATA_BYTES

INTENT = "intent.json"


@dataclass(frozen=True)
class TransactionRecord:
    """What a staged change is to do: replace a track by a revision that has some kinds, or, by none, remove it."""

    kinds: tuple[str, ...]
    revision: str

    def write(self, folder: Path) -> None:
        """Write it down in a staged folder."""
        content = json.dumps({"kinds": self.kinds, "revision": self.revision})
        filesystem.write_file(folder / INTENT, content.encode())

    @classmethod
    def read(cls, folder: Path) -> TransactionRecord | None:
        """The record in a folder, None if there is no readable one."""
        try:
            values = json.loads(reading.read_file(folder / INTENT, limit=MAX_METADATA_BYTES))
            return cls(tuple(kind for kind in KINDS if kind in values["kinds"]), str(values["revision"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
