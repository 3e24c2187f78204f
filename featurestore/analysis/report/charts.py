"""Geometry of the charts: numbers to places, for the template to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width.

    Attributes
    ----------
    edges : list of float
        One more than there are counts; the first and the last bin hold all that is beyond.
    counts : list of int
        Of each bin.
    known : int
        Values that are numbers.
    middle, low, high : float
        The median and the extremes.
    unit : str
        Of the values.
    """

    edges: list[float]
    counts: list[int]
    known: int
    middle: float
    low: float
    high: float
    unit: str


def histogram(values: npt.NDArray[Any], unit: str) -> Histogram | None:
    """The histogram of what is finite, or None. Bins are of the 1st to the 99th percentile."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    first, last = np.percentile(finite, (1, 99))
    last = max(last, first + max(abs(first), 1) * 1e-3)
    counts, edges = np.histogram(np.clip(finite, first, last), bins=min(_BINS, len(finite)), range=(first, last))
    middle = float(np.median(finite))
    return Histogram(edges.tolist(), counts.tolist(), len(finite), middle, low, high, unit)


def axis(highest: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) that is not below the highest value, and positive."""
    highest = float(highest)
    if not math.isfinite(highest) or highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= highest))
