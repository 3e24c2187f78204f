"""What a caller asks for: layers by their numbers, and a part of a view by an index of numpy."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec


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


def resolve_layers(layer: int | Sequence[int] | None, spec: FeatureSpec, store: Path) -> Layers:
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
