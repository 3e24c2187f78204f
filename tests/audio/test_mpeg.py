"""MP3 files decode to their end, whatever their headers say of their length."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from featurestore.audio import decode, load_audio, probe
from featurestore.audio.mpeg import CountedFrames, mpeg_layout
from featurestore.errors import AudioError, AudioFormatError

RATE = 44_100
SECONDS = 30


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


def test_blocks_of_a_variable_bit_rate_are_those_of_the_whole(mp3):
    whole, _ = soundfile.read(mp3, dtype="float32")
    assert np.abs(np.concatenate(list(decode(mp3, RATE))) - whole).max() == 0
    assert probe(mp3).frames == len(whole) == SECONDS * RATE


LYRICS = b"LYRICSBEGIN" + b"la" * 2_000
TAGS_BEHIND = {
    "none": b"",
    "ID3v1": b"TAG".ljust(128, b"x"),
    "APE": ape(90_000, with_header=True) + b"TAG".ljust(128, b"x"),
    "APE without header": ape(90_000, with_header=False),
    "Lyrics3": LYRICS + b"%06d" % len(LYRICS) + b"LYRICS200" + b"TAG".ljust(128, b"x"),
}


@pytest.mark.parametrize("behind", TAGS_BEHIND)
@pytest.mark.parametrize("before", [0, 200, 300_000])
def test_without_a_stated_length_all_frames_are_decoded(mp3, before, behind):
    expected = load_audio(mp3, RATE)
    without_length(mp3)
    data = mp3.read_bytes()
    mp3.write_bytes((id3(before) if before else b"") + data + TAGS_BEHIND[behind])
    layout = mpeg_layout(mp3)
    assert (layout.start, layout.end) == (
        before + 10 if before else 0,
        mp3.stat().st_size - len(TAGS_BEHIND[behind]),
    )
    assert probe(mp3).frames is None
    found = load_audio(mp3, RATE)
    # The frame that held the count is audio now, and nothing tells the encoder's padding any more.
    assert 0 < len(found) - len(expected) < 5 * 1152
    shift = 1152 + 576 + 529  # that frame, and the delays of the encoder and the decoder
    np.testing.assert_allclose(found[shift : shift + len(expected)][RATE:], expected[RATE:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [0, 31, 2**31, 2**32 - 1])
@pytest.mark.parametrize("before", [0, 500])
def test_a_tag_of_an_impossible_size_is_left_out(mp3, before, size):
    without_length(mp3)
    tag = b"APETAGEX" + struct.pack("<IIII", 2000, size, 0, 0) + bytes(8)
    mp3.write_bytes((id3(before) if before else b"") + mp3.read_bytes() + tag)
    assert mpeg_layout(mp3).end == mp3.stat().st_size - len(tag)
    assert abs(len(load_audio(mp3, RATE)) - SECONDS * RATE) < 5 * 1152


def test_a_tag_that_reaches_into_the_tags_before_the_audio_leaves_none(mp3):
    without_length(mp3)
    data = id3(500) + mp3.read_bytes()
    mp3.write_bytes(data + b"APETAGEX" + struct.pack("<IIII", 2000, len(data) + 32 - 100, 0, 0) + bytes(8))
    with pytest.raises(AudioError, match=r"x\.mp3"):
        load_audio(mp3, RATE)


def test_libsndfile_alone_would_stop_early(mp3):
    """The reason for all this; when it fails, libsndfile has learnt to scan and `CountedFrames` can go."""
    assert soundfile.info(without_length(mp3)).duration < SECONDS * 0.9


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (24_000, 1), (8_000, 1)])
def test_without_a_stated_length_audio_begins_where_every_decoder_begins(write, rate, channels):
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (10 * rate, channels))
    path = without_length(write("x.mp3", signal, rate=rate, subtype="MPEG_LAYER_III"))
    plain, _ = soundfile.read(path, dtype="float32", always_2d=True)
    found = load_audio(path, rate)
    assert len(plain) > 5 * rate
    assert np.abs(found[: len(plain)] - plain.mean(axis=1)[: len(found)]).max() == 0


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (32_000, 1), (24_000, 2), (16_000, 1), (8_000, 1)])
def test_all_versions_of_mpeg_are_understood(write, rate, channels):
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, (10 * rate, channels))
    path = write("x.mp3", signal, rate=rate, subtype="MPEG_LAYER_III")
    expected = load_audio(path, rate)
    found = load_audio(without_length(path), rate)
    shift = (1152 if rate >= 32_000 else 576) + 576 + 529  # a frame, and both delays
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


def test_reading_that_fails_is_not_taken_for_the_end(mp3, tmp_path):
    layout = mpeg_layout(without_length(mp3))
    with CountedFrames(mp3, layout) as frames:
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, frames._file.fileno())  # any read of it fails, as of a disk that does
        os.close(directory)
        frames.seek(layout.end)
        assert frames.readinto(bytearray(100)) == 0
        assert isinstance(frames.failure, IsADirectoryError)
