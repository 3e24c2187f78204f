"""Pooling of stored features: numpy only. Sums are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def pool_frames(raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the mean over frames.

    Parameters
    ----------
    raw : ndarray, shape (segments, layers, frames, dim)
        At least one frame.

    Returns
    -------
    ndarray of float64, shape (segments, layers, dim)
    """
    return np.asarray(raw.mean(axis=2, dtype=np.float64))


class SegmentPool:
    """The mean over segments that come in batches; as all have the same length, also the mean over their frames.

    Parameters
    ----------
    layers, dim : int
        The shape of a segment.
    """

    def __init__(self, layers: int, dim: int) -> None:
        self.shape = (layers, dim)
        self._sum = np.zeros(self.shape, np.float64)
        self._count = 0

    def add(self, segments: npt.NDArray[Any]) -> None:
        """Add segments, shape (segments, layers, dim)."""
        self._sum += segments.sum(axis=0, dtype=np.float64)
        self._count += len(segments)

    def mean(self) -> npt.NDArray[np.float64]:
        """Return the mean of what was added, at least one segment: float64, shape (layers, dim)."""
        return self._sum / self._count


def pool_segments(segments: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the mean over the segments of a whole track.

    Parameters
    ----------
    segments : ndarray, shape (segments, layers, dim)
        At least one segment.

    Returns
    -------
    ndarray of float32, shape (layers, dim)
    """
    pool = SegmentPool(*segments.shape[1:])
    pool.add(segments)
    return np.asarray(pool.mean(), np.float32)
