"""The functions of mess.extraction.storage, over a store: the same calls, whatever wrote the features."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.spec import KINDS
from featurestore.store import StoreReader
from featurestore.store.creation import is_vacant
from featurestore.store.paths import resolve_store_path

StrPath = str | os.PathLike[str]


def features_exist_for_types(
    audio_path: StrPath,
    output_dir: StrPath,
    feature_types: Iterable[str],
    track_id: str | None = None,
    dataset: str | None = None,
) -> bool:
    """Tell whether a store has these kinds of features of a track: `FeatureStore.has`.

    Parameters
    ----------
    audio_path : path
        Its stem is the id of the track, if none is given.
    output_dir : path
        The store.
    feature_types : iterable of str
        Some of ``raw``, ``segments`` and ``aggregated``.
    track_id, dataset : str, optional
        The id, and its prefix.

    Raises
    ------
    NotAStoreError
        If something else is there.

    Examples
    --------
    >>> features_exist_for_types("music/rock/song.wav", "features.zarr", ["raw", "segments"], dataset="rock")
    True
    """
    at = resolve_store_path(output_dir)
    return not is_vacant(at) and StoreReader(at).has(_id(audio_path, track_id, dataset), tuple(feature_types))


def features_exist(
    audio_path: StrPath, output_dir: StrPath, track_id: str | None = None, dataset: str | None = None
) -> bool:
    """Tell whether a store has a track: `features_exist_for_types` of ``aggregated``.

    Examples
    --------
    >>> features_exist("song.wav", "features.zarr"), features_exist("song.wav", "features.zarr", "rock/song")
    (False, True)
    """
    return features_exist_for_types(audio_path, output_dir, ["aggregated"], track_id, dataset)


def load_selected_features(
    audio_path: StrPath,
    output_dir: StrPath,
    feature_types: Iterable[str],
    track_id: str | None = None,
    dataset: str | None = None,
) -> dict[str, npt.NDArray[np.float32]] | None:
    """Read some kinds of features of a track; None if one of them is missing. Parameters and errors as above.

    Examples
    --------
    >>> features = load_selected_features("song.wav", "features.zarr", ["aggregated"], dataset="rock")
    >>> features["aggregated"].shape
    (13, 768)
    """
    kinds = tuple(feature_types)
    if not features_exist_for_types(audio_path, output_dir, kinds, track_id, dataset):
        return None
    store, name = StoreReader(resolve_store_path(output_dir)), _id(audio_path, track_id, dataset)
    found: dict[str, npt.NDArray[np.float32]] = {}
    for kind in kinds:
        if kind == "aggregated":
            found[kind] = np.asarray(store.aggregated(tracks=[name]), np.float32)[0]
        else:
            found[kind] = np.asarray((store.raw if kind == "raw" else store.segments)(name), np.float32)
    return found


def load_features(
    audio_path: StrPath, output_dir: StrPath, track_id: str | None = None, dataset: str | None = None
) -> dict[str, npt.NDArray[np.float32]] | None:
    """Read raw, segments and aggregated of a track; None if one of them is missing.

    Examples
    --------
    >>> sorted(load_features("song.wav", "features.zarr", dataset="rock"))
    ['aggregated', 'raw', 'segments']
    """
    return load_selected_features(audio_path, output_dir, KINDS, track_id, dataset)


def _id(audio_path: StrPath, track_id: str | None, dataset: str | None) -> str:
    name = track_id or Path(audio_path).stem
    return f"{dataset}/{name}" if dataset else name
