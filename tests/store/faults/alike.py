"""Whether stores are alike, so that what holds of one holds of the other: what differs by chance is left out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import google_crc32c
import numpy as np

from featurestore.store.paths import StorePaths
from featurestore.store.table.rows import ROW, ROWS, UNKNOWN

_RANDOM = re.compile(rb"[0-9a-f]{12,64}|[0-9]{19}")
_WRITERS = re.compile(rb"staging/[^/]+")


@contextlib.contextmanager
def same_ids() -> Iterator[None]:
    """Random ids that are the same each time: without them, what is written in binary differs each time."""
    chance = random.Random(0)

    def same_id() -> uuid.UUID:
        return uuid.UUID(int=chance.getrandbits(128), version=4)

    with mock.patch("uuid.uuid4", same_id):
        yield


def likeness(folder: Path, store: Path) -> str:
    """What is the same for two folders that differ in nothing but random ids, times and what the locks say.

    Parameters
    ----------
    folder, store : Path
        All that is looked at, and the store in it.
    """
    found: list[tuple[bytes, bytes]] = []
    meanings = {}
    for path, folders, names in os.walk(os.fsencode(folder)):
        inside = path[len(os.fsencode(folder)) :] + b"/"
        found += [(inside + name, b"folder") for name in folders]
        for name in names if not path.endswith(b"/locks") else ():
            with open(os.path.join(path, name), "rb") as file:
                content = file.read()
            found.append((inside + name, content))
            if inside.endswith(b"/track_id/") and name == ROWS.encode():
                meanings[b"%08x" % google_crc32c.value(content)] = b"rows"
    aggregated = StorePaths(store).kind("aggregated")
    if aggregated.exists():
        meanings[b"%d" % aggregated.stat().st_mtime_ns] = b"aggregated"
    times = {file.stat().st_ctime_ns for file in aggregated.glob("*/zarr.json")}
    digest = hashlib.sha256()
    for name, content in sorted(found):
        if name.endswith(b"/zarr.json"):
            for value, meaning in meanings.items():
                content = content.replace(value, meaning)
        elif name.endswith(b"/track_id/rows"):
            content = _without_times(content, times)
        for part in (_WRITERS.sub(b"staging/*", name), content):
            digest.update(_without_ids(part) + b"\0")
    return digest.hexdigest()


@functools.lru_cache(10_000)
def _without_ids(content: bytes) -> bytes:
    return _RANDOM.sub(b"*", content)


def _without_times(content: bytes, times: set[int]) -> bytes:
    """Of each row of a packed table, not when its track changed, but whether that is when one did."""
    if len(content) % ROW.itemsize:
        return content
    rows = np.frombuffer(content, ROW).copy()
    rows["changed"] = [int(x) if x == UNKNOWN else x in times for x in rows["changed"]]
    return rows.tobytes()
