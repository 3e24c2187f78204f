"""Locks that save work: a track that another writer has is skipped, not computed twice.

A track is one byte of one file, by a hash of its key, and no two tracks share a lock. Where the system has no such
locks, and in earlier releases, a fixed number of lock files (stripes) is shared by all tracks, and each is held
alone. Who holds a byte also holds the track's stripe, together with others who hold bytes: both kinds of writers
exclude each other. No lock file is ever removed: removing one on release lets two writers in. Who holds a stripe
alone writes the keys into the file, so that a loser can tell "another writer has this track" from "another writer
has a track that shares the lock".

A byte that is held may be that of a host that has died: `silence` tells, and has locks for the tracks of the dead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from featurestore.errors import TrackAccessError, TrackLockedError
from featurestore.store import filesystem, reading
from featurestore.store.commit.flock import (
    NO_LOCKS,
    is_seen_by_others,
    lock_byte,
    lock_file,
    unlock,
    unlock_byte,
)
from featurestore.store.commit.silence import SilentWriters

STRIPES = 1024
BYTES = "tracks.lock"
_WITHOUT = *NO_LOCKS, errno.EACCES, errno.EPERM, errno.EROFS, errno.EBADF
"""Errors where there are no locks of bytes, or the file of them is somebody else's."""

_MAX_BYTES = 2**20
_POLL = 0.005


def stripe_of(key: str) -> str:
    """Name of the lock file of a key."""
    return f"{_hash(key) % STRIPES:04d}.lock"


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8])


def _byte_of(key: str) -> int:
    return _hash(key) >> 2  # offsets of files have 63 bits


class TrackLocks:
    """The track locks that one writer holds, and what it knows of writers that are dead: by default nobody is."""

    def __init__(self, folder: Path, dead: SilentWriters | None = None) -> None:
        self._folder, self._dead = folder, dead
        self._held: dict[str, tuple[int, list[str]]] = {}
        # By key: the stripe, the byte unless a dead one holds it, what the dead have had.
        self._bytes: dict[str, contextlib.ExitStack] = {}
        self._has_bytes = True
        self._guard = Lock()

    @contextlib.contextmanager
    def holding(self, key: str, *, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock of a track; waits so many seconds for a writer that holds it for another track.

        Raises
        ------
        TrackLockedError
            At once, if another writer is at work on the track, or this one; after `wait` seconds, if another
            writer holds the lock for another track.
        TrackAccessError
            If the lock file belongs to somebody else and may not be opened.
        """
        deadline = time.monotonic() + wait
        confirmed = False
        while True:
            try:
                self._acquire(key)
                break
            except TrackLockedError as error:
                # A new holder writes its key right after it has the lock: what stands there is read twice.
                if time.monotonic() >= deadline or (error.same_track and confirmed):
                    raise
                confirmed = error.same_track
                time.sleep(_POLL)
        try:
            yield
        finally:
            self._release(key)

    def _acquire(self, key: str) -> None:
        stripe = stripe_of(key)
        path = self._folder / stripe
        with self._guard:
            if self._has_bytes and self._acquire_byte(key, path):
                return
            if stripe in self._held:
                keys = self._held[stripe][1]
                if key in keys:
                    raise _locked(key, same_track=True)
            else:
                with _naming(path):
                    fd = lock_file(path)
                if fd is None:
                    raise _locked(key, same_track=key in _read(path))
                keys = []
                self._held[stripe] = (fd, keys)
            keys.append(key)
            try:
                _write(self._held[stripe][0], keys)
            except BaseException:  # an interrupt
                self._drop(stripe, key)
                raise

    def _acquire_byte(self, key: str, stripe: Path) -> bool:
        """Lock the byte of a key; False, from now on, where there are no such locks."""
        if key in self._bytes:
            raise _locked(key, same_track=True)
        with contextlib.ExitStack() as locked:
            with _naming(stripe):
                shared = lock_file(stripe, shared=True)
            if shared is None:
                raise _locked(key, same_track=key in _read(stripe))
            locked.callback(unlock, shared)
            try:
                if not is_seen_by_others(shared):
                    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
                byte = lock_byte(self._folder / BYTES, _byte_of(key))
            except OSError as error:
                if error.errno not in _WITHOUT:
                    raise
                self._has_bytes = False
                return False
            if byte is not None:
                locked.callback(unlock_byte, byte, _byte_of(key))
            is_ours = byte is not None
            if self._dead is not None:
                is_ours = self._dead.lock(key, locked, held=byte is None)
            if not is_ours:
                raise _locked(key, same_track=True)
            self._bytes[key] = locked.pop_all()
            return True

    def _release(self, key: str) -> None:
        with self._guard:
            if key in self._bytes:
                self._bytes.pop(key).close()
            else:
                self._drop(stripe_of(key), key)

    def _drop(self, stripe: str, key: str) -> None:
        fd, keys = self._held[stripe]
        keys.remove(key)
        if not keys:
            del self._held[stripe]
            unlock(fd)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which lock file cannot be opened."""
    try:
        yield
    except (PermissionError, IsADirectoryError) as error:
        raise TrackAccessError(
            f"{path} cannot be locked ({error.strerror}): set its permissions right (chmod g+rw), or "
            "remove it while nobody writes the store"
        ) from error


def _locked(key: str, *, same_track: bool) -> TrackLockedError:
    return TrackLockedError(f"another writer is at work on the track with key {key}", same_track=same_track)


def _read(path: Path) -> list[str]:
    try:
        return os.fsdecode(reading.read_file(path, limit=_MAX_BYTES).split(b"\n")[0]).split()
    except (OSError, ValueError):
        return []


def _write(fd: int, keys: list[str]) -> None:
    # Only a hint for others: a full disk must not turn it into a failure.
    with contextlib.suppress(OSError):
        filesystem.write_note(fd, os.fsencode(" ".join(keys)))


@contextlib.contextmanager
def exclusive(path: Path, *, timeout: float, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file, with others if `shared`, or yield False if it is not free within `timeout` seconds.

    Who holds it alone writes its name into it, for `held_by`.
    """
    deadline = time.monotonic() + timeout
    while (fd := lock_file(path, shared=shared)) is None:
        if time.monotonic() >= deadline:
            yield False
            return
        time.sleep(_POLL)
    try:
        if not shared:
            _write(fd, [socket.gethostname(), str(os.getpid())])
        yield True
    finally:
        unlock(fd)


def held_by(path: Path) -> str:
    """Which process holds a lock file that `exclusive` does not get, alone."""
    host, process, *_ = *_read(path), "", ""
    return f"process {process:.20} on {host:.100}" if process.isdecimal() else "one that does not say which"


def way_out(path: Path) -> str:
    """What to do about a lock file that another process holds for too long."""
    return (
        "try again when it is done. If its host has died, and the file system keeps its locks until it is back "
        f"(NFSv3), remove {path}: the next writer finishes what was begun"
    )
