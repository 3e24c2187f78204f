"""Chunks that are read as a whole, numbers and texts (`vlen-utf8`), with their CRC-32C behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

CRC_BYTES = 4
LENGTH_BYTES = 4
"""In front of each text, and of all."""


def crc_of(content: Any) -> bytes:
    """CRC-32C of contiguous bytes, as it stands behind them."""
    return int(google_crc32c.value(content)).to_bytes(CRC_BYTES, "little")


def with_crc(content: bytes) -> bytes:
    """Content with its CRC-32C behind it."""
    return content + crc_of(content)


def without_crc(content: bytes) -> npt.NDArray[np.uint8]:
    """Content, not copied, without its CRC-32C; ValueError if that is another one."""
    body = np.frombuffer(content, np.uint8)[:-CRC_BYTES]
    if content[-CRC_BYTES:] != crc_of(body):
        raise ValueError("a chunk fails its checksum")
    return body


def decode_numbers(content: bytes, dtype: str, count: int) -> npt.NDArray[Any]:
    """Numbers of a chunk; ValueError if it is damaged, or there are others than so many."""
    found = np.frombuffer(without_crc(content), np.dtype(dtype))
    if len(found) != count:
        raise ValueError(f"there are {len(found)} numbers, not {count}")
    return found


def encode_texts(texts: Sequence[str], rows: int) -> bytes:
    """Texts as a chunk of some rows; what is left of it is empty."""
    from numcodecs.vlen import VLenUTF8

    padded = np.full(rows, "", object)
    padded[: len(texts)] = texts
    return with_crc(bytes(VLenUTF8().encode(padded)))


def checked_texts(content: bytes, rows: int) -> npt.NDArray[np.uint8]:
    """A chunk of texts of some rows without its CRC-32C; ValueError if it is damaged."""
    body = without_crc(content)
    if int.from_bytes(content[:LENGTH_BYTES], "little") != rows or len(body) < LENGTH_BYTES * (rows + 1):
        raise ValueError("the number of texts is wrong")
    return body


def decode_texts(body: npt.NDArray[np.uint8]) -> list[str]:
    """Texts of a chunk that was checked, with the empty ones behind them; ValueError if they are none."""
    from numcodecs.vlen import VLenUTF8

    texts: list[str] = VLenUTF8().decode(body).tolist()
    return texts
