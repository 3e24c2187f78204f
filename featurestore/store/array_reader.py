"""Reading the arrays of tracks, wherever their bytes are."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, StoreError, TrackNotFoundError
from featurestore.spec import FeatureSpec
from featurestore.store.byte_source import REQUESTS, ByteFolder, ByteSource
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    ArrayMetadata,
    check_seal,
    check_track_metadata,
    decode_document,
    shard_name,
)
from featurestore.store.format.open_array import OpenArray
from featurestore.store.format.shards import ShardReader

ATTEMPTS = 50
"""A reader between two steps of a swap looks again, so many times at most."""

P = ParamSpec("P")
T = TypeVar("T")
Described = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape of an array of a track, and where its segments start, seconds."""


class ReplacedError(StoreError):
    """A track was replaced by one of another shape since a view told its own."""


def retried(read: Callable[P, T]) -> Callable[P, T]:
    """Read anew where another host removes the files that are read (NFS): they were replaced."""

    @wraps(read)
    def reading(*args: P.args, **options: P.kwargs) -> T:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return read(*args, **options)
        return read(*args, **options)

    return reading


class ArrayReader:
    """Reads the tracks of one store. Holds no file open."""

    def __init__(self, files: ByteSource, spec: FeatureSpec) -> None:
        self.files = files
        self.spec = spec

    def _document(self, folder: ByteFolder, name: str) -> dict[str, Any]:
        try:
            return decode_document(folder.read(METADATA, MAX_METADATA_BYTES))
        except ValueError as error:
            raise corrupt(name, str(error)) from None

    def _checked(self, document: dict[str, Any], kind: str, key: str, name: str) -> ArrayMetadata:
        try:
            metadata = ArrayMetadata.from_document(document)
            check_track_metadata(metadata, kind, key, self.spec)
            check_seal(document)
        except ValueError as error:
            raise corrupt(name, str(error)) from None
        return metadata

    def _at(self, key: str, *parts: str) -> ArrayMetadata | None:
        """Metadata of the `aggregated` in a folder, None if there is none."""
        name = "/".join(parts)
        try:
            with self.files.open(*parts) as folder:
                return self._checked(self._document(folder, name), "aggregated", key, name)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise corrupt(name, "not a folder, or a link") from None

    def current(self, key: str) -> ArrayMetadata | None:
        """Metadata of `aggregated` of the current revision, None if there is no such track.

        Raises
        ------
        CorruptTrackError
            If it is damaged.
        """
        return self._at(key, "aggregated", key)

    def _places(self, kind: str, key: str, revision: str | None) -> list[tuple[str, ...]]:  # noqa: ARG002
        """Folders in which an array may be."""
        return [(kind, key)]

    def open(self, kind: str, key: str, track_id: str) -> OpenArray:
        """Open one kind of the current revision of a track.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track, or not this kind of it.
        CorruptTrackError
            If its files are damaged.
        """
        lost = None
        for attempt in range(ATTEMPTS):
            revision = None
            if attempt or kind != "aggregated":  # which itself says what is current
                current = self.current(key)
                if current is None:
                    raise TrackNotFoundError(f"the store has no track {track_id!r}")
                if kind not in current.attributes["kinds"]:
                    raise TrackNotFoundError(
                        f"the store has no {kind} of {track_id!r}, only "
                        f"{', '.join(current.attributes['kinds'])}: build again with a higher feature level"
                    )
                revision = current.attributes["revision"]
            found = self._open_revision(kind, key, revision)
            if found is not None:
                return found
            if revision is not None and revision == lost:
                break  # whatever a writer does, the files of the current revision are somewhere
            lost = revision
        raise corrupt(f"{kind}/{key}", "the array is missing")

    def _open_revision(self, kind: str, key: str, revision: str | None) -> OpenArray | None:
        for parts in self._places(kind, key, revision):
            name = "/".join(parts)
            try:
                folder = self.files.open(*parts)
            except FileNotFoundError:
                continue
            except NotADirectoryError:
                raise corrupt(name, "not a folder, or a link") from None
            try:
                document = self._document(folder, name)
                metadata = self._checked(document, kind, key, name)
                if revision is not None and metadata.attributes["revision"] != revision:
                    continue
                data = folder.open(shard_name(len(metadata.shape)))
            except FileNotFoundError:
                continue  # being discarded, or damaged: the caller looks again
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise corrupt(name, "the data is a link") from None
            finally:
                folder.close()
            try:
                return OpenArray(metadata, ShardReader(data, metadata, name))
            except FileNotFoundError:  # removed by another host since it was opened
                data.close()
            except BaseException:
                data.close()
                raise
        return None

    def read_rows(self, track_ids: Sequence[str], layers: Sequence[int]) -> npt.NDArray[Any]:
        """Layers (by position) of `aggregated` of each track, [track, layer, feature]; raises as `open`.

        Several tracks at once: they may be in a bucket.
        """
        out = np.empty((len(track_ids), len(layers), self.spec.dim), self.spec.dtype)

        def fill(block: npt.NDArray[Any], track_id: str) -> None:
            block[...] = self._read_aggregated(encode_key(track_id), track_id, layers)

        with ThreadPoolExecutor(REQUESTS) as pool:
            for _ in pool.map(fill, out, track_ids):
                pass
        return out

    def _read_aggregated(self, key: str, track_id: str, layers: Sequence[int]) -> npt.NDArray[Any]:
        with self.open("aggregated", key, track_id) as array:
            return array.read(layers)

    def describe(self, kind: str, track_id: str) -> Described:
        """Shape and starts of one kind of a track; raises as `open`."""
        with self.open(kind, encode_key(track_id), track_id) as array:
            return array.metadata.shape, array.starts

    @retried
    def read_segments(
        self,
        kind: str,
        track_id: str,
        layers: Sequence[int],
        *,
        rows: npt.NDArray[np.int64] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[npt.NDArray[Any], Described]:
        """Layers (by position) of some or all segments of a track, as `Source.read_segments` says."""
        with self.open(kind, encode_key(track_id), track_id) as array:
            described = array.metadata.shape, array.starts
            if shape not in (None, array.metadata.shape):
                raise ReplacedError(
                    f"{kind} of track {track_id!r:.200} was replaced by another of the shape "
                    f"{array.metadata.shape}: ask the store for a new view"
                )
            if kind == "raw":
                return array.read(layers, None if rows is None else rows.tolist()), described
            block = array.read(layers)
            return (block if rows is None else block[rows]), described


def corrupt(name: str, what: str) -> CorruptTrackError:
    return CorruptTrackError(f"{name}: {what}; extract the track again, or run verify --repair")
