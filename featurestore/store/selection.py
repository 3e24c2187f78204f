"""What a caller asks for: layers by their numbers, tracks by their ids, a part of a view by an index of numpy."""

from __future__ import annotations

import difflib
import heapq
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from featurestore.addresses import StoreUrl
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.spec import FeatureSpec

_LOOKED_AT, _COMPARED, _NAMED = 50_000, 200, 3
"""Ids that are looked at for those that are like an unknown one; of them, compared by difflib; of them, named."""

_LEAST_OF_LAST = 0.75
"""Ratio of difflib from which last parts of ids are alike."""


class Layers(NamedTuple):
    """Layers of a view.

    Attributes
    ----------
    numbers : tuple of int
        As the spec has them.
    positions : list of int
        Where they are in the arrays of the store.
    dropped : bool
        Whether there is no layer dimension, as one was asked for by its number.
    """

    numbers: tuple[int, ...]
    positions: list[int]
    dropped: bool


def resolve_layers(layer: int | Sequence[int] | None, spec: FeatureSpec, store: Path | StoreUrl) -> Layers:
    """The layers that a caller names, or all.

    Raises
    ------
    SettingError
        If the store has no such layer, or this names none.
    """
    stored = spec.layers
    if layer is None:
        return Layers(stored, list(range(len(stored))), dropped=False)
    single = isinstance(layer, int | np.integer)
    listed = [layer] if single else layer
    try:
        if isinstance(layer, str | bytes | Mapping):
            raise TypeError
        given = list(cast(Sequence[int], listed))
        if any(isinstance(number, bool | np.bool_) for number in given):
            raise TypeError  # a mask, perhaps, which would mean layers 0 and 1
        wanted = tuple(map(operator.index, given))
    except TypeError:
        raise SettingError(f"layer is a number, a sequence of numbers or None, not {layer!r}") from None
    if missing := [x for x in wanted if x not in stored]:
        raise SettingError(
            f"the store {store} has no layer {', '.join(map(str, missing))}: it has {', '.join(map(str, stored))}"
        )
    return Layers(wanted, [stored.index(x) for x in wanted], dropped=single)


def resolve_tracks(
    tracks: Sequence[str] | None, every: Callable[[], Sequence[str]], known: Container[str], store: Path | StoreUrl
) -> Sequence[str]:
    """The track ids that a caller names, or all; `known` tells of each whether it exists.

    Raises
    ------
    SettingError
        If this is no sequence.
    TrackNotFoundError
        If the store has no such track.
    """
    if tracks is None:
        return every()
    if isinstance(tracks, str):
        raise SettingError(f"tracks is a sequence of track ids, not one: [{tracks!r}]")
    if not isinstance(tracks, Iterable):
        raise SettingError(f"tracks is a sequence of track ids or None, not {tracks!r:.100}")
    tracks = list(tracks)
    # Looking at each folder is cheaper than listing them all only for a few.
    known = known if len(tracks) < 100 else set(every())
    for track_id in tracks:
        if not isinstance(track_id, str) or track_id not in known:
            close = close_ids(str(track_id), every())
            hint = f": did you mean {', '.join(f'{other!r:.200}' for other in close)}?" if close else ""
            message = f"the store {store} has no track {track_id!r:.200}{hint}"
            raise TrackNotFoundError(message, close_matches=close)
    return tracks


def close_ids(wanted: str, track_ids: Sequence[str]) -> list[str]:
    """Up to three track ids that an unknown one may mean: like it, or in their last part; the closest first."""
    last = _last_part(wanted)
    pairs, of_last = set(pairwise(wanted)), set(pairwise(last))

    def alike(other: str) -> float:
        """Dice's coefficient of pairs of letters: fast, where difflib takes half a millisecond."""
        return max(_dice(pairs, other), _dice(of_last, _last_part(other)))

    near = heapq.nlargest(_COMPARED, (other for other in track_ids[:_LOOKED_AT] if other != wanted), key=alike)
    found = difflib.get_close_matches(wanted, near, n=_NAMED)
    if len(found) < _NAMED:
        ends = {_last_part(other): other for other in reversed(near) if other not in found}
        found += [ends[x] for x in difflib.get_close_matches(last, ends, n=_NAMED, cutoff=_LEAST_OF_LAST)]
    return found[:_NAMED]


def _last_part(track_id: str) -> str:
    return track_id.rpartition("/")[2]


def _dice(pairs: set[tuple[str, str]], other: str) -> float:
    others = set(pairwise(other))
    return len(pairs & others) / (len(pairs) + len(others) + 1)


def full_index(index: Any, ndim: int) -> tuple[Any, ...] | None:
    """Index as one item per dimension, with at most one array; None if it is of another form."""
    items = list(index) if isinstance(index, tuple) else [index]
    ellipses = sum(item is Ellipsis for item in items)
    if not ellipses:
        items.append(Ellipsis)
    if ellipses > 1 or len(items) - 1 > ndim:
        return None
    at = next(i for i, item in enumerate(items) if item is Ellipsis)
    items[at : at + 1] = [slice(None)] * (ndim - len(items) + 1)
    arrays = 0
    for i, item in enumerate(items):
        if isinstance(item, slice):
            continue
        if isinstance(item, int | np.integer) and not isinstance(item, bool | np.bool_):
            items[i] = int(item)
            continue
        if item is None or isinstance(item, bool | np.bool_):
            return None
        items[i] = np.asarray(item, np.intp if isinstance(item, list) and not item else None)
        if items[i].ndim != 1 or items[i].dtype.kind not in "iub":
            return None
        arrays += 1
    # An array beside an integer is broadcast by numpy in its own way.
    plain = arrays == 0 or (arrays == 1 and not any(isinstance(item, int) for item in items))
    return tuple(items) if plain else None
