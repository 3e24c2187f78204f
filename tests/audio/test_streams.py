"""FLAC, MP3 and Ogg that are cut, joined, damaged or miscounted: all is decoded, or an error says why not."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_audio import RATE, chunk, encoded, few, found, mean, music

from featurestore.audio import read_header
from featurestore.errors import AudioFormatError


def frames_of_flac(data):
    at = 4
    while not data[at] & 0x80:
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return data[at + 4 + int.from_bytes(data[at + 1 : at + 4], "big") :]


@pytest.mark.slow
@few
@given(parts=st.lists(st.integers(RATE, 5 * RATE), min_size=2, max_size=4), channels=st.integers(1, 2))
def test_joined_flac(tmp_path, parts, channels):
    signals = [music(frames, channels, seed=i) for i, frames in enumerate(parts)]
    first, *others = (encoded(signal, "FLAC", "PCM_16") for signal in signals)
    samples, _ = found(tmp_path / "x.flac", first + b"".join(map(frames_of_flac, others)))
    np.testing.assert_array_equal(samples, mean(np.concatenate(signals)))


@pytest.mark.slow
@few
@given(frames=st.integers(2 * RATE, 9 * RATE), stated=st.floats(0, 2))
def test_counts_of_flac(tmp_path, frames, stated):
    """One that is too small does no harm, one that is too large is a truncated file."""
    signal, count = music(frames), int(stated * frames)
    data = encoded(signal, "FLAC", "PCM_16")
    data[21] &= 0xF0
    data[22:26] = struct.pack(">I", count)
    if count > frames + 0.1 * RATE:
        with pytest.raises(AudioFormatError, match="truncated or damaged"):
            found(tmp_path / "x.flac", data)
    else:
        samples, _ = found(tmp_path / "x.flac", data) if count == 0 or count >= RATE else (mean(signal), None)
        np.testing.assert_array_equal(samples, mean(signal))


@pytest.mark.slow
@few
@given(cut=st.floats(0.05, 0.95))
@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_cut_streams_that_count_their_samples(tmp_path, container, subtype, cut):
    data = encoded(music(10 * RATE), container, subtype)
    with pytest.raises(AudioFormatError, match="truncated or damaged"):
        found(tmp_path / "x", data[: int(cut * len(data))])


@pytest.mark.slow
@few
@given(at=st.floats(0.15, 0.85), share=st.floats(0.02, 0.1), zeroed=st.booleans())
@pytest.mark.parametrize(
    ("container", "subtype", "rate"),
    [
        ("FLAC", "PCM_16", RATE),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", "MPEG_LAYER_III", 44_100),
    ],
)
def test_damage_within_is_never_passed_over(tmp_path, container, subtype, rate, at, share, zeroed):
    """As an error with its time, whether bytes are gone or overwritten."""
    data = encoded(music(10 * rate, rate=rate), container, subtype, rate)
    start, length = int(at * len(data)), int(share * len(data))
    data[start : start + length] = bytes(length) if zeroed else b""
    with pytest.raises(AudioFormatError, match=r"\d s"):
        found(tmp_path / "x", data, rate)


def vbr(signal, rate=44_100):
    return encoded(signal, "MP3", "MPEG_LAYER_III", rate, bitrate_mode="VARIABLE", compression_level=0.5)


def first_frame(data):
    """Bytes of the first frame of MPEG 1 layer 3."""
    rates = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    head = struct.unpack(">I", data[:4])[0]
    return 144_000 * rates[(head >> 12) & 15] // [44_100, 48_000, 32_000][(head >> 10) & 3] + ((head >> 9) & 1)


def quiet_then_loud(seconds):
    signal = music(seconds * 44_100, rate=44_100)
    signal[: seconds * 44_100 // 3] *= 0.01
    return signal


@pytest.fixture(scope="module")
def variable():
    return vbr(quiet_then_loud(20))


def in_riff(body, fact):
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2, 417, 1, 1_393)
    riff = b"WAVE" + chunk(b"fmt ", form) + chunk(b"fact", struct.pack("<I", fact)) + chunk(b"data", bytes(body))
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


@pytest.mark.slow
@pytest.mark.parametrize("fact", [20 * 44_100, 0, 1_000])
@pytest.mark.parametrize("name", ["x.wav", "x.mp3"])
def test_mp3_of_a_variable_bit_rate_in_riff(tmp_path, variable, name, fact):
    samples, _ = found(tmp_path / name, in_riff(variable[first_frame(variable) :], fact), 44_100)
    assert abs(len(samples) / 44_100 - 20) < 0.1


@pytest.mark.slow
@few
@given(start=st.integers(1, 20_000))
def test_mp3_that_starts_within_a_frame(tmp_path, variable, start):
    whole, _ = found(tmp_path / "whole.mp3", variable[first_frame(variable) :], 44_100)
    data = variable[first_frame(variable) + start :]
    samples, _ = found(tmp_path / "cut.mp3", data, 44_100)
    # All frames behind the cut: their samples are those of the whole, from some frame on.
    lacking = len(whole) - len(samples)
    assert lacking % 1152 == 0
    assert lacking / 1152 <= start / 100 + 3
    np.testing.assert_allclose(samples[-10 * 44_100 :], whole[-10 * 44_100 :], rtol=0, atol=1e-5)


@pytest.mark.slow
@few
@given(parts=st.lists(st.integers(2, 8), min_size=2, max_size=3), tag=st.sampled_from([0, 10, 2_000, 100_000]))
def test_joined_mp3(tmp_path, parts, tag):
    def id3(size):
        sizes = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
        return b"ID3\x04\0\0" + sizes + b"\xff\xfb" * (size // 2) if size else b""

    data = b"".join(id3(tag) + bytes(vbr(quiet_then_loud(seconds))) for seconds in parts)
    samples, _ = found(tmp_path / "x.mp3", data, 44_100)
    assert 0 <= len(samples) / 44_100 - sum(parts) < 0.1 * len(parts)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 100])
def test_counts_of_mp3_that_are_too_small(tmp_path, variable, count):
    at = max(variable[:2_000].find(b"Xing"), variable[:2_000].find(b"Info"))
    data = bytearray(variable)
    data[at + 8 : at + 12] = struct.pack(">I", count)
    samples, _ = found(tmp_path / "x.mp3", data, 44_100)
    assert abs(len(samples) / 44_100 - 20) < 0.1


@pytest.mark.slow
def test_a_guessed_length_is_called_a_guess(tmp_path, variable):
    (tmp_path / "x.mp3").write_bytes(variable[first_frame(variable) :])
    info = read_header(tmp_path / "x.mp3")
    assert (info.frames, info.exact) == (None, False)


@pytest.mark.slow
@few
@given(parts=st.lists(st.integers(1, 6), min_size=2, max_size=4))
@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", 44_100), ("OPUS", 48_000)])
def test_chained_ogg(tmp_path, subtype, rate, parts):
    data = b"".join(
        bytes(encoded(music(seconds * rate, rate=rate, seed=i), "OGG", subtype, rate))
        for i, seconds in enumerate(parts)
    )
    samples, warnings = found(tmp_path / "x.ogg", data, rate)
    assert 0 <= len(samples) / rate - sum(parts) < 0.05 * len(parts)
    assert warnings == []


def test_an_ogg_file_cut_between_pages_is_told(tmp_path):
    data = encoded(music(10 * 44_100, rate=44_100), "OGG", "VORBIS", 44_100)
    pages = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]
    samples, warnings = found(tmp_path / "x.ogg", data[: pages[len(pages) // 2]], 44_100)
    assert len(samples) < 9 * 44_100
    assert any("last page is not marked as the end" in warning for warning in warnings)
    with pytest.raises(AudioFormatError, match=r"truncated or damaged at its end, after \d"):
        found(tmp_path / "y.ogg", data[: pages[len(pages) // 2] + 500], 44_100)


def crc(data):
    """The checksum of a page of Ogg."""
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value & 0xFFFFFFFF


@pytest.mark.parametrize("rate", [0, 8_000, 16_000, 44_100, 96_000])
def test_opus_is_decoded_at_48_khz_whatever_its_input_was(tmp_path, rate):
    signal = np.random.default_rng(0).normal(0, 0.1, (96_000, 1))
    data = encoded(signal, "OGG", "OPUS", 48_000)
    expected, _ = found(tmp_path / "a.opus", data, 48_000)
    size = 27 + data[26] + sum(data[27 : 27 + data[26]])
    head = data.find(b"OpusHead")
    data[head + 12 : head + 16] = struct.pack("<I", rate)
    data[22:26] = bytes(4)
    data[22:26] = struct.pack("<I", crc(data[:size]))
    samples, _ = found(tmp_path / "b.opus", data, 48_000)
    np.testing.assert_array_equal(samples, expected)
    assert read_header(tmp_path / "b.opus").sample_rate == 48_000
