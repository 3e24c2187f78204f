"""Reading many tracks of bundles together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.rows import Rows


class SealedPlaces(NamedTuple):
    """Where each of some tracks is.

    Attributes
    ----------
    bundles : list of Bundle
        The bundles.
    numbers : ndarray of int64
        Of the bundle of each track, -1 where it is in none.
    rows : ndarray of int64
        Of each track, the number in its bundle.
    """

    bundles: list[Bundle]
    numbers: Rows
    rows: Rows

    def _used(self) -> list[int]:
        """Numbers of the bundles in which there are some of the tracks."""
        return np.flatnonzero(np.bincount(self.numbers + 1, minlength=1)[1:]).tolist()

    def _each(self) -> Iterator[tuple[Bundle, Rows, Rows]]:
        """Each bundle, the tracks that are in it, and their numbers there."""
        for number in self._used():
            where = np.flatnonzero(self.numbers == number)
            yield self.bundles[number], where, self.rows[where]

    def keys(self) -> dict[int, str]:
        """Key of each track that is in a bundle."""
        found: dict[int, str] = {}
        for bundle, where, rows in self._each():
            found.update(zip(where.tolist(), map(bundle.keys.__getitem__, rows.tolist()), strict=True))
        return found

    def counts(self) -> npt.NDArray[np.int64]:
        """How many segments each track has; 0 where it is in no bundle."""
        found = np.zeros(len(self.numbers), np.int64)
        for bundle, where, rows in self._each():
            found[where] = bundle.splits[rows + 1] - bundle.splits[rows]
        return found

    def starts(self) -> dict[int, npt.NDArray[np.float64]]:
        """Where the segments of each track in a bundle start, seconds."""
        found: dict[int, npt.NDArray[np.float64]] = {}
        for bundle, where, rows in self._each():
            found.update(zip(where.tolist(), bundle.starts(rows), strict=True))
        return found

    def read_aggregated(self, out: npt.NDArray[Any], layers: Sequence[int]) -> None:
        """Fill the rows of the tracks in bundles, of layers by position: [track, layer, feature]."""
        for bundle, where, rows in self._each():
            with bundle.reading("aggregated") as reader:
                reader.read_into(out, where, rows, layers)

    def _rows(self, tracks: Rows, within: Rows) -> Iterator[tuple[Bundle, Rows, Rows]]:
        """Each bundle, which of some segments are in it, and their rows there."""
        numbers = self.numbers[tracks]
        for number in self._used():
            bundle, some = self.bundles[number], np.flatnonzero(numbers == number)
            yield bundle, some, bundle.splits[self.rows[tracks[some]]] + within[some]

    def read_segments(
        self, out: npt.NDArray[Any], targets: Rows, tracks: Rows, within: Rows, layers: Sequence[int]
    ) -> None:
        """Read segments of tracks in bundles, of layers by position, to where they belong.

        Parameters
        ----------
        out : ndarray, shape (row, layer, feature)
            What is filled.
        targets : ndarray of int64
            Rows of `out`.
        tracks, within : ndarray of int64
            Number of the track of each, and of the segment in it.
        layers : sequence of int
            Positions of the layers.

        Raises
        ------
        FileNotFoundError
            If a bundle is gone.
        """
        for bundle, some, rows in self._rows(tracks, within):
            with bundle.reading("segments") as reader:
                reader.read_into(out, targets[some], rows, layers)
