"""Copying tracks from one store to another, as they are or in part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.errors import SettingError, SpecMismatchError, TrackExistsError
from featurestore.spec import DTYPES, FeatureSpec, kinds_of_level
from featurestore.store import StoreReader, StoreWriter
from featurestore.store.selection import resolve_layers

_BLOCK_BYTES = 64 * 2**20
_OWN = ("track_id", "revision", "fingerprint", "kinds", "layers", "starts", "checksums")
"""Attributes that a store writes anew."""


def common_spec(stores: Sequence[StoreReader], layers: Sequence[int] | None, dtype: str | None) -> FeatureSpec:
    """The spec of a copy of all these stores, with some layers and other numbers.

    Raises
    ------
    SettingError
        If a store has no such layer, or its numbers do not become these.
    SpecMismatchError
        If the stores hold features of different settings.
    """
    if dtype not in (None, *DTYPES):
        raise SettingError(f"`dtype` must be one of {', '.join(DTYPES)}, not {dtype!r}")
    specs = []
    for store in stores:
        if dtype == "float32" != store.spec.dtype:
            raise SettingError(f"float16 of {store.path} does not become float32 again: leave `dtype` out")
        chosen = resolve_layers(layers, store.spec, store.path).numbers
        specs.append(replace(store.spec.of_layers(chosen), dtype=dtype or store.spec.dtype))
        if differences := specs[0].differences(specs[-1]):
            listed = "; ".join(
                f"`{name}` is {ours!r} and {theirs!r}" for name, (ours, theirs) in differences.items()
            )
            raise SpecMismatchError(
                f"{stores[0].path} and {store.path} hold features of different settings ({listed}): copy them to "
                "two stores",
                differences=differences,
            )
    return specs[0]


def copy_tracks(
    source: StoreReader,
    writer: StoreWriter,
    *,
    tracks: Sequence[str] | None = None,
    level: str = "all",
) -> Iterator[tuple[str, bool]]:
    """Copy some tracks or all into an open store, up to a level, with all that is known of them.

    The spec of the writer says which layers and numbers.

    Yields
    ------
    track_id : str
        The track.
    copied : bool
        Whether it was copied; one that is there already, with equal features, is left as it is.

    Raises
    ------
    TrackExistsError
        If the other store has a track of this id with other features.
    """
    wanted = kinds_of_level(level)
    copies = StoreReader(writer.path)
    layers = resolve_layers(list(writer.spec.layers), source.spec, source.path).numbers
    for track_id in source.track_ids if tracks is None else tracks:
        known = source.provenance(track_id)
        there = writer.existing(track_id)
        if there is None:
            kinds = [kind for kind in known["kinds"] if kind in wanted]
            copy_track(source, writer, track_id, {**known, "kinds": kinds})
        else:
            _check_equal(source, copies, track_id, layers)
        yield track_id, there is None


def copy_track(
    source: StoreReader, writer: StoreWriter, old: str, known: Mapping[str, Any], *, track_id: str | None = None
) -> None:
    """Copy the layers of the writer's spec of one track, perhaps to another id.

    Of what is known of it, its ``kinds`` are copied, and the rest is written down.
    """
    layers, kinds = writer.spec.layers, known["kinds"]
    attributes = {name: value for name, value in known.items() if name not in _OWN}
    row = source.aggregated(layer=layers, tracks=[old]).to_numpy()[0]
    with writer.track(track_id or old, kinds=kinds, attributes=attributes) as track:
        if "segments" in kinds or "raw" in kinds:
            raw = source.raw(old, layer=layers) if "raw" in kinds else None
            pooled = source.segments(old, layer=layers) if "segments" in kinds else None
            view = raw if raw is not None else pooled
            assert view is not None
            rows = max(1, _BLOCK_BYTES // max(1, view.nbytes // len(view)))
            for first in range(0, len(view), rows):
                part = slice(first, first + rows)
                track.append(
                    raw=None if raw is None else raw[part],
                    segments=None if pooled is None else pooled[part],
                    starts=view.starts[part].tolist() if len(view.starts) else None,
                )
        track.set_aggregated(row)


def _check_equal(source: StoreReader, copies: StoreReader, track_id: str, layers: Sequence[int]) -> None:
    ours = source.aggregated(layer=layers, tracks=[track_id]).to_numpy().astype(copies.spec.dtype)
    theirs = copies.aggregated(tracks=[track_id]).to_numpy()
    if not np.array_equal(ours, theirs):
        raise TrackExistsError(
            f"{track_id!r:.200} is in {source.path} and in {copies.path}, with other features: remove it "
            "from one of them, or leave it out"
        )
