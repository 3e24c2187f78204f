"""Checking a store, quickly (structure, sizes, orphans) or deeply (every byte)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import CorruptTrackError, TrackNotFoundError
from featurestore.spec import DIMS, KINDS
from featurestore.store import reading
from featurestore.store.bundles.checking import SoundArrays, problems_of
from featurestore.store.commit import recovery, transaction
from featurestore.store.format.keys import decode_key
from featurestore.store.format.metadata import METADATA, shard_name
from featurestore.store.format.open_array import OpenArray
from featurestore.store.paths import BUNDLES, StorePaths, invalid_paths
from featurestore.store.reading import list_names
from featurestore.store.structure import damaged_structure
from featurestore.store.table.checking import TableCheck
from featurestore.store.track_reader import TrackReader

_OF_ONE_TRACK = (errno.EACCES, errno.EPERM, errno.EIO)
SEALED = "sealed"


@dataclass(frozen=True)
class Problem:
    """Tells one thing that is wrong.

    Attributes
    ----------
    what : str
        "track" (damaged: extract it again), "unreadable" (a track or a bundle that the file system refuses: left
        where it is), "orphan" (files of no published track, or not of a store), "packed" (the table is damaged or
        disagrees with the tracks: pack again), "bundle" (one that cannot be opened, or that other readers cannot
        read), "unfinished" (a change that was decided on and could not be carried out: let its folders be written,
        or take it back) or "structure" (metadata and folders of the store itself).
    key : str
        Folder of the track, "" for the table and the store itself.
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
    """Tells what a check found.

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
    left : int
        Folders of writers that are at work, or that died: the next one sweeps them, those of other hosts after a
        day.
    unfinished : int
        Changes that a writer has decided on and not finished: it is at work, or the next writer finishes them.
    deep : bool
        Whether every byte was checked.
    elapsed : float
        Seconds.
    problems : tuple of Problem
        Everything that is wrong.

    Examples
    --------
    >>> report = FeatureStore("features.zarr").verify()
    >>> report.ok, report.tracks, report.packed
    (True, 3, 3)
    """

    tracks: int
    arrays: int
    bytes_read: int
    packed: int
    left: int
    unfinished: int
    deep: bool
    elapsed: float
    problems: tuple[Problem, ...]

    @classmethod
    def of_damaged_root(cls, error: CorruptTrackError, *, deep: bool) -> VerifyReport:
        """Make the report of a store that cannot be opened.

        Examples
        --------
        >>> from featurestore.errors import CorruptTrackError
        >>> report = VerifyReport.of_damaged_root(CorruptTrackError("zarr.json is cut off"), deep=True)
        >>> report.ok, report.problems[0].message
        (False, 'zarr.json is cut off')
        """
        return cls(0, 0, 0, 0, 0, 0, deep, 0.0, (Problem("structure", "", None, str(error)),))

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        Examples
        --------
        >>> FeatureStore("features.zarr").verify().to_dict()["ok"]
        True
        """
        return {**dataclasses.asdict(self), "problems": [vars(p) for p in self.problems], "ok": self.ok}


def verify(reader: TrackReader, *, deep: bool) -> VerifyReport:
    """Check the store of a reader."""
    return _Check(reader, deep=deep).run()


def stray_files(paths: StorePaths, kind: str, key: str) -> list[str]:
    """Names of what lies in the folder of an array and is not of it."""
    own = {METADATA, shard_name(len(DIMS[kind]))}
    return sorted(set(list_names(paths.array(kind, key))) - own)


def damaged_kinds(reader: TrackReader, key: str, *, deep: bool) -> list[str]:
    """Kinds below a key that are in the way of a sound store, aggregated first; the caller holds its lock.

    Last is `SEALED`, if what a bundle has of the track is.
    """
    paths = reader.paths
    present = [kind for kind in reversed(KINDS) if os.path.lexists(paths.array(kind, key))]
    if (paths.journal / key).exists():  # a change to be finished
        return []
    try:
        sealed = "aggregated" not in present and reader.sealed.find(key) is not None
    except CorruptTrackError:  # it may be of a bundle that is damaged
        return []
    if "aggregated" not in present and not sealed:
        return present
    check = _Check(reader, deep=deep)
    check.track(key)
    if not check.problems or any(problem.what == "unreadable" for problem in check.problems):
        return []
    if any(problem.what == "track" or problem.track_id is None for problem in check.problems):
        return [*present, SEALED] if sealed else present
    current = reader.current(key)
    return [] if current is None else [kind for kind in present if kind not in current.attributes["kinds"]]


class _Check:
    def __init__(self, reader: TrackReader, *, deep: bool) -> None:
        self.reader = reader
        self.paths = reader.paths
        self.deep = deep
        self.problems: list[Problem] = []
        self.sound = SoundArrays()
        self.revisions: dict[str, str] = {}  # of the sound tracks
        self.is_readable = True  # whether all bundles are
        self.arrays = 0
        self.bytes = 0

    def run(self) -> VerifyReport:
        begun = time.monotonic()
        self._structure()
        keys = {kind: set(list_names(self.paths.kind(kind))) - {METADATA} for kind in KINDS}
        known = self._bundles()
        tracks = keys["aggregated"].union(known or ())
        for key in sorted(tracks):
            self.track(key)
        orphans = {
            (kind, key)
            for kind in (KINDS[:-1] if known is not None else ())
            for key in keys[kind] - tracks
            if not (self.paths.journal / key).exists() and self.reader.current(key) is None
        }
        placing = {key for _, key in recovery.placed_in_part(self.paths, self.reader.sealed)} if orphans else set()
        for kind, key in sorted(orphans):
            # A track that was being placed may be there by now.
            if key not in placing and self.reader.current(key) is None:
                self._add("orphan", key, f"{kind}/{key} belongs to no published track")
        for key, reason in recovery.failures(self.paths):
            self._add("unfinished", key, recovery.unfinished(key, reason))
        packed = 0
        if reading.is_dir(self.paths.kind("aggregated")) and self.is_readable:
            table = TableCheck(self.reader, self.revisions, deep=self.deep)
            packed = table.run()
            self.bytes += table.bytes
            for track_id, message in table.problems:
                self._add("packed", "", message, track_id)
        return VerifyReport(
            tracks=len(tracks),
            arrays=self.arrays,
            bytes_read=self.bytes,
            packed=packed,
            left=len(list_names(self.paths.staging)) + len(list_names(self.paths.trash)),
            unfinished=sum(not x.endswith(transaction.FAILED) for x in list_names(self.paths.journal))
            + len(placing)
            + len(list_names(self.paths.sealing)),
            deep=self.deep,
            elapsed=time.monotonic() - begun,
            problems=tuple(self.problems),
        )

    def _bundles(self) -> set[str] | None:
        """Check the bundles, and give the keys of the tracks in them; None if one cannot be opened."""
        sealed = self.reader.sealed
        for name, error in (problems := sealed.problems()).items():
            if isinstance(error, CorruptTrackError):
                self._add("bundle", "", str(error))
            else:
                self._add("unreadable", "", f"{BUNDLES}/{name} cannot be read: {error.strerror}")
                self.is_readable = False
        if problems:
            return None
        if sealed.names() and not reading.is_dir(self.paths.removed):  # structure says so
            return None
        for bundle in sealed.bundles():
            with contextlib.suppress(FileNotFoundError):  # unsealed just now
                found = list(problems_of(bundle))
                is_there = os.path.lexists(self.paths.bundles / bundle.name)  # or unsealed meanwhile
                for what, message in found if is_there else ():
                    self._add(what, "", message)
                if self.deep:
                    self.sound.look_at(bundle)
        for key in sealed.twice():
            if not os.path.lexists(self.paths.array("aggregated", key)):
                self._add("bundle", "", f"two bundles have the track with key {key}: overwrite or remove it")
        return sealed.keys()

    def _structure(self) -> None:
        for folder in damaged_structure(self.paths, self.reader.spec):
            self._add(
                "structure",
                "",
                f"{folder or 'the root'}: {METADATA} is damaged or missing: verify --repair writes it",
            )
        for strange in invalid_paths(self.paths):
            where = strange.relative_to(self.paths.root)
            self._add("structure", "", f"{where} is a link or a file where a store has a folder: move it away")
        for name in sorted(self._foreign_folders()):
            self._add("orphan", "", f"{name} is no folder of a store: keep it elsewhere")

    def _foreign_folders(self) -> Iterator[str]:
        """Folders in the root that are not the store's; hidden ones belong to whatever keeps or sends it."""
        own = {*KINDS, self.paths.packed.name, BUNDLES}
        with os.scandir(self.paths.root) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if entry.name not in own and not hidden and entry.is_dir(follow_symlinks=False):
                    yield entry.name

    def _add(self, what: str, key: str, message: str, track_id: str | None = None) -> None:
        if track_id is None and key:
            try:
                track_id = decode_key(key)
            except ValueError:
                track_id = None
        self.problems.append(Problem(what, key, track_id, message))

    def track(self, key: str) -> bool:
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
            track_id = str(current.attributes["track_id"])
            for kind in current.attributes["kinds"]:
                with self.reader.open(kind, key, track_id) as array:
                    self.arrays += 1
                    if self.deep:
                        self.bytes += array.nbytes if array in self.sound else check_chunks(array, f"{kind}/{key}")
                for name in stray_files(self.paths, kind, key):
                    self._add("orphan", key, f"{kind}/{key}/{name} is no file of the track", track_id)
            for kind in set(KINDS) - set(current.attributes["kinds"]):
                if self.paths.array(kind, key).exists() and not (self.paths.journal / key).exists():
                    self._add("orphan", key, f"{kind}/{key} is not of the published revision", track_id)
        except TrackNotFoundError:
            return False
        except CorruptTrackError as error:
            self._add("track", key, str(error), known)
        except OSError as error:
            if error.errno not in _OF_ONE_TRACK:
                raise
            self._add("unreadable", key, f"{key} cannot be read: {error.strerror}", known)
        else:
            self.revisions[key] = str(current.attributes["revision"])
        return len(self.problems) == before


def check_chunks(array: OpenArray, name: str) -> int:
    """Check all bytes of an open array: how many its numbers have.

    CorruptTrackError if they are not those that were written, or hold values that are not finite.
    """
    if array.metadata.attributes["checksums"].get("chunks") != array.shard.checksums():
        raise CorruptTrackError(f"{name}: the chunks are not those that were written")
    size = 0
    for position in range(array.shard.chunks):
        chunk = array.shard.read([position])
        size += chunk.nbytes
        if not np.isfinite(chunk).all():
            raise CorruptTrackError(f"{name}: chunk {position} holds values that are not finite")
    return size
