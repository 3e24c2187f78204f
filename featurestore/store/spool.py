"""RowSpool: rows that arrive in order and are read back by layer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.store import filesystem


class RowSpool:
    """Rows [row, layer, feature] that are read back by layer: in memory while few, in a file beyond.

    Parameters
    ----------
    path : Path
        The file to create if one is needed.
    limit : int
        Bytes that may wait in memory.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._parts: list[npt.NDArray[Any]] = []
        self._waiting = 0
        self._fd = -1

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, C-contiguous, of one shape and type."""
        self._parts.append(rows)
        self._waiting += rows.nbytes
        if self._waiting > self._limit:
            if self._fd < 0:
                self._fd = filesystem.create_file(self._path)
            filesystem.write_all(self._fd, self._parts)
            self._parts = [rows[:0]]
            self._waiting = 0

    def rows(self) -> npt.NDArray[Any]:
        """All rows, when the last has been appended."""
        if self._fd < 0:
            rows: npt.NDArray[Any] = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        else:
            filesystem.write_all(self._fd, self._parts)
            like = self._parts[0]
            rows = np.memmap(self._path, like.dtype, "r").reshape(-1, *like.shape[1:])
        return rows

    def columns(self) -> Iterator[npt.NDArray[Any]]:
        """Array [row, 1, feature] of each layer, C-contiguous."""
        rows = self.rows()
        if self._fd < 0:  # few: one copy is quicker than many
            yield from np.ascontiguousarray(rows.swapaxes(0, 1))[:, :, None]
            return
        for layer in range(rows.shape[1]):
            yield np.ascontiguousarray(rows[:, layer : layer + 1])

    def close(self) -> None:
        """Forget the rows."""
        self._parts = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            filesystem.unlink(self._path)
