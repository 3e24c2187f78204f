"""A file that is named like audio and is something else is called what it is, with the way out."""

import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from featurestore.audio import decode, load_audio, read_header, validate_audio_file
from featurestore.audio.impostors import HEAD_BYTES, what_it_is
from featurestore.errors import AudioFormatError, AudioNotFoundError

APPLE_DOUBLE = struct.pack(">II", 0x00051607, 0x00020000) + b"Mac OS X        " + bytes(60)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
KINDS = {
    "an HTML page": [
        b"<!DOCTYPE html>\n<html><head>",
        b"\xef\xbb\xbf\r\n  <HTML lang=en>",
        b"<!-- saved --> <!doctype HTML>",
        b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
        b"<script>location = '/login'</script>",
        "<html><title>Café".encode("latin-1") + b"." * 100,
        b"<html>" + "é".encode() * HEAD_BYTES,
    ],
    "XML": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", b"<rss version='2.0'>", b"<Error/>"],
    "JSON": [b'{"error": 404}', b'\n [ {"id": 1}]', b"{}", b"[1, 2]"],
    "a pointer of Git LFS": [LFS, LFS.replace(b"\n", b"\r\n"), b"version https://hawser.github.com/spec/v1\n"],
    "a pointer of git-annex": [
        b"/annex/objects/SHA256E-s1234--0a1b.mp3\n",
        b"../../.git/annex/objects/Xk/0Q/SHA256E-s1--a.mp3/SHA256E-s1--a.mp3",
    ],
    "a pointer of DVC": [
        b"outs:\n- md5: 0a1b\n  path: a.mp3\n",
        b"md5: 0a\r\nfrozen: true\r\nouts:\r\n- path: a\r\n",
    ],
    "AppleDouble metadata": [APPLE_DOUBLE],
    "MIDI": [b"MThd\0\0\0\6\0\1\0\2\1\xe0MTrk"],
    "a ZIP archive": [b"PK\3\4\x14\0\0\0"],
    "a JPEG picture": [b"\xff\xd8\xff\xe0\0\x10JFIF"],
    "plain text": [
        b"no audio",
        b"#EXTM3U\na.mp3\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        "Grüße aus Köln\n".encode(),
        ("Grüße aus Köln, und noch viel mehr Text. " * 9).encode("latin-1"),
        "Notes\r\n".encode("utf-16"),
        ("x" * (HEAD_BYTES - 1) + "é").encode()[:HEAD_BYTES],
    ],
    "empty": [b""],
}
CASES = [(kind, head) for kind, heads in KINDS.items() for head in heads]


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_head_is_called_what_it_is(kind, head):
    assert what_it_is(head).startswith(kind)


FORMATS = [
    (name, subtype)
    for name in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(name)
    if name not in ("RAW", "SD2", "MAT4", "MAT5", "HTK")  # no header of its own, or none of audio alone
]


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_no_audio_is_taken_for_anything_else(tmp_path, name, subtype):
    """Not of samples that are letters either."""
    for value in ("a", " ", "<"):
        path = tmp_path / f"{ord(value)}.{name.lower()}"
        steady = np.full(8_000, ord(value) / 128)
        sound = np.where(np.arange(8_000) % 2, steady, -steady) if subtype.startswith("DPCM") else steady
        try:
            soundfile.write(path, sound, 8_000, format=name, subtype=subtype)
        except (soundfile.SoundFileError, ValueError):
            continue  # not at this rate, or not written by this libsndfile
        assert what_it_is(path.read_bytes()[:HEAD_BYTES]) is None


@given(head=st.binary(max_size=200))
@pytest.mark.slow
def test_any_bytes_are_something_or_unknown(head):
    what = what_it_is(head)
    assert what is None or what


@given(layer=st.sampled_from(range(0xE0, 0x100)), rest=st.binary(min_size=60, max_size=400))
def test_frames_of_mpeg_are_unknown_whatever_is_in_them(layer, rest):
    head = bytes([0xFF, layer]) + rest
    text = head[:2] in (b"\xff\xfe", b"\xfe\xff") and rest[1::2] == bytes(len(rest[1::2]))
    assert text or what_it_is(head) is None


SUFFIXES = ["mp3", "wav", "flac", "ogg", "opus", "aiff", "m4a"]


@pytest.mark.parametrize(("kind", "head"), [(kind, heads[0]) for kind, heads in KINDS.items()])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_way_to_read_the_file_says_so(tmp_path, kind, head, suffix):
    path = tmp_path / f"song.{suffix}"
    path.write_bytes(head)
    for read in (read_header, lambda x: load_audio(x, 24_000), lambda x: next(decode(x, 24_000))):
        with pytest.raises(AudioFormatError, match=rf"song\.{suffix}' is {kind}"):
            read(path)
    report = validate_audio_file(path)
    assert (report["valid"], report["file_exists"], report["readable"]) == (False, True, False)
    assert kind in report["errors"][0]


def test_a_link_of_git_annex_without_its_content_is_called_that(tmp_path):
    path = tmp_path / "song.mp3"
    path.symlink_to("../.git/annex/objects/Xk/0Q/SHA256E-s1--a.mp3/SHA256E-s1--a.mp3")
    with pytest.raises(AudioNotFoundError, match=r"git-annex to content that is not here.*`git annex get`"):
        read_header(path)
    other = tmp_path / "other.mp3"
    other.symlink_to("nowhere")
    with pytest.raises(AudioNotFoundError, match="a link that leads nowhere"):
        read_header(other)


def test_each_kind_has_a_way_out_or_is_a_file_to_drop():
    told = {what_it_is(head) for _, head in CASES}
    assert all(":" in what for what in told if not what.endswith("not audio"))
    assert sum(what.endswith("not audio") for what in told) == 1  # a picture is what it is
