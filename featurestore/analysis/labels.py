"""Labels of tracks, as people have them: a CSV file, a DataFrame, a mapping, a data set that mirdata knows."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.analysis.music_datasets import PREFIX, DatasetLabels, find_tracks
from featurestore.analysis.tracks import data_frame
from featurestore.errors import SettingError

MISSING = ("error", "drop")
"""What may be done about tracks without a label."""


@dataclass(frozen=True)
class Joined:
    """Tracks of a store that have labels, and these.

    Attributes
    ----------
    track_ids : list of str
        The tracks, in the order of the store.
    columns : mapping of str to ndarray
        Values of each column, in the same order.
    without_label : list of str
        Tracks of the store that were left out.
    unknown : list of str
        Ids among the labels that the store does not have.

    Examples
    --------
    >>> FeatureStore("features.zarr").join({"rock/song": 4.5}, missing="drop").without_label
    ['folk/air', 'jazz/blue']
    """

    track_ids: list[str]
    columns: Mapping[str, npt.NDArray[Any]]
    without_label: list[str]
    unknown: list[str]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Values of one column.

        Raises
        ------
        SettingError
            If there is no such column.

        Examples
        --------
        >>> joined = FeatureStore("features.zarr").join({"rock/song": {"bpm": 120}}, missing="drop")
        >>> joined.column("bpm").tolist()
        [120]
        """
        try:
            return self.columns[name]
        except KeyError:
            close = difflib.get_close_matches(name, self.columns, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise SettingError(
                f"the labels have no column {name!r}, only {', '.join(self.columns)}{hint}"
            ) from None

    def to_pandas(self) -> Any:
        """Make a DataFrame with the track ids as index; needs pandas.

        Examples
        --------
        >>> joined = FeatureStore("features.zarr").join({"rock/song": {"bpm": 120}}, missing="drop")
        >>> joined.to_pandas().index.tolist()
        ['rock/song']
        """
        return data_frame(self.columns, self.track_ids)


def join(track_ids: Sequence[str], labels: Any, *, on: str = "track_id", missing: str = "error") -> Joined:
    """Find the labels of tracks; parameters and errors are those of `AnalysisStore.join`.

    The column with the track ids may be an index of a DataFrame, too.
    """
    if missing not in MISSING:
        raise SettingError(f"`missing` must be one of {', '.join(MISSING)}, not {missing!r}")
    dataset, rows = None, dict[str, Any]()
    if isinstance(labels, str | PathLike) and fspath(labels).startswith(PREFIX):
        dataset, rows = find_tracks(fspath(labels), track_ids)
        unknown = sorted(set(dataset.track_ids).difference(rows.values()))
    else:
        rows = _rows(labels, on)
        unknown = sorted(rows.keys() - set(track_ids))
    without = [track_id for track_id in track_ids if track_id not in rows]
    kept = [track_id for track_id in track_ids if track_id in rows]
    if not kept or (without and missing == "error"):
        example = f", such as {without[0]!r:.200}" if without else ""
        other = f"; {len(unknown)} labels are of no track, such as {unknown[0]!r:.200}" if unknown else ""
        raise SettingError(
            f"{len(without)} of {len(track_ids)} tracks have no label{example}{other}: complete the labels, or "
            "leave such tracks out by missing='drop'"
        )
    if dataset is not None:
        return Joined(kept, DatasetLabels(fspath(labels), dataset, [rows[x] for x in kept]), without, unknown)
    names = dict.fromkeys(name for track_id in kept for name in rows[track_id])
    columns = {name: np.array([rows[track_id].get(name) for track_id in kept]) for name in names}
    return Joined(kept, columns, without, unknown)


def _rows(labels: Any, on: str) -> dict[str, Any]:
    if isinstance(labels, str | PathLike):
        return _read_csv(fspath(labels), on)
    if isinstance(labels, Mapping):
        return {
            track_id: value if isinstance(value, Mapping) else {"label": value}
            for track_id, value in labels.items()
        }
    if hasattr(labels, "to_dict") and hasattr(labels, "reset_index"):
        frame = labels if on in labels.columns else labels.reset_index(names=on)
        return _keyed(frame.to_dict("records"), on, "the DataFrame")
    raise SettingError(f"labels are a CSV file, a DataFrame or a mapping, not {type(labels).__name__}")


def _read_csv(path: str, on: str) -> dict[str, Mapping[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"the labels {path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise SettingError(
                f"the labels {path} have another number of values in row {number} than in their header"
            )
    return _keyed(
        [{name: _number(value) for name, value in row.items()} | {on: row.get(on)} for row in rows], on, path
    )


def _number(text: str) -> Any:
    if "_" in text:  # which Python lets stand between digits: 1_2 would be the class 12
        return text
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        return text


def _keyed(rows: Sequence[Mapping[str, Any]], on: str, where: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row.get(on) is None:
            raise SettingError(f"{where} has no column {on!r}, only {', '.join(map(str, row))}: name it by on=")
        track_id = str(row[on])
        if track_id in found:
            raise SettingError(f"{where} has the track {track_id!r:.200} twice")
        found[track_id] = {name: value for name, value in row.items() if name != on}
    return found
