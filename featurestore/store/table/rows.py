"""What each row of the packed table is of: the revision of its track, when the track's metadata last changed, and
how many segments it has.

The first two are for writers and for `verify`. A track that was restored, or copied over from another store,
leaves no mark that its row is out of date; its revision tells.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.store import reading
from featurestore.store.format.metadata import METADATA
from featurestore.store.paths import StorePaths

ROWS = "rows"
"""The file, which lies beside the chunks of `track_id`."""
ROW = np.dtype([("revision", "S16"), ("changed", "<i8"), ("segments", "<i4")])
"""The first half of the SHA-256 of the revision, and the time of change (ctime) of the metadata, nanoseconds;
and the number of segments, `UNKNOWN` where none are stored."""
UNKNOWN = -1
"""The time of change of a file that is not there, and the number of segments that are not."""

Rows = npt.NDArray[np.void]


def digest(revision: str) -> bytes:
    """Give what a row keeps of a revision."""
    # As numpy drops zeros at the end of bytes, they are dropped here.
    return hashlib.sha256(revision.encode()).digest()[:16].rstrip(b"\0")


def encode_rows(rows: Rows) -> tuple[bytes, str]:
    """Give the content of the file, and the checksum by which the table knows it."""
    content = rows.tobytes()
    return content, f"{google_crc32c.value(content):08x}"


def decode_rows(content: bytes, tracks: int, checksum: str) -> Rows:
    """Read the content of the file; ValueError if it is not the one of a table of so many tracks."""
    if len(content) != tracks * ROW.itemsize or f"{google_crc32c.value(content):08x}" != checksum:
        raise ValueError("the revisions of the rows are not those that were written")
    return np.frombuffer(content, ROW)


def times_of_change(paths: StorePaths, keys: Iterable[str]) -> npt.NDArray[np.int64]:
    """Look up when the metadata of each track last changed, nanoseconds; `UNKNOWN` where there is none."""
    folder = reading.open_dir(paths.kind("aggregated"))
    try:
        return np.fromiter((_time_of_change(folder, key) for key in keys), np.int64)
    finally:
        os.close(folder)


def _time_of_change(folder: int, key: str) -> int:
    try:
        return os.stat(f"{key}/{METADATA}", dir_fd=folder, follow_symlinks=False).st_ctime_ns
    except OSError:  # whoever reads the track says what is wrong with it
        return UNKNOWN
