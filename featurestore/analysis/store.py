"""A store that can be asked what its tracks are, and what a label has to do with their features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore._html import html_table
from featurestore.errors import SettingError
from featurestore.store import StoreReader
from featurestore.store.runs import failures_of, read_runs

if TYPE_CHECKING:
    from featurestore.analysis.labels import Joined
    from featurestore.analysis.probe import ProbeReport
    from featurestore.analysis.torch_dataset import TrackDataset
    from featurestore.analysis.tracks import TrackTable


class AnalysisStore(StoreReader):
    """A store that can be read and asked: a part of `featurestore.FeatureStore`.

    Examples
    --------
    >>> FeatureStore("features.zarr").join({"rock/song": "rock"}, missing="drop").track_ids
    ['rock/song']
    """

    @property
    def tracks(self) -> TrackTable:
        """What is known of each track: id, path, seconds, segments, sha256, kinds and warnings.

        Examples
        --------
        >>> FeatureStore("features.zarr").tracks[2]["segments"]
        4
        """
        from featurestore.analysis.tracks import track_table

        return track_table(self)

    def _repr_html_(self) -> str:
        spec = self.spec
        rows: dict[str, Any] = {
            "tracks": f"{len(self):,}",
            "model": spec.model,
            "layers": spec.layers,
            "dim": spec.dim,
        }
        rows |= {"segment_duration": spec.segment_duration, "overlap": spec.overlap, "dtype": spec.dtype}
        return html_table(f"{type(self).__name__} {self.path}", rows)

    def contents(self) -> dict[str, Any]:
        """Return hours of audio, and bytes by kind; of more than 10,000 tracks estimated from so many.

        Examples
        --------
        >>> sorted(FeatureStore("features.zarr").contents()["bytes"])
        ['aggregated', 'packed', 'raw', 'segments']
        """
        from featurestore.store.contents import contents

        return contents(self._source)

    def runs(self) -> list[dict[str, Any]]:
        """Return what each build of the store did, oldest first: command, options, versions, counts, errors.

        Examples
        --------
        >>> report = build("music", "spectra.zarr", model="logmel", layers=[0])
        >>> [(run["processed"], run["options"]["model"]) for run in FeatureStore("spectra.zarr").runs()]
        [(3, 'logmel')]
        """
        return read_runs(self.path)

    def failures(self) -> list[dict[str, Any]]:
        """Return the tracks that failed and were not built since: track_id, path, error, message, source, time.

        Examples
        --------
        >>> report = build("music", "spectra.zarr", model="logmel", layers=[0])
        >>> FeatureStore("spectra.zarr").failures()
        []
        """
        return failures_of(self.runs())

    def join(self, labels: Any, *, on: str = "track_id", missing: str = "error") -> Joined:
        """Find the labels of the tracks.

        Parameters
        ----------
        labels : path, DataFrame or mapping
            A CSV file with a header; a DataFrame; a mapping of track ids to a value each, or to a mapping of names
            to values; ``mirdata:NAME`` or ``mirdata:NAME:FOLDER`` (extra ``mirdata``): a data set, whose columns
            are what its tracks know, ``split`` included. An id is found there if it is the path of the audio,
            without suffix, below any of its folders, or its id there, with or without the prefix of `dataset`.
        on : str
            The column with the track ids.
        missing : str
            What to do about a track without a label: ``error``, or ``drop`` it.

        Returns
        -------
        Joined
            Track ids and columns in one order.

        Raises
        ------
        SettingError
            If a track has no label and may not be dropped, a track has two, or the column is not there.

        Examples
        --------
        >>> store = FeatureStore("features.zarr")
        >>> joined = store.join({"rock/song": "rock", "jazz/blue": "jazz"}, missing="drop")
        >>> joined.track_ids, joined.column("label").tolist()
        (['jazz/blue', 'rock/song'], ['jazz', 'rock'])
        >>> store.aggregated(layer=7, tracks=joined.track_ids).shape
        (2, 768)
        """
        from featurestore.analysis.labels import join

        return join(self.track_ids, labels, on=on, missing=missing)

    def probe(
        self,
        labels: Any,
        label: str = "label",
        *,
        group: str | None = None,
        no_groups: bool = False,
        layers: Sequence[int] | None = None,
        baseline: StoreReader | None = None,
        on: str = "track_id",
        missing: str = "drop",
    ) -> ProbeReport:
        """Tell which layer knows a label best: linear probes of each, cross-validated. Needs the extra `labels`.

        Parameters
        ----------
        labels : path, DataFrame or mapping
            As in `join`.
        label : str
            The column to predict: classes, or more than 20 different numbers.
        group : str, optional
            A column such as the artist: tracks of one group are never in the training and in the test at once.
            Without it a probe tends to recognise artists and albums, and its scores are far too high.
        no_groups : bool
            To go without, which must be said.
        layers : sequence of int, optional
            By default all.
        baseline : StoreReader, optional
            Another store (of `logmel`, of another model) with the same tracks, whose layers are probed as well.
        on, missing : str
            As in `join`.

        Raises
        ------
        SettingError
            If neither a group is given nor `no_groups`, a column does not exist, or there are too few tracks.

        Examples
        --------
        >>> with StoreWriter("clips.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=4)) as writer:
        ...     for number in range(40):
        ...         features = np.random.default_rng(number).normal(size=(2, 4))
        ...         features[1] += number % 2
        ...         writer.put(f"clip{number}", {"aggregated": features})
        >>> labels = {f"clip{x}": {"genre": "rock" if x % 2 else "jazz", "artist": x // 4} for x in range(40)}
        >>> FeatureStore("clips.zarr").probe(labels, "genre", group="artist").best
        '1'
        """
        from featurestore.analysis.probe import probe_layers

        if (group is None) != no_groups:
            raise SettingError("probe needs `group`, the column of the artist or album, or `no_groups=True`")
        if not isinstance(baseline, StoreReader | None):
            raise SettingError(
                f"`baseline` is an open store of the same tracks, not {baseline!r:.200}: build it (by "
                "`model='logmel'`, for example), and give FeatureStore of it"
            )
        joined = self.join(labels, on=on, missing=missing)
        values, groups = joined.column(label), None if group is None else joined.column(group)
        sources: list[tuple[str, StoreReader]] = [("", self)]
        if baseline is not None:
            sources.append((f"{baseline.path.name}:", baseline))
        features = {
            f"{prefix}{layer}": store.aggregated(layer=layer, tracks=joined.track_ids).to_numpy
            for prefix, store in sources
            for layer in (layers if layers is not None and store is self else store.spec.layers)
        }
        return probe_layers(features, values, label=label, groups=groups)

    def report(
        self,
        path: str | Path,
        *,
        labels: Any = None,
        label: str = "label",
        on: str = "track_id",
        layer: int | None = None,
        tracks: Sequence[str] | None = None,
    ) -> dict[str, int]:
        """Write a page of HTML about the store, which loads nothing and can be sent to anybody. Needs jinja2.

        Parameters
        ----------
        path : path
            The file; what is there is replaced.
        labels, on
            As in `join`; the map of tracks is coloured by them. Tracks may lack one.
        label : str
            The column of the labels.
        layer : int, optional
            Layer that the map begins with, and of the tracks over time; by default the middle one.
        tracks : sequence of str, optional
            Tracks that are shown over time; by default the three longest.

        Returns
        -------
        dict of str to int
            How many tracks are suspicious, for each reason.

        Raises
        ------
        SettingError, TrackNotFoundError
            If the store has no tracks, or no such track, layer or label.

        Examples
        --------
        >>> FeatureStore("features.zarr").report("report.html")["Duplicates"]
        0
        """
        from featurestore.analysis.report import write_report

        found = None
        if labels is not None:
            joined = self.join(labels, on=on, missing="drop")
            found = dict(zip(joined.track_ids, joined.column(label).tolist(), strict=True))
        return write_report(self, Path(path), labels=found, label=label, layer=layer, tracks=tracks)

    def to_torch_dataset(
        self,
        level: str = "aggregated",
        layer: int | Sequence[int] | None = None,
        labels: Any = None,
        *,
        label: str = "label",
        on: str = "track_id",
        missing: str = "error",
    ) -> TrackDataset:
        """Make a map-style dataset for a DataLoader of torch: an item is a track.

        Parameters
        ----------
        level : str
            ``aggregated``, ``segments`` or ``raw``; of the last two, tracks have different lengths:
            `featurestore.analysis.collate_ragged` makes batches of them.
        layer : int or sequence of int, optional
            As in `aggregated`.
        labels : path, DataFrame or mapping, optional
            As in `join`.
        label : str
            The column of the labels.
        on, missing : str
            As in `join`.

        Returns
        -------
        TrackDataset
            With `split` for parts by tracks or groups.

        Examples
        --------
        >>> from torch.utils.data import DataLoader
        >>> from featurestore.analysis import collate_ragged
        >>> dataset = FeatureStore("features.zarr").to_torch_dataset("segments", layer=7)
        >>> batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate_ragged)))
        >>> batch["features"].shape, batch["lengths"].tolist()
        (torch.Size([3, 4, 768]), [4, 4, 4])
        """
        from featurestore.analysis.torch_dataset import TrackDataset

        if labels is None:
            return TrackDataset(self, level, layer, self.track_ids, None)
        joined = self.join(labels, on=on, missing=missing)
        return TrackDataset(self, level, layer, joined.track_ids, joined.column(label))
