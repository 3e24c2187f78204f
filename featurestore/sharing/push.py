"""Pushing a store into a bucket, from which it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from featurestore.errors import SpecMismatchError, TrackExistsError, TrackLockedError
from featurestore.sharing.bucket_table import Published, update_table
from featurestore.sharing.transfer import Notify, TransferReport, narrowed, transfer
from featurestore.spec import KINDS, kinds_of_level
from featurestore.store.array_reader import ArrayReader
from featurestore.store.bucket import Bucket
from featurestore.store.byte_source import LocalFile
from featurestore.store.folder_source import FolderSource
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import (
    METADATA,
    ArrayMetadata,
    encode_document,
    seal,
    shard_name,
    structure,
)
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.shards import ShardReader, plain_index
from featurestore.store.format.small_chunks import with_crc
from featurestore.store.paths import HIDDEN
from featurestore.store.table.rows import UNKNOWN, digest
from featurestore.store.table.table import PackedTable
from featurestore.store.verify import check_chunks

_COMPARED = 2**24  # bytes
_ABANDONED = timedelta(hours=1)
"""After so long without a change, what is there of a track that is not whole is taken for that of a dead push."""


def shard_content(array: OpenArray) -> memoryview:
    """The shard of an open array: its file, or what that was before the track came into a bundle."""
    if isinstance(array.shard, ShardReader) and isinstance(array.shard.file, LocalFile):
        return array.shard.file.mapped()
    stored = np.dtype(array.metadata.dtype).newbyteorder("<")
    chunks = [array.shard.read([number]).astype(stored).tobytes() for number in range(array.shard.chunks)]
    # What is compressed is in no bundle.
    return memoryview(b"".join(map(with_crc, chunks)) + plain_index(len(chunks), len(chunks[0])))


class Push:
    """One push of a store into a bucket, up to a level."""

    def __init__(self, source: FolderSource, bucket: Bucket, *, level: str) -> None:
        self._source = source
        self._bucket = bucket
        self._kinds = kinds_of_level(level)
        self._remote = ArrayReader(bucket, source.spec)
        self._there: set[str] = set()  # keys of tracks in the bucket
        self._published: dict[str, Published] = {}

    def run(self, track_ids: Sequence[str], notify: Notify | None = None) -> TransferReport:
        """Push tracks; what is interrupted shows up to there.

        Raises
        ------
        SpecMismatchError
            If the bucket has a store of other settings.
        StoreAccessError
            If the bucket cannot be written.
        """
        wanted = list(track_ids)
        if self._begin():
            wanted = self._not_in_table(wanted)
            if wanted:
                self._there = self._bucket.track_keys()
        report = TransferReport(there=len(track_ids) - len(wanted))
        try:
            transfer(self._push, wanted, report, notify)
        finally:
            update_table(self._bucket, self._source, self._published)
        return report

    def _begin(self) -> bool:
        """Make the store if there is none; whether there was one."""
        spec = self._source.spec
        documents = structure(spec)
        del documents[HIDDEN]
        root = encode_document(documents.pop(""))
        there = self._bucket.spec_or_none()
        if there is None:
            for name, document in documents.items():
                self._bucket.create(f"{name}/{METADATA}", encode_document(document))
            if self._bucket.create(METADATA, root):
                return False
            there = self._bucket.spec_or_none() or spec
        if differences := there.differences(spec):
            listed = "; ".join(f"`{name}` is {x!r}, not {y!r}" for name, (x, y) in differences.items())
            raise SpecMismatchError(
                f"{self._bucket.url} holds features of other settings ({listed}): push to another address",
                differences=differences,
            )
        return True

    def _not_in_table(self, track_ids: Sequence[str]) -> list[str]:
        """The tracks that the bucket's table does not have as they are, and those of which raw is wanted."""
        if self._bucket.current() is None:
            return list(track_ids)
        with self._bucket.open() as root:
            table = PackedTable.open(root, self._source.spec)
        left = []
        for track_id in track_ids:
            row = -1 if table is None else table.rows.get(track_id, -1)
            if table is None or row < 0:
                left.append(track_id)
                continue
            known = self._source.attributes(track_id)
            revision, _, segments = table.described[row]
            whole = "segments" not in self._wanted(known["kinds"]) or segments != UNKNOWN
            if revision != digest(known["revision"]) or not whole or "raw" in self._wanted(known["kinds"]):
                left.append(track_id)
        return left

    def _wanted(self, kinds: Iterable[str]) -> list[str]:
        return [kind for kind in KINDS if kind in kinds and kind in self._kinds]

    def _push(self, track_id: str) -> bool:
        """Push a track; whether something of it was not there."""
        key = encode_key(track_id)
        with contextlib.ExitStack() as stack:
            arrays = self._opened(stack, key, track_id)
            own = arrays["aggregated"].metadata
            revision, wanted = str(own.attributes["revision"]), self._wanted(own.attributes["kinds"])
            while True:
                tag, there = self._current(key)
                has = [] if there is None else there.attributes["kinds"]
                if there is not None and there.attributes["revision"] != revision:
                    raise TrackExistsError(
                        f"{track_id!r:.200} is in {self._bucket.url} as another revision, and stays as it is: "
                        "push to another address, or remove it there"
                    )
                missing = [kind for kind in wanted if kind not in has]
                kinds = [kind for kind in KINDS if kind in (*has, *wanted)]
                if not missing or self._place(key, arrays, missing, kinds, tag):
                    break
                self._there.add(key)  # somebody else was faster
            array = arrays.get("segments")
            segments = UNKNOWN if array is None else array.metadata.shape[0]
        self._published[track_id] = Published(revision, segments)
        return bool(missing)

    def _opened(self, stack: contextlib.ExitStack, key: str, track_id: str) -> dict[str, OpenArray]:
        """The arrays of one revision of a track, checked."""
        while True:
            with contextlib.ExitStack() as opened:
                first = opened.enter_context(self._source.reader.open("aggregated", key, track_id))
                arrays = {"aggregated": first}
                for kind in self._wanted(first.metadata.attributes["kinds"]):
                    if kind != "aggregated":
                        arrays[kind] = opened.enter_context(self._source.reader.open(kind, key, track_id))
                if len({array.revision for array in arrays.values()}) == 1:  # or it was replaced just now
                    for kind, array in arrays.items():
                        check_chunks(array, f"{kind}/{key}")
                    stack.push(opened.pop_all())
                    return arrays

    def _current(self, key: str) -> tuple[str | None, ArrayMetadata | None]:
        """Tag and metadata of the `aggregated` of a track in the bucket, if it is one of those that are there."""
        if key not in self._there:
            return None, None
        return self._bucket.refresh(f"aggregated/{key}/{METADATA}"), self._remote.current(key)

    def _place(
        self,
        key: str,
        arrays: dict[str, OpenArray],
        missing: Sequence[str],
        kinds: Sequence[str],
        tag: str | None,
    ) -> bool:
        """Put kinds of a track in their place, the metadata of `aggregated` last; False if somebody else did.

        Only that one names the kinds that are pushed: all else is as it is in the store, whatever the level.
        """
        for kind in missing:
            metadata, content = arrays[kind].metadata, shard_content(arrays[kind])
            self._put(f"{kind}/{key}/{shard_name(len(metadata.shape))}", content, key)
            if kind != "aggregated":
                self._put(f"{kind}/{key}/{METADATA}", encode_document(seal(metadata.document())), key)
        last, whole = f"aggregated/{key}/{METADATA}", narrowed(arrays["aggregated"].metadata, kinds)
        return self._bucket.create(last, whole) if tag is None else self._bucket.replace(last, whole, tag)

    def _put(self, path: str, content: Any, key: str) -> None:
        """Write an object that is not there, or see that it is the same."""
        if self._bucket.create(path, content) or self._is_equal(path, memoryview(content)):
            return
        abandoned = datetime.now(UTC) - self._bucket.written(path) > _ABANDONED
        if not abandoned or self._bucket.exists(f"aggregated/{key}/{METADATA}"):
            raise TrackLockedError(
                f"{self._bucket.url}/{path} is of another revision, of a push that is at work, or was stopped in "
                "the last hour: push again later"
            )
        self._bucket.delete([path])
        self._put(path, content, key)

    def _is_equal(self, path: str, content: memoryview) -> bool:
        size, _ = self._bucket.tail(path)
        if size != len(content):
            return False
        for start in range(0, size, _COMPARED):
            (found,) = self._bucket.ranges(path, [start], [min(start + _COMPARED, size)])
            if found != content[start : start + len(found)]:
                return False
        return True
