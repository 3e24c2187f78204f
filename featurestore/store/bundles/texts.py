"""Chunks of text arrays (`vlen-utf8`), and of small arrays of numbers, each with its CRC-32C."""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np

from featurestore.store.format.shards import CRC_BYTES, with_crc

_LENGTH = 4  # bytes in front of each text, and of all


def checked(content: bytes) -> memoryview:
    """Content without its CRC-32C, where it is; ValueError if it does not fit."""
    body = memoryview(content)[:-CRC_BYTES]
    crc = int.from_bytes(content[-CRC_BYTES:], "little")
    if len(content) < CRC_BYTES or google_crc32c.value(np.frombuffer(body, np.uint8)) != crc:
        raise ValueError("it fails its checksum")
    return body


def encode_texts(texts: Sequence[bytes], rows: int) -> bytes:
    """Texts, as UTF-8, as a chunk of some rows; what is left of it is empty."""
    parts = [rows.to_bytes(_LENGTH, "little")]
    for text in [*texts, *[b""] * (rows - len(texts))]:
        parts += [len(text).to_bytes(_LENGTH, "little"), text]
    return with_crc(b"".join(parts))


def decode_texts(content: bytes, rows: int, most: int) -> list[str]:
    """Texts of a chunk of some rows, of at most so many characters each; ValueError if it is damaged."""
    from numcodecs.vlen import VLenUTF8

    body = checked(content)
    if int.from_bytes(body[:_LENGTH], "little") != rows or len(body) < _LENGTH * (rows + 1):
        raise ValueError("the number of texts is wrong")
    found: list[str] = VLenUTF8().decode(body).tolist()
    if len("".join(found).encode()) != len(body) - _LENGTH * (rows + 1):
        raise ValueError("something is behind the texts")
    if max(map(len, found), default=0) > most:
        raise ValueError("a text is too long")
    return found


def decode_numbers(content: bytes, dtype: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Numbers of a chunk; ValueError if there are others than so many."""
    found = np.frombuffer(checked(content), np.dtype(dtype))
    if len(found) != count:
        raise ValueError(f"there are {len(found)} numbers, not {count}")
    return found
