"""Folders that belong to one writer, and are swept away by others once it is dead.

A lock in the folder says that its owner lives. Neither its process id nor the time of day does: ids are used
again, and clocks jump. Only where locks may be invisible, on folders of another host, age must say the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Event, Lock, Thread

from featurestore.errors import StoreAccessError, StoreError, TrackLockedError
from featurestore.store import filesystem, reading
from featurestore.store.commit.flock import is_seen_by_others, lock_file, unlock
from featurestore.store.format.metadata import SEALED_VERSION
from featurestore.store.paths import StorePaths

OWNER = "owner.lock"
BEAT = 5.0  # seconds between two signs of life
_KNOWS = str(SEALED_VERSION)
"""At the end of the name of a folder, the newest format that its owner knows."""
_FOREIGN_AGE = 24 * 3600.0  # seconds


class StagingArea:
    """A new folder that belongs to this process until it is closed.

    From its first track on, its lock file gets another time of change all the time: to those to whom the lock says
    nothing, since a host that has died may keep it, this says that the owner lives (see `silence`).
    """

    def __init__(self, parent: Path, *, durable: bool = False) -> None:
        self._guard, self._closed = Lock(), Event()
        self._beating: Thread | None = None
        while True:
            self.path = parent / f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.{_KNOWS}"
            filesystem.make_dir(self.path)
            # Another writer may have taken the folder for abandoned before the lock was there.
            with contextlib.suppress(FileNotFoundError):
                self._owner = lock_file(self.path / OWNER)
                if self._owner is not None and (self.path / OWNER).exists():
                    break
        self._spare: list[Path] = []
        if durable:
            filesystem.sync_dir(parent)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            with contextlib.suppress(OSError):  # the disk may be away for a moment
                filesystem.set_modified(self.path / OWNER, time.time_ns())

    @property
    def is_seen_by_others(self) -> bool:
        """Whether other processes see that the owner of this folder lives."""
        return self._owner is not None and is_seen_by_others(self._owner)

    def folder(self, key: str = "") -> Path:
        """An empty folder to stage a change in; while its name is a `key`, others may take this track over."""
        with self._guard:
            if self._owner is None:
                raise StoreError("this writer is closed: open another")
            if key and self._beating is None:
                self._beating = Thread(target=self._beat, name="featurestore-beat", daemon=True)
                self._beating.start()
            path = self.path / (key or uuid.uuid4().hex[:12])
            if reading.is_dir(path):  # what is left of an earlier try, and could not be removed
                filesystem.rename(path, path.with_name(uuid.uuid4().hex[:12]))
            if self._spare:
                filesystem.rename(self._spare.pop(), path)
            else:
                filesystem.make_dir(path)
            return path

    def keep(self, folder: Path) -> Path:
        """Rename a folder that has a key as its name: from now on nobody else may take the track over.

        Raises
        ------
        TrackLockedError
            If somebody has.
        """
        kept = folder.with_name(uuid.uuid4().hex[:12])
        with owning(folder):
            filesystem.rename(folder, kept)
        return kept

    def reuse(self, folder: Path) -> None:
        """Use a folder, which is empty by now, again: to make one and to remove it costs more than a file."""
        self._spare.append(folder)

    def close(self, trash: Path | None = None) -> None:
        """Remove the folder with everything that is still in it, by way of the trash where there is one."""
        self._closed.set()
        if self._beating is not None and self._beating.is_alive():
            self._beating.join()
        gone = self.path
        try:
            if trash is not None:
                gone = filesystem.move_to_trash(gone, trash)
        finally:
            if self._owner is not None:
                unlock(self._owner)
                self._owner = None
        # Only now: FUSE and NFS keep a file that is removed while it is open, and with it the folder.
        filesystem.remove_tree(gone)


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Find out by a staged folder of a track that is missing that another has taken the track over.

    Raises
    ------
    TrackLockedError
        If another has.
    """
    try:
        yield
    except FileNotFoundError as error:
        if reading.is_dir(folder) or not reading.is_dir(folder.parent):
            raise
        raise TrackLockedError(
            f"this process was silent for so long that others do its track with key {folder.name}"
        ) from error


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:64]


def clean_stale(paths: StorePaths, *, needed: Collection[str] = ()) -> None:
    """Remove what dead writers left in the staging area, but for folders that are needed, and in the trash.

    What belongs to somebody else and may not be removed is left for them.
    """
    for folder in paths.staging.iterdir():
        fd = None if folder.name in needed else try_adopt(folder)
        if fd is not None:
            try:
                gone = filesystem.move_to_trash(folder, paths.trash)
            except PermissionError:
                continue
            finally:
                unlock(fd)
            filesystem.remove_tree(gone)  # only now that its lock is closed: see StagingArea.close
    for folder in paths.trash.iterdir():
        filesystem.remove_tree(folder)


def refuse_others(staging: Path) -> None:
    """Raise StoreAccessError if a writer may be at work beside which tracks cannot be sealed.

    That is one of another host, whose lock does not show, and one of a release that knows no bundles: it has
    opened the store before there were some.
    """
    for folder in staging.iterdir():
        with contextlib.suppress(OSError):
            if not reading.is_dir(folder):
                continue
            fd = lock_file(folder / OWNER)
            if fd is not None:
                unlock(fd)
                if _shows_its_lock(folder):
                    continue  # it is dead
                what = "of another host is at work, and its lock does not show here, or it has died"
            elif folder.name.split(".")[3:] != [_KNOWS]:
                what = "of an earlier release is at work"
            else:
                continue
            raise StoreAccessError(
                f"a writer {what} ({folder} is its folder): tracks can be sealed when it is done, or that folder "
                "is removed"
            )


def try_adopt(folder: Path) -> int | None:
    """Lock a folder whose owner is dead, for `unlock`; None if it may be alive."""
    with contextlib.suppress(OSError):  # what cannot be claimed now waits for the next writer
        if reading.is_dir(folder) and _shows_its_lock(folder):  # a link may lead anywhere
            # A writer between making the folder and locking it loses the lock to this one, and makes another.
            return lock_file(folder / OWNER)
    return None


def _shows_its_lock(folder: Path) -> bool:
    """Whether the lock of a folder's owner, if it had one, would show here, or the folder is old."""
    return folder.name.split(".")[0] == _host() or time.time() - folder.stat().st_mtime > _FOREIGN_AGE
