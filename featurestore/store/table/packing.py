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
from featurestore.store import fallbacks, filesystem, reading
from featurestore.store.byte_source import LocalFolder
from featurestore.store.commit.locks import TrackLocks, exclusive
from featurestore.store.commit.staging import StagingArea
from featurestore.store.commit.transaction import BACKUP, is_backed_up, is_lost_race
from featurestore.store.format.keys import decode_key, encode_key, is_hashed
from featurestore.store.format.metadata import (
    FORMAT_VERSION,
    MAX_METADATA_BYTES,
    METADATA,
    decode_document,
    encode_document,
    root_document,
)
from featurestore.store.format.open_array import OpenArray
from featurestore.store.paths import StorePaths
from featurestore.store.table import layout as layouts
from featurestore.store.table.chunks import write_chunk
from featurestore.store.table.coordinates import encode_ids, encode_layers
from featurestore.store.table.layout import OWN, TOMBSTONE, chunk_name, encoding_of_name, table_documents
from featurestore.store.table.mtime_token import MtimeToken, set_mtime_token
from featurestore.store.table.previous import PreviousTable, layout_on_disk
from featurestore.store.table.rows import ROW, ROWS, UNKNOWN, Rows, digest, encode_rows, times_of_change
from featurestore.store.table.table import PackedTable, TableChangedError, is_padding
from featurestore.store.track_reader import TrackReader

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
        False if another writer was packing for more than `wait` seconds, or was faster.
    """
    with exclusive(reader.paths.locks / "pack.lock", timeout=wait) as held:
        if held:
            damaged: set[str] = set()
            while True:
                job = _Packing(reader, staging.folder(), damaged, durable=durable)
                try:
                    job.run(anew=anew)
                    break
                except TrackNotFoundError:
                    continue  # removed, or found to be damaged, since it was listed
                except OSError as error:
                    if not is_lost_race(reader.paths, error):
                        raise
                    return False  # a packer of another host, where our lock does not show
                except (CorruptTrackError, TableChangedError) as error:
                    if anew:
                        raise
                    _log.warning("%s: building the packed table anew", error)
                    anew = True
                finally:
                    filesystem.discard(job.folder, reader.paths.trash)
            job.clear_stale_markers(locks)
            filesystem.unlink(reader.paths.changes)
    return held


def list_keys(paths: StorePaths) -> set[str]:
    """Keys of all published tracks."""
    folder = paths.kind("aggregated")
    keys = set(os.listdir(folder))
    try:
        moved = [
            key
            for key in os.listdir(paths.journal)
            if key not in keys and (paths.journal / key / ("aggregated" + BACKUP)).exists()
        ]
    except FileNotFoundError:
        moved = []
    if moved:  # aside for an instant, or by now in its place
        keys |= {key for key in moved if is_backed_up(paths, key)}
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
        self.paths = reader.paths
        self.spec = reader.spec
        self.folder = folder
        self.durable = durable
        self.damaged = damaged
        self.revisions: dict[str, str] = {}
        self.changed: dict[str, int] = {}
        self.segments: dict[str, int] = {}
        self.ids: list[str] = []
        self.stale_markers: set[str] = set()
        self.stale: set[str] = set()

    def run(self, *, anew: bool) -> None:
        """Make the new state; `anew` does not look at the old one."""
        # Marks first: a track that is superseded from now on is marked again.
        self.stale_markers = set(os.listdir(self.paths.stale))
        token = set_mtime_token(self.paths.kind("aggregated"))
        listed = list_keys(self.paths)
        keys = listed - self.damaged
        old = None if anew else self._old()
        self.stale = set(track_ids_of(self.reader, self.stale_markers & keys).values())
        if old is None:
            kept: list[str] = []
            known: set[str] = set()
        else:
            known = set(old.keys)
            kept = [track_id for track_id, key in zip(old.ids, old.keys, strict=True) if key in keys]
            self.stale |= old.superseded(keys - self.stale_markers)
        fresh = track_ids_of(self.reader, keys - known)
        self.ids = kept + sorted(fresh.values())
        if self.damaged & listed or any(map(is_hashed, keys - known - fresh.keys())):
            token = None  # what is left out must not be forgotten
        same = old is not None and self.ids == old.ids and not self.stale & old.table.rows.keys()
        if old is not None and same and not old.looks_different:
            if token != old.table.mtime_token:
                self._write_group(self.folder, old.table.rows_per_chunk, _own(old.table.own, token))
                if self.durable:
                    filesystem.sync_file(self.folder / METADATA)
                filesystem.rename(self.folder / METADATA, self.paths.packed / METADATA)
            return
        self._replace(old, token)

    def _replace(self, old: PreviousTable | None, token: MtimeToken | None) -> None:
        """Write the new table and put it in the place of the old one."""
        large = layouts.is_large(len(self.ids), before=old is not None and old.table.is_large)
        layout = self._layout(old, large)
        rows, encoding = layouts.chunk_rows(layout, large=large), layouts.encoding_of(layout)
        new = self.folder / "packed"
        filesystem.make_dir(new)
        for array in ("features", "track_id", "layer"):
            filesystem.make_dir(new / array)
        self._write_chunks(new, old, rows, encoding)
        self._keep_for_readers(new, encoding)
        filesystem.write_file(new / "layer" / chunk_name("default", 0), encode_layers(self.spec))
        content, checksum = encode_rows(self._rows(old))
        filesystem.write_file(new / "track_id" / ROWS, content)
        own = {"generation": uuid.uuid4().hex, "layout": layout, "fingerprint": self.spec.fingerprint}
        self._write_group(new, rows, _own({**own, "rows_crc32c": checksum}, token))
        if self.durable:
            filesystem.sync_tree(new)
        self._upgrade_root()
        fallbacks.replace_dir(new, self.paths.packed, self.folder / ("packed" + BACKUP), keep=False)
        if self.durable:
            filesystem.sync_dir(self.paths.root)

    def _old(self) -> PreviousTable | None:
        with LocalFolder.root(self.paths.root) as root:
            opened = PackedTable.open(root, self.spec)
            if opened is None:
                return None
            opened.check(root)
            return PreviousTable(self.reader, opened)

    def _layout(self, old: PreviousTable | None, large: bool) -> int:
        """Give the old one if all that readers of the old table may ask for stays where it is, or the next."""
        if old is None:
            before = layout_on_disk(self.paths.packed)
            return layouts.first_layout() if before is None else before + 1
        appended = large == old.table.is_large and self.ids[: len(old.ids)] == old.ids
        return old.table.layout + (not (appended and self.stale.isdisjoint(old.ids)))

    def _write_group(self, folder: Path, rows: int, own: dict[str, Any]) -> None:
        for name, document in table_documents(len(self.ids), rows, self.spec, own).items():
            if not name or (folder / name).exists():
                filesystem.write_file(folder / name / METADATA, encode_document(document))

    def _rows(self, old: PreviousTable | None) -> Rows:
        """What each row of the new table is of."""
        found = np.zeros(len(self.ids), ROW)
        rows = {} if old is None else old.table.rows
        for row, track_id in enumerate(self.ids):
            key = encode_key(track_id)
            if key in self.revisions:
                found[row] = digest(self.revisions[key]), self.changed[key], self.segments[key]
            elif old is not None:
                before = rows[track_id]
                found[row] = old.table.described[before]
                found["changed"][row] = old.changed[before]
        return found

    def _write_chunks(self, new: Path, old: PreviousTable | None, rows: int, encoding: str) -> None:
        layers = range(len(self.spec.layers))
        for number in range(-(-len(self.ids) // rows)):
            ids = self.ids[number * rows : (number + 1) * rows]
            if old is not None and self._unchanged(old, number, rows, ids):
                for array, indices in ("track_id", [(number,)]), ("features", [(number, n, 0) for n in layers]):
                    for index in indices:
                        before = self.paths.packed / array / chunk_name(old.table.encoding, *index)
                        fallbacks.link_or_copy(before, new / array / chunk_name(encoding, *index))
            else:
                self._write_features(new / "features", old, rows, encoding, number, ids)
                filesystem.write_file(new / "track_id" / chunk_name(encoding, number), encode_ids(ids, rows))

    def _keep_for_readers(self, new: Path, encoding: str) -> None:
        """Hold the files of the other encoding for readers of Zarr that have opened the table they belong to.

        A name of this encoding that the new table does not use stays taken, by a file that no reader can decode:
        to readers of Zarr, a chunk that is missing is NaN, or empty texts.
        """
        for array in ("features", "track_id"):
            with contextlib.suppress(FileNotFoundError), os.scandir(self.paths.packed / array) as entries:
                for entry in entries:
                    named = encoding_of_name(entry.name)
                    if named is None or not entry.is_file(follow_symlinks=False):
                        continue
                    if named != encoding:
                        fallbacks.link_or_copy(Path(entry.path), new / array / entry.name)
                    elif not (new / array / entry.name).exists():
                        filesystem.write_file(new / array / entry.name, TOMBSTONE)

    def _unchanged(self, old: PreviousTable, number: int, rows: int, ids: list[str]) -> bool:
        before = old.ids[number * rows : (number + 1) * rows]
        return old.table.rows_per_chunk == rows and ids == before and self.stale.isdisjoint(ids)

    def _write_features(
        self, folder: Path, old: PreviousTable | None, rows: int, encoding: str, number: int, ids: list[str]
    ) -> None:
        """Write one chunk of each layer: rows of the old table, where they are current, or else of the tracks."""
        moved = [
            (row, old.table.rows[track_id])
            for row, track_id in enumerate(ids)
            if old is not None and track_id in old.table.rows and track_id not in self.stale
        ]
        kept = {row for row, _ in moved}
        fresh = [row for row in range(len(ids)) if row not in kept]
        targets, sources = np.array(moved, np.int64).reshape(-1, 2).T
        values = np.empty((len(fresh), len(self.spec.layers), self.spec.dim), self.spec.dtype)
        lost: TrackNotFoundError | None = None
        for place, row in enumerate(fresh):
            try:
                values[place] = self._row(ids[row])
            except TrackNotFoundError as error:  # all that are lost are found before beginning again
                lost = error
        if lost is not None:
            raise lost
        with LocalFolder.root(self.paths.root) as root:
            for layer in range(len(self.spec.layers)):
                shape = rows, 1, self.spec.dim
                chunk = np.full(shape, np.nan, np.dtype(self.spec.dtype).newbyteorder("<"))
                if old is not None and moved:
                    found = old.table.read(root, sources, [layer])
                    if is_padding(found).any():
                        raise CorruptTrackError("packed: rows are missing")
                    chunk[targets] = found
                if fresh:
                    chunk[fresh] = values[:, layer : layer + 1]
                write_chunk(folder / chunk_name(encoding, number, layer, 0), chunk)

    def _row(self, track_id: str) -> npt.NDArray[Any]:
        key = encode_key(track_id)
        try:
            (self.changed[key],) = times_of_change(self.paths, [key])  # before it is read
            with self.reader.open("aggregated", key, track_id) as array:
                self.revisions[key] = array.revision
                self.segments[key] = self._segments(track_id, array)
                return array.read(range(len(self.spec.layers)))
        except CorruptTrackError as error:
            _log.warning("%s: left out of the packed table", error)
            self.damaged.add(key)
            raise TrackNotFoundError(str(error)) from error

    def _segments(self, track_id: str, array: OpenArray) -> int:
        """How many segments a track has whose `aggregated` is open."""
        if "segments" not in array.metadata.attributes["kinds"]:
            return UNKNOWN
        with contextlib.suppress(CorruptTrackError, TrackNotFoundError):  # whoever reads them will see
            return len(array.starts) or self.reader.describe("segments", track_id)[0][0]
        return UNKNOWN

    def clear_stale_markers(self, locks: TrackLocks) -> None:
        """Remove the stale markers of tracks whose row is, or whose absence from the table is, up to date."""
        packed = {encode_key(track_id) for track_id in self.ids} if self.stale_markers else set()
        for key in self.stale_markers:
            # Under the lock, and with nothing in the journal, the track does not change.
            with contextlib.suppress(TrackLockedError, CorruptTrackError), locks.holding(key):
                current = self.reader.current(key)
                revision = None if current is None else current.attributes["revision"]
                known = self.revisions.get(key) if key in packed else None
                if not (self.paths.journal / key).exists() and revision == known:
                    filesystem.unlink(self.paths.stale / key)

    def _upgrade_root(self) -> None:
        """Let releases that do not know the new table refuse the store, before it is in its place."""
        document = decode_document(reading.read_file(self.paths.root / METADATA, limit=MAX_METADATA_BYTES))
        if document["attributes"]["featurestore"]["format"] == FORMAT_VERSION:
            return
        own = root_document(self.spec)["attributes"]["featurestore"]
        document["attributes"] = {**document["attributes"], "featurestore": own}
        filesystem.write_file(self.folder / METADATA, encode_document(document))
        filesystem.sync_file(self.folder / METADATA)
        filesystem.rename(self.folder / METADATA, self.paths.root / METADATA)
        filesystem.sync_dir(self.paths.root)


def _own(own: dict[str, Any], token: MtimeToken | None) -> dict[str, Any]:
    """What the attributes say of a table, with another token."""
    kept = {name: value for name, value in own.items() if name in OWN}
    return kept if token is None else {**kept, **token.to_attributes()}
