"""Features in chunks of one layer, which are written and read whole, past the filters of HDF5.

A chunk has a CRC-32C beside it, of which a processor makes ten times as many as of HDF5's own fletcher32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.store.hdf5.layout import dataset

CHECKSUMS = "crc32c"
"""Group of the checksums: an array [chunk, layer] for each array of features, of the same name."""


def write_chunk(out: Any, number: int, position: int, values: npt.NDArray[Any]) -> int:
    """Write a chunk of whole rows of one layer; its checksum."""
    out.id.write_direct_chunk((number * out.chunks[0], position, *[0] * (out.ndim - 2)), values)
    return int(google_crc32c.value(values))


class ChunkReader:
    """Features of an open file, [row, layer, ...].

    Parameters
    ----------
    file : h5py.File
    name : str
        Of the dataset.
    shape : tuple
        That it has to have; None: any size.
    dtype : dtype
        Of its numbers.

    Raises
    ------
    ValueError
        If it is another, or is not stored in such chunks.
    """

    def __init__(self, file: Any, name: str, shape: tuple[int | None, ...], dtype: npt.DTypeLike) -> None:
        self._data, self._name = dataset(file, name, shape, "f"), name
        self.shape: tuple[int, ...] = self._data.shape
        if self._data.dtype != dtype:
            raise ValueError(f"{name} has numbers of {self._data.dtype}, not {dtype}")
        if not self.shape[0]:
            return
        if self._data.chunks is None or self._data.chunks[1:] != (1, *self.shape[2:]) or self._data.compression:
            raise ValueError(f"{name} is not stored in chunks of one layer")
        self._rows: int = self._data.chunks[0]
        counts = -(-self.shape[0] // self._rows), self.shape[1]
        self._checksums = dataset(file, f"{CHECKSUMS}/{name}", counts, "u")[:]

    def take(self, rows: npt.NDArray[np.int64], positions: Sequence[int]) -> npt.NDArray[Any]:
        """Read rows and layers: each chunk that has one of them is read once."""
        out = np.empty((len(rows), len(positions), *self.shape[2:]), self._data.dtype)
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
                    self._read(number, position, target)
                else:
                    self._read(number, position, spare)
                    out[part, place] = spare[ascending[begin:end] - number * self._rows]
        return out

    def _read(self, number: int, position: int, target: npt.NDArray[Any]) -> None:
        at = number * self._rows, position, *[0] * (len(self.shape) - 2)
        self._data.id.read_direct_chunk(at, out=target.reshape(-1).view(np.uint8))
        if google_crc32c.value(target) != self._checksums[number, position]:
            raise ValueError(f"chunk {number} of layer {position} of {self._name} fails its checksum")
