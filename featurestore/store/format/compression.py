"""Compressed inner chunks: Blosc, a codec that every Zarr v3 reader has."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

COMPRESSORS = ("none", "zstd", "lz4")
KEEP_BITS = 10
"""Bits of mantissa that bitround keeps: a relative error of at most 2^-11."""

# Blosc stores what does not shrink as it is, behind a header of 16 bytes.
OVERHEAD = 16
_LEVEL = 3


def compressor_of(codec: str) -> str:
    """Compressor of a spec's codec: rounding happens before, and leaves no trace in the metadata."""
    return "zstd" if codec == "bitround" else codec


def zarr_codecs(compressor: str, itemsize: int) -> list[Mapping[str, Any]]:
    """The compressor as Zarr codecs: none, or one."""
    if compressor == "none":
        return []
    configuration = {
        "typesize": itemsize,
        "cname": compressor,
        "clevel": _LEVEL,
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    return [{"name": "blosc", "configuration": configuration}]


def compress(chunk: npt.NDArray[Any], compressor: str) -> npt.NDArray[np.uint8]:
    """Bytes of a C-contiguous chunk."""
    from numcodecs.blosc import BITSHUFFLE, Blosc

    content = Blosc(cname=compressor, clevel=_LEVEL, shuffle=BITSHUFFLE).encode(chunk)
    return np.frombuffer(content, np.uint8)


def decompress(content: bytes, out: npt.NDArray[np.uint8]) -> None:
    """Fill an array of bytes; ValueError if the content is not exactly as long when decompressed."""
    from numcodecs.blosc import Blosc

    # The header (4 bytes of versions and flags; size, block size, compressed size) is looked at first: a small
    # chunk may claim to be anything.
    size, _, compressed = struct.unpack_from("<III", content, 4) if len(content) >= OVERHEAD else (0, 0, 0)
    if (size, compressed) != (out.nbytes, len(content)):
        raise ValueError(f"a compressed chunk of {size} bytes where {out.nbytes} belong")
    try:
        Blosc().decode(content, out=out)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def bitround(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values rounded to `KEEP_BITS` bits of mantissa, as numcodecs' BitRound does it."""
    from numcodecs.bitround import BitRound

    rounded: npt.NDArray[np.float32] = np.asarray(BitRound(keepbits=KEEP_BITS).encode(values)).view(np.float32)
    return rounded.reshape(values.shape)
