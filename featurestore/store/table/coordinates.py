"""Chunks of the packed table's two labels: track ids, and layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.spec import FeatureSpec
from featurestore.store.format.shards import CRC_BYTES, with_crc
from featurestore.store.table.layout import damaged


def encode_layers(spec: FeatureSpec) -> bytes:
    """Layers as the one chunk of a Zarr array."""
    return with_crc(np.array(spec.layers, "<i8").tobytes())


def encode_ids(track_ids: Sequence[str], rows: int) -> bytes:
    """Track ids as a chunk, of some rows, of a Zarr array of strings; what is left of it is empty."""
    from numcodecs.vlen import VLenUTF8

    padded = np.full(rows, "", object)
    padded[: len(track_ids)] = track_ids
    return with_crc(bytes(VLenUTF8().encode(padded)))


def checked_ids(content: bytes, rows: int) -> npt.NDArray[np.uint8]:
    """A chunk of track ids of some rows without its checksum; ValueError if it is damaged."""
    body = np.frombuffer(content, np.uint8)[:-CRC_BYTES]
    if google_crc32c.value(body) != int.from_bytes(content[-CRC_BYTES:], "little"):
        raise ValueError("the track ids fail their checksum")
    if int.from_bytes(content[:4], "little") != rows or len(body) < 4 + 4 * rows:
        raise ValueError("the number of track ids is wrong")
    return body


def decode_ids(chunk: npt.NDArray[np.uint8]) -> list[str]:
    """Ids of a chunk that was checked, with the empty ones behind them; ValueError if they are no text."""
    from numcodecs.vlen import VLenUTF8

    ids: list[str] = VLenUTF8().decode(chunk).tolist()
    return ids


class TrackIds:
    """Ids of a table's rows: read with the table, decoded when they are asked for, which many queries never do.

    Parameters
    ----------
    chunks : sequence of ndarray
        As `checked_ids` gives them.
    tracks : int
        Number of ids; what follows must be empty.
    """

    def __init__(self, chunks: Sequence[npt.NDArray[np.uint8]], tracks: int) -> None:
        self._chunks = chunks
        self._tracks = tracks

    @cached_property
    def decoded(self) -> list[str]:
        """The ids.

        Raises
        ------
        CorruptTrackError
            If they are not those of a table.
        """
        ids: list[str] = []
        try:
            for chunk in self._chunks:
                ids += decode_ids(chunk)
        except ValueError as error:
            raise damaged(error) from None
        rest = ids[self._tracks :]
        del ids[self._tracks :]
        if any(rest) or not all(ids):
            raise damaged("the number of track ids is wrong")
        return ids

    def __len__(self) -> int:
        return self._tracks
