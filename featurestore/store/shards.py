"""The shard codec: one file of inner chunks with their index last, as Zarr's ``sharding_indexed``.

Inner chunks are appended as they come, so a shard never sits in memory. Every inner chunk is its bytes,
little-endian, and their CRC-32C; the index is one (offset, size) pair of uint64 per inner chunk in C order, and
its own CRC-32C. Source: the Zarr v3 sharding codec, version 1.0.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store import files
from featurestore.store.layout import ArrayMetadata

CRC_BYTES = 4
_CRC = np.dtype("<u4")
_ENTRY = 16  # bytes of an index entry


def shard_bytes(chunks: int, chunk_bytes: int) -> int:
    """Size of a shard of uncompressed inner chunks, bytes."""
    return chunks * (chunk_bytes + CRC_BYTES + _ENTRY) + CRC_BYTES


class ShardWriter:
    """Append inner chunks to a new shard file.

    Parameters
    ----------
    path : Path
        The file to create.
    """

    def __init__(self, path: Path) -> None:
        self._fd = files.create_file(path)
        self._sizes: list[int] = []
        self._checksums: list[int] = []

    def append(self, chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Append inner chunks, C-contiguous and little-endian, in C order of their grid."""
        parts: list[Any] = []
        for chunk in chunks:
            checksum = google_crc32c.value(chunk.reshape(-1).view(np.uint8))
            parts += [chunk, np.array([checksum], _CRC)]
            self._checksums.append(checksum)
            self._sizes.append(chunk.nbytes + CRC_BYTES)
        files.write_all(self._fd, parts)

    def finish(self) -> str:
        """Write the index and close the file.

        Returns
        -------
        str
            SHA-256 of the inner chunks' CRC-32C values, in C order of the grid.
        """
        sizes = np.array(self._sizes, "<u8")
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=-1).astype("<u8")
        files.write_all(self._fd, [index, np.array([google_crc32c.value(index.tobytes())], _CRC)])
        self.close()
        return hashlib.sha256(np.array(self._checksums, _CRC).tobytes()).hexdigest()

    def close(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ShardReader:
    """Read inner chunks of an open shard file; every byte that is returned has passed its check.

    Parameters
    ----------
    fd : int
        Descriptor of the shard file; the reader closes it.
    metadata : ArrayMetadata
        Of the array that the file belongs to.
    name : str
        How errors call it.

    Raises
    ------
    CorruptTrackError
        If the file is not of the size that the metadata implies, or its index fails its checks.
    """

    def __init__(self, fd: int, metadata: ArrayMetadata, name: str) -> None:
        self._fd = fd
        self._name = name
        self._dtype = np.dtype(metadata.dtype).newbyteorder("<")
        self._shape = metadata.chunk_shape
        self._grid = tuple(-(-n // c) for n, c in zip(metadata.shard_shape, metadata.chunk_shape, strict=True))
        self._values = math.prod(self._shape)
        self._index = self._read_index()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _damaged(self, what: str) -> CorruptTrackError:
        return CorruptTrackError(f"{self._name}: {what}; extract the track again, or run verify --repair")

    def _read_index(self) -> npt.NDArray[np.uint64]:
        status = os.fstat(self._fd)
        chunks = math.prod(self._grid)
        size = chunks * _ENTRY + CRC_BYTES
        if not stat.S_ISREG(status.st_mode) or status.st_size < size:
            raise self._damaged(f"the file of {status.st_size} bytes is too short for its index")
        content = files.read_exactly(self._fd, size, status.st_size - size)
        if int.from_bytes(content[-CRC_BYTES:], "little") != google_crc32c.value(content[:-CRC_BYTES]):
            raise self._damaged("the index fails its checksum")
        index = np.frombuffer(content, "<u8", count=2 * chunks).reshape(chunks, 2)
        offsets, sizes = index[:, 0], index[:, 1]
        missing = (offsets == np.uint64(2**64 - 1)) & (sizes == np.uint64(2**64 - 1))
        chunk_bytes = self._values * self._dtype.itemsize + CRC_BYTES
        end = status.st_size - size
        inside = (sizes == chunk_bytes) & (offsets <= max(0, end - chunk_bytes))
        if missing.any() or not inside.all():
            raise self._damaged("the index points outside the file")
        return index

    @property
    def chunks(self) -> int:
        """Number of inner chunks."""
        return len(self._index)

    def checksums(self) -> str:
        """SHA-256 of the stored CRC-32C values, as `ShardWriter.finish` gives it."""
        stored = [files.read_exactly(self._fd, CRC_BYTES, int(o) + int(n) - CRC_BYTES) for o, n in self._index]
        return hashlib.sha256(b"".join(stored)).hexdigest()

    def read(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Inner chunks by their number in C order of the grid.

        Returns
        -------
        ndarray, shape (chunks, *chunk_shape)
            In native byte order.

        Raises
        ------
        CorruptTrackError
            If a chunk fails its checksum.
        """
        out = np.empty((len(positions), *self._shape), self._dtype.newbyteorder("="))
        for row, position in enumerate(positions):
            self.read_into(int(position), out[row])
        return out

    def read_into(self, position: int, out: npt.NDArray[Any]) -> None:
        """Read one inner chunk into a C-contiguous array of its size and type."""
        target = out.reshape(-1).view(np.uint8)
        crc = bytearray(CRC_BYTES)
        offset = int(self._index[position, 0])
        wanted = target.nbytes + CRC_BYTES
        got = os.preadv(self._fd, [target.data, crc], offset)
        if got < wanted:  # more than 2 GiB in one call, or a file that shrinks
            content = files.read_exactly(self._fd, wanted, offset)
            if len(content) < wanted:
                raise self._damaged("the file ends inside a chunk")
            target[:] = np.frombuffer(content, np.uint8, target.nbytes)
            crc[:] = content[-CRC_BYTES:]
        if int.from_bytes(crc, "little") != google_crc32c.value(target):
            raise self._damaged(f"chunk {position} fails its checksum")
        if sys.byteorder == "big":
            out.byteswap(inplace=True)
