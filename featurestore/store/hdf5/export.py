"""Writing one file of HDF5 from a store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.atomic import replacing
from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec
from featurestore.store.format.keys import encode_key
from featurestore.store.hdf5.chunks import CHECKSUMS, write_chunk
from featurestore.store.hdf5.layout import FORMAT, ROWS, import_h5py
from featurestore.store.source import Source, joined_starts

_BLOCK_BYTES = 32 * 2**20
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable.%10d"


def export_hdf5(
    source: Source,
    path: Path,
    track_ids: Sequence[str],
    *,
    layers: Sequence[int],
    kinds: Sequence[str],
) -> None:
    """Write layers (by number) and kinds of tracks, as far as they have these, into a file, whole or not at all.

    Numbers are float32, as netCDF knows no float16.
    """
    h5py = import_h5py()
    layers = sorted(layers)
    positions = [source.spec.layers.index(layer) for layer in layers]
    spec = replace(source.spec.of_layers(layers), dtype="float32", codec="none")
    with replacing(path) as (aside,), h5py.File(aside.name, "w", locking=False) as file:
        file.attrs["Conventions"] = "CF-1.11"
        file.attrs["featurestore_format"] = FORMAT
        file.attrs["featurestore_spec"] = json.dumps(spec.to_dict())
        file.attrs["featurestore_fingerprint"] = spec.fingerprint
        _Writer(file, source, list(track_ids), positions, spec).write(kinds)


class _Writer:
    def __init__(
        self,
        file: Any,
        source: Source,
        track_ids: list[str],
        positions: list[int],
        spec: FeatureSpec,
    ) -> None:
        self.file, self.source, self.track_ids, self.positions = file, source, track_ids, positions
        self.dtype, self.fingerprint = np.dtype(spec.dtype), spec.fingerprint
        self.dim = source.spec.dim
        self.scales: dict[str, Any] = {}
        self._dimension("track", len(track_ids))
        self._dimension("feature", self.dim)
        self.scales["layer"] = file.create_dataset("layer", data=np.array(spec.layers, np.int32))
        self.scales["layer"].make_scale("layer")

    def write(self, kinds: Sequence[str]) -> None:
        counts, starts, attributes, with_raw = [], [], [], []
        for track_id in self.track_ids:
            found = dict(self.source.attributes(track_id))
            found.pop("checksums", None)
            found["fingerprint"] = self.fingerprint
            found["kinds"] = [kind for kind in found["kinds"] if kind in kinds]
            if "raw" in found["kinds"]:
                with_raw.append(track_id)
            rows, own = 0, np.empty(0)
            if "segments" in found["kinds"]:
                (rows, *_), own = self.source.describe("segments", track_id)
                del found["starts"]
            counts.append(rows)
            starts.append(own)
            attributes.append(json.dumps(found).encode())
        self._texts("track_id", [track_id.encode() for track_id in self.track_ids])
        self._texts("provenance", attributes)
        sizes = np.array(counts, np.int64)
        self._dimension("row", int(sizes.sum()))
        self._variable("row_size", ("track",), data=sizes).attrs["sample_dimension"] = "row"
        self._variable("start", ("row",), data=joined_starts(starts, sizes)).attrs["units"] = "s"
        self._features("aggregated", ("track", "layer", "feature"), self._aggregated())
        if "segments" in kinds:
            self._features("segments", ("row", "layer", "feature"), self._segments(sizes))
        self._raw(with_raw)

    def _dimension(self, name: str, size: int) -> str:
        """A dimension without labels, as netCDF keeps it."""
        if name not in self.scales:
            scale = self.file.create_dataset(name, (size,), ">f4")
            scale.make_scale(_NO_VARIABLE % size)
            self.scales[name] = scale
        return name

    def _variable(self, name: str, dims: Sequence[str], **storage: Any) -> Any:
        made = self.file.create_dataset(name, **storage)
        for axis, dim in zip(made.dims, dims, strict=True):
            axis.attach_scale(self.scales[dim.rpartition("/")[2]])
        return made

    def _texts(self, name: str, values: list[bytes]) -> None:
        """Text of equal length, which every reader of HDF5 understands; Octave reads no other than ASCII.

        Without the attribute _Encoding: xarray takes text that netCDF4 has decoded for bytes then, and fails.
        """
        for track_id, value in zip(self.track_ids, values, strict=True):
            if value.endswith(b"\0"):
                raise SettingError(f"the track id {track_id!r} ends with NUL, which HDF5 drops: leave it out")
        encoding = "ascii" if b"".join(values).isascii() else "utf-8"
        text = import_h5py().string_dtype(encoding, max([1, *map(len, values)]))
        data = np.array(values, text)
        chunks = (max(1, min(len(values), 2**20 // text.itemsize)),) if values else None
        self._variable(name, ("track",), data=data, dtype=text, chunks=chunks, compression=chunks and "gzip")

    def _features(self, name: str, dims: tuple[str, ...], blocks: Iterator[npt.NDArray[Any]]) -> None:
        """An array written in whole chunks, however its rows come."""
        total, layers = self.scales[dims[0]].shape[0], len(self.positions)
        rows = max(1, min(ROWS[name], total))
        shape = {"shape": (total, layers, self.dim), "dtype": self.dtype}
        out = self._variable(name, dims, **shape, chunks=(rows, 1, self.dim) if total else None)
        out.attrs["coordinates"] = {"track": "track_id", "row": "start"}[dims[0]]
        waiting = np.zeros((layers, rows, self.dim), self.dtype)
        checksums: list[list[int]] = []
        held = 0

        def write() -> None:
            checksums.append([write_chunk(out, len(checksums), *chunk) for chunk in enumerate(waiting)])

        for block in blocks:
            while len(block):
                some, block = block[: rows - held], block[rows - held :]
                waiting[:, held : held + len(some)] = some.swapaxes(0, 1)
                held += len(some)
                if held == rows:
                    write()
                    held = 0
        if held:
            write()  # what is behind the last row is not read
        self._checksums(name, checksums)

    def _checksums(self, name: str, checksums: list[list[int]]) -> None:
        if checksums:
            chunk = self._dimension(f"chunk_{len(checksums)}", len(checksums))
            self._variable(f"{CHECKSUMS}/{name}", (chunk, "layer"), data=np.array(checksums, np.uint32))

    def _aggregated(self) -> Iterator[npt.NDArray[Any]]:
        rows = max(1, _BLOCK_BYTES // (len(self.positions) * self.dim * 4))
        for first in range(0, len(self.track_ids), rows):
            yield self.source.read_aggregated(self.track_ids[first : first + rows], self.positions)

    def _segments(self, sizes: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[Any]]:
        for track_id, rows in zip(self.track_ids, sizes.tolist(), strict=True):
            if rows:
                yield self.source.read_segments("segments", track_id, self.positions)[0]

    def _raw(self, track_ids: Sequence[str]) -> None:
        for track_id in track_ids:
            segments, _, frames, _ = self.source.describe("raw", track_id)[0]
            dims = (
                self._dimension(f"segment_{segments}", segments),
                "layer",
                self._dimension(f"frame_{frames}", frames),
            )
            name = f"raw/{encode_key(track_id)}"
            shape = {"shape": (segments, len(self.positions), frames, self.dim), "dtype": self.dtype}
            out = self._variable(name, (*dims, "feature"), **shape, chunks=(1, 1, frames, self.dim))
            rows = max(1, _BLOCK_BYTES // (len(self.positions) * frames * self.dim * 4))
            checksums: list[list[int]] = []
            for first in range(0, segments, rows):
                wanted = np.arange(first, min(segments, first + rows))
                block = self.source.read_segments("raw", track_id, self.positions, rows=wanted)[0]
                for row in block.astype(self.dtype, copy=False):
                    checksums.append([write_chunk(out, len(checksums), *chunk) for chunk in enumerate(row)])
            self._checksums(name, checksums)
