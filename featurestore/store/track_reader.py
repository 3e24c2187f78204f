"""Reading one track: which revision is current, and its arrays."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, StoreError, TrackNotFoundError
from featurestore.spec import FeatureSpec
from featurestore.store import reading
from featurestore.store.byte_source import ByteFolder, LocalFolder
from featurestore.store.commit.transaction import BACKUP
from featurestore.store.format.attributes import check_attributes
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    ArrayMetadata,
    check_seal,
    check_track_metadata,
    decode_document,
    shard_name,
)
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.root import RootCheck
from featurestore.store.format.shards import CRC_BYTES, ShardReader, plain_index
from featurestore.store.paths import HIDDEN, StorePaths

# A reader between two steps of a swap looks again.
_ATTEMPTS = 50
_MANY = 2_000  # tracks
_AGGREGATED_SHARD = shard_name(2)


T = TypeVar("T")
Described = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape of an array of a track, and where its segments start, seconds."""


class ReplacedError(StoreError):
    """A track was replaced by one of another shape since a view told its own."""


class TrackReader:
    """Reads the tracks of one store. Holds no file open.

    Parameters
    ----------
    paths : StorePaths
        Of the store.
    spec : FeatureSpec
        Of the store.
    """

    def __init__(self, paths: StorePaths, spec: FeatureSpec) -> None:
        self.paths = paths
        self.spec = spec
        row = spec.dim * np.dtype(spec.dtype).itemsize
        self._index = plain_index(len(spec.layers), row)  # of every uncompressed `aggregated`
        self.root = RootCheck(paths, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrackReader, (self.paths, self.spec)

    def _folder(self, *parts: str) -> LocalFolder:
        """Open a folder of the store, following no link below the root."""
        with LocalFolder.root(self.paths.root, follow_links=self.paths.follow_links) as root:
            return root.folder(*parts)

    def _document(self, folder: ByteFolder, name: str) -> dict[str, Any]:
        try:
            return decode_document(folder.read(METADATA, MAX_METADATA_BYTES))
        except ValueError as error:
            raise _corrupt(name, str(error)) from None

    def _checked(self, document: dict[str, Any], kind: str, key: str, name: str) -> ArrayMetadata:
        try:
            metadata = ArrayMetadata.from_document(document)
            check_track_metadata(metadata, kind, self.spec)
            check_seal(document)
            check_attributes(metadata, kind, key)
            if metadata.attributes["fingerprint"] != self.spec.fingerprint:
                raise ValueError("features of another spec")
        except ValueError as error:
            raise _corrupt(name, str(error)) from None
        return metadata

    def _at(self, key: str, *parts: str) -> ArrayMetadata | None:
        """Metadata of the `aggregated` in a folder, None if there is none."""
        name = "/".join(parts)
        try:
            with self._folder(*parts) as folder:
                return self._checked(self._document(folder, name), "aggregated", key, name)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise _corrupt(name, "not a folder, or a link") from None

    def current(self, key: str) -> ArrayMetadata | None:
        """Metadata of `aggregated` of the current revision, None if there is no such track.

        Raises
        ------
        CorruptTrackError
            If it is damaged.
        """
        for attempt in range(_ATTEMPTS):
            found = self._at(key, "aggregated", key)
            if found is None and (self.paths.journal / key / "aggregated").exists():
                # Where folders cannot be exchanged, the old one is aside until the new one is in its place.
                found = self._at(key, HIDDEN, "journal", key, "aggregated" + BACKUP)
            if found is not None:
                return found
            # It may move from the journal to its place between two looks.
            if attempt and not os.path.lexists(self.paths.array("aggregated", key)):
                return None
        if reading.is_dir(self.paths.journal / key):  # it is being removed, file by file
            return None
        raise _corrupt(f"aggregated/{key}", "no metadata")

    def open(self, kind: str, key: str, track_id: str) -> OpenArray:
        """Open one kind of the current revision of a track.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track, or not this kind of it.
        CorruptTrackError
            If its files are damaged.
        """
        lost = None
        for attempt in range(_ATTEMPTS):
            revision = None
            if attempt or kind != "aggregated":  # which itself says what is current
                current = self.current(key)
                if current is None:
                    raise TrackNotFoundError(f"the store has no track {track_id!r}")
                if kind not in current.attributes["kinds"]:
                    raise TrackNotFoundError(
                        f"the store has no {kind} of {track_id!r}, only "
                        f"{', '.join(current.attributes['kinds'])}: build again with a higher feature level"
                    )
                revision = current.attributes["revision"]
            found = self._open_revision(kind, key, revision)
            if found is not None:
                return found
            if revision is not None and revision == lost:
                break  # whatever a writer does, the files of the current revision are somewhere
            lost = revision
        raise _corrupt(f"{kind}/{key}", "the array is missing")

    def _open_revision(self, kind: str, key: str, revision: str | None) -> OpenArray | None:
        journal = (HIDDEN, "journal", key)
        candidates = [(kind, key), (*journal, kind + BACKUP)]
        if revision is not None:
            candidates.append((*journal, kind))
        for parts in candidates:
            name = "/".join(parts)
            try:
                folder = self._folder(*parts)
            except FileNotFoundError:
                continue
            except NotADirectoryError:
                raise _corrupt(name, "not a folder, or a link") from None
            try:
                document = self._document(folder, name)
                metadata = self._checked(document, kind, key, name)
                if revision is not None and metadata.attributes["revision"] != revision:
                    continue
                data = folder.open(shard_name(len(metadata.shape)))
            except FileNotFoundError:
                continue  # being discarded, or damaged: the caller looks again
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise _corrupt(name, "the data is a link") from None
            finally:
                folder.close()
            try:
                return OpenArray(metadata, ShardReader(data, metadata, name))
            except FileNotFoundError:  # removed by another host since it was opened
                data.close()
            except BaseException:
                data.close()
                raise
        return None

    def read_rows(self, track_ids: Sequence[str], layers: Sequence[int]) -> npt.NDArray[Any]:
        """Layers (by position) of `aggregated` of each track.

        Returns
        -------
        ndarray, shape (tracks, layers, dim)

        Raises
        ------
        TrackNotFoundError, CorruptTrackError
            As `open`.
        """
        out = np.empty((len(track_ids), len(layers), self.spec.dim), self.spec.dtype)
        size = self.spec.dim * out.itemsize + CRC_BYTES
        offsets = [layer * size for layer in layers]
        crc = bytearray(CRC_BYTES)
        with self._folder("aggregated") as opened:
            folder = opened.fd
            # No link may be followed: to list the folders once is quicker than to open each of many.
            plain = self.spec.codec == "none" and sys.byteorder == "little"
            folders = reading.list_dirs(folder) if plain and len(track_ids) >= _MANY else None
            for block, track_id in zip(out, track_ids, strict=True):
                key = encode_key(track_id)
                real = plain and (reading.is_dir(key, dir_fd=folder) if folders is None else key in folders)
                if not (real and self._read_row(folder, key, offsets, block, crc)):
                    block[...] = _again(partial(self._read_aggregated, key, track_id, layers))
        return out

    def _read_aggregated(self, key: str, track_id: str, layers: Sequence[int]) -> npt.NDArray[Any]:
        with self.open("aggregated", key, track_id) as array:
            return array.read(layers)

    def _read_row(
        self, folder: int, key: str, offsets: Sequence[int], block: npt.NDArray[Any], crc: bytearray
    ) -> bool:
        """Read from where uncompressed layers lie, without a look at the metadata; False if they do not."""
        size = block.shape[1] * block.itemsize + CRC_BYTES
        try:
            fd = reading.open_file(f"{key}/{_AGGREGATED_SHARD}", dir_fd=folder)
            try:
                if os.pread(fd, len(self._index) + 1, len(self.spec.layers) * size) != self._index:
                    return False
                for row, offset in zip(block, offsets, strict=True):
                    if os.preadv(fd, (row.data, crc), offset) != size:
                        return False
                    if google_crc32c.value(row) != int.from_bytes(crc, "little"):
                        return False
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    def describe(self, kind: str, track_id: str) -> Described:
        """Shape and starts of one kind of a track; raises as `open`."""
        with self.open(kind, encode_key(track_id), track_id) as array:
            return array.metadata.shape, array.starts

    def read_segments(
        self,
        kind: str,
        track_id: str,
        layers: Sequence[int],
        *,
        rows: npt.NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[npt.NDArray[Any], Described]:
        """Layers (by position) of some or all segments of a track, as `Source.read_segments` says."""
        return _again(partial(self._read_segments, kind, track_id, layers, rows, shape))

    def _read_segments(
        self,
        kind: str,
        track_id: str,
        layers: Sequence[int],
        rows: npt.NDArray[np.int64] | None,
        shape: tuple[int, ...] | None,
    ) -> tuple[npt.NDArray[Any], Described]:
        with self.open(kind, encode_key(track_id), track_id) as array:
            described = array.metadata.shape, array.starts
            if shape not in (None, array.metadata.shape):
                raise ReplacedError(
                    f"{kind} of track {track_id!r:.200} was replaced by another of the shape "
                    f"{array.metadata.shape}: ask the store for a new view"
                )
            if kind == "raw":
                return array.read(layers, None if rows is None else rows.tolist()), described
            block = array.read(layers)
            return (block if rows is None else block[rows]), described


def _again(read: Callable[[], T]) -> T:
    """What `read()` gives, anew where another host removes the files that it reads (NFS): they were replaced."""
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def _corrupt(name: str, what: str) -> CorruptTrackError:
    return CorruptTrackError(f"{name}: {what}; extract the track again, or run verify --repair")
