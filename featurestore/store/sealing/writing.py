"""Writing a bundle of tracks that are in folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, TrackNotFoundError
from featurestore.spec import FeatureSpec
from featurestore.store import filesystem
from featurestore.store.bundles.bundle import INDEX, Bundle, Recent, index_checksum
from featurestore.store.bundles.checking import sound_tracks
from featurestore.store.bundles.layout import KINDS, MAX_ATTRIBUTE_BYTES, NAME, Sizes
from featurestore.store.bundles.rows import RowWriter
from featurestore.store.bundles.sealed_array import open_sealed
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import METADATA, dataset_documents, encode_document
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.small_chunks import encode_texts, with_crc
from featurestore.store.paths import BUNDLES, StorePaths
from featurestore.store.track_reader import TrackReader

_log = logging.getLogger("featurestore")


class ChangedError(Exception):
    """A track is another revision than when it was looked at, or gone."""

    def __init__(self, track_id: str) -> None:
        super().__init__(track_id)
        self.track_id = track_id


@dataclass(frozen=True)
class Found:
    """A track in a folder that can be sealed.

    Parameters
    ----------
    track_id : str
        The track.
    revision : str
        Of it.
    record : str
        What a bundle keeps of its metadata.
    starts : ndarray of float64
        Where its segments start, seconds; NaN where that is not known.
    nbytes : int
        Of its features in the bundle.
    """

    track_id: str
    revision: str
    record: str
    starts: npt.NDArray[np.float64]
    nbytes: int

    @property
    def segments(self) -> int:
        """How many segments are stored."""
        return len(self.starts)


def look_at(reader: TrackReader, track_id: str) -> Found | None:
    """Look at a track in a folder; None if it is to stay there: damaged, removed, or made by others."""
    key, spec = encode_key(track_id), reader.spec
    try:
        with reader.open("aggregated", key, track_id) as array:
            attributes, revision = dict(array.metadata.attributes), array.revision
            _check(array, "aggregated", key)
        segments, sums = 0, None
        if "segments" in attributes["kinds"]:
            with reader.open("segments", key, track_id) as array:
                _check(array, "segments", key)
                segments, own = array.metadata.shape[0], dict(array.metadata.attributes)
            sums = own.pop("checksums")
            if own != {name: value for name, value in attributes.items() if name != "checksums"}:
                return None
    except (CorruptTrackError, TrackNotFoundError) as error:
        _log.warning("%s: left in its folder", error)
        return None
    starts = np.full(segments, np.nan)
    if segments and attributes["starts"]:
        starts[:] = attributes.pop("starts")
    record: dict[str, Any] = {"attributes": attributes}
    if sums is not None:
        record["segments_checksums"] = sums
    content = json.dumps(record)
    if not NAME.fullmatch(revision) or len(content) > MAX_ATTRIBUTE_BYTES:
        return None
    row = len(spec.layers) * spec.dim * np.dtype(spec.dtype).itemsize
    return Found(track_id, revision, content, starts, (segments + 1) * row)


def _check(array: OpenArray, kind: str, key: str) -> None:
    """Raise CorruptTrackError unless an array has the chunks of its track."""
    if array.metadata.attributes["checksums"].get("chunks") != array.shard.checksums():
        raise CorruptTrackError(f"{kind}/{key}: the chunks are not those that were written")


def write_bundle(reader: TrackReader, tracks: Sequence[Found], folder: Path) -> None:
    """Write a bundle of tracks into a new folder.

    Raises
    ------
    ChangedError
        If one is not what it was.
    """
    spec = reader.spec
    sizes = Sizes.to_write(len(tracks), sum(track.segments for track in tracks), spec)
    filesystem.make_dir(folder)
    arrays = sizes.arrays()
    for name in arrays:
        filesystem.make_dir(folder / name)
    _write_features(reader, tracks, folder, sizes)
    counts = [track.segments for track in tracks]
    splits = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    revisions = bytes.fromhex("".join(track.revision for track in tracks))
    ids = encode_texts([track.track_id for track in tracks], len(tracks))
    index = [with_crc(splits.tobytes()), ids, with_crc(revisions)]
    for (name, file), content in zip(INDEX, index, strict=True):
        filesystem.write_file(folder / name / file, content)
    if sizes.rows:
        starts = np.concatenate([track.starts for track in tracks]).astype("<f8")
        filesystem.write_file(folder / "start" / "c.0", with_crc(starts.tobytes()))
    rows = sizes.attribute_rows
    for number, first in enumerate(range(0, len(tracks), rows)):
        records = [track.record for track in tracks[first : first + rows]]
        filesystem.write_file(folder / "attributes" / f"c.{number}", encode_texts(records, rows))
    own = {"fingerprint": spec.fingerprint, "index_crc32c": index_checksum(index)}
    for name, document in dataset_documents(own, arrays).items():
        filesystem.write_file(folder / name / METADATA, encode_document(document))


def check_bundle(files: StorePaths, name: str, spec: FeatureSpec) -> None:
    """Read a bundle that was written back from staging (`files`), before anything goes that it is to replace.

    Raises
    ------
    CorruptTrackError
        If it has not, bit for bit, what the folders of its tracks have.
    """
    bundle = Bundle.open(files, name, spec, Recent())
    for kind in KINDS:
        for row in np.flatnonzero(~sound_tracks(bundle, kind)).tolist():
            if kind == "aggregated" or bundle.segments(row):
                with open_sealed(bundle, kind, row) as array:
                    _check(array, f"{BUNDLES}/{kind}", bundle.keys[row])


def _write_features(reader: TrackReader, tracks: Iterable[Found], folder: Path, sizes: Sizes) -> None:
    layers = range(len(reader.spec.layers))
    with (
        closing(RowWriter(folder / "segments", sizes.features("segments"))) as segments,
        closing(RowWriter(folder / "aggregated", sizes.features("aggregated"))) as aggregated,
    ):
        for track in tracks:
            key = encode_key(track.track_id)
            try:
                with reader.open("aggregated", key, track.track_id) as array:
                    _check_revision(array, track)
                    aggregated.append(array.read(layers)[None])
                if track.segments:
                    with reader.open("segments", key, track.track_id) as array:
                        _check_revision(array, track)
                        segments.append(array.read(layers))
            except (CorruptTrackError, TrackNotFoundError):
                raise ChangedError(track.track_id) from None


def _check_revision(array: OpenArray, track: Found) -> None:
    if array.revision != track.revision:
        raise ChangedError(track.track_id)


def spec_is_sealable(spec: FeatureSpec) -> bool:
    """Whether features of a spec can be in bundles: not if they are compressed."""
    return spec.codec == "none"
