"""The table of a store in a bucket: each state is a folder that never changes, one object names the current."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, StoreAccessError, TrackNotFoundError
from featurestore.store.array_reader import ArrayReader
from featurestore.store.bucket import PACKED, POINTER, Bucket, Pointer
from featurestore.store.byte_source import REQUESTS
from featurestore.store.folder_source import FolderSource
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import METADATA, encode_document
from featurestore.store.format.small_chunks import encode_texts
from featurestore.store.table.chunks import encode_chunk
from featurestore.store.table.layout import (
    chunk_name,
    chunk_rows,
    chunk_size,
    encode_layers,
    encoding_of,
    table_documents,
)
from featurestore.store.table.listing import track_ids_of
from featurestore.store.table.rows import ROW, ROWS, UNKNOWN, digest, encode_rows
from featurestore.store.table.table import PackedTable

_ATTEMPTS = 50
_LAYOUT = 0
"""Layout version of all states: none takes the place of another."""
_KEPT = timedelta(days=1)
"""For so long readers go on with a state that is not current any more."""


@dataclass(frozen=True)
class Published:
    """A track that is in the bucket: its revision, and how many segments it has."""

    revision: str
    segments: int


def update_table(bucket: Bucket, source: FolderSource, published: Mapping[str, Published]) -> None:
    """Add tracks that are in a bucket to its table.

    Raises
    ------
    StoreAccessError
        If others changed it all the time, or the bucket cannot be written.
    """
    for _ in range(_ATTEMPTS):
        if _State(bucket, source, published).switch():
            return
    raise StoreAccessError(
        f"the table of {bucket.url} changes all the time: push again when other pushes are done"
    )


class _State:
    """One attempt at the next state of a table, made from the current one."""

    def __init__(self, bucket: Bucket, source: FolderSource, published: Mapping[str, Published]) -> None:
        self._bucket = bucket
        self._source = source
        self._spec = source.spec
        self._remote = ArrayReader(bucket, source.spec)
        self._published = dict(published)
        self._generation = uuid.uuid4().hex
        try:
            self._tag = bucket.refresh(POINTER)
        except FileNotFoundError:
            self._tag = None
        self._pointer = None if self._tag is None else bucket.pointer()
        self._before: PackedTable | None = None
        if self._pointer is not None:
            with bucket.open() as root:
                self._before = PackedTable.open(root, self._spec)
        old = [] if self._before is None else self._before.track_ids
        known = {} if self._before is None else self._before.rows
        self._more = sorted(self._published.keys() - known)
        if self._before is None:  # of a store that was copied here, all tracks are wanted
            keys = bucket.track_keys() - set(map(encode_key, self._more))
            there = track_ids_of(self._remote, keys)
            self._more = sorted({*self._more, *there.values()})
        self._ids = [*old, *self._more]

    def switch(self) -> bool:
        """Write the state and make it the current one, unless nothing is new; False if another was faster."""
        described = self._described()
        if self._before is not None and not self._more and (described == self._before.described).all():
            return True
        with ThreadPoolExecutor(REQUESTS) as pool:
            before = 0 if self._before is None else self._before.chunk_size
            rows = chunk_rows(_LAYOUT, chunk_size(len(self._ids), before))
            for number in range(-(-len(self._ids) // rows)):
                self._write_chunk(pool, number, rows)
            self._write_documents(rows, self._described())
        now = datetime.now(UTC)
        superseded = dict(self._pointer.superseded) if self._pointer is not None else {}
        gone = {name for name, moment in superseded.items() if now - datetime.fromisoformat(moment) > _KEPT}
        kept = {name: moment for name, moment in superseded.items() if name not in gone}
        if self._pointer is not None:
            kept[self._pointer.current] = now.isoformat()
        content = Pointer(self._generation, kept).encode()
        if self._tag is None:
            done = self._bucket.create(POINTER, content)
        else:
            done = self._bucket.replace(POINTER, content, self._tag)
        # A request that was answered by nobody is sent again, and refused if it had been carried out.
        done = self._bucket.current(fresh=True) == self._generation or done
        self._sweep({*kept, self._generation} if done else None, now)
        return done

    def _put(self, name: str, content: Any) -> None:
        self._bucket.create(f"{PACKED}/{self._generation}/{name}", content)

    def _described(self) -> npt.NDArray[np.void]:
        """What each row is of, as far as that is known."""
        found = np.zeros(len(self._ids), ROW)
        found["changed"] = found["segments"] = UNKNOWN
        if self._before is not None:
            found[: self._before.tracks] = self._before.described
        for row, track_id in enumerate(self._ids):
            if (known := self._published.get(track_id)) is not None:
                found[row] = digest(known.revision), UNKNOWN, known.segments
        return found

    def _write_chunk(self, pool: ThreadPoolExecutor, number: int, rows: int) -> None:
        """Write some rows of all layers, or copy them where they are as they were."""
        layers, encoding, first = len(self._spec.layers), encoding_of(_LAYOUT), number * rows
        ids, before = self._ids[first : first + rows], self._before
        features = [f"features/{chunk_name(encoding, number, layer, 0)}" for layer in range(layers)]
        labels = f"track_id/{chunk_name(encoding, number)}"
        old = 0 if before is None else min(max(before.tracks - first, 0), len(ids))
        if before is not None and before.rows_per_chunk == rows and old == len(ids):
            assert self._pointer is not None
            current, new = (f"{PACKED}/{x}/" for x in (self._pointer.current, self._generation))

            def copy(name: str) -> None:
                self._bucket.copy(current + name, new + name)

            list(pool.map(copy, [*features, labels]))
            return
        dtype = np.dtype(self._spec.dtype).newbyteorder("<")
        chunk = np.full((rows, layers, self._spec.dim), np.nan, dtype)
        if before is not None and old:
            with self._bucket.open() as root:
                chunk[:old] = before.read(root, np.arange(first, first + old), range(layers))
        for row, values in zip(range(old, len(ids)), pool.map(self._row, ids[old:]), strict=True):
            chunk[row] = values

        def put(layer: int) -> None:
            content, end = encode_chunk(np.ascontiguousarray(chunk[:, layer : layer + 1]))
            self._put(features[layer], content.tobytes() + end)

        list(pool.map(put, range(layers)))
        self._put(labels, encode_texts(ids, rows))

    def _row(self, track_id: str) -> npt.NDArray[Any]:
        """`aggregated` of a track in the bucket, of the revision that is there."""
        key, layers, known = encode_key(track_id), range(len(self._spec.layers)), self._published.get(track_id)
        if known is not None:
            try:
                with self._source.reader.open("aggregated", key, track_id) as array:
                    if array.revision == known.revision:
                        return array.read(layers)
            except (TrackNotFoundError, CorruptTrackError):
                pass  # it has changed since it was pushed
        with self._remote.open("aggregated", key, track_id) as array:
            if known is None:
                has = "segments" in array.metadata.attributes["kinds"]
                segments = self._remote.describe("segments", track_id)[0][0] if has else UNKNOWN
                self._published[track_id] = Published(array.revision, segments)
            return array.read(layers)

    def _write_documents(self, rows: int, described: npt.NDArray[np.void]) -> None:
        self._put(f"layer/{chunk_name('default', 0)}", encode_layers(self._spec))
        content, checksum = encode_rows(described)
        self._put(f"track_id/{ROWS}", content)
        own = {"generation": self._generation, "layout": _LAYOUT, "fingerprint": self._spec.fingerprint}
        documents = table_documents(len(self._ids), rows, self._spec, {**own, "rows_crc32c": checksum})
        for name, document in sorted(documents.items(), reverse=True):  # that of the group last
            self._put(f"{name}/{METADATA}" if name else METADATA, encode_document(document))

    def _sweep(self, kept: set[str] | None, now: datetime) -> None:
        """Remove what is no table any more, and what dead pushes have left of one; or only what this one wrote."""
        folders: dict[str, list[tuple[str, datetime]]] = {}
        for path, written in self._bucket.entries(PACKED if kept else f"{PACKED}/{self._generation}"):
            folders.setdefault(path.split("/")[1], []).append((path, written))
        folders.pop(METADATA, None)
        for name, entries in folders.items():
            old = all(now - written > _KEPT for _, written in entries)
            if kept is None or (name not in kept and old):
                self._bucket.delete([path for path, _ in entries])
