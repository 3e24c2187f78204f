"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featurestore.errors import StoreAccessError

_NAME_BYTES = 200


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[BinaryIO, ...]]:
    """Files to write that take their places, in this order, when the block ends without an error.

    Parameters
    ----------
    *paths : Path
        Where they will be; the folders are made. What is there is replaced.

    Yields
    ------
    tuple of binary file

    Raises
    ------
    StoreAccessError
        If they cannot be written; what was there is untouched then.
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    beside = [path.parent / f"{_beside(path)}.{token}" for path in paths]
    try:
        with contextlib.ExitStack() as opened:
            files = []
            for path in beside:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.append(opened.enter_context(path.open("xb")))
                _lock(files[-1])
            yield tuple(files)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path, target in zip(beside, paths, strict=True):
            os.replace(path, target)
    except OSError as error:
        where = ", ".join(map(str, paths))
        raise StoreAccessError(
            f"{where} cannot be written: {error.strerror}: free or remount the disk, or give another folder"
        ) from error
    finally:
        for path in beside:
            with contextlib.suppress(OSError):
                path.unlink()


def sweep_beside(path: Path) -> None:
    """Remove what killed writers of this file have left beside it."""
    for left in path.parent.glob(f"{glob.escape(_beside(path))}.*-*"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _lock(file):
                left.unlink()


def _beside(path: Path) -> str:
    """What the names of unfinished files begin with; they may not be too long where the file's own is not."""
    name = os.fsencode(path.name)
    return "." + (path.name if len(name) <= _NAME_BYTES else name[:_NAME_BYTES].decode(errors="ignore"))


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else writes the file, as far as the file system can tell."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
