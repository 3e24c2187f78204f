"""Features in chunks of one layer, which are written and read whole, past the filters of HDF5.

A chunk has a CRC-32C beside it, of which a processor makes ten times as many as of HDF5's own fletcher32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.store.hdf5.layout import dataset
from featurestore.store.reading import read_into

CHECKSUMS = "crc32c"
"""Group of the checksums: an array [chunk, layer] for each array of features, of the same name."""


def write_chunk(out: Any, number: int, position: int, values: npt.NDArray[Any]) -> int:
    """Write a chunk of whole rows of one layer; its checksum."""
    out.id.write_direct_chunk((number * out.chunks[0], position, *[0] * (out.ndim - 2)), values)
    return int(google_crc32c.value(values))


class ChunkReader:
    """Where the chunks of an array of features lie in a file, [row, layer, ...], and reading them.

    HDF5 is asked once for each array: a query costs reads, as many as chunks. ValueError if the array has another
    type or shape than is given (None: any size), or is not stored in such chunks.
    """

    def __init__(self, file: Any, name: str, shape: tuple[int | None, ...], dtype: npt.DTypeLike) -> None:
        data, self._name, self._dtype = dataset(file, name, shape, "f"), name, np.dtype(dtype)
        self.shape: tuple[int, ...] = data.shape
        if data.dtype != dtype:
            raise ValueError(f"{name} has numbers of {data.dtype}, not {dtype}")
        if not self.shape[0]:
            return
        if data.chunks is None or data.chunks[1:] != (1, *self.shape[2:]) or data.compression:
            raise ValueError(f"{name} is not stored in chunks of one layer")
        self._rows: int = data.chunks[0]
        counts = -(-self.shape[0] // self._rows), self.shape[1]
        self._checksums = dataset(file, f"{CHECKSUMS}/{name}", counts, "u")[:]
        self._offsets = np.full(counts, -1, np.int64)
        data.id.chunk_iter(self._note)

    def _note(self, chunk: Any) -> None:
        at = chunk.chunk_offset[0] // self._rows, chunk.chunk_offset[1]
        is_there = all(place < count for place, count in zip(at, self._offsets.shape, strict=True))
        size = self._rows * math.prod(self.shape[2:]) * self._dtype.itemsize
        if is_there and chunk.size == size and not chunk.filter_mask:
            self._offsets[at] = chunk.byte_offset

    def take(self, fd: int, rows: npt.NDArray[np.int64], positions: Sequence[int]) -> npt.NDArray[Any]:
        """Read rows and layers of the open file: each chunk that has one of them is read once."""
        out = np.empty((len(rows), len(positions), *self.shape[2:]), self._dtype)
        if not len(rows):
            return out
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        spare = np.empty((self._rows, *self.shape[2:]), out.dtype)
        gaps = np.cumsum((np.diff(ascending, prepend=-1) != 1) | (np.diff(order, prepend=-1) != 1))
        ends = np.flatnonzero(np.diff(ascending // self._rows)) + 1
        for begin, end in pairwise([0, *ends.tolist(), len(rows)]):
            number, part = int(ascending[begin]) // self._rows, order[begin:end]
            whole = end - begin == self._rows and gaps[begin] == gaps[end - 1]
            for place, position in enumerate(positions):
                target = out[part[0] : part[-1] + 1, place]
                if whole and target.flags.c_contiguous:
                    self._read(fd, number, position, target)
                else:
                    self._read(fd, number, position, spare)
                    out[part, place] = spare[ascending[begin:end] - number * self._rows]
        return out

    def _read(self, fd: int, number: int, position: int, target: npt.NDArray[Any]) -> None:
        at = int(self._offsets[number, position])
        size = read_into(fd, [target.data.cast("B")], at) if at >= 0 else 0
        if size < target.nbytes or google_crc32c.value(target) != self._checksums[number, position]:
            raise ValueError(f"chunk {number} of layer {position} of {self._name} fails its checksum")
