"""Lock files, by `flock`, or without it among the threads of this process alone, and locks of single bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from threading import Lock

from featurestore.store import filesystem

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

_guard = Lock()
_held: dict[
    int, tuple[int, int, int]
] = {}  # process, device and inode of each descriptor that is locked without flock


def lock_file(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, made if it is not there; the lock ends with `unlock` or with the process.

    A `shared` one may be held by several at a time, and keeps out those who want it alone.

    Returns
    -------
    int or None
        Descriptor of the file; None if somebody else, be it in this process, holds the lock.
    """
    fd = filesystem.open_lock(path)
    try:
        try:
            locked = filesystem.try_flock(fd, shared=shared)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = _lock_among_threads(fd)
    except BaseException:
        os.close(fd)
        raise
    if not locked:
        os.close(fd)
        return None
    return fd


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
    fd = filesystem.open_lock(path)
    try:
        locked = _set_byte(fd, fcntl.F_WRLCK, offset)
    except BaseException:
        os.close(fd)
        raise
    if not locked:
        os.close(fd)
        return None
    return fd


def unlock_byte(fd: int, offset: int) -> None:
    """End the lock of a byte."""
    _set_byte(fd, fcntl.F_UNLCK, offset)  # closing would not be enough, see `unlock`
    os.close(fd)


def _set_byte(fd: int, kind: int, offset: int) -> bool:
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
