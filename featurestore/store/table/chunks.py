"""The files of the packed table's chunks: the bytes of one chunk, little-endian, and their CRC-32C."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store import filesystem
from featurestore.store.byte_source import ByteFolder
from featurestore.store.format.shards import read_checked
from featurestore.store.format.small_chunks import CRC_BYTES, crc_of


def encode_chunk(chunk: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], bytes]:
    """Bytes of a C-contiguous, little-endian chunk, and what follows them in its file."""
    content = chunk.reshape(-1).view(np.uint8)
    return content, crc_of(content)


def write_chunk(path: Path, chunk: npt.NDArray[Any]) -> None:
    """Write a C-contiguous, little-endian chunk to a new file."""
    fd = filesystem.create_file(path)
    try:
        filesystem.write_all(fd, encode_chunk(chunk))
    finally:
        os.close(fd)


class ChunkReader:
    """Read a chunk [row, 1, feature]; every value that is returned has passed its check.

    Raises
    ------
    ValueError
        If the file is not of the size that a chunk has.
    """

    def __init__(self, folder: ByteFolder, name: str, shape: tuple[int, int, int], dtype: str) -> None:
        self._name = f"features/{name}"
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._row_bytes = shape[2] * self._dtype.itemsize
        self._file = folder.open(name, whole=True)
        size = shape[0] * self._row_bytes + CRC_BYTES
        if self._file.size != size:
            self._file.close()
            raise ValueError(f"{self._name} is not a file of {size} bytes, but of {self._file.size}")

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def first_value(self, row: int) -> Any:
        """Read the first value of a row, without a check."""
        content = self._file.read(self._dtype.itemsize, row * self._row_bytes)
        return np.frombuffer(content, self._dtype.newbyteorder("<"))[0]

    def read_rows(
        self, out: npt.NDArray[Any], where: npt.NDArray[np.int64], within: npt.NDArray[np.int64]
    ) -> None:
        """Read rows `within` the chunk to rows `where` of an array [row, feature]. All of the chunk is checked.

        Raises
        ------
        CorruptTrackError
            If it fails its checksum.
        """
        first, count = int(where[0]), len(where)
        target = out[first : first + count]
        # Rows that follow each other are read to where they belong.
        in_order = within[-1] - within[0] == count - 1 and (np.diff(within) == 1).all()
        if in_order and where[-1] - first == count - 1 and target.flags.c_contiguous:
            self._read_into(target, int(within[0]))
        else:
            chunk = np.empty(self._shape, self._dtype)
            self._read_into(chunk, 0)
            out[where] = chunk[within, 0]

    def _read_into(self, out: npt.NDArray[Any], first: int) -> None:
        """Read the part of the chunk from row `first` on into a C-contiguous array of its type."""
        try:
            size = self._shape[0] * self._row_bytes
            read_checked(self._file, 0, size, out.reshape(-1).view(np.uint8), first * self._row_bytes)
        except ValueError as error:
            # What is packed again is read only where it changes.
            raise CorruptTrackError(
                f"packed/{self._name} {error}; build the table again with `fs-extract verify --deep --repair`"
            ) from None
        if sys.byteorder == "big":
            out.byteswap(inplace=True)
