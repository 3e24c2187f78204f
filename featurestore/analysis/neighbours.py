"""Exact nearest neighbours by cosine, over rows that need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.choices import METRICS
from featurestore.errors import SettingError

_BLOCK_BYTES = 24 * 2**20
"""Of a block; larger ones fall out of the caches of processors."""
_LEAST_ROWS = 5
"""Rows for each dimension, without which a covariance is mostly noise."""

Floats = npt.NDArray[np.float64]


class NeighbourIndex:
    """What a metric needs to know of all rows; each search reads them once more.

    `read` gives the rows [row, feature] between two numbers, `shape` says how many rows and features there are. Of
    the metrics, ``centred-cosine`` takes off first what all rows have in common (in MERT over nine tenths), and in
    ``whitened`` every direction counts alike. SettingError is raised if there is no such metric, or too few rows
    to whiten them.
    """

    def __init__(self, read: Callable[[int, int], npt.NDArray[Any]], shape: tuple[int, int], metric: str) -> None:
        if metric not in METRICS:
            raise SettingError(f"`metric` must be one of {', '.join(METRICS)}, not {metric!r}")
        self._read, (self._rows, self._dim), self.metric = read, shape, metric
        if metric == "whitened" and self._rows < _LEAST_ROWS * self._dim:
            raise SettingError(
                f"whitening {self._dim} dimensions takes at least {_LEAST_ROWS * self._dim} rows, "
                f"there are {self._rows}: use another metric"
            )
        self._size = max(1, _BLOCK_BYTES // (4 * self._dim))
        self._mean = np.zeros(self._dim)
        self._inverse: Floats | None = None
        if metric != "cosine":
            self._look_at_all()
        self._norms: npt.NDArray[np.float32] | None = None

    def _blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Each block and its first row; the next one is read meanwhile."""

        def read(first: int) -> npt.NDArray[np.float32]:
            return np.asarray(self._read(first, min(self._rows, first + self._size)), np.float32)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, 0)
            for first in range(0, self._rows, self._size):
                block, following = ahead.result(), first + self._size
                if following < self._rows:
                    ahead = reader.submit(read, following)
                yield first, block

    def _look_at_all(self) -> None:
        total = np.zeros(self._dim)
        products = np.zeros((self._dim, self._dim)) if self.metric == "whitened" else None
        for _, block in self._blocks():
            total += np.ones(len(block), np.float32) @ block
            if products is not None:
                products += block.T.astype(np.float64) @ block
        self._mean = total / max(1, self._rows)
        if products is not None:
            covariance = products / self._rows - np.outer(self._mean, self._mean)
            values, vectors = np.linalg.eigh(covariance)
            kept = values > values[-1] * 1e-6
            self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def _lengths(self, block: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self._inverse is not None:
            return self._dual(block)[1]
        centred = block - self._mean.astype(np.float32)
        return np.asarray(np.sqrt(np.einsum("rf,rf->r", centred, centred)))

    def _dual(self, vectors: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """What products with centred rows are taken with, and the lengths of the vectors."""
        centred = np.asarray(vectors, np.float64) - self._mean
        dual = centred if self._inverse is None else centred @ self._inverse
        return dual, np.sqrt(np.maximum((centred * dual).sum(axis=1), 0))

    def search(
        self, vectors: npt.NDArray[Any], k: int, leave_out: Sequence[npt.NDArray[np.int64]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the k nearest rows of each vector [query, feature], or all if there are fewer.

        `leave_out` has for each query the rows that are not wanted.

        Returns
        -------
        rows : ndarray, shape (queries, k)
            Nearest first; equally near ones by their number.
        scores : ndarray, shape (queries, k)
            Cosines, from -1 to 1; NaN where the row has no direction (silence, or the mean itself), -inf where it
            is not wanted.
        """
        dual, lengths = self._dual(vectors)
        shift = dual @ self._mean
        with np.errstate(divide="ignore", invalid="ignore"):
            unit, shift = (dual / lengths[:, None]).astype(np.float32), (shift / lengths)[:, None]
        queries = len(unit)
        scores = np.full((queries, 0), np.nan, np.float32)
        rows = np.zeros((queries, 0), np.int64)
        norms = np.empty(self._rows, np.float32) if self._norms is None else self._norms
        for first, block in self._blocks():
            last = first + len(block)
            if self._norms is None:
                norms[first:last] = self._lengths(block)
            with np.errstate(divide="ignore", invalid="ignore"):
                found = ((unit @ block.T) - shift) / norms[first:last]
            found = np.where(np.isfinite(found), found, np.nan).astype(np.float32)
            for query, unwanted in enumerate(leave_out or []):
                inside = unwanted[(unwanted >= first) & (unwanted < last)]
                found[query, inside - first] = -np.inf
            scores = np.concatenate([scores, found], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(first, last), (queries, len(block)))], axis=1)
            scores, rows = _best(scores, rows, k)
        self._norms = norms
        return rows, scores


def _best(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The k best of each query, best first, then by row; what is no number comes last."""
    badness = np.where(np.isnan(scores), np.float32(np.inf), -scores)
    kth = min(k, scores.shape[1]) - 1
    # All that are as good as the k-th are kept until they are sorted: ties do not depend on the blocks.
    keep = badness <= np.partition(badness, kth, axis=1)[:, [kth]]
    best = [np.flatnonzero(chosen) for chosen in keep]
    order = [some[np.lexsort((rows[q, some], badness[q, some]))][:k] for q, some in enumerate(best)]
    index = np.array(order, np.int64).reshape(len(scores), -1)
    return np.take_along_axis(scores, index, axis=1), np.take_along_axis(rows, index, axis=1)
