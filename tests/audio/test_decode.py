"""A file of any format becomes mono float32 at one rate, in blocks."""

import hashlib
import itertools
import os
import sys

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

import featurestore
from featurestore.audio import (
    Found,
    decode,
    file_sha256,
    load_audio,
    read_header,
    segment_audio,
    validate_audio_file,
)
from featurestore.audio.opening import load_av
from featurestore.errors import AudioNotFoundError, MissingDependencyError, SettingError

LOSSLESS = [
    ("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "DOUBLE"), ("a.flac", "PCM_24"),
    ("a.aiff", "PCM_16"), ("a.au", "PCM_16"), ("a.caf", "PCM_16"), ("a.w64", "PCM_16"), ("a.rf64", "PCM_16"),
]  # fmt: skip
LOSSY = [("a.ogg", "VORBIS", 44_100), ("a.mp3", "MPEG_LAYER_III", 44_100), ("a.opus", "OPUS", 48_000)]


@pytest.mark.parametrize(("name", "subtype"), LOSSLESS)
def test_lossless_formats_give_the_mean_of_their_channels(write, name, subtype):
    path = write(name, rate=24_000, seconds=12.3, channels=2, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(load_audio(path), whole.mean(axis=1, dtype=np.float64).astype(np.float32))
    info = read_header(path)
    assert (info.sample_rate, info.channels, info.frames, info.duration) == (24_000, 2, 295_200, 12.3)
    assert (info.size, info.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert info.exact
    assert info.decoder.startswith("PyAV ")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "subtype", "rate"), LOSSY)
def test_lossy_formats_decode_in_blocks_as_in_one_piece(write, name, subtype, rate):
    path = write(name, rate=rate, seconds=17.4, channels=2, subtype=subtype)
    with soundfile.SoundFile(path) as file:
        whole = file.read(dtype="float32")
        assert abs(len(whole) - 17.4 * rate) < 0.1 * rate
    expected = torchaudio.functional.resample(torch.from_numpy(whole.mean(axis=1)), rate, 24_000).numpy()
    # libsndfile's decoder of MP3 is another one.
    np.testing.assert_allclose(load_audio(path), expected, rtol=0, atol=4e-6 if name == "a.mp3" else 1e-6)


@pytest.mark.slow
def test_blocks_are_of_a_few_seconds_and_new_memory_each(write):
    path = write(rate=48_000, seconds=23, subtype="PCM_16")
    blocks = list(decode(path, 24_000))
    assert all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
    assert all(0 < len(block) <= 6 * 24_000 for block in blocks)
    assert len(blocks) >= 4
    assert not any(np.shares_memory(a, b) for a, b in itertools.pairwise(blocks))
    assert np.concatenate(blocks).tobytes() == load_audio(path, 24_000).tobytes()


def test_channels_cancel_exactly(write):
    one = np.random.default_rng(0).uniform(-1, 1, 24_000)
    path = write(signal=np.stack([one, -one], 1), rate=24_000, subtype="FLOAT")
    assert not load_audio(path).any()


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_any_number_of_channels_is_averaged(write, channels):
    path = write(rate=24_000, channels=channels, subtype="FLOAT")
    whole, _ = soundfile.read(path, always_2d=True)
    np.testing.assert_allclose(load_audio(path), whole.mean(axis=1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["\U0001f3b5 nana.wav", "two\nlines.flac", "x.WAV", "-", "sound"])
def test_names_do_not_matter(write, monkeypatch, name):
    path = write("a.wav")
    path.rename(path.with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(load_audio(name, 8_000)) == 12_000


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_need_not_be_utf8(write):
    path = write("a.wav")
    other = os.path.join(os.fsencode(path.parent), b"caf\xe9.wav")
    os.rename(path, other)
    assert len(load_audio(os.fsdecode(other), 8_000)) == 12_000
    assert validate_audio_file(os.fsdecode(other))["valid"]
    os.truncate(other, 10_000)
    [message] = validate_audio_file(os.fsdecode(other))["errors"]
    message.encode()


def test_a_stream_of_unknown_length_is_decoded_to_its_end(write):
    """FLAC encoders that write to a pipe leave the number of samples at 0, WAV encoders the sizes at 2^32 - 1."""
    path = write("a.flac", rate=24_000, seconds=11, subtype="PCM_16")
    expected = load_audio(path)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36-bit count: the low half of this byte and the next four
    data[22:26] = bytes(4)
    path.write_bytes(data)
    info = read_header(path)
    assert (info.frames, info.duration) == (None, None)
    assert load_audio(path).tobytes() == expected.tobytes()

    path = write("b.wav", rate=24_000, seconds=11, subtype="PCM_16")
    expected = load_audio(path)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    path.write_bytes(data)
    assert load_audio(path).tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1_000, 768_000, 44_101])
def test_odd_rates_work(write, rate):
    path = write(rate=rate, seconds=1.5, subtype="PCM_16")
    found = load_audio(path, 24_000)
    assert len(found) == -(-round(1.5 * rate) * 24_000 // rate)
    assert np.isfinite(found).all()
    assert 0.03 < found.std() < 0.5


def test_decoding_tells_what_the_header_says(write):
    path, told = write(), Found()
    next(decode(path, 8_000, found=told))
    assert told.info == read_header(path)


def test_a_file_that_grows_while_it_is_read_is_refused(write):
    from featurestore.errors import AudioFormatError

    path = write(seconds=12)
    blocks = decode(path, 8_000)
    next(blocks)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(AudioFormatError, match="changed while it was read"):
        list(blocks)


@pytest.mark.parametrize("rate", [0, 999, 10**6, 24_000.5])
def test_impossible_target_rates_are_refused(write, rate):
    with pytest.raises(SettingError, match="sample rate"):
        load_audio(write(), rate)


def test_without_pyav_the_extra_is_named(write, monkeypatch):
    path = write()
    load_av.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"featurestore\[extract\]"):
        read_header(path)


def test_validation_reports_what_is_there(write):
    report = validate_audio_file(write(rate=22_050, seconds=2, channels=2))
    assert report == {
        "valid": True,
        "file_exists": True,
        "readable": True,
        "sample_rate": 22_050,
        "duration": 2.0,
        "channels": 2,
        "errors": [],
    }


def test_segments_are_the_windows_of_the_whole(write):
    audio = np.arange(24_000 * 8, dtype=np.float32)
    segments = segment_audio(audio)
    assert segments.shape == (3, 120_000)
    assert (segments[:, 0] / 24_000).tolist() == [0, 2.5, 3]
    assert segments.flags.writeable
    assert not np.shares_memory(segments, audio)
    assert segment_audio(audio[:5]).shape == (1, 5)
    assert segment_audio(audio, segment_duration=2, overlap_ratio=0, sample_rate=12_000).shape == (8, 24_000)
    assert segment_audio([0.5, 0.25], 1.0, 0.0, 1).tolist() == [[0.5], [0.25]]


@pytest.mark.parametrize("audio", [np.zeros((2, 100)), np.zeros(()), np.zeros(0)])
def test_only_mono_samples_have_segments(audio):
    with pytest.raises(SettingError):
        segment_audio(audio)


def test_hash_of_a_file(write, tmp_path):
    path = write(seconds=30)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(AudioNotFoundError):
        file_sha256(tmp_path / "nowhere.wav")


def test_public_names_are_those_of_the_package():
    assert featurestore.load_audio is load_audio
    assert featurestore.segment_audio is segment_audio
    assert featurestore.validate_audio_file is validate_audio_file
