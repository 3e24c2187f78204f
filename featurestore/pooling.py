"""Pooling of stored features: numpy only. Sums are float64, results float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def pool_segments(segments: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Mean over segments; as all have the same length, also the mean over all of their frames.

    Parameters
    ----------
    segments : ndarray, shape (segments, layers, dim)
        At least one segment.

    Returns
    -------
    ndarray of float32, shape (layers, dim)
    """
    return np.asarray(segments.mean(axis=0, dtype=np.float64), np.float32)
