"""Reading a store that is in a bucket or on a web server: one that was pushed there, or copied as it was.

A store that was pushed has `packed/zarr.json` with the name of the current table, a folder beside it that never
changes, and that table is the list of its tracks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from featurestore.addresses import StoreUrl
from featurestore.errors import CorruptTrackError, NotAStoreError, StoreAccessError, TrackNotFoundError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store.array_reader import ArrayReader
from featurestore.store.byte_source import REQUESTS, ByteFolder
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    SEALED_VERSION,
    decode_document,
    encode_document,
    group_document,
)
from featurestore.store.format.root import Root, decode_root
from featurestore.store.object_files import ObjectFolder
from featurestore.store.objects import ObjectSource
from featurestore.store.paths import HIDDEN
from featurestore.store.source import TrackSource
from featurestore.store.table.gathering import TableIndex
from featurestore.store.table.listing import track_ids_of
from featurestore.store.table.rows import digest
from featurestore.store.table.snapshot import Snapshot, TrackList
from featurestore.store.table.table import PackedTable
from featurestore.store.verify import Problem, VerifyReport, check_chunks

PACKED, POINTER = "packed", f"packed/{METADATA}"
_CURRENT, _SUPERSEDED = "current", "superseded"
"""Attributes of the group `packed` in a bucket: the name of the folder in it that is the table, and those of
tables that were, with the moment since which they are not."""
_WHOLE_BYTES = 2**26
"""Arrays of so many bytes at most are checked from one request."""
_COLUMNS = 2
"""Of so many layers, rows are always read by whole chunks, which are kept."""

T = TypeVar("T")


@dataclass(frozen=True)
class Pointer:
    """What `packed/zarr.json` of a store that was pushed says."""

    current: str
    superseded: Mapping[str, str]

    def encode(self) -> bytes:
        """Content of the object."""
        return encode_document(group_document({_CURRENT: self.current, _SUPERSEDED: dict(self.superseded)}))

    @classmethod
    def decode(cls, content: bytes) -> Pointer | None:
        """None if it is not of a store that was pushed."""
        try:
            attributes = decode_document(content)["attributes"]
            current, superseded = attributes[_CURRENT], attributes.get(_SUPERSEDED, {})
            names = [current, *superseded]
            known = all(isinstance(name, str) and name.isalnum() for name in names)
            return cls(current, superseded) if known and isinstance(superseded, dict) else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class Bucket(ObjectSource):
    """A store below a URL, in which the folder `packed` is the current table."""

    def open(self, *parts: str) -> ObjectFolder:
        """Open the store's folder, or one below it; nothing is read yet."""
        return ObjectFolder(self, parts) if parts else _Root(self, ())

    def pointer(self, *, fresh: bool = False) -> Pointer | None:
        """What names the current table of a store that was pushed; None of any other."""
        if fresh:
            self.forget(POINTER)
        try:
            return Pointer.decode(bytes(self.get(POINTER, limit=MAX_METADATA_BYTES)))
        except (FileNotFoundError, ValueError):
            return None  # of a table that was copied, its reader says what is wrong

    def current(self, *, fresh: bool = False) -> str | None:
        """Name of the current table of a store that was pushed; None of any other."""
        found = self.pointer(fresh=fresh)
        return None if found is None else found.current

    def track_keys(self) -> set[str]:
        """Keys of all tracks, by a listing: of those whose `aggregated` has its metadata, which comes last."""
        paths = (path.split("/") for path, _ in self.entries("aggregated"))
        return {path[1] for path in paths if len(path) == 3 and path[2] == METADATA}

    def spec_or_none(self) -> FeatureSpec | None:
        """Spec of the store; None if there is nothing."""
        self.forget(METADATA)
        with contextlib.suppress(FileNotFoundError):
            self.get(METADATA)
            return self.read_root().spec
        return None

    def read_root(self) -> Root:
        """What the store says of itself; NotAStoreError if there is none, other errors as those of a folder."""
        try:
            root = decode_root(bytes(self.get(METADATA)), self.url)
            if root.format == SEALED_VERSION:
                raise StoreAccessError(
                    f"{self.url} is a copy of a store whose tracks are in bundles, which are read from a folder "
                    "only: `fs-extract push` the store there instead, which makes it whole for reading from afar"
                )
            return root
        except FileNotFoundError:
            raise NotAStoreError(
                f"{self.url} holds no feature store: give the address of one, or `fs-extract push` one there"
            ) from None


class _Root(ObjectFolder):
    source: Bucket

    def folder(self, *names: str) -> ObjectFolder:
        if names == (PACKED,) and (current := self.source.current()) is not None:
            return _Table(self.source, (PACKED, current))
        return super().folder(*names)


class _Table(ObjectFolder):
    source: Bucket

    def is_still(self, name: str, above: ByteFolder) -> bool:  # noqa: ARG002
        return self.source.current(fresh=True) == self.parts[-1]


class BucketIndex(TableIndex):
    """The tracks of a store as they were when they were first asked for."""

    def __init__(self, reader: ArrayReader, bucket: Bucket) -> None:
        super().__init__(reader)
        self._bucket = bucket
        self._cached: tuple[Snapshot, frozenset[str]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reader, self._bucket)

    def snapshot(self) -> Snapshot:
        return self._looked_up()[0]

    def ids(self) -> frozenset[str]:
        """Ids of all tracks."""
        return self._looked_up()[1]

    def forget(self) -> None:
        self._cached = None
        self._bucket.current(fresh=True)

    def _looked_up(self) -> tuple[Snapshot, frozenset[str]]:
        if self._cached is None:
            found = self._look_up()
            self._cached = found, frozenset(found.track_ids)
        return self._cached

    def _look_up(self) -> Snapshot:
        with self._bucket.open() as root:
            table = PackedTable.open(root, self.reader.spec)
        nothing = frozenset[str]()
        if table is not None and (self._bucket.current() or not self._bucket.can_list):
            if self._bucket.current() is None and table.mtime_token is None:
                raise StoreAccessError(
                    f"{self._bucket.url}: its table lacks tracks, and a web server tells none: `fs-extract pack` "
                    "the store before you copy it there"
                )
            return Snapshot(TrackList(table, nothing, ()), table, nothing, None)
        if not self._bucket.can_list:
            raise StoreAccessError(
                f"{self._bucket.url}: it has no packed table, and a web server tells no tracks: `fs-extract pack` "
                "the store before you copy it there, or put it in a bucket"
            )
        keys = self._bucket.track_keys()
        stale = self._bucket.names(f"{HIDDEN}/stale")
        if table is not None and not self._bucket.exists(f"{HIDDEN}/{METADATA}"):
            table = None  # the markers of its stale rows were not copied
        packed = {} if table is None else dict(zip(table.keys, table.track_ids, strict=True))
        more = sorted(track_ids_of(self.reader, keys - packed.keys()).values())
        gone = frozenset(packed[key] for key in packed.keys() - keys)
        unusable = gone | {packed[key] for key in packed.keys() & stale}
        return Snapshot(TrackList(table, gone, more), table, unusable, None)

    def _prefers_table(self, positions: Sequence[int]) -> bool:
        return len(positions) <= _COLUMNS


class BucketSource(TrackSource):
    """The tracks of a store in a bucket; the options are for obstore."""

    def __init__(self, url: StoreUrl, options: Mapping[str, Any] | None = None) -> None:
        self.path = url
        self.bucket = Bucket(url, options)
        self.spec = self.bucket.read_root().spec
        self.reader = ArrayReader(self.bucket, self.spec)
        self.index: BucketIndex = BucketIndex(self.reader, self.bucket)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreAccessError(
                f"{self.path} is changing, or incomplete: open it again, or push it again ({error.filename} is "
                "missing)"
            ) from None

    @property
    def format(self) -> int:
        return self.bucket.read_root().format

    def each(self, read: Callable[[str], T], track_ids: Iterable[str]) -> Iterable[T]:
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(read, track_ids)

    def has(self, track_id: str) -> bool:
        encode_key(track_id)  # or no track can have this id
        with self.reading():
            return track_id in self.index.ids()

    def state(self) -> object:
        return id(self.index.snapshot())

    def verify(self, *, deep: bool) -> VerifyReport:
        """Check each track, and with `deep` every byte and each row of the table."""
        began = time.monotonic()
        problems: list[Problem] = []
        with self.reading():
            snapshot = self.index.snapshot()
        sizes = list(self.each(partial(self._verify_track, snapshot, problems, deep), snapshot.track_ids))
        arrays, read = (sum(one[n] for one in sizes) for n in (0, 1))
        rows = 0 if snapshot.table is None else snapshot.table.tracks
        tracks = len(snapshot.track_ids)
        return VerifyReport(tracks, arrays, read, rows, 0, 0, deep, time.monotonic() - began, tuple(problems))

    def _verify_track(
        self, snapshot: Snapshot, problems: list[Problem], deep: bool, track_id: str
    ) -> tuple[int, int]:
        """How many arrays of a track there are, and bytes of them that were read."""
        key, read = encode_key(track_id), 0
        kinds: list[str] = []
        try:
            current = self.reader.current(key)
            kinds = [] if current is None else current.attributes["kinds"]
            if current is None:
                raise TrackNotFoundError("the table has a row of it, and the store has no such track")
            for kind in (kind for kind in KINDS if kind in kinds):
                with self.reader.open(kind, key, track_id) as array:
                    file = array.file
                    if deep and file.size <= _WHOLE_BYTES:
                        file.expect(np.array([[0, file.size]], np.uint64))
                    read += check_chunks(array, f"{kind}/{key}") if deep else 0
            table, (row,) = snapshot.table, snapshot.rows([track_id])
            if table is not None and row >= 0:
                if digest(str(current.attributes["revision"])) != table.described["revision"][row]:
                    raise CorruptTrackError("its row in the table is of another revision")
                if deep:
                    layers = range(len(self.spec.layers))
                    with self.bucket.open() as root:
                        packed = table.read(root, np.array([row], np.int64), layers)
                    if packed.tobytes() != self.reader.read_rows([track_id], layers).tobytes():
                        raise CorruptTrackError("its row in the table differs from it")
        except (CorruptTrackError, TrackNotFoundError, FileNotFoundError) as error:
            problems.append(Problem("track", key, track_id, f"{error}"))
        return len(kinds), read
