"""Rows of a bundle's features [row, layer, feature]: written as they come, and read from wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
_READ_CHUNKS = 128  # of one layer, at once
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
        self._shards = iter(shards_of(metadata))
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
        self._files: dict[int, ByteFile] = {}
        self._dtype = np.dtype(metadata.dtype).newbyteorder("<")

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def open(self, number: int) -> None:
        """Open the file of a shard, unless it is open.

        Raises
        ------
        CorruptTrackError
            If it is not of the size that it has.
        """
        if number not in self._files:
            shard = ShardLayout(self._metadata, number)
            file = self._folder.open(shard.name)
            self._files[number] = file
            if file.size != shard.size:
                raise damaged(self._name, f"{shard.name} is not a file of {shard.size} bytes, but of {file.size}")

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
        for number in np.unique(shards).tolist():
            self.open(number)

        def work(some: Sequence[tuple[int, int]]) -> None:
            for first, end in some:
                if first < end:
                    part = slice(first, end)
                    self._read_part(out, targets[part], rows[part], layers, int(shards[first]))

        read = (1 + np.count_nonzero(np.diff(chunks))) * per_chunk * len(layers) * out[0, 0].nbytes
        if read < _LARGE or len(parts) < THREADS:
            work(parts)
        else:
            share = -(-len(parts) // THREADS)
            with ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(work, [parts[i : i + share] for i in range(0, len(parts), share)]):
                    pass

    def _read_part(
        self, out: npt.NDArray[Any], targets: Rows, rows: Rows, layers: Sequence[int], number: int
    ) -> None:
        """Read rows of neighbouring chunks of one shard."""
        shard, file = ShardLayout(self._metadata, number), self._files[number]
        per_chunk, dim = self._metadata.chunk_shape[0], out.shape[2]
        local = rows - shard.first
        first, last = int(local[0]) // per_chunk, int(local[-1]) // per_chunk
        count, size = last - first + 1, shard.chunk_bytes
        begin = first * per_chunk
        in_order = len(rows) > per_chunk and (np.diff(rows) == 1).all() and (np.diff(targets) == 1).all()
        for column, layer in enumerate(layers):
            block = np.empty((count, size + CRC_BYTES), np.uint8)
            if file.read_into([block.data], shard.offset(layer, first)) != block.nbytes:
                raise damaged(self._name, f"{shard.name} ends with the file")
            stored = block[:, size:].copy().view("<u4")[:, 0].tolist()
            for chunk, content, crc in zip(range(first, last + 1), block[:, :size], stored, strict=True):
                if google_crc32c.value(content) != crc:
                    raise damaged(self._name, f"{shard.name}: chunk {chunk} of layer {layer} fails its checksum")
            if count == 1:
                values = block[0, :size].view(self._dtype).reshape(per_chunk, dim)
                out[targets, column] = values[local - begin]
            elif in_order:
                self._unpack(block, out, column, int(targets[0]), int(local[0]) - begin, len(rows))
            else:
                values = np.ascontiguousarray(block[:, :size]).view(self._dtype).reshape(-1, dim)
                out[targets, column] = values[local - begin]

    def _unpack(
        self, block: npt.NDArray[np.uint8], out: npt.NDArray[Any], column: int, target: int, skip: int, count: int
    ) -> None:
        """Copy rows that follow each other from chunks to where they belong."""
        per_chunk, dim = self._metadata.chunk_shape[0], out.shape[2]
        at = 0
        for content in block[:, :-CRC_BYTES]:
            values = content.view(self._dtype).reshape(per_chunk, dim)[skip : skip + count - at]
            out[target + at : target + at + len(values), column] = values
            at += len(values)
            skip = 0


def damaged(name: str, what: str) -> CorruptTrackError:
    return CorruptTrackError(f"{name}: {what}; run verify --deep --repair, and extract its tracks again")
