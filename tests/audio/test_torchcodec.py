"""Formats that FFmpeg reads and libsndfile does not come through torchcodec, where it is installed."""

import sys

import pytest

from featurestore.audio import discover, probe, validate_audio_file
from featurestore.audio.ffmpeg import available
from featurestore.errors import AudioFormatError, AudioNotFoundError, MissingDependencyError

installed = pytest.mark.skipif(not available(), reason="torchcodec is not installed")


def test_without_torchcodec_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    path = tmp_path / "x.m4a"
    path.write_bytes(b"content")
    assert [file.track_id for file in discover(path)] == ["x"]
    with pytest.raises(MissingDependencyError, match="pip install torchcodec"):
        probe(path)


def test_missing_files_are_missing_with_any_decoder(tmp_path):
    with pytest.raises(AudioNotFoundError, match="is not there"):
        probe(tmp_path / "x.m4a")
    (tmp_path / "y.m4a").touch()
    with pytest.raises(AudioFormatError, match="0 bytes"):
        probe(tmp_path / "y.m4a")


@pytest.fixture
def encode(tmp_path):
    def write(name, seconds=12.0, rate=44_100, channels=2):
        import torch
        from torchcodec.encoders import AudioEncoder

        t = torch.arange(round(seconds * rate)) / rate
        tone = torch.stack([0.4 * torch.sin(2 * torch.pi * 330 * (c + 1) * t) for c in range(channels)])
        path = tmp_path / name
        AudioEncoder(tone, sample_rate=rate).to_file(path, bit_rate=128_000)
        return path

    return write


@installed
@pytest.mark.parametrize("name", ["x.m4a", "x.mp4", "x.mkv", "x.aac", "x.wma", "caf\u00e9 \U0001f3b5.M4A"])
def test_blocks_are_those_of_the_whole(encode, name):
    import numpy as np
    import torchaudio
    from torchcodec.decoders import AudioDecoder

    from featurestore.audio import load_audio

    path = encode(name)
    info = probe(path)
    assert (info.sample_rate, info.channels, info.frames) == (44_100, 2, None)
    assert info.duration == pytest.approx(12, abs=0.7)
    assert info.decoder.startswith("torchcodec")
    whole = AudioDecoder(path).get_all_samples().data
    expected = torchaudio.functional.resample(whole.mean(0), 44_100, 24_000).numpy()
    found = load_audio(path)
    assert 0 <= len(found) - len(expected) < 4_096  # what the decoder holds at the end, which is drained here
    inner = len(expected) - 100
    np.testing.assert_allclose(found[:inner], expected[:inner], rtol=0, atol=1e-6)
    assert validate_audio_file(path)["errors"] == []
    assert [file.path for file in discover(path.parent)] == [path]


@installed
def test_bad_files_tell_why(encode, tmp_path):
    (tmp_path / "text.m4a").write_bytes(b"This is text.\n" * 100)
    report = validate_audio_file(tmp_path / "text.m4a")
    assert (report["valid"], report["readable"]) == (False, False)
    assert "not read by FFmpeg" in report["errors"][0]

    path = encode("x.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated or damaged" in validate_audio_file(path)["errors"][0]

    assert "at least 1.0 s" in validate_audio_file(encode("short.m4a", seconds=0.5))["errors"][0]
