"""One build at a time on a folder beside what it will replace."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurestore.errors import StoreAccessError


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
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreAccessError(
                f"another build is at work on {path}, and here only one can be: wait for it"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(fd)
        with suppress(OSError):
            folder.rmdir()
