"""TrackWriter: takes the segments of one track in batches and stages its arrays."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec
from featurestore.store import files, layout, publish
from featurestore.store.layout import METADATA
from featurestore.store.shards import ShardWriter
from featurestore.store.spool import RowSpool

# Pooled segments of a track beyond this many bytes wait in a file instead of in memory.
SPOOL_BYTES = 64 * 2**20


class TrackWriter:
    """Takes the segments of one track in batches. Made by `StoreWriter.track`.

    Attributes
    ----------
    attributes : dict
        JSON values that are stored with each array; may be filled until the block ends.
    """

    def __init__(
        self,
        track_id: str,
        folder: Path,
        spec: FeatureSpec,
        kinds: tuple[str, ...],
        attributes: dict[str, Any],
    ) -> None:
        self.attributes = attributes
        self._id = track_id
        self._folder = folder
        self._spec = spec
        self._kinds = kinds
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._frames = 0
        self._segments = 0
        self._starts: list[float] = []
        self._sum = np.zeros((len(spec.layers), spec.dim), np.float64)
        self._aggregated: npt.NDArray[Any] | None = None
        self._rows = RowSpool(folder / "segments.rows", SPOOL_BYTES) if "segments" in kinds else None
        self._raw: ShardWriter | None = None

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._raw is not None:
            self._raw.close()
        if self._rows is not None:
            self._rows.close()

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
            Required if raw is stored; the same number of frames in every call.
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
        layers, dim = self._sum.shape
        block = None if raw is None else np.asarray(raw)
        if block is not None and (
            block.ndim != 4 or block.shape[1::2] != (layers, dim) or self._frames not in (0, block.shape[2])
        ):
            frames = self._frames or "frames"
            raise SettingError(f"raw of {self._id!r} must be [n, {layers}, {frames}, {dim}], not {block.shape}")
        if segments is not None:
            pooled = np.asarray(segments)
        elif block is not None:
            pooled = block.mean(axis=2, dtype=np.float64)
        else:
            raise SettingError(f"append of {self._id!r} needs raw or segments")
        if pooled.ndim != 3 or pooled.shape[1:] != (layers, dim) or len(pooled) == 0:
            raise SettingError(f"segments of {self._id!r} must be [n, {layers}, {dim}], not {pooled.shape}")
        if block is not None and len(block) != len(pooled):
            raise SettingError(f"raw and segments of {self._id!r} differ: {len(block)} and {len(pooled)}")
        if "raw" in self._kinds:
            if block is None or block.shape[2] == 0:
                raise SettingError(f"append of {self._id!r} needs raw, which this track stores")
            self._frames = block.shape[2]
            if self._raw is None:
                files.make_dir(self._folder / "raw")
                self._raw = ShardWriter(self._folder / "raw" / layout.shard_name(4), self._name("raw"))
            stored_raw = self._stored(block)
            self._raw.append(stored_raw.reshape(-1, *stored_raw.shape[2:]))
        self._sum += pooled.sum(axis=0, dtype=np.float64)
        stored = self._stored(pooled)
        if self._rows is not None:
            self._rows.append(stored)
        self._segments += len(pooled)
        self._starts += [float(start) for start in starts or ()]

    def set_aggregated(self, aggregated: npt.ArrayLike) -> None:
        """Store this instead of the mean of the segments: array_like, shape (layers, dim)."""
        array = np.asarray(aggregated)
        if array.shape != self._sum.shape:
            raise SettingError(f"aggregated of {self._id!r} must be {list(self._sum.shape)}, not {array.shape}")
        self._aggregated = array

    def finish(self) -> publish.Intent:
        """Write what has waited for the end and the metadata; say what is to be done with the folder."""
        if self._aggregated is None:
            if not self._segments:
                raise SettingError(f"nothing was appended to track {self._id!r}")
            self._aggregated = self._sum / self._segments
        if self._starts and len(self._starts) != self._segments:
            raise SettingError(f"{len(self._starts)} starts for {self._segments} segments of {self._id!r}")
        if len(self._kinds) > 1 and not self._segments:
            raise SettingError(f"no segments were appended to track {self._id!r}")
        revision = uuid.uuid4().hex
        common = {
            **self.attributes,
            "track_id": self._id,
            "revision": revision,
            "fingerprint": self._spec.fingerprint,
            "kinds": list(self._kinds),
            "layers": list(self._spec.layers),
            "starts": self._starts,
        }
        layers, dim = self._sum.shape
        if self._raw is not None:
            checksum = self._raw.finish()
            self._describe("raw", (self._segments, layers, self._frames, dim), common, checksum)
        if self._rows is not None:
            self._write("segments", (self._segments, layers, dim), self._rows.columns(), common)
            self._rows.close()
        self._write("aggregated", (layers, dim), self._stored(self._aggregated), common)
        return publish.Intent(self._kinds, revision)

    def _stored(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is written
            return np.ascontiguousarray(values, self._dtype)

    def _name(self, kind: str) -> str:
        return f"{kind} of track {self._id!r}"

    def _write(
        self,
        kind: str,
        shape: tuple[int, ...],
        chunks: Iterable[npt.NDArray[Any]],
        common: Mapping[str, Any],
    ) -> None:
        files.make_dir(self._folder / kind)
        shard = ShardWriter(self._folder / kind / layout.shard_name(len(shape)), self._name(kind))
        try:
            shard.append(chunks)
            checksum = shard.finish()
        finally:
            shard.close()
        self._describe(kind, shape, common, checksum)

    def _describe(self, kind: str, shape: tuple[int, ...], common: Mapping[str, Any], checksum: str) -> None:
        attributes = {**common, "checksums": {"chunks": checksum}}
        metadata = layout.track_metadata(kind, shape, self._spec.dtype, attributes)
        document = metadata.document()
        document["attributes"]["checksums"]["metadata"] = layout.metadata_checksum(document)
        files.write_file(self._folder / kind / METADATA, layout.encode(document))
