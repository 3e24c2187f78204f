"""The files of the packed table's chunks: the bytes of one chunk, little-endian, and their CRC-32C."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store import filesystem
from featurestore.store.byte_source import ByteFile
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
    """Read the chunk of an open file; every value that is returned has passed its check.

    Parameters
    ----------
    file : ByteFile
        The file; the reader closes it.
    name : str
        How errors call it.
    shape : tuple of int
        Of the chunk.
    dtype : str
        Of its values.

    Raises
    ------
    ValueError
        If the file is not of the size that a chunk has.
    """

    def __init__(self, file: ByteFile, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self._file = file
        self._name = name
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._bytes = math.prod(shape) * self._dtype.itemsize
        if file.size != self._bytes + CRC_BYTES:
            raise ValueError(f"{name} is not a file of {self._bytes + CRC_BYTES} bytes, but of {file.size}")

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def first_value(self, row: int) -> Any:
        """Read the first value of a row, without a check."""
        size = self._dtype.itemsize
        content = self._file.read(size, row * math.prod(self._shape[1:]) * size)
        return np.frombuffer(content, self._dtype.newbyteorder("<"))[0]

    def read(self) -> npt.NDArray[Any]:
        """Read all of the chunk.

        Raises
        ------
        CorruptTrackError
            If it fails its checksum.
        """
        out = np.empty(self._shape, self._dtype)
        self.read_into(out)
        return out

    def read_into(self, out: npt.NDArray[Any], *, first: int = 0) -> None:
        """Read the part of the chunk from row `first` on into a C-contiguous array of its type.

        All of the chunk is checked, whatever is asked for.

        Raises
        ------
        CorruptTrackError
            If it fails its checksum.
        """
        skip = first * math.prod(self._shape[1:]) * self._dtype.itemsize
        try:
            read_checked(self._file, 0, self._bytes, out.reshape(-1).view(np.uint8), skip)
        except ValueError as error:
            # What is packed again is read only where it changes.
            raise CorruptTrackError(
                f"packed/{self._name} {error}; build the table again with `fs-extract verify --deep --repair`"
            ) from None
        if sys.byteorder == "big":
            out.byteswap(inplace=True)
