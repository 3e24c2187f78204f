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
import sys
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from featurestore.store import reading

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE = 1
_COPY_BYTES = 2**24


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a folder that does not exist, open to those to whom the folder above is open."""
    os.mkdir(path)
    with contextlib.suppress(FileNotFoundError):  # swept by another writer: whoever uses it will see
        _open_as(path.parent, path, path.stat(follow_symlinks=False), 0o777)


def make_parents(path: Path, *, durable: bool) -> bool:
    """Create a folder and those above it as the user's umask says; False if it was there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        make_parents(path.parent, durable=durable)
        return make_parents(path, durable=durable)
    if durable:
        sync_parent(path)
    return True


def _open_as(folder: Path, made: Path | int, own: os.stat_result, most: int) -> None:
    """Give a new file or folder the permissions and the group of a folder, whatever the umask of its maker.

    Best effort: not all file systems have permissions, and not everybody may give a file to a group.
    """
    wanted = folder.stat()
    with contextlib.suppress(OSError):
        if own.st_gid != wanted.st_gid:
            os.chown(made, -1, wanted.st_gid)
    with contextlib.suppress(OSError):
        if (own.st_mode ^ wanted.st_mode) & most:
            os.chmod(made, (own.st_mode & 0o7000) | (wanted.st_mode & most))


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
    """Open a new file for writing, open to those to whom its folder is open; the caller closes the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _open_as(path.parent, fd, os.fstat(fd), 0o666)
    except BaseException:
        os.close(fd)
        raise
    return fd


def reserve(fd: int, offset: int, size: int) -> None:
    """Ask for the room of what is about to be written, which is quicker than finding it page by page.

    The file does not grow; where there is no room, or no such call, the write tells.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            _libc().fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size))


def write_file(path: Path, content: bytes) -> None:
    """Write a new file."""
    with _closing(create_file(path)) as fd:
        write_all(fd, [content])


def open_lock(path: Path) -> int:
    """Open a lock file, made if it is not there; for reading only, if its owner lets nobody else write."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return create_file(path)
        return os.open(path, flags)
    except PermissionError:
        return os.open(path, reading.READ)


def try_flock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file; False if somebody else, be it in this process, holds the lock, and not shared as well."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_flock(fd: int) -> None:
    """End a lock, also where a fork of this process has the file open too."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def write_note(fd: int, content: bytes) -> None:
    """Write the first line of an open file; what was longer before stays behind it."""
    os.pwrite(fd, content + b"\n", 0)


def touch(path: Path) -> None:
    """Make sure that there is a file, whoever made it; its content is kept."""
    with contextlib.suppress(FileExistsError):
        os.close(create_file(path))


def append_to(path: Path, content: bytes) -> None:
    """Write behind the end of a file, which is made if it is not there."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        touch(path)
        fd = os.open(path, flags)
    with _closing(fd):
        write_all(fd, [content])


def set_modified(path: Path, moment: int) -> None:
    """Set the time of change of a file or folder, nanoseconds."""
    os.utime(path, ns=(moment, moment))


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with _closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def sync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    with _closing(reading.open_dir(path)) as fd:
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network file systems have no fsync for folders; their renames are durable by themselves.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


def sync_parent(path: Path) -> None:
    """Make the entry of a folder durable that may be reached through links, if we may look at what holds it."""
    with contextlib.suppress(PermissionError):
        sync_dir(path.resolve().parent)


def sync_tree(path: Path) -> None:
    """Make everything below a folder, and the folder itself, durable.

    A file of several names was made durable under its first: to wait for thousands of them again takes minutes.
    """

    def fail(error: OSError) -> None:
        raise error

    found = list(os.walk(path, topdown=False, onerror=fail))
    paths = [os.path.join(folder, name) for folder, _, names in found for name in names]
    files = [Path(file) for file in paths if os.stat(file, follow_symlinks=False).st_nlink < 2]
    for file in files:
        _start_writing(file)
    for file in files:
        sync_file(file)
    for folder, _, _ in found:
        sync_dir(Path(folder))


def _start_writing(path: Path) -> None:
    """Let the system begin to write a file to disk, so that one fsync need not wait for what another begins."""
    if sys.platform == "linux":
        with _closing(os.open(path, reading.READ)) as fd, contextlib.suppress(AttributeError):
            _libc().sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def rename(source: Path, target: Path) -> None:
    """Rename; a file at the target is replaced, a folder with content is not."""
    os.rename(source, target)


def replace_file(path: Path, content: bytes, staged: Path, *, durable: bool = True) -> None:
    """Write a file in one step: at first where nobody looks for it, on the same disk."""
    write_file(staged, content)
    if durable:
        sync_file(staged)
    rename(staged, path)
    if durable:
        sync_dir(path.parent)


def link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name."""
    os.link(source, target, follow_symlinks=False)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a new one."""
    with _closing(os.open(source, reading.READ)) as fd, _closing(create_file(target)) as copy:
        while content := os.read(fd, _COPY_BYTES):
            write_all(copy, [content])


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


def remove_dir(path: Path) -> None:
    """Remove a folder with its content; an error says what could not be removed."""
    shutil.rmtree(path)


def discard(path: Path, trash: Path) -> None:
    """Remove a folder: out of sight in one step, then piece by piece."""
    remove_tree(move_to_trash(path, trash))


def move_to_trash(path: Path, trash: Path) -> Path:
    """Move a folder out of sight, if it is there; gives where it is now."""
    aside = trash / uuid.uuid4().hex
    try:
        rename(path, aside)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        return path  # a full disk may have no room for a name
    return aside


def remove_tree(path: Path) -> None:
    """Remove a folder or file in which nobody is interested any more; others may be removing it too."""
    if not reading.is_dir(path):
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
            with _closing(reading.open_dir(above)) as fd:
                below = reading.list_dirs(fd)
            for name in below:
                target = path / uuid.uuid4().hex
                with contextlib.suppress(OSError):
                    rename(above / name, target)
                    pending.append(target)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where there is no such step, or not for these folders."""
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
    if number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # nothing else would do better
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return False
