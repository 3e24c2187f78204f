"""FeatureStore: reading a store, asking it, and giving its features to other tools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.analysis.store import AnalysisStore
from featurestore.errors import SettingError
from featurestore.sharing.store import SharingStore

if TYPE_CHECKING:
    from featurestore.analysis.similarity import Match
    from featurestore.pipeline.extractor import FeatureExtractor


class FeatureStore(AnalysisStore, SharingStore):
    """A feature store. It is cheap to open, can be pickled, is safe after a fork, and holds no file open.

    Parameters
    ----------
    path : str or Path
        Folder of the store, or a file of HDF5 that was exported from one; or the address of a store in a bucket or
        on a web server (``s3://``, ``gs://``, ``az://``, ``https://``), which needs the extra ``s3``. Such a store
        is read as it was when it was opened.
    follow_links : bool
        Whether its files may be links, to anywhere: of a snapshot in the hub's cache, of DVC or git-annex. Such a
        store can be read only.
    storage_options : mapping, optional
        For a bucket, what the environment does not say, as `obstore.store.from_url` takes it: ``endpoint``,
        ``region``, ``client_options``, ``retry_config``, ... They are never shown, but are pickled with the store:
        leave what is secret to the environment.

    Raises
    ------
    NotAStoreError
        If there is none.
    StoreVersionError
        If it was written by a newer release.

    Examples
    --------
    >>> store = FeatureStore("features.zarr")
    >>> store.track_ids
    ['folk/air', 'jazz/blue', 'rock/song']
    >>> view = store.aggregated(layer=7)
    >>> view.shape, view.dims
    ((3, 768), ('track', 'feature'))
    >>> view.to_numpy().dtype
    dtype('float32')
    """

    @cached_property
    def _similarity(self) -> Any:
        from featurestore.analysis.similarity import Similarity

        return Similarity(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_similarity"}

    def similar(
        self,
        query: str | tuple[str, float] | None = None,
        *,
        audio: str | Path | None = None,
        layer: int | None = None,
        k: int = 10,
        level: str | None = None,
        metric: str = "centred-cosine",
    ) -> list[Match]:
        """Find the tracks, or moments, that are most like one.

        The comparison is exact: with every row of the store, a block at a time.

        Parameters
        ----------
        query : str or tuple of str and float
            A track id, or a track id and a time in it in seconds: the segment there.
        audio : path, optional
            A file of audio instead: its features are extracted first, as those of the store were.
        layer : int, optional
            The layer; needed where the store has several.
        k : int
            How many are wanted.
        level : str, optional
            What is compared: ``aggregated`` (tracks), or ``segments``, which is the default for a moment. Segments
            that overlap with the query are left out.
        metric : str
            ``centred-cosine``: cosine without what all rows have in common; ``cosine``; or ``whitened``: every
            direction counts alike.

        Returns
        -------
        list of Match
            Nearest first.

        Raises
        ------
        SettingError
            If the layer, the level or the metric does not exist.
        TrackNotFoundError
            If the store has no such track.

        Examples
        --------
        >>> [match.track_id for match in FeatureStore("features.zarr").similar("rock/song", layer=7, k=1)]
        ['jazz/blue']
        """
        if (query is None) == (audio is None):
            raise SettingError("similar takes a track id, or a track id and seconds, or audio=: one of them")
        chosen = self._one_layer(layer)
        level = level or ("segments" if isinstance(query, tuple) else "aggregated")
        if audio is None:
            return self._similarity.of(query, chosen, k, level, metric)  # type: ignore[no-any-return]
        features = self.extractor().extract_track_features(audio, include_raw=False, include_segments=False)
        row = features["aggregated"][self.spec.layers.index(chosen)]
        return self._similarity.of_vector(row, chosen, k, level, metric)  # type: ignore[no-any-return]

    def _one_layer(self, layer: int | None) -> int:
        if layer is None and len(self.spec.layers) > 1:
            raise SettingError(f"`layer` is needed, one of {', '.join(map(str, self.spec.layers))}")
        return self.spec.layers[0] if layer is None else layer

    def extractor(self, *, device: str = "cpu", **settings: Any) -> FeatureExtractor:
        """Make the extractor whose features fit the store: same model, layers, windows. Needs the extra `extract`.

        Parameters
        ----------
        device : str
            Where it calculates.
        **settings
            Other settings of `FeatureExtractor` that do not change features, as `batch_size`.

        Raises
        ------
        SettingError
            If no model made the store.
        SpecMismatchError
            If the model is another one by now.

        Examples
        --------
        >>> _ = build("music", "mini.zarr", model="mini", layers=[4], feature_level="aggregated")
        >>> extractor = FeatureStore("mini.zarr").extractor()
        >>> extractor.extract_track_features("music/rock/song.wav")["aggregated"].shape
        (1, 192)
        """
        from featurestore.pipeline.extractor import extractor_of

        return extractor_of(self, device=device, **settings)

    def to_hf_dataset(
        self,
        level: str = "aggregated",
        layer: int | Sequence[int] | None = None,
        labels: Any = None,
        *,
        label: str = "label",
        on: str = "track_id",
        missing: str = "error",
    ) -> Any:
        """Read a data set of Hugging Face's `datasets` into memory: a row for each track, or for each segment.

        Its columns are ``track_id``, ``start`` of segments (seconds), one for each layer (``layer7``), and
        ``label``. What does not fit into memory: `export` to Parquet, and ``datasets.load_dataset("parquet")``.

        Parameters
        ----------
        level, layer, labels, label, on, missing
            As in `to_torch_dataset`, but for raw features.

        Raises
        ------
        MissingDependencyError
            If datasets is not installed: the extra ``datasets``.

        Examples
        --------
        >>> dataset = FeatureStore("features.zarr").to_hf_dataset("segments", layer=7)
        >>> dataset.with_format("numpy")[0]["layer7"].shape
        (768,)
        """
        from featurestore.sharing.hugging_face import hugging_face_dataset

        layers = self.aggregated(layer, tracks=[]).layers
        if labels is None:
            return hugging_face_dataset(self, self.track_ids, level, layers, None)
        joined = self.join(labels, on=on, missing=missing)
        values = dict(zip(joined.track_ids, joined.column(label), strict=True))
        return hugging_face_dataset(self, joined.track_ids, level, layers, values)
