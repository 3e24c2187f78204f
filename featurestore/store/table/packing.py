"""Bringing the packed table up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, TrackLockedError, TrackNotFoundError
from featurestore.store import fallbacks, filesystem
from featurestore.store.commit.locks import TrackLocks, exclusive
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.transaction import BACKUP, attributes_of, is_lost_race
from featurestore.store.format.keys import encode_key, is_hashed
from featurestore.store.format.metadata import (
    FORMAT_VERSION,
    METADATA,
    encode_document,
)
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.root import upgrade_root
from featurestore.store.format.small_chunks import encode_texts
from featurestore.store.table import layout as layouts
from featurestore.store.table.chunks import write_chunk
from featurestore.store.table.index import TrackIndex
from featurestore.store.table.layout import (
    OWN,
    TOMBSTONE,
    chunk_name,
    encode_layers,
    encoding_of_name,
    table_documents,
)
from featurestore.store.table.listing import compare_keys, track_ids_of
from featurestore.store.table.mtime_token import MtimeToken, set_mtime_token
from featurestore.store.table.previous import PreviousTable
from featurestore.store.table.rows import ROW, ROWS, UNKNOWN, Rows, digest, encode_rows, times_of_change
from featurestore.store.table.table import TableChangedError, is_padding

_log = logging.getLogger("featurestore")


def pack(
    index: TrackIndex,
    session: WriterSession,
    *,
    wait: float,
    thorough: bool = True,
    anew: bool = False,
) -> bool:
    """Bring the packed table up to date; `anew` does not look at the old one.

    What takes time for each packed track, and not only for those that are new, is done where it is `thorough`: to
    look whether somebody put back another revision by hand, and whether all files of the table are whole.

    Returns
    -------
    bool
        False if another writer was packing for more than `wait` seconds, or was faster.
    """
    paths = index.reader.paths
    with exclusive(paths.locks / "pack.lock", timeout=wait) as held:
        if held:
            damaged: set[str] = set()
            while True:
                job = _Packing(index, session.staging.folder(), damaged, durable=session.durable)
                try:
                    job.run(thorough=thorough, anew=anew)
                    break
                except TrackNotFoundError:
                    continue  # removed, or found to be damaged, since it was listed
                except OSError as error:
                    if not is_lost_race(paths, error):
                        raise
                    return False  # a packer of another host, where our lock does not show
                except (CorruptTrackError, TableChangedError) as error:
                    if anew:
                        raise
                    _log.warning("%s: building the packed table anew", error)
                    anew = True
                finally:
                    filesystem.discard(job.folder, paths.trash)
            job.clear_stale_markers(session.locks)
            filesystem.unlink(paths.changes)
    return held


class _Packing:
    """One attempt at a new state of the table; `damaged` collects keys that cannot be packed."""

    def __init__(self, index: TrackIndex, folder: Path, damaged: set[str], *, durable: bool) -> None:
        self.index = index
        self.reader = index.reader
        self.paths = self.reader.paths
        self.spec = self.reader.spec
        self.folder = folder
        self.durable = durable
        self.damaged = damaged
        self.fresh: dict[str, tuple[bytes, int, int]] = {}  # what is known of the rows that are read, by key
        self.ids: list[str] = []
        self.before = np.empty(0, np.int64)  # the row of the old table that each row is, -1 where it is read anew
        self.stale_markers: set[str] = set()

    def run(self, *, thorough: bool, anew: bool) -> None:
        """Make the new state; `anew` does not look at the old one."""
        # Marks first: a track that is superseded from now on is marked again.
        self.stale_markers = set(os.listdir(self.paths.stale))
        token = set_mtime_token(self.paths, self.reader.sealed.names())
        old = None if anew else self._old(thorough=thorough)
        known = (lambda _: set[str]()) if old is None else old.table.among
        fresh, gone = compare_keys(self.reader, None if old is None else old.table)
        left_out = (self.damaged & fresh | known(self.damaged)) - gone
        found = track_ids_of(self.reader, fresh - left_out)
        unknown = not self.reader.sealed.are_all_known
        if left_out or unknown or any(map(is_hashed, fresh - found.keys())):
            token = None  # what is left out must not be forgotten
        removed = [] if old is None else old.rows_of(gone | known(left_out))
        self.before = np.arange(0 if old is None else len(old), dtype=np.int64)
        if old is not None:
            self.ids = old.table.track_ids
            self.before[old.rows_of(known(self.stale_markers))] = -1
            self.before[old.superseded()] = -1
        if removed:
            self.before = np.delete(self.before, removed)
            ids = np.array(self.ids, object)
            self.ids = np.delete(ids, removed).tolist()
        same = old is not None and not found and not removed and not (self.before < 0).any()
        self.ids = self.ids + sorted(found.values())
        self.before = np.append(self.before, np.full(len(found), -1))
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
        size = layouts.chunk_size(len(self.ids), 0 if old is None else old.table.chunk_size)
        layout = self._layout(old, size)
        rows, encoding = layouts.chunk_rows(layout, size), layouts.encoding_of(layout)
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
        upgrade_root(self.paths, self.folder, FORMAT_VERSION)
        fallbacks.replace_dir(new, self.paths.packed, self.folder / ("packed" + BACKUP), keep=False)
        if self.durable:
            filesystem.sync_dir(self.paths.root)

    def _old(self, *, thorough: bool) -> PreviousTable | None:
        table = self.index.open_table()
        if table is None:
            return None
        if thorough:
            with self.paths.open() as root:
                table.check(root)
        return PreviousTable(self.reader, table, thorough=thorough)

    def _layout(self, old: PreviousTable | None, size: int) -> int:
        """Give the old one if all that readers of the old table may ask for stays where it is, or the next."""
        if old is None:
            before = attributes_of(self.paths.packed).get("layout")  # though it may be damaged
            return before + 1 if type(before) is int and before >= 0 else layouts.first_layout()
        return old.table.layout + (size != old.table.chunk_size or not self._only_appends(old))

    def _only_appends(self, old: PreviousTable) -> bool:
        return np.array_equal(self.before[: len(old)], np.arange(len(old)))

    def _write_group(self, folder: Path, rows: int, own: dict[str, Any]) -> None:
        for name, document in table_documents(len(self.ids), rows, self.spec, own).items():
            if not name or (folder / name).exists():
                filesystem.write_file(folder / name / METADATA, encode_document(document))

    def _rows(self, old: PreviousTable | None) -> Rows:
        """What each row of the new table is of."""
        found = np.zeros(len(self.ids), ROW)
        kept = self.before >= 0
        if old is not None:
            # Of a million rows, a part is copied in a tenth of the time of as many numbers.
            where = slice(len(old)) if self._only_appends(old) else kept
            found[where] = old.table.described[self.before[where]] if where is kept else old.table.described
            found["changed"][where] = old.changed[self.before[where]]
        for row in np.flatnonzero(~kept).tolist():
            found[row] = self.fresh[encode_key(self.ids[row])]
        return found

    def _write_chunks(self, new: Path, old: PreviousTable | None, rows: int, encoding: str) -> None:
        layers = range(len(self.spec.layers))
        for number in range(-(-len(self.ids) // rows)):
            ids = self.ids[number * rows : (number + 1) * rows]
            if old is not None and self._unchanged(old, number, rows):
                for array, indices in ("track_id", [(number,)]), ("features", [(number, n, 0) for n in layers]):
                    for index in indices:
                        before = f"{self.paths.packed}/{array}/{chunk_name(old.table.encoding, *index)}"
                        fallbacks.link_or_copy(before, f"{new}/{array}/{chunk_name(encoding, *index)}")
            else:
                self._write_features(new / "features", old, rows, encoding, number)
                filesystem.write_file(new / "track_id" / chunk_name(encoding, number), encode_texts(ids, rows))

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
                        fallbacks.link_or_copy(entry.path, f"{new}/{array}/{entry.name}")
                    elif not os.path.lexists(f"{new}/{array}/{entry.name}"):
                        filesystem.write_file(new / array / entry.name, TOMBSTONE)

    def _unchanged(self, old: PreviousTable, number: int, rows: int) -> bool:
        first, end = number * rows, min((number + 1) * rows, max(len(self.ids), len(old)))
        return old.table.rows_per_chunk == rows and np.array_equal(self.before[first:end], np.arange(first, end))

    def _write_features(
        self, folder: Path, old: PreviousTable | None, rows: int, encoding: str, number: int
    ) -> None:
        """Write one chunk of each layer: rows of the old table, where they are current, or else of the tracks."""
        first = number * rows
        before = self.before[first : first + rows]
        targets, fresh = np.flatnonzero(before >= 0), np.flatnonzero(before < 0)
        values = np.empty((len(fresh), len(self.spec.layers), self.spec.dim), self.spec.dtype)
        lost: TrackNotFoundError | None = None
        for place, row in enumerate(fresh.tolist()):
            try:
                values[place] = self._row(self.ids[first + row])
            except TrackNotFoundError as error:  # all that are lost are found before beginning again
                lost = error
        if lost is not None:
            raise lost
        chunk = np.full((rows, 1, self.spec.dim), np.nan, values.dtype.newbyteorder("<"))
        kept = _slice_of(targets)
        with self.paths.open() as root:
            for layer in range(len(self.spec.layers)):
                if old is not None and len(targets):
                    found = old.table.read(root, before[targets], [layer])
                    if is_padding(found).any():
                        raise CorruptTrackError("packed: rows are missing")
                    chunk[kept] = found
                chunk[fresh, 0] = values[:, layer]
                write_chunk(folder / chunk_name(encoding, number, layer, 0), chunk)

    def _row(self, track_id: str) -> npt.NDArray[Any]:
        key = encode_key(track_id)
        try:
            (changed,) = times_of_change(self.paths, [key])  # before it is read
            with self.reader.open("aggregated", key, track_id) as array:
                self.fresh[key] = digest(array.revision), int(changed), self._segments(track_id, array)
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
        for key in self.stale_markers:
            # Under the lock, and with nothing in the journal, the track does not change.
            with contextlib.suppress(TrackLockedError, CorruptTrackError), locks.holding(key):
                current = self.reader.current(key)
                revision = None if current is None else digest(current.attributes["revision"])
                packed, *_ = self.fresh.get(key, (None,))
                # Rows with a marker were read anew; without a row there must be no track.
                if not (self.paths.journal / key).exists() and revision == packed:
                    filesystem.unlink(self.paths.stale / key)


def _slice_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """Rows in order as a slice, if they follow each other: it is copied many times quicker."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _own(own: dict[str, Any], token: MtimeToken | None) -> dict[str, Any]:
    """What the attributes say of a table, with another token."""
    kept = {name: value for name, value in own.items() if name in OWN}
    return kept if token is None else {**kept, **token.to_attributes()}
