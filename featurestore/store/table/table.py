"""The packed table: `aggregated` of all tracks in one array, derived from them and rebuildable.

It is what makes a query over all tracks fast. Rows stay where they are while tracks are added; removing a track
moves those behind it. A new state of the table is a new folder that shares full, unchanged shards with the old
one through hard links, and the two folders are exchanged.

Readers of Zarr open metadata and numbers one after the other, and hold the metadata for as long as they like. For
them, a state that only appends rows has the old files, or files with more rows, under the same names; any other
state begins an epoch: it names its files in the other of two ways that Zarr knows, and holds those of the epoch
before beside them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec
from featurestore.store import filesystem
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    NAMINGS,
    ArrayMetadata,
    array_document,
    check_seal,
    decode_document,
    group_document,
    seal,
    shard_name,
)
from featurestore.store.format.shards import THREADS, ShardReader
from featurestore.store.table.coordinates import TrackIds, checked_ids, damaged, encode_layers
from featurestore.store.table.stamps import Stamp

DIMS = ("track", "layer", "feature")
MAX_ROWS = 4096
_MIN_ROWS = 16
CHUNK_ROWS = 1024
_WAY_OUT = "build the table again with `fs-extract verify --deep --repair`"  # pack does not read what it keeps
_MAX_IDS_BYTES = 2**29  # of ten million tracks
_ATTEMPTS = 50


class TableChangedError(Exception):
    """The table on disk is no longer the one that was opened."""


def rows_per_shard(tracks: int) -> int:
    """Rows of a shard: the next power of two while there is only one, so that it is at least half full."""
    return min(MAX_ROWS, max(_MIN_ROWS, 1 << (tracks - 1).bit_length() if tracks else 0))


def naming_of_epoch(epoch: int) -> str:
    """How the files of the table are named."""
    return NAMINGS[epoch % len(NAMINGS)]


def features_metadata(tracks: int, rows: int, spec: FeatureSpec, naming: str) -> ArrayMetadata:
    """Metadata of the table's features: shards of all layers, inner chunks of fewer rows of one."""
    layers = len(spec.layers)
    return ArrayMetadata(
        shape=(tracks, layers, spec.dim),
        shard_shape=(rows, layers, spec.dim),
        chunk_shape=(min(rows, CHUNK_ROWS), 1, spec.dim),
        dtype=spec.dtype,
        dims=DIMS,
        attributes={"coordinates": "track_id"},
        naming=naming,
    )


def table_documents(tracks: int, rows: int, spec: FeatureSpec, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Zarr documents of the table's group ("") and of its three arrays."""
    codecs = [{"name": "crc32c"}]
    layers = len(spec.layers)
    ids = {"name": "vlen-utf8"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    naming = naming_of_epoch(own["epoch"])
    arrays = {
        "features": features_metadata(tracks, rows, spec, naming).document(),
        "track_id": array_document([tracks], [rows], "string", "", [ids, *codecs], ["track"], {}, naming=naming),
        "layer": array_document([layers], [layers], "int64", 0, [little, *codecs], ["layer"], {}),
    }
    # Inline metadata of the arrays lets a reader see one whole table from one file.
    group = group_document({"featurestore": own})
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return {"": seal(group), **arrays}


@dataclass(frozen=True)
class PackedTable:
    """One state of the packed table.

    Parameters
    ----------
    ids : TrackIds
        Of the track of each row.
    generation : str
        Differs between any two states.
    epoch : int
        Grows with each state that does more than append rows to the one before.
    stamp : Stamp, optional
        Of the folder `aggregated`, while the table holds all tracks.
    features : ArrayMetadata
        Of the array [track, layer, feature].
    """

    ids: TrackIds
    generation: str
    epoch: int
    stamp: Stamp | None
    features: ArrayMetadata

    @property
    def track_ids(self) -> list[str]:
        """Track of each row."""
        return self.ids.decoded

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each track id."""
        return {track_id: row for row, track_id in enumerate(self.track_ids)}

    @property
    def rows_per_shard(self) -> int:
        return self.features.shard_shape[0]

    @property
    def rows_per_chunk(self) -> int:
        return self.features.chunk_shape[0]

    @property
    def naming(self) -> str:
        """How its files are named."""
        return self.features.naming

    @classmethod
    def open(cls, root: int, spec: FeatureSpec) -> PackedTable | None:
        """State of the table below an open folder, None if there is no table.

        Raises
        ------
        CorruptTrackError
            If it is damaged.
        """
        for _ in range(_ATTEMPTS):
            try:
                fd = filesystem.open_dir("packed", dir_fd=root)
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                raise damaged(error) from None
            try:
                return cls._opened(fd, spec)
            except (ValueError, KeyError, TypeError) as error:
                raise damaged(error) from None
            except OSError as error:
                if not _is_missing(error):
                    raise
                if _is_current(fd, root):
                    if not _has_document(fd):  # it goes first where a folder cannot be renamed, only removed
                        return None
                    raise damaged(error) from None
            finally:
                os.close(fd)
        raise damaged("it is packed again and again")

    @classmethod
    def _opened(cls, fd: int, spec: FeatureSpec) -> PackedTable:
        group = _document(fd, "")
        own = _checked(group)
        if own["fingerprint"] != spec.fingerprint:
            raise ValueError("features of another spec")
        features = ArrayMetadata.from_document(group["consolidated_metadata"]["metadata"]["features"])
        tracks, rows = features.shape[0], features.shard_shape[0]
        naming = naming_of_epoch(own["epoch"])
        if features != features_metadata(tracks, rows, spec, naming):
            raise ValueError("not the metadata of a packed table of this spec")
        ids = []
        for shard in range(math.ceil(tracks / rows)):
            name = shard_name(1, shard, naming)
            ids.append(checked_ids(_read(fd, "track_id", name, _MAX_IDS_BYTES), rows))
        stamp = None if own["stamp"] is None else Stamp(own["stamp"], own.get("changed"))
        return cls(TrackIds(ids, tracks), own["generation"], own["epoch"], stamp, features)

    def keys(self) -> list[str]:
        """Key of each row's track.

        Raises
        ------
        CorruptTrackError
            If one is no track id, or occurs twice.
        """
        try:
            keys = list(map(encode_key, self.track_ids))
        except SettingError as error:
            raise damaged(error) from None
        if len(set(keys)) != len(keys):
            raise damaged("a track id occurs twice")
        return keys

    def read(self, root: int, rows: npt.NDArray[np.int64], layers: Sequence[int]) -> npt.NDArray[Any]:
        """Some rows of some layers (by position).

        Returns
        -------
        ndarray, shape (rows, layers, dim)

        Raises
        ------
        TableChangedError
            If the table has been packed again since.
        CorruptTrackError
            If it is damaged.
        """
        dim = self.features.shape[2]
        out = np.empty((len(rows), len(layers), dim), self.features.dtype)
        with self._opened_again(root) as fd:
            shards = rows // self.rows_per_shard

            def fill(shard: int) -> None:
                where = np.flatnonzero(shards == shard)
                blocks, within = divmod(rows[where] - shard * self.rows_per_shard, self.rows_per_chunk)
                with self._open_shard(fd, shard) as chunks:
                    for block in np.unique(blocks):
                        here = blocks == block
                        for column, layer in enumerate(layers):
                            chunk = int(block) * self.features.shape[1] + layer
                            self._fill(chunks, chunk, out[:, column], where[here], within[here])

            wanted = np.unique(shards).tolist()
            if len(wanted) < 2:
                for shard in wanted:
                    fill(shard)
            else:  # reading and checksums release the interpreter
                with ThreadPoolExecutor(min(THREADS, len(wanted))) as pool:
                    for _ in pool.map(fill, wanted):
                        pass
        return out

    def check(self, root: int, spec: FeatureSpec) -> None:
        """Raise as `read` does unless all files are there and what no query reads is as it was written."""
        with self._opened_again(root) as fd:
            for shard in range(self.shards):
                self._open_shard(fd, shard).close()
            # Once: a writer may give the group another stamp meanwhile.
            group = _document(fd, "")
            wanted = table_documents(len(self.ids), self.rows_per_shard, spec, _checked(group))
            for name, document in wanted.items():
                if (_document(fd, name) if name else group) != document:
                    raise ValueError(f"{name}/{METADATA} is not what was written")
            if _read(fd, "layer", shard_name(1), MAX_METADATA_BYTES) != encode_layers(spec):
                raise ValueError("the layers are not those of the store")

    @contextlib.contextmanager
    def _opened_again(self, root: int) -> Iterator[int]:
        """The folder of this state of the table."""
        try:
            fd = filesystem.open_dir("packed", dir_fd=root)
        except FileNotFoundError:
            raise TableChangedError from None
        except NotADirectoryError as error:
            raise damaged(error) from None
        try:
            if _own(fd)["generation"] != self.generation:
                raise TableChangedError
            yield fd
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(error) from None
        except OSError as error:
            if not _is_missing(error):
                raise
            # Either the table was packed again and this state is being discarded, or a file is missing.
            if _is_current(fd, root):
                raise damaged(error) from None
            raise TableChangedError from None
        finally:
            os.close(fd)

    def _fill(
        self,
        chunks: ShardReader,
        chunk: int,
        out: npt.NDArray[Any],
        where: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
    ) -> None:
        first, count = int(where[0]), len(where)
        target = out[first : first + count]
        # Rows that follow each other are read to where they belong.
        in_order = within[-1] - within[0] == count - 1 and (np.diff(within) == 1).all()
        if in_order and where[-1] - first == count - 1 and target.flags.c_contiguous:
            chunks.read_into(chunk, target, first=int(within[0]) * target.shape[1])
        else:
            out[where] = chunks.read([chunk])[0, within, 0]

    def _open_shard(self, fd: int, shard: int) -> ShardReader:
        name = shard_name(3, shard, self.naming)
        folder = filesystem.open_dir("features", dir_fd=fd)
        try:
            data = filesystem.open_file(name, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            return ShardReader(data, self.features, f"packed/features/{name}", way_out=_WAY_OUT)
        except BaseException:
            os.close(data)
            raise

    @property
    def shards(self) -> int:
        return math.ceil(len(self.ids) / self.rows_per_shard)


def _is_missing(error: OSError) -> bool:
    """Whether a file is missing, or not a file but a link."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _is_current(fd: int, root: int) -> bool:
    """Whether an open folder is the table's still."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat("packed", dir_fd=root, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _read(fd: int, folder: str, name: str, limit: int) -> bytes:
    if not folder:
        return filesystem.read_file(name, dir_fd=fd, limit=limit)
    below = filesystem.open_dir(folder, dir_fd=fd)
    try:
        return filesystem.read_file(name, dir_fd=below, limit=limit)
    finally:
        os.close(below)


def _document(fd: int, folder: str) -> dict[str, Any]:
    return decode_document(_read(fd, folder, METADATA, MAX_METADATA_BYTES))


def _has_document(fd: int) -> bool:
    try:
        os.stat(METADATA, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _own(fd: int) -> dict[str, Any]:
    return _checked(_document(fd, ""))


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """What a group's document says of its table."""
    check_seal(document)
    own = document["attributes"]["featurestore"]
    moments = own["stamp"], own.get("changed")
    if not isinstance(own["generation"], str) or any(not isinstance(moment, int | None) for moment in moments):
        raise ValueError("impossible generation or stamp")
    if type(own["epoch"]) is not int or own["epoch"] < 0:
        raise ValueError("impossible epoch")
    return dict(own)
