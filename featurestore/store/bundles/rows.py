"""Rows of a bundle's features [row, layer, feature]: written as they come, and read from wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store import filesystem
from featurestore.store.bundles.layout import ShardLayout, shards_of
from featurestore.store.byte_source import THREADS, ByteFile, ByteFolder
from featurestore.store.format.metadata import ArrayMetadata
from featurestore.store.format.shards import CRC_BYTES

_WRITTEN_CHUNKS = 64  # of each layer, at once
_READ_CHUNKS = 32  # of one layer, at once: about as much as a core caches
_LARGE = 4 * 2**20  # bytes from which on several threads pay

Rows = npt.NDArray[np.int64]


class RowWriter:
    """Write the rows of an array, whose number is known, into a folder.

    Parameters
    ----------
    folder : Path
        Of the array.
    metadata : ArrayMetadata
        Of the array.
    """

    def __init__(self, folder: Path, metadata: ArrayMetadata) -> None:
        self._folder = folder
        self._shards = shards_of(metadata)
        self._shard: ShardLayout | None = None
        self._fd = -1
        self._chunk = 0  # the next one
        size, (_, layers, dim) = metadata.chunk_shape[0] * _WRITTEN_CHUNKS, metadata.shape
        self._waiting = np.zeros((layers, size, dim), np.dtype(metadata.dtype).newbyteorder("<"))
        self._rows = 0  # that wait
        self._per_chunk = metadata.chunk_shape[0]

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows [row, layer, feature]."""
        first = 0
        while first < len(rows):
            if self._shard is None:
                self._shard = next(self._shards)
                self._fd = filesystem.create_file(self._folder / self._shard.name)
                self._chunk = 0
            left = self._shard.rows - self._chunk * self._per_chunk - self._rows
            some = rows[first : first + min(left, self._waiting.shape[1] - self._rows)]
            self._waiting[:, self._rows : self._rows + len(some)] = some.swapaxes(0, 1)
            self._rows += len(some)
            first += len(some)
            if len(some) == left or self._rows == self._waiting.shape[1]:
                self._write()

    def _write(self) -> None:
        shard = self._shard
        assert shard is not None
        chunks = -(-self._rows // self._per_chunk)
        self._waiting[:, self._rows :] = np.nan  # as the chunks that are not there
        for layer, rows in enumerate(self._waiting):
            parts: list[Any] = []
            for chunk in rows[: chunks * self._per_chunk].reshape(chunks, -1).view(np.uint8):
                parts += [chunk, int(google_crc32c.value(chunk)).to_bytes(CRC_BYTES, "little")]
            filesystem.write_all(self._fd, parts, shard.offset(layer, self._chunk))
        self._chunk += chunks
        self._rows = 0
        if self._chunk == shard.chunks:
            filesystem.write_all(self._fd, [shard.index()], shard.offset(shard.layers, 0))
            self.close()

    def close(self) -> None:
        """Close the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._shard = -1, None


class _OpenShard(NamedTuple):
    """A shard that is open: its file, the first row, and bytes of a chunk, with its checksum, and of a layer."""

    file: ByteFile
    name: str
    first: int
    chunk_bytes: int
    layer_bytes: int


class RowReader:
    """Read rows of an array whose folder is open; every value that is returned has passed its check.

    Where a chunk lies follows from the metadata: the index in the file is for other readers.

    Parameters
    ----------
    folder : ByteFolder
        Of the array.
    metadata : ArrayMetadata
        Of the array.
    name : str
        How errors call it.
    """

    def __init__(self, folder: ByteFolder, metadata: ArrayMetadata, name: str) -> None:
        self._folder = folder
        self._metadata = metadata
        self._name = name
        self._open: dict[int, _OpenShard] = {}
        self._dtype = np.dtype(metadata.dtype).newbyteorder("<")

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for shard in self._open.values():
            shard.file.close()
        self._open.clear()

    def open(self, number: int) -> None:
        """Open the file of a shard, unless it is open.

        Raises
        ------
        CorruptTrackError
            If it is not of the size that it has.
        """
        if number not in self._open:
            shard = ShardLayout(self._metadata, number)
            size, chunk = shard.size, shard.chunk_bytes + CRC_BYTES
            file = self._folder.open(shard.name)
            self._open[number] = _OpenShard(file, shard.name, shard.first, chunk, chunk * shard.chunks)
            if file.size != size:
                raise damaged(self._name, f"{shard.name} is not a file of {size} bytes, but of {file.size}")

    def read(self, rows: Rows, layers: Sequence[int]) -> npt.NDArray[Any]:
        """Read rows of some layers (by position): [row, layer, feature]."""
        out = np.empty((len(rows), len(layers), self._metadata.shape[2]), self._metadata.dtype)
        self.read_into(out, np.arange(len(rows)), rows, layers)
        return out

    def read_into(self, out: npt.NDArray[Any], targets: Rows, rows: Rows, layers: Sequence[int]) -> None:
        """Read rows of some layers (by position) to where they belong.

        Parameters
        ----------
        out : ndarray, shape (n, layers, dim)
            What is filled.
        targets, rows : ndarray
            Numbers of rows of `out`, and of those of the array.
        layers : sequence of int
            Positions of the layers.

        Raises
        ------
        CorruptTrackError
            If a chunk fails its checksum.
        """
        if not len(rows) or not len(layers):
            return
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows, kind="stable")
            rows, targets = rows[order], targets[order]
        shard_rows, _, _ = self._metadata.shard_shape
        per_chunk = self._metadata.chunk_shape[0]
        shards, chunks = rows // shard_rows, rows // per_chunk
        # Neighbouring chunks of a shard are read together, some at a time.
        begins = np.flatnonzero((np.diff(chunks) > 1) | (np.diff(shards) > 0)) + 1
        parts = []
        for first, end in zip([0, *begins.tolist()], [*begins.tolist(), len(rows)], strict=True):
            if chunks[end - 1] - chunks[first] < _READ_CHUNKS:
                parts.append((first, end))
                continue
            cuts = np.searchsorted(
                chunks[first:end], range(int(chunks[first]), int(chunks[end - 1]) + 1, _READ_CHUNKS)
            )
            parts += zip((first + cuts).tolist(), [*(first + cuts[1:]).tolist(), end], strict=True)
        numbers = shards[[first for first, _ in parts]].tolist()
        for number in dict.fromkeys(numbers):
            self.open(number)
        jobs = list(zip(numbers, parts, strict=True))

        def work(some: Sequence[tuple[int, tuple[int, int]]]) -> None:
            block = np.empty((_READ_CHUNKS, self._open[numbers[0]].chunk_bytes), np.uint8)
            for number, (first, end) in some:
                part = slice(first, end)
                self._read_part(out, targets[part], rows[part], layers, self._open[number], block)

        read = (1 + np.count_nonzero(np.diff(chunks))) * per_chunk * len(layers) * out[0, 0].nbytes
        if read < _LARGE or len(jobs) < THREADS:
            work(jobs)
        else:
            share = -(-len(jobs) // THREADS)
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(work, [jobs[i : i + share] for i in range(0, len(jobs), share)]):
                    pass

    def _read_part(
        self,
        out: npt.NDArray[Any],
        targets: Rows,
        rows: Rows,
        layers: Sequence[int],
        shard: _OpenShard,
        buffer: npt.NDArray[np.uint8],
    ) -> None:
        """Read rows of neighbouring chunks of one shard."""
        per_chunk, dim = self._metadata.chunk_shape[0], out.shape[2]
        first = (int(rows[0]) - shard.first) // per_chunk
        count = (int(rows[-1]) - shard.first) // per_chunk - first + 1
        within = rows - (shard.first + first * per_chunk)
        in_order = len(rows) > per_chunk and (np.diff(rows) == 1).all() and (np.diff(targets) == 1).all()
        block = buffer[:count]
        content = block[:, :-CRC_BYTES]
        for column, layer in enumerate(layers):
            offset = layer * shard.layer_bytes + first * shard.chunk_bytes
            if shard.file.read_into([block.data], offset) != block.nbytes:
                raise damaged(self._name, f"{shard.name} ends with the file")
            stored = block[:, -CRC_BYTES:].copy().view("<u4")[:, 0].tolist()
            for chunk, crc in zip(content, stored, strict=True):
                if google_crc32c.value(chunk) != crc:
                    raise damaged(self._name, f"a chunk of layer {layer} in {shard.name} fails its checksum")
            if count == 1:
                out[targets, column] = content[0].view(self._dtype).reshape(per_chunk, dim)[within]
            elif in_order:
                self._unpack(content, out, column, int(targets[0]), int(within[0]), len(rows))
            else:
                values = np.ascontiguousarray(content).view(self._dtype).reshape(-1, dim)
                out[targets, column] = values[within]

    def _unpack(
        self, chunks: npt.NDArray[np.uint8], out: npt.NDArray[Any], column: int, target: int, skip: int, count: int
    ) -> None:
        """Copy rows that follow each other from chunks to where they belong."""
        per_chunk, dim = self._metadata.chunk_shape[0], out.shape[2]
        values = chunks.view(self._dtype).reshape(len(chunks), per_chunk, dim)
        rows = out[target : target + count, column]
        head = per_chunk - skip
        whole = (count - head) // per_chunk
        tail = head + whole * per_chunk
        rows[:head] = values[0, skip:]
        rows[head:tail].reshape(whole, per_chunk, dim)[...] = values[1 : 1 + whole]
        rows[tail:] = values[-1, : count - tail]


def damaged(name: str, what: str) -> CorruptTrackError:
    return CorruptTrackError(f"{name}: {what}; run verify --deep --repair, and extract its tracks again")
