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
from collections.abc import Iterator
from pathlib import Path

import filelock

from featurestore.errors import StoreError
from featurestore.store import files
from featurestore.store.layout import Places

_OWNER = "owner.lock"
_FOREIGN_AGE = 24 * 3600.0  # seconds


class StagingArea:
    """A new folder that belongs to this process until it is closed.

    Parameters
    ----------
    parent : Path
        Where to make it.
    prefix : str
        Of its name.
    """

    def __init__(self, parent: Path, prefix: str = "") -> None:
        while True:
            self.path = parent / f"{prefix}{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}"
            files.make_dir(self.path)
            self._owner = filelock.FileLock(self.path / _OWNER, thread_local=False)
            # Another writer may have taken the folder for abandoned before the lock was there. That it exists is
            # what filelock says if it is taken while filelock makes sure that it is there.
            with contextlib.suppress(FileNotFoundError, FileExistsError, filelock.Timeout):
                self._owner.acquire(timeout=0)
                if (self.path / _OWNER).exists():
                    return

    def folder(self) -> Path:
        """A new, empty folder to stage a change in."""
        if not self._owner.is_locked:
            raise StoreError("this writer is closed: open another")
        path = self.path / uuid.uuid4().hex[:12]
        files.make_dir(path)
        return path

    def close(self, trash: Path | None = None) -> None:
        """Remove the folder with everything that is still in it, by way of the trash where there is one."""
        try:
            if trash is None:
                files.remove_tree(self.path)
            else:
                files.discard(self.path, trash)
        finally:
            self._owner.release()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:64]


def sweep(places: Places) -> int:
    """Remove what dead writers left in the staging area and the trash.

    Returns
    -------
    int
        Number of staging folders removed.
    """
    swept = 0
    for folder in places.staging.iterdir():
        with claiming(folder) as claimed:
            if claimed:
                files.discard(folder, places.trash)
                swept += 1
    for folder in places.trash.iterdir():
        files.remove_tree(folder)
    return swept


@contextlib.contextmanager
def claiming(folder: Path, prefix: str = "") -> Iterator[bool]:
    """Hold a folder whose owner is dead; yields False if it may be alive."""
    with contextlib.ExitStack() as stack:
        claimed = False
        with contextlib.suppress(OSError):  # what cannot be claimed now waits for the next writer
            own = folder.name.removeprefix(prefix).split(".")[0] == _host()
            # A link may lead anywhere.
            if files.is_dir(folder) and (own or time.time() - folder.stat().st_mtime > _FOREIGN_AGE):
                # A writer between making the folder and locking it loses the lock to this one, and makes another.
                stack.enter_context(filelock.FileLock(folder / _OWNER, timeout=0, thread_local=False))
                claimed = True
        yield claimed
