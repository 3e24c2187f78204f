"""Opening, reading and listing what a store consists of: no link is followed unless that is wanted."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How files of a store are opened: no link is followed, and a pipe does not wait."""

FOLLOW = READ & ~os.O_NOFOLLOW
"""The same through links."""

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The same for folders."""


@contextlib.contextmanager
def stale_is_missing() -> Iterator[None]:
    """Take a file that another host has removed while it was open here (NFS) for one that is missing."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), error.filename) from error


class FollowingFd(int):
    """Descriptor of a folder below which files may be links."""


def open_root(path: Path, *, follow_links: bool) -> int:
    """Open the folder of a store, which may be a link; files that are opened by way of it if `follow_links`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return FollowingFd(fd) if follow_links else fd


def open_dir(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a folder without following a link; the caller closes the descriptor."""
    with stale_is_missing():
        fd = os.open(path, OPEN_DIR, dir_fd=dir_fd)
    return FollowingFd(fd) if isinstance(dir_fd, FollowingFd) else fd


def open_file(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a file for reading, not through a link unless its folder says so; the caller closes the descriptor."""
    with stale_is_missing():
        return os.open(path, FOLLOW if isinstance(dir_fd, FollowingFd) else READ, dir_fd=dir_fd)


def is_dir(path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Whether there is a folder, and not a link to one."""
    try:
        with stale_is_missing():
            return stat.S_ISDIR(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def exists(path: str | Path) -> bool:
    """Whether there is anything, be it a link to nothing: not where that cannot be told, which is an error."""
    try:
        os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_dirs(fd: int) -> set[str]:
    """Names of the folders in an open folder, without links to some."""
    with os.scandir(fd) as entries:
        return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}


def list_names(path: str | Path) -> list[str]:
    """Names in a folder; none if there is no folder."""
    try:
        fd = open_dir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def read_file(path: str | Path, *, dir_fd: int | None = None, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes, as `open_file` opens it.

    Raises
    ------
    ValueError
        If it is larger, or not a regular file.
    """
    try:
        fd = open_file(path, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path} is a link") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ValueError(f"{path} is not a file of at most {limit} bytes")
        return read_exactly(fd, status.st_size, 0)
    finally:
        os.close(fd)


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    with stale_is_missing():
        content = os.pread(fd, size, offset)
        while len(content) < size and (more := os.pread(fd, size - len(content), offset + len(content))):
            content += more
        return content


def read_into(fd: int, parts: Sequence[Any], offset: int) -> int:
    """Read from `offset` into buffers; the number of bytes, less than they hold only at the end of the file."""
    with stale_is_missing():
        return os.preadv(fd, parts, offset)


def free_files(path: Path) -> int | None:
    """How many files and folders a file system has names (inodes) for; None where it has no such limit."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_favail if found.f_files else None


def free_bytes(path: Path) -> int:
    """How many bytes a file system has room for; a path that is not there will be on that of its parent."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
