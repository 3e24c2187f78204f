"""Lock files, by `flock`, or without it among the threads of this process alone, and locks of single bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock

from featurestore.store import filesystem

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

_guard = Lock()
_held: dict[int, tuple[int, int, int]] = {}
"""Process, device and inode of each descriptor that is locked without flock."""


def lock_file(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, made if it is not there; the lock ends with `unlock` or with the process.

    A `shared` one may be held by several at a time, and keeps out those who want it alone.

    Returns
    -------
    int or None
        Descriptor of the file; None if somebody else, be it in this process, holds the lock.
    """
    return _open_locked(path, partial(_lock_whole, shared=shared))


def _open_locked(path: Path, lock: Callable[[int], bool]) -> int | None:
    fd = filesystem.open_lock(path)
    try:
        if lock(fd):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _lock_whole(fd: int, *, shared: bool) -> bool:
    try:
        return filesystem.try_flock(fd, shared=shared)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _lock_among_threads(fd)


def _lock_among_threads(fd: int) -> bool:
    status = os.fstat(fd)
    lock = os.getpid(), status.st_dev, status.st_ino
    with _guard:
        if lock in _held.values():
            return False
        _held[fd] = lock
    return True


def unlock(fd: int) -> None:
    """End a lock."""
    with _guard:
        emulated = _held.pop(fd, None)
    if emulated is None:
        # Closing would not be enough if a fork of this process has the file too.
        filesystem.end_flock(fd)
    os.close(fd)


def lock_byte(path: Path, offset: int) -> int | None:
    """Lock one byte of a file, made if it is not there; the lock ends with `unlock_byte` or with the process.

    Returns
    -------
    int or None
        Descriptor of the file; None if somebody else, be it in this process, holds the lock.

    Raises
    ------
    OSError
        Also if there are no such locks here.
    """
    return _open_locked(path, partial(_set_byte, fcntl.F_WRLCK, offset))


def unlock_byte(fd: int, offset: int) -> None:
    """End the lock of a byte."""
    _set_byte(fcntl.F_UNLCK, offset, fd)  # closing would not be enough, see `unlock`
    os.close(fd)


def _set_byte(kind: int, offset: int, fd: int) -> bool:
    """Lock a byte for this opening of a file, or unlock it; False if somebody else holds it."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:  # struct flock: kind, whence, start, length, process
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0))
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def is_seen_by_others(fd: int) -> bool:
    """Whether other processes see this lock."""
    return fd not in _held
