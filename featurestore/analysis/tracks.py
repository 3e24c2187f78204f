"""What is known of each track, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError("pandas is needed: pip install pandas") from error
        return pandas.DataFrame(list(self), columns=list(COLUMNS)).set_index("track_id")


def track_table(store: StoreReader, tracks: Sequence[str] | None = None) -> TrackTable:
    """The table of some tracks, or all; those that are removed meanwhile are left out."""
    rows = TrackTable()
    for track_id in store.track_ids if tracks is None else tracks:
        try:
            known = store.provenance(track_id)
        except TrackNotFoundError:
            if tracks is not None:
                raise
            continue
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
