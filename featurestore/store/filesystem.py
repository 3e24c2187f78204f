"""The steps by which a store changes on disk: nothing else in this package writes, renames or removes.

Every step is one function, so that a test can stop the process before and after each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from featurestore.errors import FeatureStoreError, StoreAccessError
from featurestore.spec import KINDS

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How files of a store are opened: no link is followed, and a pipe does not wait."""

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The same for folders."""

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE = 1
_COPY_BYTES = 2**24
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run again",
    errno.EDQUOT: "your disk quota is used up: free some space and run again",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "part of the path is a file",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


@contextlib.contextmanager
def naming_the_store(path: Path) -> Iterator[None]:
    """Turn an operating system's error into a StoreAccessError that names the store and the way out."""
    try:
        yield
    except FeatureStoreError:  # some are also OSErrors
        raise
    except OSError as error:
        lost = [] if error.errno != errno.ENOENT else [kind for kind in KINDS if not is_dir(path / kind)]
        if lost and is_dir(path):
            reason = f"its folder {lost[0]} is missing: bring it back, or make an empty one by verify --repair"
        else:
            reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise StoreAccessError(f"store {path}: {reason} ({error})") from error


def open_root(path: Path) -> int:
    """Open the folder of a store, which may be a link; the caller closes the descriptor."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_dir(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Open a folder without following a link; the caller closes the descriptor."""
    return os.open(path, OPEN_DIR, dir_fd=dir_fd)


def is_dir(path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Whether there is a folder, and not a link to one."""
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def list_dirs(fd: int) -> set[str]:
    """Names of the folders in an open folder, without links to some."""
    with os.scandir(fd) as entries:
        return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}


def read_file(path: str | Path, *, dir_fd: int | None = None, limit: int) -> bytes:
    """Content of a regular file of at most `limit` bytes; links are not followed.

    Raises
    ------
    ValueError
        If it is larger, or not a regular file.
    """
    try:
        fd = os.open(path, READ, dir_fd=dir_fd)
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
    content = os.pread(fd, size, offset)
    while len(content) < size and (more := os.pread(fd, size - len(content), offset + len(content))):
        content += more
    return content


def make_dir(path: Path) -> None:
    """Create a folder that does not exist."""
    os.mkdir(path)


def make_parents(path: Path, *, durable: bool) -> None:
    """Create a folder and those above it, where they do not exist."""
    try:
        make_dir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_parents(path.parent, durable=durable)
        make_parents(path, durable=durable)
        return
    if durable:
        sync_parent(path)


def write_all(fd: int, parts: Sequence[Any], offset: int | None = None) -> None:
    """Append contiguous buffers to an open file, or write them from an offset on."""
    views = [view.cast("B") for part in parts if (view := memoryview(part)).nbytes]
    while views:
        if offset is None:
            written = os.writev(fd, views[:512])
        else:
            written = os.pwritev(fd, views[:512], offset)
            offset += written
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if written:
            views[0] = views[0][written:]


def create_file(path: Path) -> int:
    """Open a new file for writing; the caller closes the descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def reserve(fd: int, offset: int, size: int) -> None:
    """Ask for the room of what is about to be written, which is quicker than finding it page by page.

    The file does not grow; where there is no room, or no such call, the write tells.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):
        _libc().fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size))


def write_file(path: Path, content: bytes) -> None:
    """Write a new file."""
    fd = create_file(path)
    try:
        write_all(fd, [content])
    finally:
        os.close(fd)


def lock_file(path: Path) -> int | None:
    """Lock a file, made if it is not there; the lock ends with `unlock` or with the process.

    Returns
    -------
    int or None
        Descriptor of the file; None if somebody else, be it in this process, holds the lock.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def unlock(fd: int) -> None:
    """End a lock."""
    # Closing would not be enough if a fork of this process has the file too.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def write_note(fd: int, content: bytes) -> None:
    """Write the first line of an open file; what was longer before stays behind it."""
    os.pwrite(fd, content + b"\n", 0)


def touch(path: Path) -> None:
    """Make sure that a file exists; its content is kept."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666))


def set_modified(path: Path, moment: int) -> None:
    """Set the time of change of a file or folder, nanoseconds."""
    os.utime(path, ns=(moment, moment))


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    fd = open_dir(path)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems have no fsync for folders; their renames are durable by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def sync_parent(path: Path) -> None:
    """Make the entry of a folder durable that may be reached through links, if we may look at what holds it."""
    with contextlib.suppress(PermissionError):
        sync_dir(path.resolve().parent)


def sync_tree(path: Path) -> None:
    """Make everything below a folder, and the folder itself, durable."""

    def fail(error: OSError) -> None:
        raise error

    found = list(os.walk(path, topdown=False, onerror=fail))
    for folder, _, files in found:
        for name in files:
            _start_writing(Path(folder, name))
    for folder, _, files in found:
        for name in files:
            sync_file(Path(folder, name))
        sync_dir(Path(folder))


def _start_writing(path: Path) -> None:
    """Let the system begin to write a file to disk, so that one fsync need not wait for what another begins."""
    if sys.platform != "linux":
        return
    fd = os.open(path, READ)
    try:
        _libc().sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
    except AttributeError:
        pass
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Rename; a file at the target is replaced, a folder with content is not."""
    os.rename(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that never changes again, or copy it where links are not possible."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EXDEV):
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    fd = os.open(source, READ)
    try:
        copy = create_file(target)
        try:
            while content := os.read(fd, _COPY_BYTES):
                write_all(copy, [content])
        finally:
            os.close(copy)
    finally:
        os.close(fd)


def unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_empty(path: Path) -> bool:
    """Remove a folder without content; False if it has some."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def discard(path: Path, trash: Path) -> None:
    """Remove a folder: out of sight in one step, then piece by piece."""
    aside = trash / uuid.uuid4().hex
    try:
        rename(path, aside)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        aside = path  # a full disk may have no room for a name
    remove_tree(aside)


def remove_tree(path: Path) -> None:
    """Remove a folder or file in which nobody is interested any more; others may be removing it too."""
    if not is_dir(path):
        with contextlib.suppress(OSError):
            unlink(path)
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        _flatten(path)
        shutil.rmtree(path, ignore_errors=True)


def _flatten(path: Path) -> None:
    """Bring every folder below a folder right into it, so that none is deep."""
    pending = [path]
    while pending:
        above = pending.pop()
        with contextlib.suppress(OSError):
            fd = open_dir(above)
            try:
                below = list_dirs(fd)
            finally:
                os.close(fd)
            for name in below:
                target = path / uuid.uuid4().hex
                with contextlib.suppress(OSError):
                    rename(above / name, target)
                    pending.append(target)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step.

    Returns
    -------
    bool
        False where the system or the file system has no such step.
    """
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            failed = _libc().renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
        elif sys.platform == "darwin":
            failed = _libc().renamex_np(first, second, _RENAME_EXCHANGE)
        else:
            return False
    except AttributeError:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def replace_dir(source: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another; the other is afterwards at `source` or at `aside`.

    In one step where the system can; otherwise `target` is missing for an instant, and at `aside`.
    """
    try:
        rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not exchange(source, target):
            rename(target, aside)
            rename(source, target)
