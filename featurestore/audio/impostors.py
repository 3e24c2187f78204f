"""Files that are named like audio and hold something else: pages, pointers, metadata, text."""

from __future__ import annotations

import codecs
import re

HEAD_BYTES = 4096
"""Bytes from the start of a file that tell what it is: all of a pointer, and enough of anything else."""

_MAGIC = {
    b"\0\5\x16\7": "AppleDouble metadata of macOS, not audio: its namesake without ._ has the sound",
    b"\0\5\x16\0": "an AppleSingle file of macOS, not audio: copy the file again from there",
    b"MThd": "MIDI, which holds notes and no sound: render it to audio first",
    b"d8:announce": "a torrent, not audio: give the files that it names",
    b"%PDF-": "a PDF document, not audio",
    b"PK\3\4": "a ZIP archive, not audio: unpack it",
    b"Rar!\x1a\7": "a RAR archive, not audio: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive, not audio: unpack it",
    b"\x1f\x8b\x08": "compressed by gzip: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ\0": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"\x89PNG\r\n\x1a\n": "a PNG picture, not audio",
    b"\xff\xd8\xff": "a JPEG picture, not audio",
    b"GIF8": "a GIF picture, not audio",
}

_AUDIO_OF_TEXT = (b"NIST_1A", b"PVF1", b"PVF2", b"#!AMR", b"#!SILK")
"""How audio begins whose header is text, and which might hold text alone for as long as one looks."""

_AGAIN = "a server answered with it instead of the file, which has to be downloaded again"
_HTML = r"(?s)(<\?xml.{0,500}?)?(<!--.{0,2000}?-->\s*)*<(!doctype\s+html|html|head|body|script|title|meta)\b"
_TEXT = {
    r"version https://(git-lfs|hawser)\.github\.com/": "a pointer of Git LFS, not audio: `git lfs pull` gets it",
    r"(\.\./)*(\.git)?/?annex/objects/": "a pointer of git-annex, not audio: `git annex get` gets it",
    r"((md5|frozen|wdir|desc): .*\n|#.*\n)*outs:\n *- ": "a pointer of DVC, not audio: `dvc pull` gets it",
    _HTML: f"an HTML page, not audio: {_AGAIN}",
    r"<(\?xml|!|[a-z][\w:.-]*[\s/>])": f"XML, not audio: {_AGAIN}",
    r"\{\s*(\"|\}|$)|\[\s*([\[{\"\d\]-]|$)": f"JSON, not audio: {_AGAIN}",
    r"": "plain text, not audio: look into it for what came in the place of the file",
}
"""How texts begin, the more particular ones first."""

_NO_TEXT = re.compile(r"[^\t\n\f\r\x1b\x20-\x7e\x80-\U0010ffff]")


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with these `HEAD_BYTES`, if they cannot be those of audio.

    It follows "the file is" in a message, with the way out: "a pointer of Git LFS, not audio: ...". None for
    audio, and for whatever is not known: a decoder has to say.
    """
    if not head:
        return "empty (0 bytes): get it again from where it came from"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    if head.startswith(_AUDIO_OF_TEXT) or (text := _as_text(head)) is None:
        return None
    start = text.lstrip("\ufeff \t\r\n").replace("\r\n", "\n")
    return next(what for pattern, what in _TEXT.items() if re.match(pattern, start, re.IGNORECASE))


def _as_text(head: bytes) -> str | None:
    """The text that these bytes are the start of, or None."""
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # also the start of a frame of MPEG
    try:
        # The head may end within a letter.
        text = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8")().decode(head)
    except UnicodeDecodeError:
        # An older encoding: one byte for each letter, and few of them beyond ASCII.
        if is_utf16 or sum(byte >= 0x80 for byte in head) * 10 > len(head):
            return None
        text = head.decode("latin-1")
    return None if _NO_TEXT.search(text) or (is_utf16 and not text.isascii()) else text
