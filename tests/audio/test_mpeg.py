"""MP3 files decode to their end, whatever their headers say of their length."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from featurestore.audio import decode, load_audio, read_header
from featurestore.errors import AudioFormatError

RATE = 44_100
SECONDS = 30


START = 576


def lag(expected, found):
    """Samples by which `found` comes later; at most 4,000."""
    piece = expected[20_000:40_000]
    return int(np.argmax([np.dot(piece, found[20_000 + i : 40_000 + i]) for i in range(4_000)]))


@pytest.fixture(scope="module")
def encoded():
    """Quiet for 10 s, then loud: frames of a variable bit rate that say nothing of those that follow."""
    signal = np.random.default_rng(0).uniform(-0.9, 0.9, SECONDS * RATE)
    signal[: 10 * RATE] *= 1e-4
    data = io.BytesIO()
    soundfile.write(
        data, signal, RATE, "MPEG_LAYER_III", format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    return data.getvalue()


@pytest.fixture
def mp3(tmp_path, encoded):
    path = tmp_path / "x.mp3"
    path.write_bytes(encoded)
    return path


def without_length(path):
    """The same frames without the tag that counts them."""
    data = path.read_bytes()
    at = max(data[:2_000].find(b"Xing"), data[:2_000].find(b"Info"))
    assert at > 0
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    return path


def id3(size):
    length = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + length + b"PRIV" + length + b"\0\0" + b"\xff\xfb" * ((size - 10) // 2)


def ape(size, *, with_header):
    item = struct.pack("<II", size, 0) + b"Cover\0" + bytes(size)

    def end(flags):
        return b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, flags) + bytes(8)

    return end(0xA0000000) + item + end(0x80000000) if with_header else item + end(0)


@pytest.mark.slow
def test_blocks_of_a_variable_bit_rate_are_those_of_the_whole(mp3):
    whole, _ = soundfile.read(mp3, dtype="float32")
    np.testing.assert_allclose(np.concatenate(list(decode(mp3, RATE))), whole, rtol=0, atol=1e-5)
    assert read_header(mp3).frames == len(whole) == SECONDS * RATE


LYRICS = b"LYRICSBEGIN" + b"la" * 2_000
TAGS_BEHIND = {
    "none": b"",
    "ID3v1": b"TAG".ljust(128, b"x"),
    "APE": ape(90_000, with_header=True) + b"TAG".ljust(128, b"x"),
    "APE without header": ape(90_000, with_header=False),
    "Lyrics3": LYRICS + b"%06d" % len(LYRICS) + b"LYRICS200" + b"TAG".ljust(128, b"x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("behind", TAGS_BEHIND)
@pytest.mark.parametrize("before", [0, 200, 300_000])
def test_without_a_stated_length_all_frames_are_decoded(mp3, before, behind):
    expected = load_audio(mp3, RATE)
    without_length(mp3)
    data = mp3.read_bytes()
    mp3.write_bytes((id3(before) if before else b"") + data + TAGS_BEHIND[behind])
    assert read_header(mp3).frames is None
    found = load_audio(mp3, RATE)
    # Nothing tells the encoder's padding any more, and the frame that held the count may be audio now.
    assert 0 < len(found) - len(expected) < 5 * 1152
    shift = START + lag(expected, found[START:])
    np.testing.assert_allclose(found[shift : shift + len(expected)][RATE:], expected[RATE:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0, 31, 2**31, 2**32 - 1])
@pytest.mark.parametrize("before", [0, 500])
def test_a_tag_of_an_impossible_size_is_left_out(mp3, before, size):
    without_length(mp3)
    tag = b"APETAGEX" + struct.pack("<IIII", 2000, size, 0, 0) + bytes(8)
    mp3.write_bytes((id3(before) if before else b"") + mp3.read_bytes() + tag)
    assert abs(len(load_audio(mp3, RATE)) - SECONDS * RATE) < 5 * 1152


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (32_000, 1), (24_000, 2), (16_000, 1), (8_000, 1)])
def test_all_versions_of_mpeg_are_understood(write, rate, channels):
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (10 * rate, channels))
    path = write("x.mp3", signal, rate=rate, subtype="MPEG_LAYER_III")
    expected = load_audio(path, rate)
    found = load_audio(without_length(path), rate)
    shift = 576 + lag(expected, found[576:])
    assert 0 < len(found) - len(expected) < 5 * 1152
    np.testing.assert_allclose(found[shift : shift + len(expected)], expected, rtol=0, atol=1e-5)


def test_a_file_cut_within_a_frame_decodes_to_there(mp3):
    without_length(mp3)
    os.truncate(mp3, mp3.stat().st_size * 2 // 3)
    found = load_audio(mp3, RATE)
    assert 10 * RATE < len(found) < 25 * RATE


def test_damage_is_found_without_a_stated_length(mp3):
    data = bytearray(without_length(mp3).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    mp3.write_bytes(data)
    with pytest.raises(AudioFormatError, match="damaged"):
        load_audio(mp3)
