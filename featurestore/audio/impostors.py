"""Files that are named like audio and hold something else: pages, pointers, metadata, text."""

from __future__ import annotations

import codecs
import re

HEAD_BYTES = 4096
"""Bytes from the start of a file that tell what it is: all of a pointer, and enough of anything else."""

_MAGIC = (
    (
        b"\0\5\x16\7",
        "AppleDouble metadata of macOS, not audio: the file of the same name without ._ has the sound",
    ),
    (b"\0\5\x16\0", "an AppleSingle file of macOS, not audio: copy the file again from there"),
    (b"MThd", "MIDI, which holds notes and no sound: render it to audio first"),
    (b"d8:announce", "a torrent, not audio: give the files that it names"),
    (b"%PDF-", "a PDF document, not audio"),
    (b"PK\3\4", "a ZIP archive, not audio: unpack it"),
    (b"Rar!\x1a\7", "a RAR archive, not audio: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive, not audio: unpack it"),
    (b"\x1f\x8b\x08", "compressed by gzip: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture, not audio"),
    (b"\xff\xd8\xff", "a JPEG picture, not audio"),
    (b"GIF8", "a GIF picture, not audio"),
    (b"\x7fELF", "a program, not audio"),
    (b"SQLite format 3\0", "an SQLite database, not audio"),
    (b"PAR1", "a Parquet table, not audio"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, not audio"),
)

_AUDIO_OF_TEXT = (b"NIST_1A", b"PVF1", b"PVF2", b"#!AMR", b"#!SILK")
"""How audio begins whose header is text, and which might hold text alone for as long as one looks."""

_AGAIN = "a server answered with it instead of the file, which has to be downloaded again"

_TEXT = (
    (
        r"version https://(git-lfs\.github|hawser\.github)\.com/spec/",
        "a pointer of Git LFS, not audio: `git lfs pull` brings the file",
    ),
    (
        r"(\.\./)*(\.git)?/?annex/objects/",
        "a pointer of git-annex, not audio: `git annex get` brings the file",
    ),
    (
        r"((md5|frozen|wdir|desc): .*\n|#.*\n)*outs:\n *- ",
        "a pointer of DVC, not audio: `dvc pull` brings the file",
    ),
    (
        r"(?s)(<\?xml.{0,500}?)?(<!--.{0,2000}?-->\s*)*<(!doctype\s+html|html|head|body|script|title|meta)\b",
        f"an HTML page, not audio: {_AGAIN}",
    ),
    (r"<(\?xml|!|[a-z][\w:.-]*[\s/>])", f"XML, not audio: {_AGAIN}"),
    (r"\{\s*(\"|\}|$)|\[\s*([\[{\"\d\]-]|$)", f"JSON, not audio: {_AGAIN}"),
)
"""How texts begin, the more particular ones first."""

_TEXT_KINDS = tuple((re.compile(pattern, re.IGNORECASE), what) for pattern, what in _TEXT)

_NO_TEXT = re.compile(r"[^\t\n\f\r\x1b\x20-\x7e\x80-\U0010ffff]")


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with these bytes, if they cannot be those of audio.

    Parameters
    ----------
    head : bytes
        The first `HEAD_BYTES` of the file, or all of it.

    Returns
    -------
    str or None
        What follows "the file is" in a message, with the way out: "a pointer of Git LFS, not audio: ...". None
        for audio, and for whatever is not known: a decoder has to say.
    """
    if not head:
        return "empty (0 bytes): get it again from where it came from"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head.startswith(_AUDIO_OF_TEXT):
        return None
    text = _as_text(head)
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n").replace("\r\n", "\n")
    for pattern, what in _TEXT_KINDS:
        if pattern.match(start):
            return what
    return "plain text, not audio: look into it for what came in the place of the file"


def _as_text(head: bytes) -> str | None:
    """The text that these bytes are the start of, or None."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # also the start of a frame of MPEG
        try:
            text = codecs.getincrementaldecoder("utf-16")().decode(head)
        except UnicodeDecodeError:
            return None
        return text if text.isascii() and not _NO_TEXT.search(text) else None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a letter
    except UnicodeDecodeError:
        # An older encoding: one byte for each letter, and few of them beyond ASCII.
        if sum(byte >= 0x80 for byte in head) * 10 > len(head):
            return None
        text = head.decode("latin-1")
    return None if _NO_TEXT.search(text) else text
