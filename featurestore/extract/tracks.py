"""One track from its file to arrays, and into a store if there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, SpecMismatchError
from featurestore.extract.batching import EncodedBatch
from featurestore.extract.pooling import pool_segments

if TYPE_CHECKING:
    from featurestore.audio import AudioFile
    from featurestore.extract.extractor import FeatureExtractor
    from featurestore.store import FeatureStore, StoreWriter
    from featurestore.store.track_writer import TrackWriter

Features = dict[str, npt.NDArray[np.float32]]
"""Arrays of a track by kind: those of "raw", "segments" and "aggregated" that were asked for."""


def gather(batches: Iterable[EncodedBatch], kinds: tuple[str, ...]) -> Features:
    """All features of a track in memory.

    Parameters
    ----------
    batches : iterable of EncodedBatch
        With raw if `kinds` has it; at least one.
    kinds : tuple of str
        What is wanted.

    Returns
    -------
    dict of str to ndarray of float32
        "raw" (segments, layers, frames, dim), "segments" (segments, layers, dim), "aggregated" (layers, dim).
    """
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


def publish(
    extractor: FeatureExtractor,
    writer: StoreWriter,
    track: AudioFile,
    kinds: tuple[str, ...],
    *,
    skip_existing: bool,
) -> Features:
    """Features of a track, computed and published, or read if the store has them of the same audio.

    Raises
    ------
    SpecMismatchError
        If the writer is for features of other settings than the extractor's.
    """
    from featurestore.pipeline.decoding import decode_ahead
    from featurestore.pipeline.plan import Wanted
    from featurestore.store import FeatureStore

    spec = extractor.spec(dtype=writer.spec.dtype, codec=writer.spec.codec)
    if differences := writer.spec.differences(spec):
        raise SpecMismatchError(
            f"the store {writer.path} holds features of other settings ({', '.join(differences)})",
            differences=differences,
        )
    wanted = Wanted(spec=spec, kinds=kinds, force=not skip_existing)
    try:
        existing = writer.existing(track.track_id)
    except CorruptTrackError:
        existing = None  # replaced by what is computed now
    if existing is not None and wanted.is_there(existing, track):
        return _read(FeatureStore(writer.path), track.track_id, kinds)
    with (
        decode_ahead([track], sample_rate=extractor.model.sample_rate, workers=1) as audios,
        writer.track(
            track.track_id,
            kinds=kinds,
            overwrite=True,
            attributes={"device": str(extractor.device)},
        ) as writing,
    ):
        audio = next(audios)
        features = gather(_appending(extractor.encode(audio.blocks(), raw="raw" in kinds), writing), kinds)
        writing.attributes.update(audio.attributes)
    return features


def _appending(batches: Iterable[EncodedBatch], writing: TrackWriter) -> Iterator[EncodedBatch]:
    for batch in batches:
        writing.append(raw=batch.raw, segments=batch.segments, starts=batch.starts)
        yield batch


def _read(store: FeatureStore, track_id: str, kinds: tuple[str, ...]) -> Features:
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
