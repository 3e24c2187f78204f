"""Checking a store, quickly (structure, sizes, orphans) or deeply (every byte)."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import CorruptTrackError, TrackNotFoundError
from featurestore.spec import KINDS
from featurestore.store import files, layout
from featurestore.store.keys import decode_key, encode_key
from featurestore.store.layout import METADATA
from featurestore.store.packed import PackedTable, TableChangedError
from featurestore.store.tracks import OpenArray, TrackReader

_COMPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    what : str
        "track" (damaged: extract it again), "orphan" (files of no published track) or "packed" (the table is
        damaged or disagrees with the tracks: pack again).
    key : str
        Folder of the track, "" for the table.
    track_id : str or None
        The track, where it is known.
    message : str
        What is wrong.
    """

    what: str
    key: str
    track_id: str | None
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What a check found.

    Attributes
    ----------
    tracks : int
        Published tracks.
    arrays : int
        Arrays that were checked.
    bytes_read : int
        Bytes of features that were read and checked.
    packed : int
        Rows of the packed table.
    unfinished : int
        Changes that a writer has decided on and not finished: it is at work, or the next writer finishes them.
    deep : bool
        Whether every byte was checked.
    elapsed : float
        Seconds.
    problems : tuple of Problem
        Everything that is wrong.
    """

    tracks: int
    arrays: int
    bytes_read: int
    packed: int
    unfinished: int
    deep: bool
    elapsed: float
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            **dataclasses.asdict(self),
            "problems": [vars(p) for p in self.problems],
            "ok": self.ok,
        }


def verify(reader: TrackReader, *, deep: bool) -> VerifyReport:
    """Check the store of a reader."""
    return _Check(reader, deep=deep).run()


class _Check:
    def __init__(self, reader: TrackReader, *, deep: bool) -> None:
        self.reader = reader
        self.places = reader.places
        self.deep = deep
        self.problems: list[Problem] = []
        self.arrays = 0
        self.bytes = 0

    def run(self) -> VerifyReport:
        begun = time.monotonic()
        keys = {kind: self._keys(kind) for kind in KINDS}
        sound = [key for key in sorted(keys["aggregated"]) if self._track(key)]
        for kind in KINDS[:-1]:
            for key in sorted(keys[kind] - keys["aggregated"]):
                if not (self.places.journal / key).exists() and self.reader.current(key) is None:
                    self._add("orphan", key, f"{kind}/{key} belongs to no published track")
        packed = self._packed(set(sound), keys["aggregated"])
        return VerifyReport(
            tracks=len(keys["aggregated"]),
            arrays=self.arrays,
            bytes_read=self.bytes,
            packed=packed,
            unfinished=len(self._entries()),
            deep=self.deep,
            elapsed=time.monotonic() - begun,
            problems=tuple(self.problems),
        )

    def _keys(self, kind: str) -> set[str]:
        try:
            return {name for name in os.listdir(self.places.kind(kind)) if name != METADATA}
        except FileNotFoundError:
            self._add("orphan", "", f"the group {kind} is missing")
            return set()

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.places.journal)
        except FileNotFoundError:
            return []

    def _add(self, what: str, key: str, message: str, track_id: str | None = None) -> None:
        if track_id is None and key:
            try:
                track_id = decode_key(key)
            except ValueError:
                track_id = None
        self.problems.append(Problem(what, key, track_id, message))

    def _track(self, key: str) -> bool:
        """Check one track; whether it is sound."""
        try:
            known = decode_key(key)
        except ValueError:
            self._add("orphan", key, f"aggregated/{key} is not the folder of any track id")
            return False
        before = len(self.problems)
        try:
            current = self.reader.current(key)
            if current is None:  # removed since it was listed
                return False
            track_id = current.attributes.get("track_id")
            if not isinstance(track_id, str) or encode_key(track_id) != key:
                raise CorruptTrackError(f"aggregated/{key} says that it is the track {track_id!r}")
            for kind in current.attributes["kinds"]:
                with self.reader.open(kind, key, track_id) as array:
                    self.arrays += 1
                    self._same_segments(array, key)
                    if self.deep:
                        self._array(array, f"{kind}/{key}")
            for kind in set(KINDS) - set(current.attributes["kinds"]):
                if self.places.array(kind, key).exists() and not (self.places.journal / key).exists():
                    self._add("orphan", key, f"{kind}/{key} is not of the published revision", track_id)
        except TrackNotFoundError:
            return False
        except CorruptTrackError as error:
            self._add("track", key, str(error), known)
        return len(self.problems) == before

    def _same_segments(self, array: OpenArray, key: str) -> None:
        starts = array.metadata.attributes.get("starts", [])
        if starts and len(array.metadata.shape) > 2 and len(starts) != array.metadata.shape[0]:
            raise CorruptTrackError(f"{key}: {len(starts)} starts for {array.metadata.shape[0]} segments")

    def _array(self, array: OpenArray, name: str) -> None:
        checksums = array.metadata.attributes.get("checksums")
        if not isinstance(checksums, dict) or checksums.get("metadata") != layout.metadata_checksum(
            array.document
        ):
            raise CorruptTrackError(f"{name}: the metadata fails its checksum")
        if checksums.get("chunks") != array.shard.checksums():
            raise CorruptTrackError(f"{name}: the chunks are not those that were written")
        for position in range(array.shard.chunks):
            chunk = array.shard.read([position])
            self.bytes += chunk.nbytes
            if not np.isfinite(chunk).all():
                raise CorruptTrackError(f"{name}: chunk {position} holds values that are not finite")

    def _packed(self, sound: set[str], keys: set[str]) -> int:
        root = files.open_root(self.places.root)
        try:
            table = PackedTable.open(root, self.reader.spec)
            if table is None:
                return 0
            if len(table.rows) != len(table.track_ids):
                raise CorruptTrackError("packed: a track id occurs twice")
            marks = set(os.listdir(self.places.stale)) if self.places.stale.exists() else set()
            for row, track_id in enumerate(table.track_ids):
                key = encode_key(track_id)
                if key in marks:
                    continue
                if key not in keys:
                    self._add("packed", "", f"row {row} is of a track that the store does not have", track_id)
            if self.deep:
                usable = [t for t in table.track_ids if encode_key(t) in sound - marks]
                self._packed_rows(root, table, usable)
            return len(table.track_ids)
        except (TableChangedError, TrackNotFoundError):
            self._add("packed", "", "a shard of the table is missing, or the store changed meanwhile")
        except CorruptTrackError as error:
            self._add("packed", "", str(error))
        finally:
            os.close(root)
        return 0

    def _packed_rows(self, root: int, table: PackedTable, track_ids: list[str]) -> None:
        """Compare rows of the table with their tracks, some layers of a shard at a time."""
        spec = self.reader.spec
        rows = table.rows_per_shard
        step = max(1, _COMPARE_BYTES // (rows * spec.dim * 4))
        for first in range(0, len(table.track_ids), rows):
            wanted = set(table.track_ids[first : first + rows]).intersection(track_ids)
            ids = [t for t in table.track_ids[first : first + rows] if t in wanted]
            numbers = np.array([table.rows[t] for t in ids], np.int64)
            different: set[str] = set()
            for layer in range(0, len(spec.layers), step):
                layers = range(len(spec.layers))[layer : layer + step]
                stored = table.read(root, numbers, layers)
                self.bytes += stored.nbytes
                own = self.reader.read_rows(ids, layers)
                different |= {
                    t for t, row, block in zip(ids, stored, own, strict=True) if row.tobytes() != block.tobytes()
                }
            for track_id in sorted(different):
                self._add("packed", "", f"row {table.rows[track_id]} differs from the track", track_id)
