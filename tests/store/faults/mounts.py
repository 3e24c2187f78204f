"""A small disk of one's own: a tmpfs in a mount namespace, gone with the process that made it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .forking import Ended, Report, in_child

_NEW_NAMESPACE, _NEW_USER = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 16384, 1 << 18


class NotPermittedError(Exception):
    """Nothing can be mounted here."""


class SmallDisk:
    """A tmpfs that can be filled, and made read-only.

    Parameters
    ----------
    folder : Path
        Where to mount it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount("tmpfs", b"mode=700", 0)

    def _mount(self, what: str, options: bytes, flags: int) -> None:
        _call("mount", what.encode(), os.fsencode(self.folder), b"tmpfs", flags, options)

    def limit(self, *, room: int | None = None, names: int | None = None) -> None:
        """Leave room for some bytes and names, or for any number."""
        used = os.statvfs(self.folder)
        blocks = used.f_blocks - used.f_bfree
        inodes = used.f_files - used.f_ffree
        size = 2**26 if room is None else max(1, blocks) * used.f_bsize + room
        count = 10_000 if names is None else inodes + names
        self._mount("tmpfs", b"size=%d,nr_inodes=%d" % (size, count), _REMOUNT)

    def set_read_only(self, read_only: bool) -> None:
        self._mount("tmpfs", b"", _REMOUNT | (_READ_ONLY if read_only else 0))


def _call(function: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def with_small_disk(folder: Path, work: Callable[[SmallDisk, Report], None]) -> Ended:
    """Run `work(disk, report)` in a child that has a small disk at a folder.

    Raises
    ------
    NotPermittedError
        If nothing can be mounted here.
    """

    def mounted(report: Report) -> None:
        try:
            if sys.platform != "linux":
                raise OSError(f"no tmpfs on {sys.platform}")
            _call("unshare", _NEW_NAMESPACE if os.geteuid() == 0 else _NEW_NAMESPACE | _NEW_USER)
            _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
            disk = SmallDisk(folder)
        except OSError as error:
            report(NotPermittedError(str(error)))
            return
        work(disk, report)

    ended = in_child(mounted)
    if ended.reports and isinstance(ended.reports[0], NotPermittedError):
        raise ended.reports[0]
    return ended
