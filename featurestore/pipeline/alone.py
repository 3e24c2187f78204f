"""One build at a time on a folder beside what it will replace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurestore.errors import StoreAccessError
from featurestore.store import filesystem


@contextmanager
def alone(folder: Path, path: Path) -> Iterator[None]:
    """Hold a folder alone, made if it is not there, and removed at the end if nothing is in it.

    Raises
    ------
    StoreAccessError
        If another build holds it: it names `path`, what the folder is for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        locked = True
        with suppress(OSError):  # a file system without locks
            locked = filesystem.try_flock(fd)
        if not locked:
            raise StoreAccessError(f"another build is at work on {path}, and here only one can be: wait for it")
        yield
    finally:
        os.close(fd)
        with suppress(OSError):
            folder.rmdir()
