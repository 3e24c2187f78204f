"""The packed table: `aggregated` of all tracks in one array, derived from them and rebuildable.

It is what makes a query over all tracks fast. Rows stay where they are while tracks are added; removing a track
moves those behind it. A new state of the table is a new folder that shares full, unchanged chunks with the old
one through hard links, and the two folders are exchanged.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec
from featurestore.store.byte_source import THREADS, ByteFolder
from featurestore.store.format.keys import encode_keys
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    axes,
    dataset_attributes,
    decode_document,
)
from featurestore.store.format.small_chunks import checked_texts, decode_texts
from featurestore.store.table.chunks import ChunkReader
from featurestore.store.table.layout import (
    chunk_name,
    chunk_rows,
    damaged,
    encode_layers,
    encoding_of,
    size_of,
    table_documents,
)
from featurestore.store.table.mtime_token import MtimeToken
from featurestore.store.table.rows import ROWS, Rows, decode_rows

_MAX_BYTES = 2**29  # of the ids of ten million tracks
_ATTEMPTS = 50
_FEW_CHUNKS = 4  # are read by one thread


class TableChangedError(Exception):
    """The table on disk is no longer the one that was opened."""


@dataclass(frozen=True)
class PackedTable:
    """One state of the packed table.

    Parameters
    ----------
    tracks : int
        How many rows it has.
    ids : list of ndarray
        Of their tracks, in chunks: read with the table, and decoded when they are asked for, which many queries
        never do.
    own : dict
        What the group's attributes say of the table.
    described : Rows
        What each row is of.
    rows_per_chunk : int
        Of all its chunks.
    spec : FeatureSpec
        Of the store.
    """

    tracks: int
    ids: list[npt.NDArray[np.uint8]]
    own: dict[str, Any]
    described: Rows
    rows_per_chunk: int
    spec: FeatureSpec

    @property
    def generation(self) -> str:
        """Differs between any two states."""
        return str(self.own["generation"])

    @property
    def layout(self) -> int:
        """Version of the layout; it grows with each state that does more than append rows to the one before."""
        return int(self.own["layout"])

    @property
    def mtime_token(self) -> MtimeToken | None:
        """Of the folder `aggregated`, while the table holds all tracks."""
        return MtimeToken.from_attributes(self.own)

    @cached_property
    def track_ids(self) -> list[str]:
        """Track of each row; CorruptTrackError if they are not those of a table."""
        ids: list[str] = []
        try:
            for chunk in self.ids:
                ids += decode_texts(chunk)
        except ValueError as error:
            raise damaged(error) from None
        rest = ids[self.tracks :]
        del ids[self.tracks :]
        if any(rest) or not all(ids):
            raise damaged("the number of track ids is wrong")
        return ids

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each track id."""
        return {track_id: row for row, track_id in enumerate(self.track_ids)}

    @property
    def chunks(self) -> int:
        """Number of chunks along the tracks."""
        return math.ceil(self.tracks / self.rows_per_chunk)

    @property
    def chunk_size(self) -> int:
        """Of which size its chunks are."""
        return size_of(self.rows_per_chunk)

    @property
    def encoding(self) -> str:
        """How the files of its chunks are named."""
        return encoding_of(self.layout)

    @classmethod
    def open(cls, root: ByteFolder, spec: FeatureSpec) -> PackedTable | None:
        """State of the table below an open folder, None if there is no table, or one of format 1.

        Raises
        ------
        CorruptTrackError
            If it is damaged.
        """
        for _ in range(_ATTEMPTS):
            try:
                folder = root.folder("packed")
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                raise damaged(error) from None
            try:
                return cls._opened(folder, spec)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise damaged(error) from None
            except OSError as error:
                if not _is_missing(error):
                    raise
                if folder.is_still("packed", root):
                    if not folder.has(METADATA):  # it goes first where a folder cannot be renamed, only removed
                        return None
                    raise damaged(error) from None
            finally:
                folder.close()
        raise damaged("it is packed again and again")

    @classmethod
    def _opened(cls, folder: ByteFolder, spec: FeatureSpec) -> PackedTable | None:
        group = _document(folder, "")
        if "featurestore" in group["attributes"]:
            return None
        own = _checked(group)
        if own["fingerprint"] != spec.fingerprint:
            raise ValueError("features of another spec")
        features = group["consolidated_metadata"]["metadata"]["features"]
        tracks = axes(features["shape"], 0)[0]
        rows = axes(features["chunk_grid"]["configuration"]["chunk_shape"], 1)[0]
        if not size_of(rows) or rows != chunk_rows(own["layout"], size_of(rows)):
            raise ValueError("impossible chunks")
        if table_documents(tracks, rows, spec, own)[""] != group:
            raise ValueError("not the metadata of a packed table of this spec")
        ids = []
        for number in range(math.ceil(tracks / rows)):
            name = chunk_name(encoding_of(own["layout"]), number)
            ids.append(checked_texts(_read(folder, "track_id", name, _MAX_BYTES), rows))
        # Which also tells apart files of two states, where they were copied meanwhile.
        described = decode_rows(_read(folder, "track_id", ROWS, _MAX_BYTES), tracks, own["rows_crc32c"])
        return cls(tracks, ids, own, described, rows, spec)

    @cached_property
    def keys(self) -> list[str]:
        """Key of each row's track; CorruptTrackError if one is no track id."""
        try:
            return encode_keys(self.track_ids)
        except SettingError as error:
            raise damaged(error) from None

    @cached_property
    def key_set(self) -> frozenset[str]:
        """The same without an order; CorruptTrackError, too, if one occurs twice."""
        keys = frozenset(self.keys)
        if len(keys) != len(self.keys):
            raise damaged("a track id occurs twice")
        return keys

    @cached_property
    def hash_sum(self) -> int:
        """Sum of the hashes that all keys have in this process; CorruptTrackError as of `keys`."""
        return sum(map(hash, self.keys))

    def among(self, keys: Set[str]) -> set[str]:
        """Which of some keys have a row."""
        if "key_set" in self.__dict__:  # a million of them take longer to make than to walk through
            return set(self.key_set & keys)
        return set(filter(keys.__contains__, self.keys)) if keys else set()

    def read(self, root: ByteFolder, rows: npt.NDArray[np.int64], layers: Sequence[int]) -> npt.NDArray[Any]:
        """Some rows of some layers (by position); NaN where the files are of a state with fewer rows.

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
        out = np.empty((len(rows), len(layers), self.spec.dim), self.spec.dtype)
        with self._opened_again(root) as folder, folder.folder("features") as features:
            numbers = rows // self.rows_per_chunk
            order = np.argsort(numbers, kind="stable")
            parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(rows) else []

            def fill(where: npt.NDArray[np.int64]) -> None:
                number = int(numbers[where[0]])
                within = rows[where] - number * self.rows_per_chunk
                for column, layer in enumerate(layers):
                    with self._open_chunk(features, number, layer) as chunk:
                        chunk.read_rows(out[:, column], where, within)

            if len(parts) < _FEW_CHUNKS:
                for part in parts:
                    fill(part)
            else:  # reading and checksums release the interpreter
                with ThreadPoolExecutor(min(THREADS, len(parts))) as pool:
                    for _ in pool.map(fill, parts):
                        pass
        return out

    def check(self, root: ByteFolder) -> None:
        """Raise as `read` does unless all files are there, with all rows, and all is as it was written."""
        with self._opened_again(root) as folder:
            with folder.folder("features") as features:
                for number in range(self.chunks):
                    # Chunks are filled from their first row on: if the last one is there, all are.
                    last = min((number + 1) * self.rows_per_chunk, self.tracks) - 1
                    for layer in range(len(self.spec.layers)):
                        with self._open_chunk(features, number, layer) as chunk:
                            if np.isnan(chunk.first_value(last % self.rows_per_chunk)):
                                raise ValueError(f"row {last} is missing: its file is of an earlier state")
            # Once: a writer may give the group another token meanwhile.
            group = _document(folder, "")
            wanted = table_documents(self.tracks, self.rows_per_chunk, self.spec, dataset_attributes(group))
            for name, document in wanted.items():
                if (_document(folder, name) if name else group) != document:
                    raise ValueError(f"{name}/{METADATA} is not what was written")
            if _read(folder, "layer", chunk_name("default", 0), MAX_METADATA_BYTES) != encode_layers(self.spec):
                raise ValueError("the layers are not those of the store")

    @contextlib.contextmanager
    def _opened_again(self, root: ByteFolder) -> Iterator[ByteFolder]:
        """The folder of this state of the table."""
        try:
            folder = root.folder("packed")
        except FileNotFoundError:
            raise TableChangedError from None
        except NotADirectoryError as error:
            raise damaged(error) from None
        try:
            if _document(folder, "")["attributes"]["generation"] != self.generation:
                raise TableChangedError
            yield folder
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(error) from None
        except OSError as error:
            if not _is_missing(error):
                raise
            # Either the table was packed again and this state is being discarded, or a file is missing.
            if folder.is_still("packed", root):
                raise damaged(error) from None
            raise TableChangedError from None
        finally:
            folder.close()

    def _open_chunk(self, features: ByteFolder, number: int, layer: int) -> ChunkReader:
        name = chunk_name(self.encoding, number, layer, 0)
        return ChunkReader(features, name, (self.rows_per_chunk, 1, self.spec.dim), self.spec.dtype)


def is_padding(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which rows [row, layer, feature] hold nothing: features are finite, rows behind the last are NaN."""
    if not rows.shape[1]:
        return np.zeros(len(rows), np.bool_)
    return np.asarray(np.isnan(rows[:, :, 0]).any(axis=1))


def _is_missing(error: OSError) -> bool:
    """Whether a file is missing, or not a file but a link."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _read(folder: ByteFolder, below: str, name: str, limit: int) -> bytes:
    if not below:
        return folder.read(name, limit)
    with folder.folder(below) as inner:
        return inner.read(name, limit)


def _document(folder: ByteFolder, below: str) -> dict[str, Any]:
    return decode_document(_read(folder, below, METADATA, MAX_METADATA_BYTES))


def _checked(group: dict[str, Any]) -> dict[str, Any]:
    """What a group's document says of its table."""
    own = dataset_attributes(group)
    if not all(isinstance(own[name], str) for name in ("fingerprint", "generation", "rows_crc32c")):
        raise ValueError("impossible fingerprint, generation or checksum")
    if type(own["layout"]) is not int or own["layout"] < 0:
        raise ValueError("impossible layout version")
    MtimeToken.from_attributes(own)
    return own
