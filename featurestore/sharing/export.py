"""Writing features of a store in the format that a name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.atomic import sweep_beside
from featurestore.errors import SettingError
from featurestore.sharing.files import export_csv, export_npy, export_parquet
from featurestore.spec import kinds_of_level

if TYPE_CHECKING:
    from featurestore.store import StoreReader


def _export_hdf5(store: StoreReader, path: Path, tracks: Sequence[str], level: str, layers: Sequence[int]) -> None:
    store.export_hdf5(path, tracks, layers=layers, kinds=kinds_of_level(level))


Export = Callable[["StoreReader", Path, Sequence[str], str, Sequence[int]], None]
FORMATS: dict[str, tuple[Export, tuple[str, ...]]] = {
    "hdf5": (_export_hdf5, (".h5", ".hdf5")),
    "netcdf": (_export_hdf5, (".nc",)),
    "parquet": (export_parquet, (".parquet",)),
    "csv": (export_csv, (".csv",)),
    "npy": (export_npy, ()),
}
"""What writes each format, and the suffixes that mean it."""


def export(
    store: StoreReader, path: Path, to: str | None, tracks: Sequence[str], level: str, layers: Sequence[int]
) -> None:
    """Write tracks in a format; by default that of the suffix."""
    if to is None:
        meant = [name for name, (_, suffixes) in FORMATS.items() if path.suffix.lower() in suffixes]
        if not meant:
            raise SettingError(f"{path} does not say its format: give `to`, one of {', '.join(FORMATS)}")
        to = meant[0]
    if to not in FORMATS:
        raise SettingError(f"`to` must be one of {', '.join(FORMATS)}, not {to!r}")
    sweep_beside(path)
    FORMATS[to][0](store, path, tracks, level, layers)
