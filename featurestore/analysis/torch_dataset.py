"""Tracks of a store for a DataLoader of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import MissingDependencyError, SettingError

if TYPE_CHECKING:
    from featurestore.store import StoreReader

LEVELS = ("aggregated", "segments", "raw")


class TrackDataset:
    """Tracks by their number: a map-style dataset of torch. It holds no file open and can go to worker processes.

    Made by `FeatureStore.to_torch_dataset`. An item is a mapping of ``features`` ([feature] of ``aggregated``,
    [segment, feature] of ``segments``, [segment, frame, feature] of ``raw``, with a dimension ``layer`` as views
    have it), ``track_id``, and ``label`` if there are labels: a class by its number in `classes`, or a value.

    Attributes
    ----------
    track_ids : list of str
        The tracks, in order.
    classes : list
        The classes, ascending; empty where labels are values.

    Examples
    --------
    >>> dataset = FeatureStore("features.zarr").to_torch_dataset(layer=7)
    >>> len(dataset), dataset[0]["track_id"], dataset[0]["features"].shape
    (3, 'folk/air', torch.Size([768]))
    """

    def __init__(
        self,
        store: StoreReader,
        level: str,
        layer: int | Sequence[int] | None,
        track_ids: list[str],
        labels: npt.NDArray[Any] | None,
        classes: list[Any] | None = None,
    ) -> None:
        if level not in LEVELS:
            raise SettingError(f"`level` must be one of {', '.join(LEVELS)}, not {level!r}")
        self.store, self.level, self.layer, self.track_ids = store, level, layer, track_ids
        self._labels = labels
        if classes is None:
            whole = labels is not None and labels.dtype.kind != "f"
            classes = np.unique(labels).tolist() if whole and labels is not None else []
        self.classes = classes
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._rows = store.aggregated(layer, tracks=track_ids) if level == "aggregated" else None
        self._segments = store.segments(layer=layer, tracks=track_ids) if level == "segments" else None

    def __len__(self) -> int:
        return len(self.track_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items of a batch, which are read together; a DataLoader calls this."""
        numbers = [range(len(self))[index] for index in indices]
        if self._rows is not None:
            features: Any = self._rows[np.array(numbers, np.int64)]
        elif self._segments is not None:
            features = self._segments.of_tracks(numbers)
        else:
            ids = (self.track_ids[number] for number in numbers)
            features = [self.store.raw(track_id, layer=self.layer).to_numpy() for track_id in ids]
        return [self._item(number, block) for number, block in zip(numbers, features, strict=True)]

    def _item(self, number: int, features: npt.NDArray[Any]) -> dict[str, Any]:
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError("torch is needed: pip install 'featurestore[extract]'") from error
        item = {"features": torch.from_numpy(features), "track_id": self.track_ids[number]}
        if self._labels is not None:
            value = self._labels[number].item()
            item["label"] = self._numbers[value] if self.classes else value
        return item

    def split(
        self,
        *shares: float,
        by: str = "track",
        groups: npt.NDArray[Any] | Sequence[Any] | None = None,
        seed: int = 0,
    ) -> list[TrackDataset]:
        """Deal the tracks out at random.

        Parameters
        ----------
        *shares : float
            Of each part; together 1.
        by : str
            ``track``, or ``group``: all tracks of a group come into the same part.
        groups : sequence, optional
            The group (artist, album) of each track, for ``group``.
        seed : int
            Of the deal.

        Returns
        -------
        list of TrackDataset

        Raises
        ------
        SettingError
            If the shares are not 1 together, or groups are missing.

        Examples
        --------
        >>> dataset = FeatureStore("features.zarr").to_torch_dataset(layer=7)
        >>> [len(part) for part in dataset.split(0.66, 0.34)]
        [2, 1]
        """
        if len(shares) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise SettingError(
                f"the shares of a split are at least two positive numbers, together 1, not {shares}"
            )
        if by not in ("track", "group") or (by == "group") != (groups is not None):
            raise SettingError("`by` is 'track', or 'group' together with `groups`, one for each track")
        units = np.arange(len(self)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if len(units) != len(self):
            raise SettingError(f"there are {len(units)} groups for {len(self)} tracks")
        names, counts = np.unique(units, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        ends = np.cumsum(counts[order]) - counts[order] / 2
        parts = np.searchsorted(np.cumsum(shares)[:-1] * len(self), ends)
        part_of = dict(zip(names[order].tolist(), parts.tolist(), strict=True))
        part = np.array([part_of[unit] for unit in units.tolist()], np.int64)
        return [self._part(np.flatnonzero(part == number)) for number in range(len(shares))]

    def _part(self, rows: npt.NDArray[np.int64]) -> TrackDataset:
        labels = None if self._labels is None else self._labels[rows]
        ids = [self.track_ids[row] for row in rows.tolist()]
        return TrackDataset(self.store, self.level, self.layer, ids, labels, self.classes)


def collate_ragged(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of tracks of different lengths, for ``DataLoader(..., collate_fn=collate_ragged)``.

    Returns
    -------
    dict
        ``features`` [track, segment, ...], zeros behind the end of a track; ``lengths`` [track]; ``mask``
        [track, segment], true where there are features; ``track_id``; ``label`` [track] if there are labels.

    Examples
    --------
    >>> from featurestore.analysis import collate_ragged
    >>> dataset = FeatureStore("features.zarr").to_torch_dataset("segments", layer=7)
    >>> collate_ragged([dataset[0], dataset[1]])["mask"].sum().item()
    8
    """
    import torch

    features = [item["features"] for item in items]
    lengths = torch.tensor([len(block) for block in features])
    batch = {
        "features": torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
        "lengths": lengths,
        "mask": torch.arange(int(lengths.max()))[None] < lengths[:, None],
        "track_id": [item["track_id"] for item in items],
    }
    if "label" in items[0]:
        batch["label"] = torch.tensor([item["label"] for item in items])
    return batch
