"""MPEG files (MP3) that do not state their length, given one that makes libsndfile decode them to their end.

libsndfile stops decoding at the length that it takes from the header. Where there is none it guesses from the size
of the first frames, which is wrong several times over for variable bit rates. So it is shown the file behind one
more frame, of silence, that counts more frames than the file can hold, and decodes until there are no more.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SEARCHED = 1 << 16

_SMALLEST_FRAME = 24
"""Bytes of a frame of the lowest bit rate, 8 kbit/s at 24 kHz."""

MPEG_DECODER_DELAY = 529
"""Samples by which a decoder of layer 3 is late; libmpg123's GAPLESS_DELAY."""

_ID3V1, _APE, _LYRICS = 128, 32, 15
"""Bytes of an ID3v1 tag, and of what stands at the end of APE and Lyrics3 tags."""


@dataclass(frozen=True, kw_only=True)
class MpegLayout:
    """Where the audio of an MPEG file lies.

    Attributes
    ----------
    start, end : int
        Bytes before the first frame, and before the tags behind the last one.
    header : bytes
        The first frame's header, 4 bytes; empty if there is no frame.
    states_length : bool
        Whether it counts the frames.
    """

    start: int
    end: int
    header: bytes
    states_length: bool

    @property
    def is_layer_3(self) -> bool:
        """Whether it is MP3, the only layer that can count its frames."""
        return bool(self.header) and self.header[1] & 0x06 == 0x02


def mpeg_layout(path: Path) -> MpegLayout:
    """Find the audio between the tags.

    Tags are ID3v2.4 (section 3), ID3v1, APE (1 and 2) and Lyrics3 2. The count of frames is that of the Xing or
    Info header, which stands in the first frame behind at most 36 bytes; bit 0 of its flags tells that it has one.
    """
    with path.open("rb") as file:
        start = 0
        while len(head := _at(file, start, 10)) == 10 and head[:3] == b"ID3":
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            start += 10 + size + (10 if head[5] & 0x10 else 0)
        data = _at(file, start, _SEARCHED)
        first = next((i for i in range(len(data) - 3) if _is_frame(data[i : i + 4])), None)
        end = _end_of_audio(file)
    if first is None:
        return MpegLayout(start=start, end=end, header=b"", states_length=False)
    frame = data[first : first + 64]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    return MpegLayout(
        start=start + first,
        end=max(end, start + first),
        header=frame[:4],
        states_length=0 <= at < len(frame) - 7 and bool(frame[at + 7] & 1),
    )


class CountedFrames(io.RawIOBase):
    """The frames of a file of layer 3, behind one that counts more than there are.

    Attributes
    ----------
    failure : OSError or None
        What went wrong while libsndfile read, which takes that for the end.
    """

    def __init__(self, path: Path, layout: MpegLayout) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._start = layout.start
        most = (layout.end - layout.start) // _SMALLEST_FRAME + 1
        self._first = _counting_frame(layout.header, most)
        self._size = len(self._first) + layout.end - layout.start
        self._position = 0
        self.failure: OSError | None = None

    @property
    def unread(self) -> int:
        """Bytes from the position to the end."""
        return self._size - self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.unread))
        data = self._first[self._position : self._position + wanted]
        if not data and wanted:
            try:
                data = _at(self._file, self._start + self._position - len(self._first), wanted)
            except OSError as error:
                self.failure = error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _counting_frame(header: bytes, frames: int) -> bytes:
    """A frame of silence in front of one with this header, with an Info header that counts so many frames.

    ISO/IEC 11172-3, 2.4.1.3: version, rate and mode are the header's; the bit rate, at index 9, is 128 kbit/s in
    version 1 and 80 kbit/s in the others, and a frame has 144 (72) bit rate / rate bytes, its side information 32
    (17) bytes, or 17 (9) in mono.
    """
    version = (header[1] >> 3) & 3
    is_first, mono = version == 3, header[3] >> 6 == 3
    rate = (44_100, 48_000, 32_000)[(header[2] >> 2) & 3] >> {3: 0, 2: 1, 0: 2}[version]
    length = 144 * 128_000 // rate if is_first else 72 * 80_000 // rate
    side = (17 if mono else 32) if is_first else (9 if mono else 17)
    without_checksum = bytes([0xFF, header[1] | 1, 0x90 | header[2] & 0x0C, header[3]])
    return (without_checksum + bytes(side) + b"Info" + struct.pack(">II", 1, frames)).ljust(length, b"\0")


def _end_of_audio(file: Any) -> int:
    """Bytes before the tags at the end of a file."""
    end: int = file.seek(0, os.SEEK_END)
    while True:
        if _at(file, end - _ID3V1, 3) == b"TAG":
            end -= _ID3V1
        elif (tag := _at(file, end - _APE, _APE))[:8] == b"APETAGEX":
            size, _, flags = struct.unpack("<III", tag[12:24])
            # A size has the footer in it; of an impossible one only the footer is left out.
            end -= size + (_APE if flags >> 31 else 0) if _APE <= size <= end else _APE
        elif (tag := _at(file, end - _LYRICS, _LYRICS))[6:] == b"LYRICS200" and tag[:6].isdigit():
            end -= int(tag[:6]) + _LYRICS
        else:
            return max(end, 0)


def _at(file: Any, position: int, count: int) -> bytes:
    if position < 0:
        return b""
    file.seek(position)
    data: bytes = file.read(count)
    return data


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
