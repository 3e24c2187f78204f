"""The map of tracks: which are shown, where, and in which colours, as small as a page should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

POINTS = 20_000
"""Tracks on a map, at most."""

_ID_BYTES = 1_000_000
_LAYERS = 5
_CLASSES = 30


@dataclass(frozen=True)
class Colouring:
    """A value of each point: a class by its number in `names` (-1 is none), or a number (NaN is none)."""

    name: str
    values: npt.NDArray[Any]
    names: list[str] | None = None

    @property
    def differs(self) -> bool:
        """Whether there are two values at least, and not too many classes to tell apart."""
        if self.names is not None:
            return 1 < len(self.names) <= _CLASSES
        known = self.values[np.isfinite(self.values)]
        return bool(len(known) and known.min() < known.max())


def by_class(name: str, values: Sequence[Any]) -> Colouring:
    """Colours of classes; the most frequent come first."""
    texts = [None if value is None or value != value else str(value) for value in values]
    names = [text for text, _ in Counter(text for text in texts if text is not None).most_common(32_000)]
    numbers = {text: number for number, text in enumerate(names)}
    return Colouring(name, np.array([numbers.get(x, -1) if x is not None else -1 for x in texts], "<i2"), names)


def by_number(name: str, values: Iterable[Any]) -> Colouring:
    """Colours of numbers."""
    return Colouring(name, np.array([np.nan if value is None else value for value in values], "<f4"))


def map_layers(layers: Sequence[int], chosen: int) -> list[int]:
    """Up to five layers from the first to the last, and the chosen one."""
    numbers = np.unique(np.linspace(0, len(layers) - 1, min(_LAYERS, len(layers))).round().astype(int))
    spread = [layers[number] for number in numbers]
    if chosen not in spread:
        spread[min(range(len(spread)), key=lambda n: abs(spread[n] - chosen))] = chosen
    return spread


def pick_points(track_ids: Sequence[str], wanted: Sequence[int]) -> npt.NDArray[np.int64]:
    """Tracks by their numbers that are shown: all, or a random sample with those that are wanted.

    The limit is `POINTS`, and fewer where ids are so long that the page would grow.
    """
    size = sum(len(track_id.encode("utf-8", "surrogatepass")) for track_id in track_ids) / len(track_ids)
    most = min(len(track_ids), POINTS, max(1000, int(_ID_BYTES / max(size, 1))))
    order = np.random.default_rng(0).permutation(len(track_ids))
    ranked = np.concatenate([np.array(wanted, np.int64), order])
    _, first = np.unique(ranked, return_index=True)
    return np.sort(ranked[np.sort(first)[:most]])


def pack_map(
    track_ids: Sequence[str],
    points: npt.NDArray[np.int64],
    coordinates: npt.NDArray[np.float32],
    colourings: Sequence[Colouring],
) -> dict[str, Any]:
    """What the page's script draws.

    Each map ends at the last points within Tukey's outer fences: one silent track would press all others into
    a point. Points beyond lie on the edge, and those without a place (features that are no numbers) have 65535.
    """
    packed = []
    for layer in coordinates:
        low, high = np.zeros(2), np.ones(2)
        finite = np.isfinite(layer).all(axis=1)
        if finite.any():
            known = layer[finite]
            first, last = np.percentile(known, (25, 75), axis=0)
            inside = (known >= first - 3 * (last - first)) & (known <= last + 3 * (last - first))
            low = np.min(known, axis=0, where=inside, initial=np.inf)
            high = np.max(known, axis=0, where=inside, initial=-np.inf)
        shown = layer[points]
        with np.errstate(all="ignore"):
            scaled = np.clip((shown - low) / np.where(high > low, high - low, 1), 0, 1) * 65534
        scaled[~np.isfinite(scaled).all(axis=1)] = 65535
        packed.append(scaled.astype("<u2"))
    return {
        "ids": [track_ids[point] for point in points.tolist()],
        "positions": packed,
        "colours": [{"name": x.name, "values": x.values, "names": x.names} for x in colourings],
    }
