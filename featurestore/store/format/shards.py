"""The shard codec: one file of inner chunks with their index last, as Zarr's ``sharding_indexed``.

Inner chunks are appended as they come, so a shard never sits in memory. Every inner chunk is its bytes,
little-endian, and their CRC-32C; the index is one (offset, size) pair of uint64 per inner chunk in C order, and
its own CRC-32C. Source: the Zarr v3 sharding codec, version 1.0.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, SettingError
from featurestore.store import filesystem
from featurestore.store.byte_source import THREADS, ByteFile
from featurestore.store.format.compression import OVERHEAD, compress, decompress
from featurestore.store.format.metadata import ArrayMetadata
from featurestore.store.format.small_chunks import CRC_BYTES, crc_of, with_crc

_CRC = np.dtype("<u4")
_ENTRY = 16  # bytes of an index entry
MAX_CHUNKS = 2**23
"""Inner chunks of a shard at most: 600,000 segments of 13 layers of raw."""
MAX_CHUNK_BYTES = 2**30
"""Bytes of an inner chunk at most: 300,000 segments of 768 values. A damaged size must not fill the memory."""


# Beyond this many bytes more threads pay: reading, writing and checksums all release the interpreter.
_LARGE = 4 * 2**20
_BLOCK = 2 * 2**20  # bytes that are read before their checksum is taken: a chunk of raw in one piece
_BATCH = 64 * 2**20
_PIECE = 4 * 2**20  # bytes of one write: larger ones need fewer, larger pages


def _batches(chunks: Iterable[npt.NDArray[Any]], limit: int) -> Iterator[list[npt.NDArray[Any]]]:
    """Chunks in lists of some `limit` bytes."""
    batch: list[npt.NDArray[Any]] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += chunk.nbytes
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shard_bytes(chunks: int, chunk_bytes: int) -> int:
    """Size of a shard of uncompressed inner chunks, bytes."""
    return chunks * (chunk_bytes + CRC_BYTES + _ENTRY) + CRC_BYTES


def plain_index(chunks: int, chunk_bytes: int) -> bytes:
    """Index, with its checksum, of uncompressed inner chunks that lie in their order."""
    size = chunk_bytes + CRC_BYTES
    index = np.array([(i * size, size) for i in range(chunks)], "<u8").tobytes()
    return with_crc(index)


Prepare = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

_Encoded = tuple[npt.NDArray[Any], int]  # content of a chunk in the file, and its CRC-32C
_Written = tuple[int, int]  # bytes of a chunk in the file with its CRC-32C, and the latter


class ShardWriter:
    """Append inner chunks to a new shard file.

    Parameters
    ----------
    path : Path
        The file to create.
    name : str
        How errors call what is written.
    itemsize : int
        Bytes of a stored value.
    compressor : str
        "none", "zstd" or "lz4".
    prepare : callable, optional
        Applied to each chunk first; gives it in the stored type.
    """

    def __init__(
        self, path: Path, name: str, itemsize: int, *, compressor: str = "none", prepare: Prepare | None = None
    ) -> None:
        self._name = name
        self._itemsize = itemsize
        self._prepare = prepare
        self._compressor = compressor
        self._fd = filesystem.create_file(path)
        self._sizes: list[int] = []
        self._end = 0
        self._checksums: list[int] = []

    def append(self, chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Append inner chunks, C-contiguous, little-endian and of one shape, in C order of their grid.

        Raises
        ------
        SettingError
            If there are more chunks, or larger ones, than a reader accepts.
        """
        for batch in _batches(chunks, _BATCH):
            if len(self._sizes) + len(batch) > MAX_CHUNKS:
                raise self._too_long()
            if sum(chunk.nbytes for chunk in batch) < _LARGE:
                self._add(self._write(map(self._encode, batch), self._end))
                continue
            with ThreadPoolExecutor(2) as pool:
                if self._compressor == "none":
                    self._append_plain(batch, pool)
                else:
                    for encoded in pool.map(self._encode_all, _batches(batch, _PIECE)):
                        self._add(self._write(encoded, self._end))

    def _append_plain(self, batch: Sequence[npt.NDArray[Any]], pool: Executor) -> None:
        """Append a batch by several threads: where a chunk goes is known before it is ready."""
        begin, size = self._end, batch[0].size * self._itemsize + CRC_BYTES
        many = max(1, _PIECE // size)
        filesystem.reserve(self._fd, begin, len(batch) * size)

        def write(first: int) -> list[_Written]:
            return self._write(map(self._encode, batch[first : first + many]), begin + first * size)

        for written in pool.map(write, range(0, len(batch), many)):
            self._add(written)

    def _write(self, chunks: Iterable[_Encoded], offset: int) -> list[_Written]:
        encoded = list(chunks)
        written = [(content.nbytes + CRC_BYTES, crc) for content, crc in encoded]
        filesystem.write_all(
            self._fd, [part for content, crc in encoded for part in (content, _CRC.type(crc))], offset
        )
        return written

    def _add(self, written: Iterable[_Written]) -> None:
        """Note what has been written, in its order."""
        for size, crc in written:
            self._sizes.append(size)
            self._checksums.append(crc)
            self._end += size

    def _too_long(self) -> SettingError:
        return SettingError(
            f"{self._name} is longer than a store can hold ({MAX_CHUNKS} chunks of {MAX_CHUNK_BYTES} bytes): "
            "split the track"
        )

    def _encode_all(self, chunks: Iterable[npt.NDArray[Any]]) -> list[_Encoded]:
        return list(map(self._encode, chunks))

    def _encode(self, chunk: npt.NDArray[Any]) -> _Encoded:
        """Content of a chunk in the file, and its CRC-32C."""
        if chunk.nbytes > MAX_CHUNK_BYTES:
            raise self._too_long()
        if self._prepare is not None:
            chunk = self._prepare(chunk)
        content = chunk.reshape(-1).view(np.uint8)
        if self._compressor != "none":
            content = compress(chunk, self._compressor)
        return content, int(google_crc32c.value(content))

    def finish(self) -> str:
        """Write the index and close the file.

        Returns
        -------
        str
            SHA-256 of the inner chunks' CRC-32C values, in C order of the grid.
        """
        sizes = np.array(self._sizes, "<u8")
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=-1).astype("<u8")
        filesystem.write_all(self._fd, [with_crc(index.tobytes())], self._end)
        self.close()
        return hashlib.sha256(np.array(self._checksums, _CRC).tobytes()).hexdigest()

    def close(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ShardReader:
    """Read inner chunks of a shard file, which it closes; every byte that is returned has passed its check.

    Raises
    ------
    CorruptTrackError
        If the file is not of the size that the metadata implies, or its index fails its checks.
    """

    def __init__(self, file: ByteFile, metadata: ArrayMetadata, name: str) -> None:
        self.file = file
        self._name = name
        self._dtype = np.dtype(metadata.dtype).newbyteorder("<")
        self._compressor = metadata.compressor
        self._shape = metadata.chunk_shape
        self._grid = tuple(-(-n // c) for n, c in zip(metadata.shard_shape, metadata.chunk_shape, strict=True))
        self._values = math.prod(self._shape)
        self._index = self._read_index()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _damaged(self, what: str) -> CorruptTrackError:
        return CorruptTrackError(f"{self._name}: {what}; extract the track again, or run verify --repair")

    def _read_index(self) -> npt.NDArray[np.uint64]:
        found = self.file.size
        chunks = math.prod(self._grid)
        values_bytes = self._values * self._dtype.itemsize
        if chunks > MAX_CHUNKS or values_bytes > MAX_CHUNK_BYTES:
            raise self._damaged(f"{chunks} chunks of {values_bytes} bytes are more than any track has")
        size = chunks * _ENTRY + CRC_BYTES
        plain = self._compressor == "none"
        wanted = shard_bytes(chunks, values_bytes) if plain else found
        if found != wanted or wanted < size:
            raise self._damaged(f"not a file of {max(wanted, size)} bytes, but of {found}")
        content = self.file.read(size, found - size)
        if content[-CRC_BYTES:] != crc_of(content[:-CRC_BYTES]):
            raise self._damaged("the index fails its checksum")
        index = np.frombuffer(content, "<u8", count=2 * chunks).reshape(chunks, 2)
        # In any order, but each where no other is: nothing outside the file, nothing twice.
        most = values_bytes + CRC_BYTES + (0 if plain else OVERHEAD)
        offsets, sizes = index[np.argsort(index[:, 0])].T
        ends = np.cumsum(sizes)
        right = (sizes == most if plain else (sizes > CRC_BYTES) & (sizes <= most)).all()
        if not right or (offsets != ends - sizes).any() or ends[-1] != found - size:
            raise self._damaged("the index does not point at chunks")
        return index

    @property
    def chunks(self) -> int:
        """Number of inner chunks."""
        return len(self._index)

    def checksums(self) -> str:
        """SHA-256 of the stored CRC-32C values, as `ShardWriter.finish` gives it."""
        stored = [self.file.read(CRC_BYTES, int(o) + int(n) - CRC_BYTES) for o, n in self._index]
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
        jobs = list(zip(map(int, positions), out, strict=True))
        many = max(1, _BATCH * len(out) // max(1, out.nbytes))

        def work(some: list[tuple[int, npt.NDArray[Any]]]) -> None:
            for first in range(0, len(some), many):
                batch = some[first : first + many]
                self.file.expect(self._index[[position for position, _ in batch]])
                for position, chunk in batch:
                    self._read_into(position, chunk)

        if out.nbytes < _LARGE:
            work(jobs)
        else:
            # To each a part of its own of the new memory: those who fill neighbouring chunks wait for its pages.
            share = -(-len(jobs) // THREADS)
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(work, (jobs[i : i + share] for i in range(0, len(jobs), share))):
                    pass
        return out

    def _read_into(self, position: int, out: npt.NDArray[Any]) -> None:
        """Read one inner chunk into a C-contiguous array of its shape and type."""
        target = out.reshape(-1).view(np.uint8)
        offset, size = (int(n) for n in self._index[position])
        plain = self._compressor == "none"
        content = target if plain else np.empty(size - CRC_BYTES, np.uint8)
        try:
            read_checked(self.file, offset, size - CRC_BYTES, content, 0)
            if not plain:
                decompress(content.tobytes(), target)
        except ValueError as error:
            raise self._damaged(f"chunk {position} {error}") from None
        if sys.byteorder == "big":
            out.byteswap(inplace=True)


def read_checked(file: ByteFile, offset: int, size: int, out: npt.NDArray[np.uint8], skip: int) -> None:
    """Read a part, from `skip` on, of bytes that their CRC-32C follows; all of them are read and checked.

    Raises
    ------
    ValueError
        If they fail their checksum.
    """
    stored = bytearray(CRC_BYTES)
    aside = np.empty(min(_BLOCK, size) if out.nbytes < size else 0, np.uint8)
    crc = at = 0
    while at < size:
        # Piece by piece, so that the caches still hold each when its checksum is taken.
        if skip <= at < skip + out.nbytes:
            block = out[at - skip : at - skip + _BLOCK]
        else:
            block = aside[: (skip if at < skip else size) - at]
        parts: list[Any] = [block.data, stored] if at + block.nbytes == size else [block.data]
        if file.read_into(parts, offset + at) != sum(map(len, parts)):
            raise ValueError("ends with the file")
        crc = google_crc32c.extend(crc, block)
        at += block.nbytes
    if int.from_bytes(stored, "little") != crc:
        raise ValueError("fails its checksum")
