"""StoreTracks: which tracks a store has, their features as views, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from featurestore.addresses import StoreUrl
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store.selection import resolve_layers, resolve_tracks
from featurestore.store.source import Source
from featurestore.store.views import POOLINGS, AggregatedView, RaggedView, TrackView


class StoreTracks:
    """The tracks of a store: what `StoreReader` reads.

    Attributes
    ----------
    path : Path or StoreUrl
        The store, as it was given.

    Examples
    --------
    >>> FeatureStore("features.zarr").track_ids
    ['folk/air', 'jazz/blue', 'rock/song']
    """

    path: Path | StoreUrl
    _source: Source

    @property
    def spec(self) -> FeatureSpec:
        """Everything that identifies the store's features."""
        return self._source.spec

    @property
    def track_ids(self) -> list[str]:
        """Ids of all tracks: in the order of the packed table, then the others by id."""
        return list(self._source.track_ids())

    def __len__(self) -> int:
        return len(self._source.track_ids())

    def __iter__(self) -> Iterator[str]:
        return iter(self.track_ids)

    def __contains__(self, track_id: object) -> bool:
        if not isinstance(track_id, str):
            return False
        try:
            return self._source.has(track_id)
        except SettingError:  # no track can have this id
            return False

    def aggregated(
        self,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
        *,
        pooling: str = "mean",
    ) -> AggregatedView:
        """Return a view of one row for each track: the mean over its segments.

        Parameters
        ----------
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Track ids, in this order; by default all, in the order of `track_ids`.
        pooling : {"mean", "mean+std"}
            ``mean+std`` calculates the mean and the standard deviation of the stored segments (population, 0 of a
            single one), one behind the other: twice as many features, float32.

        Returns
        -------
        AggregatedView
            [track, feature] or [track, layer, feature].

        Raises
        ------
        SettingError
            If the store has no such layer, or there is no such pooling.
        TrackNotFoundError
            If the store has no such track; the message names ids that look alike. Of ``mean+std``, when it is
            read, also if a track has no segments.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.aggregated(layer=7).shape
        (3, 768)
        >>> store.aggregated(layer=[3, 7], tracks=["rock/song", "folk/air"]).shape
        (2, 2, 768)
        """
        layers = resolve_layers(layer, self.spec, self.path)
        if pooling not in POOLINGS:
            raise SettingError(f"`pooling` must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        return POOLINGS[pooling](self._source, layers, self._choose(tracks), every=tracks is None)

    @overload
    def segments(self, track: str, layer: int | Sequence[int] | None = None) -> TrackView: ...

    @overload
    def segments(
        self,
        track: None = None,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> RaggedView: ...

    def segments(
        self,
        track: str | None = None,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> TrackView | RaggedView:
        """Return a view of the segments of one track, or of all: each the mean over its frames.

        Parameters
        ----------
        track : str, optional
            Id of one track.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Where `track` is not given: ids of some tracks, in this order, instead of all.

        Returns
        -------
        TrackView or RaggedView
            [segment, (layer,) feature] of one track; [row, (layer,) feature] of many, with `row_tracks` and
            `row_starts`.

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no segments of it.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> store.segments("rock/song", layer=7).shape
        (4, 768)
        >>> rows = store.segments(layer=7)
        >>> rows.shape, rows.row_tracks[4], float(rows.row_starts[5])
        ((12, 768), 'jazz/blue', 2.5)
        """
        if track is not None:
            return self._view_of_track("segments", track, layer)
        layers = resolve_layers(layer, self.spec, self.path)
        return RaggedView(self._source, layers, self._choose(tracks), every=tracks is None)

    def raw(self, track: str, layer: int | Sequence[int] | None = None) -> TrackView:
        """Return a view of every frame of one track.

        Parameters
        ----------
        track : str
            Id of the track.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.

        Returns
        -------
        TrackView
            [segment, (layer,) frame, feature].

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no raw features of it.

        Examples
        --------
        >>> FeatureStore("features.zarr").raw("rock/song", layer=7).dims
        ('segment', 'frame', 'feature')
        """
        return self._view_of_track("raw", track, layer)

    def has(self, track_id: str, kinds: Sequence[str] = ("aggregated",)) -> bool:
        """Tell whether the store has these kinds of features of a track.

        Examples
        --------
        >>> FeatureStore("features.zarr").has("rock/song", kinds=("raw", "segments"))
        True
        """
        if unknown := set(kinds) - set(KINDS):
            raise SettingError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        if track_id not in self:
            return False
        try:
            return set(kinds) <= set(self._source.attributes(track_id)["kinds"])
        except TrackNotFoundError:  # removed just now
            return False

    def provenance(self, track_id: str) -> dict[str, Any]:
        """Return what is known of a track: audio, decoder, revision, fingerprint, starts of windows, checksums.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track.

        Examples
        --------
        >>> FeatureStore("features.zarr").provenance("rock/song")["starts"]
        [0.0, 2.5, 5.0, 7.0]
        """
        self._choose([track_id])
        return dict(self._source.attributes(track_id))

    def _view_of_track(self, kind: str, track_id: str, layer: int | Sequence[int] | None) -> TrackView:
        kinds = self.provenance(track_id)["kinds"]
        layers = resolve_layers(layer, self.spec, self.path)
        if kind not in kinds:
            raise TrackNotFoundError(
                f"the store has no {kind} of {track_id!r:.200}, only {', '.join(kinds)}: "
                "build again with a higher feature level"
            )
        return TrackView(self._source, layers, kind, track_id)

    def _choose(self, tracks: Sequence[str] | None) -> Sequence[str]:
        return resolve_tracks(tracks, self._source.track_ids, self, self.path)
