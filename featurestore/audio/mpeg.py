"""What FFmpeg does not know of MP3 files: where tags lie, and whether a count of frames is that of this file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_LONGEST_FRAME = 2_881
"""Bytes."""

_BEHIND = 4_096
"""Bytes that may follow those that a file counts."""


def counts_frames(path: Path, size: int, first: int) -> bool:
    """Whether a Xing or Info header before the first frame counts the frames of this file, not of a part of it.

    Bit 0 of its flags tells that it has the number of frames, bit 1 that of bytes, which follows.
    """
    with path.open("rb") as file:
        file.seek(max(0, first - _LONGEST_FRAME))
        before = file.read(min(first, _LONGEST_FRAME))
    header = before[max(before.rfind(b"Xing"), before.rfind(b"Info"), 0) :][:16]
    if header[:4] not in (b"Xing", b"Info") or len(header) < 16:
        return False
    flags, frames, count = struct.unpack(">III", header[4:])
    fits = size - first <= frames * _LONGEST_FRAME / 2 and (not flags & 2 or size - first - count < _BEHIND)
    return bool(flags & 1) and fits


def before_tags(path: Path) -> int:
    """Bytes before the ID3v1, APE and Lyrics3 tags at the end of an MP3 file, which FFmpeg takes for frames."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, end - 160)
            file.seek(start)
            tail = file.read(end - start)
            if tail[-128:-125] == b"TAG":
                end -= 128
            elif tail[-32:-24] == b"APETAGEX":
                size, _, flags = struct.unpack("<III", tail[-20:-8])
                # A size has the footer in it; of an impossible one only the footer is left out.
                end -= size + (32 if flags >> 31 else 0) if 32 <= size <= end else 32
            elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
                end -= int(tail[-15:-9]) + 15
            else:
                return max(end, 0)


def without_tags(data: bytes) -> bytes:
    """What follows ID3v2 tags at the start of a packet, as where MP3 files were joined; else nothing."""
    size = 0
    while data[size : size + 3] == b"ID3":
        sizes = zip(data[size + 6 : size + 10], (21, 14, 7, 0), strict=False)
        size += 10 + sum((byte & 0x7F) << shift for byte, shift in sizes)
    return data[size:] if size else b""
