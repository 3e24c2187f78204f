"""Lock files, by `flock`; on file systems without it among the threads of this process alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Lock

from featurestore.store import filesystem

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

_guard = Lock()
_held: dict[
    int, tuple[int, int, int]
] = {}  # process, device and inode of each descriptor that is locked without flock


def lock_file(path: Path) -> int | None:
    """Lock a file, made if it is not there; the lock ends with `unlock` or with the process.

    Returns
    -------
    int or None
        Descriptor of the file; None if somebody else, be it in this process, holds the lock.
    """
    fd = filesystem.open_lock(path)
    try:
        try:
            locked = filesystem.try_flock(fd)
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


def is_seen_by_others(fd: int) -> bool:
    """Whether other processes see this lock."""
    return fd not in _held
