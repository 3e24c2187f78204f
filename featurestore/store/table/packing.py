"""Bringing the packed table up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, TrackLockedError, TrackNotFoundError
from featurestore.store import fallbacks, filesystem
from featurestore.store.commit.locks import TrackLocks, exclusive
from featurestore.store.commit.staging import StagingArea
from featurestore.store.commit.transaction import ASIDE, is_aside
from featurestore.store.format.keys import decode_key, encode_key, is_hashed
from featurestore.store.format.metadata import METADATA, encode_document, naming_of, shard_name
from featurestore.store.format.shards import ShardWriter
from featurestore.store.paths import Places
from featurestore.store.spool import RowSpool
from featurestore.store.table import table
from featurestore.store.table.coordinates import encode_ids, encode_layers
from featurestore.store.table.stamps import Stamp, give_stamp
from featurestore.store.table.table import (
    PackedTable,
    TableChangedError,
    naming_of_epoch,
    rows_per_shard,
    table_documents,
)
from featurestore.store.track_reader import TrackReader

_SPOOL_BYTES = 64 * 2**20
_log = logging.getLogger("featurestore")


def pack(
    reader: TrackReader,
    staging: StagingArea,
    locks: TrackLocks,
    *,
    wait: float,
    durable: bool,
    anew: bool = False,
) -> bool:
    """Bring the packed table up to date; `anew` does not look at the old one.

    Returns
    -------
    bool
        False if another writer was packing for more than `wait` seconds.
    """
    with exclusive(reader.places.locks / "pack.lock", timeout=wait) as held:
        if held:
            damaged: set[str] = set()
            while True:
                job = _Packing(reader, staging.folder(), damaged, durable=durable)
                try:
                    job.run(anew=anew)
                    break
                except TrackNotFoundError:
                    continue  # removed, or found to be damaged, since it was listed
                except (CorruptTrackError, TableChangedError) as error:
                    if anew:
                        raise
                    _log.warning("%s: building the packed table anew", error)
                    anew = True
                finally:
                    filesystem.discard(job.folder, reader.places.trash)
            job.clear_marks(locks)
    return held


def list_keys(places: Places) -> set[str]:
    """Keys of all published tracks."""
    folder = places.kind("aggregated")
    keys = set(os.listdir(folder))
    try:
        moved = [
            key
            for key in os.listdir(places.journal)
            if key not in keys and (places.journal / key / ("aggregated" + ASIDE)).exists()
        ]
    except FileNotFoundError:
        moved = []
    if moved:  # aside for an instant, or by now in its place
        keys |= {key for key in moved if is_aside(places, key)}
        keys |= set(os.listdir(folder))
    return keys - {METADATA}


def track_ids_of(reader: TrackReader, keys: Iterable[str]) -> dict[str, str]:
    """Track id of each key; what is no key of a track, or of one whose id is lost, is left out."""
    found = {}
    for key in keys:
        try:
            track_id = decode_key(key)
        except ValueError:
            continue
        if track_id is None:
            try:
                current = reader.current(key)
            except CorruptTrackError:
                continue
            if current is None:
                continue
            track_id = str(current.attributes["track_id"])
        found[key] = track_id
    return found


class _Packing:
    """One attempt at a new state of the table; `damaged` collects keys that cannot be packed."""

    def __init__(self, reader: TrackReader, folder: Path, damaged: set[str], *, durable: bool) -> None:
        self.reader = reader
        self.places = reader.places
        self.spec = reader.spec
        self.folder = folder
        self.durable = durable
        self.damaged = damaged
        self.revisions: dict[str, str] = {}
        self.ids: list[str] = []
        self.marks: set[str] = set()
        self.stale: set[str] = set()

    def run(self, *, anew: bool) -> None:
        """Make the new state; `anew` does not look at the old one."""
        # Marks first: a track that is superseded from now on is marked again.
        self.marks = set(os.listdir(self.places.stale))
        stamp = give_stamp(self.places.kind("aggregated"))
        listed = list_keys(self.places)
        keys = listed - self.damaged
        old = None if anew else self._old()
        self.stale = set(track_ids_of(self.reader, self.marks & keys).values())
        if old is None:
            kept: list[str] = []
            known: set[str] = set()
        else:
            encoded = old.keys()
            kept = [track_id for track_id, key in zip(old.track_ids, encoded, strict=True) if key in keys]
            known = set(encoded)
        fresh = track_ids_of(self.reader, keys - known)
        self.ids = kept + sorted(fresh.values())
        if self.damaged & listed or any(map(is_hashed, keys - known - fresh.keys())):
            stamp = None  # what is left out must not be forgotten
        if old is not None and self.ids == old.track_ids and not self.stale & old.rows.keys():
            if stamp != old.stamp:
                self._write_group(self.folder, old.rows_per_shard, old.generation, stamp, old.epoch)
                if self.durable:
                    filesystem.sync_file(self.folder / METADATA)
                filesystem.rename(self.folder / METADATA, self.places.packed / METADATA)
            return
        new = self.folder / "packed"
        filesystem.make_dir(new)
        rows = rows_per_shard(len(self.ids))
        epoch = self._epoch(old, rows)
        naming = naming_of_epoch(epoch)
        for array in ("features", "track_id", "layer"):
            filesystem.make_dir(new / array)
        self._write_shards(new, old, rows, naming)
        self._keep_for_readers(new, naming)
        filesystem.write_file(new / "layer" / shard_name(1), encode_layers(self.spec))
        self._write_group(new, rows, uuid.uuid4().hex, stamp, epoch)
        if self.durable:
            filesystem.sync_tree(new)
        fallbacks.replace_dir(new, self.places.packed, self.folder / ("packed" + ASIDE), keep=False)
        if self.durable:
            filesystem.sync_dir(self.places.root)

    def _old(self) -> PackedTable | None:
        root = filesystem.open_root(self.places.root)
        try:
            old = PackedTable.open(root, self.spec)
            if old is not None:
                old.check(root, self.spec)
            return old
        finally:
            os.close(root)

    def _epoch(self, old: PackedTable | None, rows: int) -> int:
        """The old one if all that readers of the old table may ask for stays where it is, or else the next."""
        if old is None:
            return 0
        appended = rows == old.rows_per_shard and self.ids[: len(old.track_ids)] == old.track_ids
        return old.epoch + (not (appended and self.stale.isdisjoint(old.track_ids)))

    def _write_group(self, folder: Path, rows: int, generation: str, stamp: Stamp | None, epoch: int) -> None:
        own = {"generation": generation, "epoch": epoch, "fingerprint": self.spec.fingerprint}
        own |= {"stamp": stamp and stamp.modified, "changed": stamp and stamp.changed}
        for name, document in table_documents(len(self.ids), rows, self.spec, own).items():
            if not name or (folder / name).exists():
                filesystem.write_file(folder / name / METADATA, encode_document(document))

    def _write_shards(self, new: Path, old: PackedTable | None, rows: int, naming: str) -> None:
        for shard in range(-(-len(self.ids) // rows)):
            ids = self.ids[shard * rows : (shard + 1) * rows]
            names = shard_name(3, shard, naming), shard_name(1, shard, naming)
            if old is not None and self._unchanged(old, shard, rows, ids):
                folder = self.places.packed
                before = shard_name(3, shard, old.naming), shard_name(1, shard, old.naming)
                fallbacks.link_or_copy(folder / "features" / before[0], new / "features" / names[0])
                fallbacks.link_or_copy(folder / "track_id" / before[1], new / "track_id" / names[1])
            else:
                self._write_shard(new / "features" / names[0], old, rows, ids)
                filesystem.write_file(new / "track_id" / names[1], encode_ids(ids, rows))

    def _keep_for_readers(self, new: Path, naming: str) -> None:
        """Hold the files of the other naming for readers of Zarr that have opened the table they belong to."""
        for array in ("features", "track_id"):
            with contextlib.suppress(FileNotFoundError), os.scandir(self.places.packed / array) as entries:
                for entry in entries:
                    if naming_of(entry.name) not in (None, naming) and entry.is_file(follow_symlinks=False):
                        fallbacks.link_or_copy(Path(entry.path), new / array / entry.name)

    def _unchanged(self, old: PackedTable, shard: int, rows: int, ids: list[str]) -> bool:
        before = old.track_ids[shard * rows : (shard + 1) * rows]
        return old.rows_per_shard == rows and ids == before and self.stale.isdisjoint(ids)

    def _write_shard(self, path: Path, old: PackedTable | None, rows: int, ids: list[str]) -> None:
        moved = [
            (row, old.rows[track_id])
            for row, track_id in enumerate(ids)
            if old is not None and track_id in old.rows and track_id not in self.stale
        ]
        kept = {row for row, _ in moved}
        read = [row for row in range(len(ids)) if row not in kept]
        targets, sources = np.array(moved, np.int64).reshape(-1, 2).T
        fresh = np.array(read, np.int64)
        spool = RowSpool(self.folder / "rows", _SPOOL_BYTES)
        shard = ShardWriter(path, "the packed table", np.dtype(self.spec.dtype).itemsize)
        root = filesystem.open_root(self.places.root)
        try:
            lost: TrackNotFoundError | None = None
            for row in read:
                try:
                    spool.append(self._row(ids[row]))
                except TrackNotFoundError as error:  # all that are lost are found before beginning again
                    lost = error
            if lost is not None:
                raise lost
            values = spool.rows() if read else None
            size = min(rows, table.CHUNK_ROWS)
            for first in range(0, rows, size):
                is_moved = targets // size == first // size
                is_fresh = fresh // size == first // size
                for layer in range(len(self.spec.layers)):
                    chunk = np.zeros((size, 1, self.spec.dim), np.dtype(self.spec.dtype).newbyteorder("<"))
                    if old is not None and is_moved.any():
                        chunk[targets[is_moved] - first] = old.read(root, sources[is_moved], [layer])
                    if values is not None and is_fresh.any():
                        chunk[fresh[is_fresh] - first] = values[is_fresh, layer : layer + 1]
                    shard.append([chunk])
            shard.finish()
        finally:
            os.close(root)
            shard.close()
            spool.close()

    def _row(self, track_id: str) -> npt.NDArray[Any]:
        key = encode_key(track_id)
        try:
            with self.reader.open("aggregated", key, track_id) as array:
                self.revisions[key] = array.revision
                return self.reader.read(array, layers=range(len(self.spec.layers)))[None]
        except CorruptTrackError as error:
            _log.warning("%s: left out of the packed table", error)
            self.damaged.add(key)
            raise TrackNotFoundError(str(error)) from error

    def clear_marks(self, locks: TrackLocks) -> None:
        """Remove the marks of tracks whose row is, or whose absence from the table is, up to date."""
        packed = {encode_key(track_id) for track_id in self.ids} if self.marks else set()
        for key in self.marks:
            # Under the lock, and with nothing in the journal, the track does not change.
            with contextlib.suppress(TrackLockedError, CorruptTrackError), locks.holding(key):
                current = self.reader.current(key)
                revision = None if current is None else current.attributes["revision"]
                known = self.revisions.get(key) if key in packed else None
                if not (self.places.journal / key).exists() and revision == known:
                    filesystem.unlink(self.places.stale / key)
