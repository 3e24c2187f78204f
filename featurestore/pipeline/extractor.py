"""FeatureExtractor: from files to features, one track as arrays or a collection into a store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio import AudioFile, decode
from featurestore.encode.batching import EncodedBatch
from featurestore.encode.window_encoder import WindowEncoder
from featurestore.errors import ExtractionError, FeatureStoreError, SettingError, TrackLockedError
from featurestore.keywords import one_of, required
from featurestore.pipeline.building import build, open_existing
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import LocalExecutor, check_settings, run_job
from featurestore.pipeline.plan import Job
from featurestore.pipeline.report import TrackDone
from featurestore.pipeline.tally import Tally
from featurestore.pooling import pool_segments
from featurestore.spec import KINDS
from featurestore.store import StoreReader, StoreWriter
from featurestore.store.paths import resolve_store_path

Features = dict[str, npt.NDArray[np.float32]]
"""Arrays of a track by kind: those of "raw", "segments" and "aggregated" that were asked for."""


class FeatureExtractor(WindowEncoder):
    """Extracts hidden states of a model from files of audio.

    It is made as a `featurestore.encode.WindowEncoder` is, with the same parameters, errors and attributes.

    Notes
    -----
    An extractor is for one thread at a time.

    Examples
    --------
    >>> extractor = FeatureExtractor(model="mini", layers=[4])
    >>> features = extractor.extract_track_features("music/rock/song.wav")
    >>> {kind: array.shape for kind, array in features.items()}
    {'raw': (4, 1, 374, 192), 'segments': (4, 1, 192), 'aggregated': (1, 192)}
    """

    def extract_track_features(
        self,
        audio_path: str | os.PathLike[str],
        store: str | os.PathLike[str] | StoreWriter | None = None,
        track_id: str | None = None,
        dataset: str | None = None,
        skip_existing: bool = True,
        include_raw: bool = True,
        include_segments: bool = True,
        *,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> Features:
        """Compute the features of one file of audio.

        Parameters
        ----------
        audio_path : path
            Any format that `featurestore.load_audio` reads.
        store : path or StoreWriter, optional
            Build a store of this one track there, as `featurestore.build` does, without packing at the end, and
            return what the store has.
        track_id : str, optional
            By default the name of the file without its suffix.
        dataset : str, optional
            Put before the track id: ``dataset/track_id``.
        skip_existing : bool
            If the store has these kinds of features of this audio, read them instead of computing them.
        include_raw, include_segments : bool
            Which kinds are wanted, besides "aggregated".
        output_dir : path, optional
            An earlier name of `store`.

        Returns
        -------
        dict of str to ndarray of float32
            "raw" (segments, layers, frames, dim), "segments" (segments, layers, dim): mean over frames, and
            "aggregated" (layers, dim): mean over segments.

        Raises
        ------
        AudioError
            If the file is no usable audio.
        ExtractionError
            If it does not fit into memory, or features are not finite.
        StoreError
            If the store has features of other settings, or cannot be written, or if another writer has the track.

        Examples
        --------
        >>> extractor = FeatureExtractor(model="mini", layers=[2, 4])
        >>> features = extractor.extract_track_features("music/rock/song.wav", include_raw=False)
        >>> features["segments"].shape, features["aggregated"].shape
        ((4, 2, 192), (2, 192))

        Into a store as well:

        >>> _ = extractor.extract_track_features("music/rock/song.wav", store="mini.zarr", dataset="rock")
        >>> FeatureStore("mini.zarr").track_ids
        ['rock/song']
        """
        path = Path(audio_path)
        store = one_of(store=store, output_dir=output_dir)
        track_id = path.stem if track_id is None else track_id
        track = AudioFile(track_id=f"{dataset}/{track_id}" if dataset else track_id, path=path)
        wanted = {"raw": include_raw, "segments": include_segments, "aggregated": True}
        kinds = tuple(kind for kind in KINDS if wanted[kind])
        if store is not None:
            writer = store if isinstance(store, StoreWriter) else None
            at = resolve_store_path(store.path if isinstance(store, StoreWriter) else store)
            there = open_existing(at)
            job = Job(store=at, kinds=kinds, force=not skip_existing, dataset=dataset, packs=False)
            if there is not None:
                job = replace(job, dtype=there.spec.dtype, codec=there.spec.codec)
            self._build(job, track, there, writer)
            return _read(StoreReader(at), track.track_id, kinds)
        try:
            return _gather(self.encode(decode(path, self.model.sample_rate), raw=include_raw), kinds)
        except ExtractionError as error:  # an encoder knows windows, not files
            raise ExtractionError(f"{path}: {error}") from error

    def _build(self, job: Job, track: AudioFile, there: StoreReader | None, writer: StoreWriter | None) -> None:
        """Build a store of one track, and raise what is in the way."""
        found: list[TrackDone] = []
        executor, tally = LocalExecutor(job, self), Tally(on_done=found.append)
        run_job(job, [track], there, executor, Interrupts(), tally, writer=writer)
        for done in found:
            if done.error is not None:
                raise done.error
            if done.outcome == "skipped":
                raise TrackLockedError(f"another writer is at work on track {track.track_id!r} of {job.store}")

    def extract_track_features_safe(
        self, audio_path: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> tuple[Features | None, FeatureStoreError | None]:
        """Do what `extract_track_features` does, but return an error of this library instead of raising it.

        Returns
        -------
        tuple of (features or None, error or None)

        Examples
        --------
        >>> extractor = FeatureExtractor(model="mini", layers=[4])
        >>> features, error = extractor.extract_track_features_safe("music/nothing.wav")
        >>> features is None, type(error).__name__
        (True, 'AudioNotFoundError')
        """
        try:
            return self.extract_track_features(audio_path, *arguments, **options), None
        except FeatureStoreError as error:
            return None, error

    def extract_dataset_features(
        self,
        audio_dir: str | os.PathLike[str],
        store: str | os.PathLike[str] | None = None,
        file_pattern: str | None = None,
        skip_existing: bool = True,
        num_workers: int = 1,
        include_raw: bool = True,
        include_segments: bool = True,
        dataset: str | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Extract a collection of audio into a store: `featurestore.build` with this extractor.

        Parameters
        ----------
        audio_dir : path
            Folder, file, glob, or list of files.
        store : path
            The store; made if it does not exist.
        file_pattern : str, optional
            Only files whose name matches this glob; by default every format.
        skip_existing : bool
            Leave alone what the store has.
        num_workers : int
            Threads that decode ahead.
        include_raw, include_segments : bool
            Which kinds are stored, besides "aggregated"; raw is never stored without segments.
        dataset : str, optional
            Prefix of the track ids.
        output_dir : path
            An earlier name of `store`.
        **options
            As for `featurestore.build`: dtype, codec, limit, fail_fast, dry_run, id_from, progress.

        Returns
        -------
        dict
            The report: total_files, processed, cached, skipped, failed, errors, elapsed_time and more.

        Examples
        --------
        >>> extractor = FeatureExtractor(model="mini", layers=[4])
        >>> report = extractor.extract_dataset_features("music", "mini.zarr", include_raw=False)
        >>> report["processed"], report["failed"]
        (3, 0)
        """
        level = "all" if include_raw else "segments" if include_segments else "aggregated"
        report = build(
            audio_dir,
            required(store=store, output_dir=output_dir),
            extractor=self,
            feature_level=level,
            workers=num_workers,
            force=not skip_existing,
            dataset=dataset,
            file_pattern=file_pattern,
            **options,
        )
        return report.to_dict()


def _gather(batches: Iterable[EncodedBatch], kinds: tuple[str, ...]) -> Features:
    """Keep all features of a track in memory."""
    raw: list[npt.NDArray[np.float32]] = []
    pooled: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        pooled.append(batch.segments)
        if batch.raw is not None and "raw" in kinds:
            raw.append(batch.raw)
    segments = np.concatenate(pooled)
    features = {"segments": segments, "aggregated": pool_segments(segments)}
    if raw:
        features["raw"] = _joined(raw, len(segments))
    return {kind: features[kind] for kind in kinds}


def _read(store: StoreReader, track_id: str, kinds: tuple[str, ...]) -> Features:
    features = {"aggregated": np.asarray(store.aggregated(tracks=[track_id]), np.float32)[0]}
    if "raw" in kinds:
        features["raw"] = np.asarray(store.raw(track_id), np.float32)
    if "segments" in kinds:
        features["segments"] = np.asarray(store.segments(track_id), np.float32)
    return {kind: features[kind] for kind in kinds}


def _joined(parts: list[npt.NDArray[np.float32]], length: int) -> npt.NDArray[np.float32]:
    """Concatenated; each part is given up once it is copied, so that memory does not double."""
    whole = np.empty((length, *parts[0].shape[1:]), np.float32)
    while parts:
        part = parts.pop()
        whole[length - len(part) : length] = part
        length -= len(part)
    return whole


def extractor_of(store: StoreReader, *, device: str, **settings: Any) -> FeatureExtractor:
    """The extractor whose features fit a store.

    Raises
    ------
    SettingError
        If no model made the store.
    SpecMismatchError
        If the model's features are others by now.
    """
    spec = store.spec
    if spec.model is None:
        raise SettingError(
            f"{store.path} holds features that no model of this library made: compute others yourself"
        )
    extractor = FeatureExtractor(
        model=spec.model,
        revision=spec.revision,
        device=device,
        segment_duration="auto" if spec.segment_duration is None else spec.segment_duration,
        overlap=spec.overlap,
        layers=spec.layers,
        precision=spec.precision,
        **settings,
    )
    check_settings(store.path, spec, extractor.spec(dtype=spec.dtype, codec=spec.codec))
    return extractor
