"""Makes batches of equal length of the windows of many tracks, and says how large these may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

PATIENCE = 4
"""Batches that may be drawn before windows of a rare length are encoded, although they fill none."""

GROW_AFTER = 64
"""Batches of a reduced size that must have fitted before the next larger one is tried."""

GROW_TRIALS = 2
"""Larger sizes that may turn out not to fit; then none is tried any more."""


@dataclass(frozen=True)
class Window(Generic[T]):
    """A window, and the track that it is of."""

    owner: T  # the track: what its results are given out with
    start: int  # its first sample in the track
    samples: npt.NDArray[np.float32]  # shape (samples,)


def grouped(windows: Iterable[Window[T] | None], size: Callable[[], int]) -> Iterator[list[Window[T]] | None]:
    """Group windows of equal length across tracks; windows of a track stay in their order.

    Windows of a length that fills no group (tracks shorter than a window) wait for others of the same length,
    until `PATIENCE` groups have been drawn, and then are a smaller group.

    Parameters
    ----------
    windows : iterable of Window or None
        Drawn as groups are asked for. All windows of a track have one length. None says that there will be more
        only after results have been given out.
    size : callable
        Gives how many windows a group has, by now.

    Yields
    ------
    list of Window, or None
        At most `size()` windows; None after all that waited, if `windows` gave None.
    """
    waiting: dict[int, list[Window[T]]] = {}  # by length; the one that has waited longest comes first
    since: dict[int, int] = {}
    drawn = 0
    for window in windows:
        if window is None:
            yield from _emptied(waiting)
            yield None
            continue
        length = len(window.samples)
        if length not in waiting:
            waiting[length], since[length] = [], drawn
        drawn += 1
        waiting[length].append(window)
        if len(waiting[length]) >= size():
            yield waiting.pop(length)
        if waiting and drawn - since[oldest := next(iter(waiting))] > PATIENCE * size():
            yield waiting.pop(oldest)
    yield from _emptied(waiting)


def _emptied(waiting: dict[int, list[Window[T]]]) -> Iterator[list[Window[T]]]:
    while waiting:
        yield waiting.pop(next(iter(waiting)))


class BatchSize:
    """How many windows are encoded together: fewer when memory is full, and cautiously more again.

    After `GROW_AFTER` batches in a row that fitted at a reduced size, the double is tried. If that does not fit,
    the size goes back; after `GROW_TRIALS` such failures it stays. It never exceeds what was wanted at first.
    """

    def __init__(self, wanted: int) -> None:
        self.now = wanted
        self._wanted = wanted
        self._fitted = 0  # batches in a row
        self._trials = 0  # that failed
        self._tried = 0  # the size that is on trial, 0 if none is

    def fitted(self, size: int) -> None:
        """Note that a batch of `size` windows has been encoded."""
        if size < self.now:
            return  # the last windows of something say nothing about the size
        self._tried = 0
        self._fitted += 1
        if self.now < self._wanted and self._fitted >= GROW_AFTER and self._trials < GROW_TRIALS:
            self.now = self._tried = min(2 * self.now, self._wanted)
            self._fitted = 0

    def full(self, size: int) -> None:
        """Note that a batch of `size` windows, more than one, did not fit."""
        self._trials += size == self._tried
        self._tried = self._fitted = 0
        self.now = min(self.now, size // 2)
