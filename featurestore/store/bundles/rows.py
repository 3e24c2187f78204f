"""Rows of a bundle's features [row, layer, feature]: written as they come, and read from wherever they lie."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterable, Sequence
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
from featurestore.store.format.small_chunks import CRC_BYTES, crc_of, with_crc

_WRITTEN_CHUNKS = 64  # of each layer, at once
_BATCH = 2**19  # bytes of one layer that are read at once: about as much as a core caches
_LARGE = 4 * 2**20  # bytes from which on several threads pay
_SPARSE = 2  # of so many chunks, fewer than one is read
_MOMENT = 5e-5  # seconds in which a chunk is read that the system has in memory

Rows = npt.NDArray[np.int64]


class RowWriter:
    """Write the rows of an array, whose number is known, into a folder."""

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
                parts += [chunk, crc_of(chunk)]
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
    """

    def __init__(self, folder: ByteFolder, metadata: ArrayMetadata, name: str) -> None:
        self._folder = folder
        self._metadata = metadata
        self._name = name
        self._open: dict[int, tuple[ByteFile, ShardLayout]] = {}
        self._dtype = np.dtype(metadata.dtype).newbyteorder("<")
        self._chunk_bytes = math.prod(metadata.chunk_shape) * self._dtype.itemsize + CRC_BYTES
        self._sums = [0]  # of so many chunks in a row

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file, _ in self._open.values():
            file.close()
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
            file = self._folder.open(shard.name)
            self._open[number] = file, shard
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
        most = max(1, _BATCH // self._chunk_bytes)
        wanted = _Wanted.of(rows, targets, self._metadata, most)
        if len(self._sums) <= (longest := min(most, wanted.chunks)):
            self._sums = checksums_of_runs(self._chunk_bytes - CRC_BYTES, longest)
        for number in dict.fromkeys(number for runs in wanted.runs for number, _, _ in runs):
            self.open(number)

        def work(batches: Iterable[int]) -> None:
            buffer = np.empty((min(most, wanted.chunks), self._chunk_bytes), np.uint8)
            for batch in batches:
                self._read_batch(out, wanted, batch, layers, buffer)

        batches = range(len(wanted.runs))
        is_large = wanted.chunks * self._chunk_bytes * len(layers) >= _LARGE and len(batches) >= THREADS
        if is_large and not wanted.is_dense:
            # Threads that read little at a time keep each other waiting, unless what they wait for is a disk.
            begun = time.monotonic()
            work(batches[:1])
            is_large = time.monotonic() - begun > _MOMENT * most * len(layers)
            batches = batches[1:]
        if not is_large:
            work(batches)
            return
        share = -(-len(batches) // THREADS)
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, [batches[i : i + share] for i in range(0, len(batches), share)]):
                pass

    def _read_batch(
        self,
        out: npt.NDArray[Any],
        wanted: _Wanted,
        batch: int,
        layers: Sequence[int],
        buffer: npt.NDArray[np.uint8],
    ) -> None:
        """Read a batch of chunks, and copy what is wanted of them."""
        per_chunk, dim = self._metadata.chunk_shape[0], out.shape[2]
        size, sums, flat = self._chunk_bytes, self._sums, buffer.reshape(-1)
        values = buffer[:, :-CRC_BYTES].view(self._dtype).reshape(len(buffer), per_chunk, dim)
        first, end = wanted.rows[batch]
        for column, layer in enumerate(layers):
            at = 0
            for number, chunk, count in wanted.runs[batch]:
                file, shard = self._open[number]
                part = flat[at * size : (at + count) * size]
                if file.read_into([part], shard.offset(layer, chunk)) != len(part):
                    raise damaged(self._name, f"{shard.name} ends with the file")
                if google_crc32c.value(part) != sums[count]:
                    raise damaged(self._name, f"a chunk of layer {layer} in {shard.name} fails its checksum")
                at += count
            target, within = int(wanted.targets[first]), wanted.within[first:end]
            if wanted.jumps[first] == wanted.jumps[end - 1]:
                _unpack(values, out[target : target + end - first, column], int(within[0]))
            else:
                out[wanted.targets[first:end], column] = values[wanted.slots[first:end], within]


class _Wanted(NamedTuple):
    """Rows in order, in batches of some chunks each.

    Attributes
    ----------
    chunks : int
        How many there are.
    is_dense : bool
        Whether most chunks between the first and the last are among them.
    rows : list of (int, int)
        Of each batch, the first row and behind the last one: numbers in the arrays below.
    runs : list of list of (int, int, int)
        Of each batch, neighbouring chunks of a shard: number of the shard, the first chunk in it, and how many.
    targets, slots, within, jumps : ndarray
        Of each row, where it belongs; its chunk in the batch, and its place in it; and how many before do not
        follow each other, here or where they belong.
    """

    chunks: int
    is_dense: bool
    rows: list[tuple[int, int]]
    runs: list[list[tuple[int, int, int]]]
    targets: Rows
    slots: Rows
    within: Rows
    jumps: Rows

    @classmethod
    def of(cls, rows: Rows, targets: Rows, metadata: ArrayMetadata, most: int) -> _Wanted:
        """Those of an array, in batches of so many chunks."""
        per_chunk, per_shard = metadata.chunk_shape[0], metadata.shard_shape[0] // metadata.chunk_shape[0]
        chunk = rows // per_chunk
        is_first = _is_other(chunk, 0)
        begins = np.flatnonzero(is_first)
        chunks, count = chunk[begins], len(begins)
        is_run = _is_other(chunks, 1) | (chunks % per_shard == 0)
        is_run[::most] = True
        at = np.flatnonzero(is_run)
        lengths = [end - first for first, end in itertools.pairwise([*at.tolist(), count])]
        numbers, firsts = np.divmod(chunks[at], per_shard)
        every = list(zip(numbers.tolist(), firsts.tolist(), lengths, strict=True))
        edges = [*np.searchsorted(at, np.arange(0, count, most)).tolist(), len(every)]
        return cls(
            count,
            int(chunks[-1] - chunks[0]) < _SPARSE * count,
            list(itertools.pairwise([*begins[::most].tolist(), len(rows)])),
            [every[first:end] for first, end in itertools.pairwise(edges)],
            targets,
            (np.cumsum(is_first) - 1) % most,
            rows - chunk * per_chunk,
            np.cumsum(_is_other(rows, 1) | _is_other(targets, 1)),
        )


def _is_other(numbers: Rows, step: int) -> npt.NDArray[np.bool_]:
    """Which numbers are not so much more than the one before, as the first one is not."""
    found = np.ones(len(numbers), np.bool_)
    np.not_equal(numbers[1:] - numbers[:-1], step, out=found[1:])
    return found


def checksums_of_runs(chunk_bytes: int, most: int) -> list[int]:
    """CRC-32C of none, one, and more chunks one after the other, each of which has its own behind it.

    Whatever is in them, it is the same, as a CRC is linear: one call checks many chunks, as well as one for each.
    """
    chunk, found = with_crc(bytes(chunk_bytes)), [0]
    for _ in range(most):
        found.append(google_crc32c.extend(found[-1], chunk))
    return found


def _unpack(chunks: npt.NDArray[Any], out: npt.NDArray[Any], skip: int) -> None:
    """Copy rows that follow each other, but for the first ones, from chunks [chunk, row, feature]."""
    _, per_chunk, dim = chunks.shape
    head = min(per_chunk - skip, len(out))
    whole = (len(out) - head) // per_chunk
    tail = head + whole * per_chunk
    out[:head] = chunks[0, skip : skip + head]
    out[head:tail].reshape(whole, per_chunk, dim)[...] = chunks[1 : 1 + whole]
    if tail < len(out):
        out[tail:] = chunks[1 + whole, : len(out) - tail]


def damaged(name: str, what: str) -> CorruptTrackError:
    return CorruptTrackError(f"{name}: {what}; run verify --deep --repair, and extract its tracks again")
