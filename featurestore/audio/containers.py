"""The sizes that headers of uncompressed sound state, held against the file.

FFmpeg believes a header, or takes what is left of a cut file for the whole. So chunks are walked first: of RIFF,
RF64 and BW64 (EBU Tech 3306), Sony Wave64, AIFF, IFF 8SVX, CAF, AU and VOC. Where a size was never filled in, or
is too small, FFmpeg is shown that of the file, and reads to its end.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from featurestore.audio.info import format_error


class _Layout(NamedTuple):
    """How chunks lie.

    The size of the whole and the first chunk, by position; bytes of an id; the format of a size; the alignment.
    """

    whole: int
    first: int
    id_bytes: int
    size: str
    aligned: int


_LAYOUTS = {
    b"RIFF": _Layout(4, 12, 4, "<I", 2),
    b"RF64": _Layout(4, 12, 4, "<I", 2),
    b"BW64": _Layout(4, 12, 4, "<I", 2),
    b"RIFX": _Layout(4, 12, 4, ">I", 2),
    b"FORM": _Layout(4, 12, 4, ">I", 2),
    b"riff": _Layout(16, 40, 16, "<q", 8),
    b"caff": _Layout(0, 8, 4, ">q", 1),
    b".snd": _Layout(8, 0, 0, ">I", 1),
}
_AUDIO = (b"data", b"SSND", b"BODY")
_BEHIND = (
    b"LIST id3  ID3  bext iXML axml fact cue  smpl PEAK JUNK PAD  FLLR inst acid DISP NAME AUTH ANNO COMT MARK"
)
"""Ids of chunks that follow the audio: they are believed even where the file ends within them."""

_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_JUNK = 512
"""Bytes behind the audio that may be anything, such as a line break."""

_MOST_CHUNKS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of audio that a header states (or all, if it is unfinished or states too little), and that are there.

    `patches` is what has to stand where for FFmpeg to read all of it; `beyond` is what lies behind the stated end.
    """

    stated: int
    held: int
    patches: dict[int, bytes] = field(default_factory=dict)
    beyond: int = 0


def read_sizes(path: Path, file: BinaryIO) -> Sizes | None:
    """Sizes of the audio in a container of uncompressed sound; None for any other file.

    AudioFormatError is raised if another recording follows the first, or a VOC file ends within a block.
    """
    size = os.fstat(file.fileno()).st_size
    magic = _read(file, 0, 12)
    if magic == b"Creative Voi":
        _check_blocks(path, file, size)
    if (layout := _LAYOUTS.get(magic[:4])) is None or len(magic) < 12:
        return None
    fields = {layout.whole: layout.size} if layout.whole else {}
    patches: dict[int, bytes] = {}
    start, stated, wide = 0, 0, 0
    if magic[:4] == b".snd":
        start, stated = struct.unpack(">II", magic[4:])
    for name, at, length in _chunks(file, layout.first, layout) if layout.first else ():
        if name == b"ds64":
            wide = at + 8
        elif name == b"fmt ":
            patches = _container_bits(_read(file, at, 40), at)
        elif name == b"COMM":
            fields[at + 2] = ">I"  # samples; FFmpeg asks only that there are some
        elif name[:4] in _AUDIO:
            fields[at - struct.calcsize(layout.size)] = layout.size
            start, stated = at, length
            if wide and stated == 0xFFFFFFFF:
                stated = struct.unpack("<q", _read(file, wide, 8))[0]
                fields[wide] = "<q"
            if name == b"SSND":
                start += 8 + int.from_bytes(_read(file, at, 4), "big")
            elif magic[:4] == b"caff":
                start += 4
            stated -= start - at
            break
    if not start:
        return None
    held = size - start
    unfinished = held > 0 and (stated <= 0 or (stated > held and _is_placeholder(stated)))
    if not unfinished and (stated >= held or not _goes_on(path, file, size, start + stated, layout)):
        return Sizes(stated=stated, held=min(stated, held), patches=patches)
    for at, code in fields.items():
        patches[at] = struct.pack(code, size if code[1] == "q" else min(size, 0xFFFFFFFF))
    return Sizes(stated=held, held=held, patches=patches, beyond=0 if unfinished else held - stated)


def _is_placeholder(stated: int) -> bool:
    """Whether a size is what programs write that cannot know it, because they write to a pipe or were stopped."""
    return stated >= 1 << 60 or any(abs(stated - x) <= 1 << 16 for x in (0x7F000000, 1 << 31, 1 << 32))


def _container_bits(form: bytes, at: int) -> dict[int, bytes]:
    """All bits that a sample takes, for a WAVE_FORMAT_EXTENSIBLE of integers that states those that are used."""
    if len(form) < 40 or form[:2] != b"\xfe\xff" or form[24:26] != b"\1\0":
        return {}
    channels, block, bits = (struct.unpack_from("<H", form, i)[0] for i in (2, 12, 14))
    whole = 8 * block // max(1, channels)
    if whole == bits or whole not in (8, 16, 24, 32):
        return {}
    return dict.fromkeys((at + 14, at + 18), struct.pack("<H", whole))


def _goes_on(path: Path, file: BinaryIO, size: int, end: int, layout: _Layout) -> bool:
    """Whether what follows the stated end is audio, and not tags or other chunks."""
    behind = end + -end % layout.aligned
    for name, at, length in _chunks(file, behind, layout) if layout.id_bytes else ():
        if name[:4] in _LAYOUTS or name[:4] in _AUDIO:
            raise format_error(
                path,
                "holds another recording behind the first: split it, or join them by a program that decodes them",
            )
        if at + length > size + 1 and name[:4] not in _BEHIND:
            return True  # samples that look like an id
        behind = at + length + -(at + length) % layout.aligned
    return size - behind > _JUNK and not _read(file, behind, 12).startswith(_TAGS)


def _chunks(file: BinaryIO, at: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Id, first byte and stated size of each chunk from `at`, as long as what follows can be one."""
    whole = layout.id_bytes + struct.calcsize(layout.size)
    for _ in range(_MOST_CHUNKS):
        head = _read(file, at, whole)
        if not _is_id(head) and _is_id(_read(file, at - 1, 4)):  # some programs do not pad
            at -= 1
            head = _read(file, at, whole)
        if len(head) < whole or not _is_id(head) or head.startswith(_TAGS):
            return
        stated = struct.unpack(layout.size, head[layout.id_bytes :])[0] - (whole if layout.id_bytes == 16 else 0)
        yield head[: layout.id_bytes], at + whole, stated
        at += whole + max(0, stated)
        at += -at % layout.aligned


def _is_id(head: bytes) -> bool:
    return len(head) >= 4 and all(32 <= byte < 127 for byte in head[:4])


def _check_blocks(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a VOC file without its last block, which is a byte of 0."""
    at = int.from_bytes(_read(file, 20, 2), "little")
    for _ in range(_MOST_CHUNKS):
        head = _read(file, at, 4)
        if head[:1] == b"\0":
            return
        if not head:
            break
        at += 4 + int.from_bytes(head[1:], "little")
    lost = f"{max(0, at - size):,} bytes of its last block are missing, and the one behind it that ends the file"
    raise format_error(path, f"is truncated: {lost}; get it again from where it came from")


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    """Bytes from a position, which a damaged size may put anywhere."""
    file.seek(min(max(0, at), os.fstat(file.fileno()).st_size))
    return file.read(count)


class Patched(io.FileIO):
    """A file in which some bytes read differently: those of `patches`, by position."""

    def __init__(self, path: Path, patches: dict[int, bytes]) -> None:
        super().__init__(path)
        self._patches = patches

    def read(self, count: int | None = -1, /) -> bytes:
        at = self.tell()
        data = bytearray(super().read(count) or b"")
        for position, new in self._patches.items():
            for i, byte in enumerate(new, position - at):
                if 0 <= i < len(data):
                    data[i] = byte
        return bytes(data)
