"""Features as the files of other tools: a tree of .npy, a table of CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.atomic import replacing
from featurestore.errors import MissingDependencyError, SettingError
from featurestore.spec import DIMS, KINDS, kinds_of_level
from featurestore.store.selection import resolve_layers

if TYPE_CHECKING:
    from featurestore.store import StoreReader

_BLOCK_ROWS = 256


def export_npy(store: StoreReader, folder: Path, tracks: Sequence[str], level: str, layers: Sequence[int]) -> None:
    """Write KIND/ID.npy of each kind of each track, and provenance/ID.json.

    Each file is whole or not there. What is there already is replaced. SettingError if an id is no path below the
    folder.
    """
    for track_id in tracks:
        known = store.provenance(track_id)
        below = _path_of(track_id)
        for kind in (kind for kind in kinds_of_level(level) if kind in known["kinds"]):
            with replacing(folder / kind / f"{below}.npy") as (file,):
                _write_npy(file, store, kind, track_id, layers)
        with replacing(folder / "provenance" / f"{below}.json") as (file,):
            file.write(json.dumps(known, indent=1).encode())


def _path_of(track_id: str) -> str:
    parts = track_id.split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 240 for part in parts) or os.sep != "/":
        raise SettingError(f"the track id {track_id!r:.200} is no path for its files: export to hdf5 or parquet")
    return track_id


def _write_npy(file: Any, store: StoreReader, kind: str, track_id: str, layers: Sequence[int]) -> None:
    if kind == "aggregated":
        np.save(file, store.aggregated(layer=layers, tracks=[track_id]).to_numpy()[0])
        return
    view = (store.raw if kind == "raw" else store.segments)(track_id, layer=layers)
    header = {"descr": view.dtype.str, "fortran_order": False, "shape": view.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for segment in view:
        file.write(segment.tobytes())


def import_npy(folder: Path, track_id: str, layers: int, dim: int) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of one track from a tree of .npy; nothing is unpickled.

    SettingError if a file is no array of numbers of the shape that its folder says.
    """
    found = {}
    for kind in KINDS:
        path = folder / kind / f"{track_id}.npy"
        if not path.exists():
            continue
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SettingError(f"{path} cannot be read as an array: {error}") from None
        axes = len(DIMS[kind])
        if (
            array.ndim != axes
            or array.dtype.kind != "f"
            or (array.shape[-1], array.shape[axes > 2]) != (dim, layers)
        ):
            raise SettingError(
                f"{path} has the shape {array.shape} and the type {array.dtype}: not {kind} of these layers"
            )
        found[kind] = array
    return found


def npy_tracks(folder: Path) -> list[str]:
    """Ids of the tracks in a tree of .npy: their paths below ``aggregated``, ``segments`` or ``raw``."""
    found = set()
    for kind in KINDS:
        for path in (folder / kind).rglob("*.npy"):
            found.add(path.relative_to(folder / kind).with_suffix("").as_posix())
    return sorted(found)


def export_csv(store: StoreReader, path: Path, tracks: Sequence[str], level: str, layers: Sequence[int]) -> None:
    """Write a table: a row for each track, or for each segment with its start; a column for each value."""
    with replacing(path) as (file,):
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        out = csv.writer(text)
        names = [f"layer{layer}_{number}" for layer in layers for number in range(store.spec.dim)]
        out.writerow(["track_id", *(["start"] if level == "segments" else []), *names])
        for ids, starts, block in _table(store, tracks, level, layers):
            for row, (track_id, values) in enumerate(zip(ids, block, strict=True)):
                out.writerow([track_id, *([] if starts is None else [starts[row]]), *map(str, values.reshape(-1))])
        text.flush()
        text.detach()


def export_parquet(
    store: StoreReader, path: Path, tracks: Sequence[str], level: str, layers: Sequence[int]
) -> None:
    """Write a table with a column of lists for each layer: ``track_id``, ``start`` of segments, ``layer7``, ..."""
    schema, tables = arrow_tables(store, tracks, level, layers)
    import pyarrow.parquet as pq

    with replacing(path) as (file,), pq.ParquetWriter(file, schema) as out:
        for table in tables:
            out.write_table(table)


def arrow_tables(
    store: StoreReader, tracks: Sequence[str], level: str, layers: Sequence[int]
) -> tuple[Any, Iterator[Any]]:
    """Make the schema of such a table, and its rows, some tracks at a time."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError("pyarrow is needed: pip install 'featurestore[parquet]'") from error
    number = pa.from_numpy_dtype(np.dtype(store.spec.dtype))
    lists = [(f"layer{layer}", pa.list_(number, store.spec.dim)) for layer in layers]
    start = [("start", pa.float64())] if level == "segments" else []
    schema = pa.schema([("track_id", pa.string()), *start, *lists])
    schema = schema.with_metadata({"featurestore": json.dumps(store.spec.to_dict())})

    def tables() -> Iterator[Any]:
        for ids, starts, block in _table(store, tracks, level, layers):
            columns = [pa.array(ids, pa.string()), *([] if starts is None else [pa.array(starts)])]
            for position in range(len(layers)):
                values = pa.array(np.ascontiguousarray(block[:, position]).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(values, store.spec.dim))
            yield pa.table(columns, schema=schema)

    return schema, tables()


def _table(
    store: StoreReader, tracks: Sequence[str], level: str, layers: Sequence[int]
) -> Iterator[tuple[list[str], npt.NDArray[np.float64] | None, npt.NDArray[Any]]]:
    """Ids, starts and features [row, layer, feature], some tracks at a time."""
    if level not in ("aggregated", "segments"):
        raise SettingError(
            f"a table has a row for each track or segment, not {level!r}: export raw to hdf5 or npy"
        )
    layers = resolve_layers(list(layers), store.spec, store.path).numbers
    for first in range(0, len(tracks), _BLOCK_ROWS):
        some = list(tracks[first : first + _BLOCK_ROWS])
        if level == "aggregated":
            yield some, None, store.aggregated(layer=layers, tracks=some).to_numpy()
        else:
            view = store.segments(layer=layers, tracks=some)
            yield view.coords["track"].tolist(), view.coords["start"], view.to_numpy()
