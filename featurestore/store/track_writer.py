"""TrackWriter: takes the segments of one track in batches and stages its arrays."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ExtractionError, SettingError, StoreError
from featurestore.pooling import SegmentPool, pool_frames
from featurestore.spec import FeatureSpec
from featurestore.store import filesystem
from featurestore.store.commit.record import TransactionRecord
from featurestore.store.commit.staging import owning
from featurestore.store.format.compression import bitround, compressor_of
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    encode_document,
    seal,
    shard_name,
    track_metadata,
)
from featurestore.store.format.shards import ShardWriter
from featurestore.store.os_errors import translate_os_errors

# Pooled segments of a track beyond this many bytes wait in a file instead of in memory.
SPOOL_BYTES = 64 * 2**20


class TrackWriter:
    """Takes the segments of one track in batches. Made by `StoreWriter.track`.

    Attributes
    ----------
    attributes : dict
        JSON values that are stored with each array; may be filled until the block ends. Names of the store's own
        attributes are refused.
    """

    def __init__(
        self,
        track_id: str,
        folder: Path,
        spec: FeatureSpec,
        kinds: tuple[str, ...],
        attributes: dict[str, Any],
        *,
        store: Path,
    ) -> None:
        self.attributes = attributes
        self._store = store
        self._id = track_id
        self._folder = folder
        self._spec = spec
        self._kinds = kinds
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._frames = 0
        self._segments = 0
        self._streamed = 0  # states of a segment that is not appended yet
        self._starts: list[float] = []
        self._pool = SegmentPool(len(spec.layers), spec.dim)
        self._aggregated: npt.NDArray[Any] | None = None
        self._rows = RowSpool(folder / "segments.rows", SPOOL_BYTES) if "segments" in kinds else None
        self._raw: ShardWriter | None = None
        self._whole = True  # no batch is in it by half

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._raw is not None:
            self._raw.close()
        if self._rows is not None:
            self._rows.close()

    def append_state(self, frames: npt.ArrayLike) -> None:
        """Append the next layer of the next segment to raw, shape (frames, dim).

        After its last layer, the segment is appended with `append` without raw.

        Raises
        ------
        SettingError
            If the shape does not fit, or raw is not stored.
        ExtractionError
            If a value is not finite, or too large for the stored type.
        """
        self._check_whole()
        state = self._numbers(frames, "raw")
        layers, dim = self._pool.shape
        if "raw" not in self._kinds or self._streamed == layers:
            raise SettingError(f"track {self._id!r} does not take another state of this segment")
        if state.ndim != 2 or state.shape[1] != dim or self._frames not in (0, len(state)) or not len(state):
            raise SettingError(
                f"a state of {self._id!r} is [{self._frames or 'frames'}, {dim}], not {state.shape}"
            )
        self._whole = False
        with translate_os_errors(self._store), owning(self._folder):
            self._append_raw(state[None, None])
        self._streamed += 1
        self._whole = True

    def append(
        self,
        *,
        raw: npt.ArrayLike | None = None,
        segments: npt.ArrayLike | None = None,
        starts: Sequence[float] | None = None,
    ) -> None:
        """Append segments.

        Parameters
        ----------
        raw : array_like, shape (segments, layers, frames, dim), optional
            Required if raw is stored, unless `append_state` has got it; the same number of frames in every call.
        segments : array_like, shape (segments, layers, dim), optional
            Their mean over frames; derived from `raw` if not given.
        starts : sequence of float, optional
            Where the segments start in the track, seconds.

        Raises
        ------
        SettingError
            If a shape does not fit.
        ExtractionError
            If a value is not finite, or too large for the stored type.
        """
        self._check_whole()
        layers, dim = self._pool.shape
        block = None if raw is None else self._numbers(raw, "raw")
        if block is not None and (
            block.ndim != 4
            or block.shape[1::2] != (layers, dim)
            or block.shape[2] == 0
            or self._frames not in (0, block.shape[2])
        ):
            frames = self._frames or "frames"
            raise SettingError(f"raw of {self._id!r} must be [n, {layers}, {frames}, {dim}], not {block.shape}")
        if segments is not None:
            pooled = self._numbers(segments, "segments")
        elif block is not None:
            pooled = pool_frames(block)
        else:
            raise SettingError(f"append of {self._id!r} needs raw or segments")
        if pooled.ndim != 3 or pooled.shape[1:] != (layers, dim) or len(pooled) == 0:
            raise SettingError(f"segments of {self._id!r} must be [n, {layers}, {dim}], not {pooled.shape}")
        if block is not None and len(block) != len(pooled):
            raise SettingError(f"raw and segments of {self._id!r} differ: {len(block)} and {len(pooled)}")
        if self._streamed and (block is not None or len(pooled) != 1 or self._streamed != layers):
            raise SettingError(f"track {self._id!r} has {self._streamed} of {layers} states of one segment")
        if "raw" in self._kinds and block is None and not self._streamed:
            raise SettingError(f"append of {self._id!r} needs raw, which this track stores")
        seconds = [] if starts is None else [float(start) for start in starts]
        if not all(map(math.isfinite, seconds)) or len(seconds) not in (0, len(pooled)):
            raise SettingError(f"starts of {self._id!r} must be {len(pooled)} seconds, not {seconds}")
        self._whole = False
        with translate_os_errors(self._store), owning(self._folder):
            if "raw" in self._kinds and block is not None:
                self._append_raw(block)
            if self._rows is not None:
                self._rows.append(self._as_stored("segments", pooled))
        if self._aggregated is None:
            self._pool.add(pooled)
        self._segments += len(pooled)
        self._streamed = 0
        self._starts += seconds
        self._whole = True

    def _check_whole(self) -> None:
        if not self._whole:
            raise StoreError(f"a batch of track {self._id!r} was not written to its end: begin the track again")

    def _append_raw(self, block: npt.NDArray[Any]) -> None:
        if self._raw is None:
            self._raw = self._new_shard("raw", 4)
        self._frames = block.shape[2]
        self._raw.append(chunk for segment in block for chunk in segment)

    def set_aggregated(self, aggregated: npt.ArrayLike) -> None:
        """Store this instead of the mean of the segments: array_like, shape (layers, dim)."""
        array = self._numbers(aggregated, "aggregated")
        if array.shape != self._pool.shape:
            raise SettingError(f"aggregated of {self._id!r} must be {list(self._pool.shape)}, not {array.shape}")
        self._aggregated = array

    def finish(self) -> TransactionRecord:
        """Write what has waited for the end and the metadata; say what is to be done with the folder."""
        self._check_whole()
        if self._streamed:
            raise SettingError(f"the last segment of track {self._id!r} has states, but was not appended")
        if self._aggregated is None:
            if not self._segments:
                raise SettingError(f"nothing was appended to track {self._id!r}")
            self._aggregated = self._pool.mean()
        if self._starts and len(self._starts) != self._segments:
            raise SettingError(f"{len(self._starts)} starts for {self._segments} segments of {self._id!r}")
        if len(self._kinds) > 1 and not self._segments:
            raise SettingError(f"no segments were appended to track {self._id!r}")
        revision = uuid.uuid4().hex
        own = {
            "track_id": self._id,
            "revision": revision,
            "fingerprint": self._spec.fingerprint,
            "kinds": list(self._kinds),
            "layers": list(self._spec.layers),
            "starts": self._starts,
        }
        common = {**self._json(self.attributes), **own}
        if taken := sorted({*own, "checksums"} & self.attributes.keys()):
            raise SettingError(
                f"attributes of track {self._id!r:.200} are named {', '.join(taken)}, as the store's own are: "
                "use other names"
            )
        layers, dim = self._pool.shape
        if self._raw is not None:
            checksum = self._raw.finish()
            self._describe("raw", (self._segments, layers, self._frames, dim), common, checksum)
        if self._rows is not None:
            self._write("segments", (self._segments, layers, dim), self._rows.columns(), common)
            self._rows.close()
        self._write("aggregated", (layers, dim), self._as_stored("aggregated", self._aggregated), common)
        return TransactionRecord(self._kinds, revision)

    def _numbers(self, values: npt.ArrayLike, kind: str) -> npt.NDArray[Any]:
        if np.ma.is_masked(values):
            raise SettingError(f"{self._name(kind)} has masked values: fill them, or leave out their segments")
        try:
            array = np.asarray(values)
        except (TypeError, ValueError) as error:
            raise SettingError(f"{self._name(kind)} is no array: {error}") from None
        if array.dtype.kind not in "biuf":
            raise SettingError(f"{self._name(kind)} must hold real numbers, not {array.dtype}")
        return array

    def _json(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes as they will be read."""
        try:
            return dict(json.loads(json.dumps(attributes, allow_nan=False)))
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingError(f"the attributes of track {self._id!r} are not JSON values: {error}") from None

    def _name(self, kind: str) -> str:
        return f"{kind} of track {self._id!r}"

    def _new_shard(self, kind: str, ndim: int) -> ShardWriter:
        folder = self._folder / kind
        filesystem.make_dir(folder)
        # Raw is made ready chunk by chunk, beside the writing; the rest is small and ready.
        prepare = partial(self._as_stored, kind) if kind == "raw" else None
        path = folder / shard_name(ndim)
        compressor = compressor_of(self._spec.codec)
        return ShardWriter(path, self._name(kind), self._dtype.itemsize, compressor=compressor, prepare=prepare)

    def _as_stored(self, kind: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values in the stored type, C-contiguous, little-endian and finite."""
        rounded = self._spec.codec == "bitround"
        limit = float(np.finfo(self._dtype).max) * (0.999 if rounded else 1)  # rounding may not reach infinity
        # NaN and infinity show in the extremes.
        if not (values.max() <= limit and values.min() >= -limit):
            raise ExtractionError(
                f"{self._name(kind)} holds values that are not finite as {self._dtype}: "
                "try `precision='fp32'` and `dtype='float32'`"
            )
        stored = np.ascontiguousarray(values, self._dtype)
        return bitround(stored) if rounded else stored

    def _write(
        self,
        kind: str,
        shape: tuple[int, ...],
        chunks: Iterable[npt.NDArray[Any]],
        common: Mapping[str, Any],
    ) -> None:
        shard = self._new_shard(kind, len(shape))
        try:
            shard.append(chunks)
            checksum = shard.finish()
        finally:
            shard.close()
        self._describe(kind, shape, common, checksum)

    def _describe(self, kind: str, shape: tuple[int, ...], common: Mapping[str, Any], checksum: str) -> None:
        attributes = {**common, "checksums": {"chunks": checksum}}
        metadata = track_metadata(kind, shape, self._spec, attributes)
        content = encode_document(seal(metadata.document()))
        if len(content) > MAX_METADATA_BYTES:
            raise SettingError(
                f"the attributes and starts of track {self._id!r:.200} have {len(content)} bytes, more than "
                f"{MAX_METADATA_BYTES}: split the track, or keep the attributes elsewhere"
            )
        filesystem.write_file(self._folder / kind / METADATA, content)


class RowSpool:
    """Rows [row, layer, feature] that are read back by layer: in memory, or beyond a limit of bytes in a file."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._parts: list[npt.NDArray[Any]] = []
        self._waiting = 0
        self._fd = -1

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows, C-contiguous, of one shape and type."""
        self._parts.append(rows)
        self._waiting += rows.nbytes
        if self._waiting > self._limit:
            if self._fd < 0:
                self._fd = filesystem.create_file(self._path)
            filesystem.write_all(self._fd, self._parts)
            self._parts = [rows[:0]]
            self._waiting = 0

    def columns(self) -> Iterator[npt.NDArray[Any]]:
        """Array [row, 1, feature] of each layer, C-contiguous, when the last row has been appended."""
        like = self._parts[0]
        if self._fd < 0:  # few: one copy is quicker than many
            yield from np.ascontiguousarray(np.concatenate(self._parts).swapaxes(0, 1))[:, :, None]
            return
        filesystem.write_all(self._fd, self._parts)
        rows = np.memmap(self._path, like.dtype, "r").reshape(-1, *like.shape[1:])
        for layer in range(rows.shape[1]):
            yield np.ascontiguousarray(rows[:, layer : layer + 1])

    def close(self) -> None:
        """Forget the rows."""
        self._parts = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            filesystem.unlink(self._path)
