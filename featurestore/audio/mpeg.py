"""Where the audio of an MPEG file (MP3) begins, and whether it states its length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SEARCHED = 1 << 16


@dataclass(frozen=True)
class AudioStart:
    """The first frame of an MPEG file.

    Attributes
    ----------
    offset : int
        Bytes before it.
    states_length : bool
        Whether it counts the frames of the file; else the length can only be guessed from its first frames,
        which is wrong several times over for variable bit rates.
    """

    offset: int
    states_length: bool


def audio_start(path: Path) -> AudioStart:
    """Find the first frame behind the tags in front of it.

    Tags are ID3v2.4, section 3; the count is that of the Xing or Info header, which stands in the first frame
    behind its side information (at most 36 bytes), with bit 0 of its flags set if it holds the number of frames.
    """
    with path.open("rb") as file:
        offset = 0
        while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            offset += 10 + size + (10 if head[5] & 0x10 else 0)
            file.seek(offset)
        file.seek(offset)
        data = file.read(_SEARCHED)
    first = next((i for i in range(len(data) - 3) if _is_frame(data[i : i + 4])), 0)
    frame = data[first : first + 64]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    return AudioStart(offset=offset + first, states_length=0 <= at < len(frame) - 7 and bool(frame[at + 7] & 1))


def _is_frame(head: bytes) -> bool:
    """Whether these 4 bytes can be a frame header: sync, and no reserved version, layer, bit rate or rate."""
    return (
        head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] & 0x18 != 0x08
        and head[1] & 0x06 != 0
        and head[2] & 0xF0 != 0xF0
        and head[2] & 0x0C != 0x0C
    )
