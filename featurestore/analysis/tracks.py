"""What is known of each track, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import MissingDependencyError, TrackNotFoundError

if TYPE_CHECKING:
    from featurestore.store import StoreReader

COLUMNS = ("track_id", "path", "seconds", "segments", "sha256", "kinds", "warnings")


class TrackTable(list[dict[str, Any]]):
    """A row for each track: a mapping of the names in `COLUMNS` to values.

    Examples
    --------
    >>> [row["segments"] for row in FeatureStore("features.zarr").tracks]
    [4, 4, 4]
    """

    def to_pandas(self) -> Any:
        """Make a DataFrame with the track ids as index; needs pandas.

        Examples
        --------
        >>> FeatureStore("features.zarr").tracks.to_pandas().loc["rock/song", "segments"].item()
        4
        """
        columns = {name: [row[name] for row in self] for name in COLUMNS if name != "track_id"}
        return data_frame(columns, [row["track_id"] for row in self])


def data_frame(columns: Mapping[str, Any], track_ids: Sequence[str]) -> Any:
    """Make a DataFrame with the track ids as index; MissingDependencyError if there is no pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError("pandas is needed: pip install pandas") from error
    return pandas.DataFrame(dict(columns), index=pandas.Index(track_ids, name="track_id"))


def known_tracks(store: StoreReader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each track and what is known of it; those that are removed meanwhile are left out."""
    for track_id in store.track_ids:
        try:
            known = store.provenance(track_id)
        except TrackNotFoundError:
            continue
        yield track_id, known


def window_seconds(store: StoreReader, track_id: str, starts: npt.NDArray[np.float64]) -> float:
    """Length of the windows of a track, of which `starts` are known; 0 where nobody knows it."""
    seconds = store.spec.segment_duration
    if not isinstance(seconds, str):
        return seconds or 0.0
    # full: equal windows, of which the last ends with the track
    duration = (store.provenance(track_id).get("audio") or {}).get("duration") or 0.0
    return max(0.0, duration - float(starts[-1])) if len(starts) else 0.0


def track_table(store: StoreReader) -> TrackTable:
    """The table of all tracks."""
    rows = TrackTable()
    for track_id, known in known_tracks(store):
        audio = known.get("audio") or {}
        rows.append(
            {
                "track_id": track_id,
                "path": audio.get("path"),
                "seconds": audio.get("duration"),
                "segments": len(known["starts"]),
                "sha256": audio.get("sha256"),
                "kinds": list(known["kinds"]),
                "warnings": list(known.get("warnings", [])),
            }
        )
    return rows
