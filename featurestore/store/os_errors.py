"""Errors of the operating system, in words that name the store and the way out."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import FeatureStoreError, StoreAccessError
from featurestore.spec import KINDS
from featurestore.store import reading

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
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error into a StoreAccessError that names the store and the way out."""
    try:
        yield
    except FeatureStoreError:  # some are also OSErrors
        raise
    except OSError as error:
        lost = [] if error.errno != errno.ENOENT else [kind for kind in KINDS if not reading.is_dir(path / kind)]
        if lost and reading.is_dir(path):
            reason = f"its folder {lost[0]} is missing: bring it back, or make an empty one by verify --repair"
        else:
            reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        if error.errno == errno.ENOSPC and _lacks_files(path):
            reason = (
                "the disk is full: it has room, but no names (inodes) for more files are left (df -i); remove "
                "files that nobody needs, or use another disk, and run again"
            )
        raise StoreAccessError(f"store {path}: {reason} ({error})") from error


def _lacks_files(path: Path) -> bool:
    """Whether a disk has room, and not one more file."""
    try:
        found, left = os.statvfs(path if path.exists() else path.parent), reading.free_files(path)
    except OSError:
        return False
    return left is not None and left < 8 and found.f_bavail * found.f_frsize > 2**20
