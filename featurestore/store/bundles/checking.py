"""What is wrong with a bundle as a whole; what is wrong with a track in it, reading the track tells."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.layout import KINDS, shards_of
from featurestore.store.bundles.sealed_array import SealedChunks, chunks_checksum
from featurestore.store.byte_source import ByteFolder
from featurestore.store.format.metadata import MAX_METADATA_BYTES, METADATA, decode_document
from featurestore.store.format.open_array import OpenArray
from featurestore.store.paths import BUNDLES

_BLOCK_BYTES = 2**24  # that are read at once


def problems_of(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What is wrong with what only other readers read: "structure" or "bundle", and a message."""
    for name in damaged_documents(bundle):
        what = f"{BUNDLES}/{bundle.name}/{name}: {METADATA} is damaged or missing"
        yield "structure", f"{what}: verify --repair writes it"
    for name in damaged_shards(bundle):
        what = f"{name}: its index is damaged or missing, so that only this library reads it"
        yield "bundle", f"{what}: unseal and seal again (fs-extract pack)"


def damaged_documents(bundle: Bundle) -> list[str]:
    """Arrays of a bundle whose own metadata, which only other readers read, is not as it should be."""
    damaged = []
    with bundle.files.open(BUNDLES, bundle.name) as folder:
        for name, expected in bundle.sizes.arrays().items():
            try:
                with folder.folder(name) as inner:
                    found = decode_document(inner.read(METADATA, MAX_METADATA_BYTES))
            except (OSError, ValueError):
                found = {}
            if found != expected:
                damaged.append(name)
    return damaged


def damaged_shards(bundle: Bundle) -> Iterator[str]:
    """Say which files of features have a damaged index, which only other readers read, or which one is missing."""
    for kind in KINDS:
        with bundle.files.open(BUNDLES, bundle.name, kind) as folder:
            for shard in shards_of(bundle.sizes.features(kind)):
                index = shard.index()
                found = _end(folder, shard.name, len(index))
                if found != index:
                    yield f"{BUNDLES}/{bundle.name}/{kind}/{shard.name}"
                if found is None:
                    break  # of a bundle that lies, there may be any number


def _end(folder: ByteFolder, name: str, size: int) -> bytes | None:
    """The last bytes of a file; None if it cannot be opened."""
    try:
        file = folder.open(name)
    except OSError:
        return None
    try:
        return file.read(size, max(0, file.size - size))
    finally:
        file.close()


class SoundArrays:
    """Arrays of tracks in bundles that are what was written, see `sound_tracks`."""

    def __init__(self) -> None:
        self._sound: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}

    def __contains__(self, array: OpenArray) -> bool:
        own = array.shard
        if not isinstance(own, SealedChunks):
            return False
        sound = self._sound.get((own.bundle, own.kind))
        return sound is not None and bool(sound[own.row])

    def look_at(self, bundle: Bundle) -> None:
        """Read all features of a bundle."""
        for kind in KINDS:
            self._sound[bundle.name, kind] = sound_tracks(bundle, kind)


def sound_tracks(bundle: Bundle, kind: str) -> npt.NDArray[np.bool_]:
    """Which tracks of a bundle have what was written of a kind, all finite, by a look at many of them at once.

    A chunk has rows of several tracks: one by one, each would be read many times. What is not among these is to be
    looked at by itself, which says what is wrong.
    """
    tracks, spec = bundle.sizes.tracks, bundle.sizes.spec
    sound = np.zeros(tracks, np.bool_)
    splits = bundle.splits if kind == "segments" else np.arange(tracks + 1)
    row = len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize
    for first, end in _blocks(splits, _BLOCK_BYTES // row):
        with contextlib.suppress(CorruptTrackError, OSError):
            _look_at(bundle, kind, splits[first : end + 1], sound[first:end], first)
    return sound


def _blocks(splits: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Numbers of tracks, from the first up to and without the last, that have at most so many rows together."""
    first, tracks = 0, len(splits) - 1
    while first < tracks:
        end = int(np.searchsorted(splits, splits[first] + most, side="right")) - 1
        if splits[end] > splits[first]:
            yield first, end
        first = max(end, first + 1)


def _look_at(
    bundle: Bundle, kind: str, splits: npt.NDArray[np.int64], sound: npt.NDArray[np.bool_], first: int
) -> None:
    """Say which of the tracks that lie between these rows, from the `first` of the bundle, are sound."""
    layers = range(len(bundle.sizes.spec.layers))
    with bundle.reading(kind) as reader:
        rows = reader.read(np.arange(splits[0], splits[-1]), layers)
    is_finite = np.isfinite(rows).all(axis=(1, 2))
    for track, (begin, end) in enumerate(itertools.pairwise((splits - splits[0]).tolist())):
        if end > begin and is_finite[begin:end].all():
            with contextlib.suppress(CorruptTrackError):
                known = bundle.metadata(kind, first + track).attributes["checksums"].get("chunks")
                sound[track] = known == chunks_checksum(rows[begin:end, layer] for layer in layers)
