"""Bundle: what is in one, and reading it. It holds no file open and never changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec
from featurestore.store.bundles.layout import (
    MAX_ATTRIBUTE_BYTES,
    REVISION_BYTES,
    Sizes,
)
from featurestore.store.bundles.rows import RowReader, damaged
from featurestore.store.byte_source import ByteFolder, ByteSource
from featurestore.store.format.keys import MAX_ID_BYTES, encode_keys
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    ArrayMetadata,
    check_track_metadata,
    dataset_attributes,
    dataset_documents,
    decode_document,
    track_metadata,
)
from featurestore.store.format.small_chunks import (
    CRC_BYTES,
    LENGTH_BYTES,
    checked_texts,
    decode_numbers,
    decode_texts,
)
from featurestore.store.paths import BUNDLES

_INDEX_BYTES = 2**29
_KEPT_BYTES = 2**26  # of attributes and starts, of all bundles of a reader

T = TypeVar("T")


class Recent:
    """What was read last of all bundles: so many bytes, and the very last in any case."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, ...], tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: tuple[str, ...], make: Callable[[], tuple[T, int]]) -> T:
        """What is kept under a key, or is made now; it comes with its bytes."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                kept: T = self._found[key][0]
                return kept
        made, size = make()
        with self._lock:
            _, before = self._found.pop(key, (None, 0))
            self._found[key] = made, size
            self._bytes += size - before
            while self._bytes > _KEPT_BYTES and len(self._found) > 1:
                _, (_, least) = self._found.popitem(last=False)
                self._bytes -= least
        return made


@dataclass(frozen=True, eq=False)
class Bundle:
    """One bundle.

    Parameters
    ----------
    files : ByteSource
        The store.
    name : str
        Of the bundle.
    sizes : Sizes
        Of the bundle.
    ids : list of str
        Of its tracks.
    splits : ndarray of int64
        The first row of each track, and behind the last one.
    revisions : ndarray of uint8
        Of each track, [track, byte].
    """

    files: ByteSource
    name: str
    sizes: Sizes
    ids: list[str]
    splits: npt.NDArray[np.int64]
    revisions: npt.NDArray[np.uint8]
    recent: Recent

    @classmethod
    def open(cls, files: ByteSource, name: str, spec: FeatureSpec, recent: Recent) -> Bundle:
        """Open a bundle of a store.

        Raises
        ------
        FileNotFoundError
            If it is not there, or incomplete.
        CorruptTrackError
            If it is damaged.
        """
        with files.open(BUNDLES, name) as folder, damage(name):
            group = decode_document(folder.read(METADATA, MAX_METADATA_BYTES))
            sizes = Sizes.of_arrays(group["consolidated_metadata"]["metadata"], spec)
            tracks = sizes.tracks
            own = dataset_attributes(group)
            if dataset_documents(own, sizes.arrays())[""] != group:
                raise ValueError("not the metadata of a bundle of this spec")
            if own["fingerprint"] != spec.fingerprint:
                raise ValueError("features of another spec")
            content = []
            for array, file in INDEX:
                with folder.folder(array) as inner:
                    content.append(inner.read(file, _INDEX_BYTES))
            if index_checksum(content) != own["index_crc32c"]:
                raise ValueError("its index is not the one that was written")
            splits = decode_numbers(content[0], "<i8", tracks + 1).astype(np.int64)
            if splits[0] != 0 or splits[-1] != sizes.rows or (np.diff(splits) < 0).any():
                raise ValueError("its rows do not add up")
            if sizes.rows:
                _check_rows(folder, sizes.rows)
            ids = _texts(content[1], tracks, MAX_ID_BYTES)
            revisions = decode_numbers(content[2], "u1", tracks * REVISION_BYTES).astype(np.uint8)
            found = cls(files, name, sizes, ids, splits, revisions.reshape(-1, REVISION_BYTES), recent)
            if len(set(found.keys)) != tracks:
                raise ValueError("a track id occurs twice")
            return found

    @cached_property
    def keys(self) -> list[str]:
        """Key of each track."""
        try:
            return encode_keys(self.ids)
        except SettingError as error:
            raise ValueError(str(error)) from None

    def revision(self, row: int) -> str:
        """Revision of a track."""
        return bytes(self.revisions[row]).hex()

    def nbytes(self, rows: Sequence[int]) -> int:
        """Bytes of the features of some tracks."""
        spec = self.sizes.spec
        each = len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize
        return each * sum(self.segments(row) + 1 for row in rows)

    def segments(self, row: int) -> int:
        """How many segments are stored of a track."""
        return int(self.splits[row + 1] - self.splits[row])

    def starts(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[npt.NDArray[np.float64]]:
        """Where the segments of each of some tracks start, seconds; empty if the store was not told."""
        every, chosen = self.row_starts(), np.asarray(rows)
        begins, ends = self.splits[chosen], self.splits[chosen + 1]
        if len(every):
            ends = np.where(np.isnan(every[np.minimum(begins, len(every) - 1)]), begins, ends)
        return [every[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]

    def row_starts(self) -> npt.NDArray[np.float64]:
        """Where all segments start in their tracks, seconds; NaN where that is not known."""

        def read() -> tuple[npt.NDArray[np.float64], int]:
            with self._opened("start") as folder, damage(self.name):
                content = folder.read("c.0", _INDEX_BYTES)
                found = decode_numbers(content, "<f8", self.sizes.rows).astype(np.float64, copy=False)
                check_starts(found, self.splits)
                return found, found.nbytes

        return self.recent.get((self.name, "start"), read) if self.sizes.rows else np.empty(0)

    def _record(self, row: int) -> dict[str, Any]:
        rows = self.sizes.attribute_rows
        number, at = divmod(row, rows)

        def read() -> tuple[list[str], int]:
            with self._opened("attributes") as folder:
                content = folder.read(f"c.{number}", _INDEX_BYTES)
                return _texts(content, rows, MAX_ATTRIBUTE_BYTES), len(content)

        with damage(self.name):
            return decode_document(self.recent.get((self.name, "attributes", str(number)), read)[at].encode())

    def metadata(self, kind: str, row: int) -> ArrayMetadata:
        """Metadata of a kind of a track, as if it were in a folder.

        Raises
        ------
        FileNotFoundError
            If the bundle is gone.
        CorruptTrackError
            If what is kept of it is damaged.
        """
        record, spec = self._record(row), self.sizes.spec
        with damage(self.name):
            own = record["attributes"]
            attributes: dict[str, Any] = dict(own)
            if "starts" not in own:
                attributes["starts"] = self.starts([row])[0].tolist()
            if kind == "segments":
                attributes["checksums"] = record["segments_checksums"]
            shape = (len(spec.layers), spec.dim)
            whole = shape if kind == "aggregated" else (self.segments(row), *shape)
            found = track_metadata(kind, whole, spec, attributes)
            check_track_metadata(found, kind, self.keys[row], spec)
            if own["revision"] != self.revision(row) or not isinstance(own["checksums"], Mapping):
                raise ValueError(f"attributes of another track than {self.ids[row]!r:.200}")
            if bool(self.segments(row)) != ("segments" in own["kinds"]):
                raise ValueError(f"it lacks segments of {self.ids[row]!r:.200}")
            return found

    @contextmanager
    def reading(self, kind: str) -> Iterator[RowReader]:
        """Open the features of a kind.

        Raises
        ------
        FileNotFoundError
            If the bundle is gone.
        CorruptTrackError
            If files of it are.
        """
        metadata, name = self.sizes.features(kind), f"{BUNDLES}/{self.name}/{kind}"
        with self._opened(kind) as folder, RowReader(folder, metadata, name) as reader:
            yield reader

    @contextmanager
    def _opened(self, array: str) -> Iterator[ByteFolder]:
        """Open the folder of an array; what is missing there is damage, unless the bundle is gone."""
        try:
            with self.files.open(BUNDLES, self.name, array) as folder:
                yield folder
        except FileNotFoundError as error:
            self.files.open(BUNDLES, self.name).close()
            raise damaged(f"{BUNDLES}/{self.name}/{array}", f"{error.filename} is missing") from None


INDEX = (("row_splits", "c.0"), ("track_id", "c.0"), ("revision", "c.0.0"))
"""The arrays, and their files, that are read when a bundle is opened."""


def index_checksum(contents: list[bytes]) -> str:
    """Checksum of the files of the index, by which the metadata knows them."""
    crc = 0
    for content in contents:
        crc = google_crc32c.extend(crc, content)
    return f"{crc:08x}"


def _texts(content: bytes, rows: int, most: int) -> list[str]:
    """Texts of a chunk of some rows, of at most so many characters each, and nothing behind them."""
    body = checked_texts(content, rows)
    found = decode_texts(body)
    if len("".join(found).encode()) != len(body) - LENGTH_BYTES * (rows + 1):
        raise ValueError("something is behind the texts")
    if max(map(len, found), default=0) > most:
        raise ValueError("a text is too long")
    return found


def check_starts(starts: npt.NDArray[np.float64], splits: npt.NDArray[np.int64]) -> None:
    """Raise ValueError unless each track knows where all of its segments start, or none."""
    unknown, own = np.isnan(starts), np.diff(splits)
    sums = np.add.reduceat(unknown, splits[:-1][own > 0], dtype=np.int64)
    if np.isinf(starts).any() or ((sums != 0) & (sums != own[own > 0])).any():
        raise ValueError("impossible starts")


def _check_rows(folder: ByteFolder, rows: int) -> None:
    """Raise ValueError if a bundle has other rows than it says: they take memory and time."""
    size = rows * np.dtype(np.float64).itemsize + CRC_BYTES
    with folder.folder("start") as inner, closing(inner.open("c.0")) as file:
        if file.size != size or size > _INDEX_BYTES:
            raise ValueError(f"start/c.0 is not a file of {size} bytes")


@contextmanager
def damage(name: str) -> Iterator[None]:
    """Say which bundle is damaged, where what it holds is not what belongs there."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(f"{BUNDLES}/{name}", str(error) or repr(error)) from None
