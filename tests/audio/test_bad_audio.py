"""One bad file is one error that names it and says what is wrong, soon and without taking memory."""

import contextlib
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from featurestore.audio import decode, file_sha256, load_audio, read_header, validate_audio_file
from featurestore.errors import (
    AudioContentError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    AudioTooShortError,
)

pytestmark = pytest.mark.timeout(60)


def fails(path, error, message, *, at_header):
    """All ways to read the file tell the same."""
    if at_header:
        with pytest.raises(error, match=message):
            read_header(path)
    else:
        read_header(path)
    with pytest.raises(error, match=message) as caught:
        load_audio(path, 8_000)
    assert Path(path).name in str(caught.value)
    report = validate_audio_file(path)
    assert not report["valid"]
    assert report["errors"] == [str(caught.value)]
    return report


def test_missing_dangling_and_directory_are_not_found(tmp_path):
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "self.wav").symlink_to(tmp_path / "self.wav")
    (tmp_path / "x.wav").mkdir()
    for name, message in [
        ("none.wav", "is not there"),
        ("gone.wav", "leads nowhere"),
        ("self.wav", "leads nowhere"),
        ("x.wav", "is a directory"),
        ("x.wav/none.wav", "is not there"),
        ("y" * 300 + ".wav", "is not there"),
    ]:
        report = fails(tmp_path / name, AudioNotFoundError, message, at_header=True)
        assert not report["file_exists"]
    with pytest.raises(FileNotFoundError, match="is not there"):
        read_header("nul\0.wav")


@pytest.mark.parametrize(
    "suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "snd", "caf", "raw", "voc", "xyz"]
)
@pytest.mark.parametrize("content", [b"This is no audio, but text.\n" * 500, bytes(9_000), os.urandom(9_000)])
def test_what_is_no_audio_is_refused_whatever_its_suffix(tmp_path, suffix, content):
    path = tmp_path / f"text.{suffix}"
    path.write_bytes(content)
    report = fails(path, AudioFormatError, "plain text|in no format that is read", at_header=True)
    assert report["file_exists"]
    assert not report["readable"]


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "x.wav").touch()
    fails(tmp_path / "x.wav", AudioFormatError, "0 bytes", at_header=True)


@contextlib.contextmanager
def without_privileges():
    """root may read anything, so the test steps down."""
    if os.geteuid() == 0:
        os.seteuid(65_534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_what_may_not_be_read_is_said_to_be_denied(write):
    read_header(write())  # imports are done while everything may be read
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, closed = Path(folder, "x.wav"), Path(folder, "closed")
        path.write_bytes(write().read_bytes())
        closed.mkdir()
        os.chmod(path, 0)
        os.chmod(closed, 0)
        with without_privileges():
            for unreadable in (path, closed / "x.wav"):
                report = fails(unreadable, AudioFormatError, r"[Pp]ermission denied", at_header=True)
                assert report["file_exists"]
                with pytest.raises(AudioFormatError, match=r"[Pp]ermission denied"):
                    file_sha256(unreadable)
        os.chmod(closed, 0o755)


def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name in ("pipe.wav", "zero.wav"):
        fails(tmp_path / name, AudioFormatError, "a pipe, a socket or a device", at_header=True)
        with pytest.raises(AudioFormatError, match="a pipe"):
            file_sha256(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "subtype"), [("x.wav", "PCM_16"), ("x.flac", "PCM_16"), ("x.ogg", "VORBIS"), ("x.aiff", "PCM_16")]
)
@pytest.mark.parametrize("frames", [399, 7_200, 23_999])
def test_less_than_a_second_is_too_short(write, name, subtype, frames):
    path = write(name, np.zeros(frames), rate=24_000, subtype=subtype)
    seconds = np.floor(frames / 24_000 * 1e6) / 1e6  # never rounded to what would be enough
    report = fails(path, AudioTooShortError, rf"{seconds:.6f} s", at_header=subtype != "VORBIS")
    assert report["readable"]
    assert report["duration"] == frames / 24_000


@pytest.mark.parametrize("name", ["x.wav", "x.aiff", "x.ogg"])
def test_no_samples_are_too_short(write, name):
    path = write(name, np.zeros(0), rate=24_000)
    fails(path, AudioTooShortError, "0 samples", at_header=name != "x.ogg")


def test_a_second_is_long_enough(write):
    assert len(load_audio(write("x.wav", np.zeros(24_000), rate=24_000))) == 24_000


def test_shortness_is_found_where_no_header_tells_it(write):
    path = write("x.flac", np.zeros(12_000), rate=24_000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    fails(path, AudioTooShortError, r"0\.500000 s", at_header=False)


SIGNALLING_NAN = np.frombuffer(b"\x01\x00\xa0\x7f", np.float32)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -2e38, SIGNALLING_NAN])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_no_numbers_are_told_with_their_second(write, value, channels):
    signal = np.zeros((24_000 * 9, channels), np.float32)
    signal[24_000 * 7 + 12_000, -1] = value
    path = write("x.wav", signal, rate=24_000, subtype="FLOAT")
    report = fails(path, AudioContentError, r"at 7\.500 s \(sample 180,000\)", at_header=False)
    assert report["readable"]


def test_infinities_of_both_signs_do_not_cancel(write):
    signal = np.zeros((24_000, 2), np.float32)
    signal[0] = np.inf, -np.inf
    fails(write("x.wav", signal, rate=24_000, subtype="FLOAT"), AudioContentError, r"0\.000 s", at_header=False)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_rates_that_are_no_sounds_are_refused(write, rate):
    path = write("x.wav", np.zeros(1_000), rate=8_000)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    fails(path, AudioFormatError, f"sample rate of {rate} Hz", at_header=True)


@pytest.mark.parametrize("name", ["x.wav", "x.aiff", "x.au", "x.w64", "x.rf64"])
def test_truncated_containers_tell_how_much_they_hold(write, name):
    path = write(name, rate=24_000, seconds=10, subtype="PCM_16")
    os.truncate(path, path.stat().st_size * 2 // 5)
    fails(path, AudioFormatError, r"truncated.* (3\.99|4\.00) s", at_header=True)


def test_a_truncated_chunk_behind_the_audio_does_no_harm(write):
    path = write("x.wav", rate=24_000, seconds=3, subtype="PCM_16")
    data = bytearray(path.read_bytes()) + b"LIST" + struct.pack("<I", 5_000) + b"cut"
    data[4:8] = struct.pack("<I", len(data) + 5_000)
    path.write_bytes(data)
    assert len(load_audio(path)) == 72_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "subtype"), [("x.flac", "PCM_16"), ("x.mp3", "MPEG_LAYER_III")])
def test_truncated_streams_are_found_when_they_end(write, name, subtype):
    path = write(name, rate=24_000, seconds=30, subtype=subtype)
    os.truncate(path, path.stat().st_size * 2 // 5)
    report = fails(path, AudioFormatError, r"truncated or damaged.* of the 30\.00 s", at_header=False)
    assert report["readable"]


@pytest.mark.slow
def test_damage_in_the_middle_is_found(write):
    path = write("x.flac", rate=24_000, seconds=30, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3_000] = os.urandom(3_000)
    path.write_bytes(data)
    fails(path, AudioFormatError, "is damaged: .* missing about|truncated or damaged after", at_header=False)
    blocks = decode(path, 24_000)
    assert len(next(blocks)) > 0  # what comes before the damage comes first
    with pytest.raises(AudioFormatError):
        list(blocks)


@pytest.mark.parametrize(
    ("position", "claim"),
    [
        (22, struct.pack("<H", 65_535)),  # channels
        (22, struct.pack("<H", 0)),
        (24, struct.pack("<I", 2**32 - 1)),  # rate
        (24, struct.pack("<I", 0)),
        (20, struct.pack("<H", 0x1234)),  # a codec that nobody knows
        (40, struct.pack("<I", 3 * 10**9)),  # bytes of audio
        (16, struct.pack("<I", 2**32 - 1)),  # bytes of the format chunk
    ],
)
def test_wav_headers_that_lie_take_no_memory(write, position, claim):
    import tracemalloc

    path = write("x.wav", rate=24_000, seconds=2, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[position : position + len(claim)] = claim
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(AudioError):
        load_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize("claim", [2**63 - 1, 2**62, 2**40])
@pytest.mark.parametrize(
    ("name", "chunk", "code"), [("x.w64", b"fmt \xf3\xac\xd3\x11", "<q"), ("x.caf", b"free", ">q")]
)
def test_chunks_longer_than_any_file_are_errors(write, name, chunk, code, claim):
    path = write(name, rate=24_000, seconds=2, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.find(chunk) + (16 if name == "x.w64" else 4)
    data[at : at + 8] = struct.pack(code, claim)
    path.write_bytes(data)
    fails(path, AudioFormatError, "in no format that is read", at_header=True)


@pytest.mark.parametrize("claimed", [2**36 - 1, 100 * 24_000])
def test_flac_headers_that_lie_take_no_memory(write, claimed):
    import tracemalloc

    path = write("x.flac", rate=24_000, seconds=10, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[21] = (data[21] & 0xF0) | (claimed >> 32)
    data[22:26] = struct.pack(">I", claimed & 0xFFFFFFFF)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(AudioFormatError, match=r"header is damaged|of the 100\.00 s"):
        load_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
