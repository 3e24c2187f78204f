"""Where the bytes of a store come from: open folders and files, here those of a disk.

What reads the format knows the two protocols, and nothing of descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from featurestore.store import reading

THREADS = min(4, max(2, os.cpu_count() or 1))
"""How many threads read, write or check bytes of a disk at once."""
REQUESTS = 16
"""How many wait for a bucket at once."""


class ByteFile(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Bytes; -1 of what is no file."""

    def expect(self, ranges: npt.NDArray[np.uint64]) -> None:
        """Make ready for reading some ranges, [range, (offset, size)]: they may be fetched at once."""

    def read(self, size: int, offset: int) -> bytes:
        """Read `size` bytes from `offset`, fewer only at the end of the file."""

    def read_into(self, parts: Sequence[Any], offset: int) -> int:
        """Read from `offset` into buffers; gives the number of bytes, fewer only at the end of the file."""

    def close(self) -> None:
        """Let go of it."""


class ByteFolder(Protocol):
    """An open folder, which stays what it was when it was opened; missing files raise FileNotFoundError."""

    def folder(self, *names: str) -> ByteFolder:
        """Open a folder below it; NotADirectoryError if there is something else."""

    def open(self, name: str, *, whole: bool = False) -> ByteFile:
        """Open a file in it, to read it as a `whole` or not; OSError (ELOOP) if it is a link and may be none."""

    def read(self, name: str, limit: int) -> bytes:
        """Content of a file in it; ValueError if it has more than `limit` bytes, or is none."""

    def has(self, name: str) -> bool:
        """Whether there is something of this name in it."""

    def is_still(self, name: str, above: ByteFolder) -> bool:
        """Whether it is the folder of this name in the one above still."""

    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> Self:
        """Enter a block at whose end it is closed."""

    def __exit__(self, *_: object) -> None:
        """Close it."""


class ByteSource(Protocol):
    """A store, by its folders."""

    def open(self, *parts: str) -> ByteFolder:
        """Open the store's folder, or one below it; the caller closes it."""


class LocalFile:
    """A file of a disk, by its descriptor, which is closed with it."""

    __slots__ = ("_fd", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else -1

    def expect(self, ranges: npt.NDArray[np.uint64]) -> None:
        pass  # the system reads ahead

    def read(self, size: int, offset: int) -> bytes:
        return reading.read_exactly(self._fd, size, offset)

    def read_into(self, parts: Sequence[Any], offset: int) -> int:
        return reading.read_into(self._fd, parts, offset)

    def mapped(self) -> memoryview:
        """All bytes, as pages of the file; they stay after it is closed."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            return np.memmap(file, np.uint8, "r").data

    def close(self) -> None:
        os.close(self._fd)


class LocalFolder:
    """A folder of a disk, by its descriptor, which is closed with it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def folder(self, *names: str) -> LocalFolder:
        fd = self.fd
        for name in names:
            try:
                below = reading.open_dir(name, dir_fd=fd)
            finally:
                if fd is not self.fd:
                    os.close(fd)
            fd = below
        return LocalFolder(fd)

    def open(self, name: str, *, whole: bool = False) -> LocalFile:  # noqa: ARG002
        fd = reading.open_file(name, dir_fd=self.fd)
        try:
            return LocalFile(fd)
        except BaseException:
            os.close(fd)
            raise

    def read(self, name: str, limit: int) -> bytes:
        return reading.read_file(name, dir_fd=self.fd, limit=limit)

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def is_still(self, name: str, above: ByteFolder) -> bool:
        assert isinstance(above, LocalFolder)
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(name, dir_fd=above.fd, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
