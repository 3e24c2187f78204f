"""Pulling a store out of a bucket, or from a web server, into a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from featurestore.errors import SettingError, TrackExistsError, TrackNotFoundError
from featurestore.sharing.transfer import Notify, TransferReport, narrowed, of_shard, transfer
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

_BLOCK = 2**24
"""Bytes of an array that are fetched at once."""


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
        index = TrackIndex(TrackReader(StorePaths.of(writer.path), writer.spec))
        stopped = Event()
        copy = partial(_copy, source, writer, index, kinds_of_level(level), stopped)
        transfer(copy, track_ids, report, notify, stopped=stopped)
        writer.pack()
    return report


def _copy(
    source: BucketSource,
    writer: StoreWriter,
    index: TrackIndex,
    wanted: Sequence[str],
    stopped: Event,
    track_id: str,
) -> bool:
    """Pull these kinds of a track; whether something of it was not there."""
    key = encode_key(track_id)
    own = source.reader.current(key)
    if own is None:
        raise TrackNotFoundError(f"{source.path} has no track {track_id!r:.200}: push it again")
    kinds = [kind for kind in KINDS if kind in own.attributes["kinds"] and kind in wanted]
    revision = str(own.attributes["revision"])
    there = writer.existing(track_id)
    if there is not None:
        if there["revision"] != revision:
            raise TrackExistsError(
                f"{track_id!r:.200} is in {writer.path} as another revision than in "
                f"{source.path}: remove it from the folder, or pull to another"
            )
        if set(kinds) <= set(there["kinds"]):
            return False
    with contextlib.ExitStack() as stack:
        arrays = {kind: stack.enter_context(source.reader.open(kind, key, track_id)) for kind in kinds}
        # Most are no longer: their track is locked only when they are here.
        begins = {kind: array.file.read(_BLOCK, 0) for kind, array in arrays.items()}
        session, replace = writer.session, there is not None
        with session.publishing(track_id, index.has_row, replace=replace) as (folder, record):
            for kind, array in arrays.items():
                metadata = array.metadata
                document = encode_document(seal(metadata.document()))
                content = narrowed(metadata, kinds) if kind == "aggregated" else document
                _write(folder / kind, array, begins[kind], content, stopped)
            record(TransactionRecord(tuple(kinds), revision))
    return True


def _write(folder: Path, array: OpenArray, begin: bytes, document: bytes, stopped: Event) -> None:
    """Write an array of a bucket, of which the first bytes are here, and check what was written."""
    metadata, file = array.metadata, array.file
    filesystem.make_dir(folder)
    path = folder / shard_name(len(metadata.shape))
    fd = filesystem.create_file(path)
    try:
        filesystem.write_all(fd, [begin])
        for start in range(len(begin), file.size, _BLOCK):
            if stopped.is_set():  # raw of a track may take minutes
                raise CancelledError
            filesystem.write_all(fd, [file.read(_BLOCK, start)])
    finally:
        os.close(fd)
    filesystem.write_file(folder / METADATA, document)
    name = f"{folder.name} of {metadata.attributes['track_id']!r:.200}"
    with OpenArray(metadata, ShardReader(LocalFile(os.open(path, reading.READ)), metadata, name)) as written:
        check_chunks(written, name)
