"""Pulling a store out of a bucket, or from a web server, into a folder."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from featurestore.errors import SettingError, TrackExistsError, TrackNotFoundError
from featurestore.sharing.push import OF_ONE_TRACK, Notify, TransferReport, narrowed, of_shard
from featurestore.spec import KINDS, kinds_of_level
from featurestore.store import StoreWriter, filesystem, reading
from featurestore.store.bucket import BucketSource
from featurestore.store.byte_source import LocalFile
from featurestore.store.commit.record import TransactionRecord
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import METADATA, encode_document, seal, shard_name
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.shards import ShardReader
from featurestore.store.paths import StorePaths, resolve_address
from featurestore.store.table.index import TrackIndex
from featurestore.store.track_reader import TrackReader
from featurestore.store.verify import check_chunks

_AT_ONCE = 8  # tracks
_BLOCK = 2**24
"""Bytes of an array that are fetched at once."""

T = TypeVar("T")
R = TypeVar("R")


def pull(
    url: str,
    path: str | Path,
    *,
    level: str = "all",
    shard: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    notify: Notify | None = None,
) -> TransferReport:
    """Copy a store from a bucket, or a web server, into a folder: revisions, attributes and bytes as they are.

    What is there already is not copied again: an interrupted pull goes on where it was.

    Parameters
    ----------
    url : str
        Where the store is.
    path : str or Path
        The store in a folder, new or of the same settings.
    level : str
        The highest level that is copied: ``all``, ``segments`` or ``aggregated``.
    shard, storage_options, notify
        As in `FeatureStore.push`.

    Returns
    -------
    TransferReport

    Raises
    ------
    StoreAccessError
        If the bucket cannot be read, or the folder not be written.
    SpecMismatchError
        If the folder has a store of other settings.

    Examples
    --------
    >>> from featurestore.sharing import pull
    >>> FeatureStore("features.zarr").push("s3://bucket/pulled").copied
    3
    >>> pull("s3://bucket/pulled", "pulled.zarr")
    TransferReport(copied=3, there=0, failed=[])
    """
    address = resolve_address(url)
    if isinstance(address, Path):
        raise SettingError(f"{address} is no address of a store in a bucket: use `fs-extract copy`")
    source = BucketSource(address, storage_options)
    track_ids, report = of_shard(source.track_ids(), shard), TransferReport()
    with StoreWriter(path, spec=source.spec) as writer:
        one = _Pull(source, writer, kinds_of_level(level))
        for done, (track_id, fetched) in enumerate(_ahead(one.fetch, track_ids), start=1):
            try:
                copied = fetched.result()()
            except OF_ONE_TRACK as error:
                report.failed.append((track_id, str(error)))
            else:
                report.copied += copied
                report.there += not copied
            if notify is not None:
                notify(done, len(track_ids))
        writer.pack()
    return report


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, Future[R]]]:
    """Each item and what a function makes of it, in order, a few ahead."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > _AT_ONCE:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


class _Pull:
    def __init__(self, source: BucketSource, writer: StoreWriter, kinds: Sequence[str]) -> None:
        self._source = source
        self._writer = writer
        self._kinds = kinds
        self._index = TrackIndex(TrackReader(StorePaths.of(writer.path), writer.spec))

    def fetch(self, track_id: str) -> Callable[[], bool]:
        """Fetch a track; what is given puts it into the store, and says whether it was not there."""
        own = self._source.reader.current(encode_key(track_id))
        if own is None:
            raise TrackNotFoundError(f"{self._source.path} has no track {track_id!r:.200}: push it again")
        kinds = [kind for kind in KINDS if kind in own.attributes["kinds"] and kind in self._kinds]
        revision = str(own.attributes["revision"])
        there = self._writer.existing(track_id)
        if there is not None:
            if there["revision"] != revision:
                raise TrackExistsError(
                    f"{track_id!r:.200} is in {self._writer.path} as another revision than in "
                    f"{self._source.path}: remove it from the folder, or pull to another"
                )
            if set(kinds) <= set(there["kinds"]):
                return lambda: False
        with contextlib.ExitStack() as stack:
            opened = {
                kind: stack.enter_context(self._source.reader.open(kind, encode_key(track_id), track_id))
                for kind in kinds
            }
            small = {kind: array.file.read(_BLOCK, 0) for kind, array in opened.items()}

        def place() -> bool:
            session, replace = self._writer.session, there is not None
            with session.publishing(track_id, self._index.has_row, replace=replace) as (folder, record):
                self._fill(folder, opened, small, kinds)
                record(TransactionRecord(tuple(kinds), revision))
            return True

        return place

    def _fill(
        self, folder: Path, opened: Mapping[str, OpenArray], small: Mapping[str, bytes], kinds: Sequence[str]
    ) -> None:
        for kind, array in opened.items():
            metadata, file, below = array.metadata, array.file, folder / kind
            name = f"{kind} of {metadata.attributes['track_id']!r:.200}"
            filesystem.make_dir(below)
            path = below / shard_name(len(metadata.shape))
            fd = filesystem.create_file(path)
            try:
                filesystem.write_all(fd, [small[kind]])
                for start in range(len(small[kind]), file.size, _BLOCK):
                    filesystem.write_all(fd, [file.read(_BLOCK, start)])
            finally:
                os.close(fd)
            content = encode_document(seal(metadata.document()))
            filesystem.write_file(below / METADATA, narrowed(metadata, kinds) if kind == "aggregated" else content)
            written = LocalFile(os.open(path, reading.READ))
            with OpenArray(metadata, ShardReader(written, metadata, name)) as found:
                check_chunks(found, name)
