"""Writing features of a store in the format that a name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.atomic import sweep_beside
from featurestore.choices import EXPORT_SUFFIXES, format_of
from featurestore.errors import SettingError
from featurestore.sharing.files import export_csv, export_npy, export_parquet
from featurestore.spec import kinds_of_level

if TYPE_CHECKING:
    from featurestore.store import StoreReader


def _export_hdf5(store: StoreReader, path: Path, tracks: Sequence[str], level: str, layers: Sequence[int]) -> None:
    store.export_hdf5(path, tracks, layers=layers, kinds=kinds_of_level(level))


Export = Callable[["StoreReader", Path, Sequence[str], str, Sequence[int]], None]
_EXPORTS: dict[str, Export] = {
    "hdf5": _export_hdf5,
    "netcdf": _export_hdf5,
    "parquet": export_parquet,
    "csv": export_csv,
    "npy": export_npy,
}


def export(
    store: StoreReader, path: Path, to: str | None, tracks: Sequence[str], level: str, layers: Sequence[int]
) -> None:
    """Write tracks in a format; by default that of the suffix."""
    if to is None and (to := format_of(path)) is None:
        raise SettingError(f"{path} does not say its format: give `to`, one of {', '.join(EXPORT_SUFFIXES)}")
    if to not in EXPORT_SUFFIXES:
        raise SettingError(f"`to` must be one of {', '.join(EXPORT_SUFFIXES)}, not {to!r}")
    sweep_beside(path)
    _EXPORTS[to](store, path, tracks, level, layers)
