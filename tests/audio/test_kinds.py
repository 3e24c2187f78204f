"""Kinds of files that people report as trouble: all that was written is decoded, or an error says why not.

Each is made here from samples that are known, with the numbers that matter drawn at random.
"""

import struct

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from written_audio import RATE, chunk, encoded, few, found, mean, music

from featurestore.audio import Found, decode, load_audio
from featurestore.errors import AudioError, AudioFormatError


# Where containers state their length: position, format, what is added to the bytes of audio, bytes of a unit.
def places(data, container, width):
    if container == "WAV":
        at = data.find(b"data")
        return [(4, "<I", at, 1), (at + 4, "<I", 0, 1)]
    if container == "RF64":
        return [(20, "<Q", 72, 1), (28, "<Q", 0, 1)]
    if container == "W64":
        at = data.find(b"data\xf3\xac\xd3\x11")
        return [(16, "<Q", at + 24, 1), (at + 16, "<Q", 24, 1)]
    if container == "AIFF":
        comm, ssnd = data.find(b"COMM"), data.find(b"SSND")
        return [(4, ">I", ssnd + 8, 1), (comm + 10, ">I", 0, width), (ssnd + 4, ">I", 8, 1)]
    if container == "CAF":
        return [(data.find(b"data") + 4, ">Q", 4, 1)]
    return [(8, ">I", 0, 1)]  # AU


def stating(data, container, width, size):
    """The file with a header that states so many bytes of audio; a callable gives the size of each field."""
    for at, code, more, unit in places(data, container, width):
        value = size(struct.calcsize(code)) if callable(size) else size // unit + more
        data[at : at + struct.calcsize(code)] = struct.pack(code, value)
    return data


CONTAINERS = ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"]
SUBTYPES = st.sampled_from([("PCM_16", 2), ("PCM_24", 3), ("FLOAT", 4)])
UNFINISHED = {
    "zero": lambda width: 0,
    "all ones": lambda width: (1 << 8 * width) - 1,
    "half": lambda width: (1 << (8 * width - 1)) - 1,
    "sox": lambda width: 0x7F000000 if width == 4 else 0,
}


@pytest.mark.slow
@few
@given(frames=st.integers(RATE, 12 * RATE), channels=st.integers(1, 3), subtype=SUBTYPES)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("unfinished", UNFINISHED)
def test_headers_that_were_never_finished(tmp_path, container, unfinished, frames, channels, subtype):
    signal = music(frames, channels)
    data = encoded(signal, container, subtype[0])
    start = len(data)
    data = stating(data, container, channels * subtype[1], UNFINISHED[unfinished])
    del data[start:]
    samples, _ = found(tmp_path / "x.wav", data)
    extra = len(samples) - frames  # Wave64 is filled up to 8 bytes, which nothing tells from samples then
    assert 0 <= extra <= (8 if container == "W64" else 1)
    np.testing.assert_allclose(samples[:frames], mean(signal), rtol=0, atol=1e-7)


@pytest.mark.slow
@few
@given(
    frames=st.integers(2 * RATE, 12 * RATE),
    channels=st.integers(1, 2),
    subtype=SUBTYPES,
    part=st.floats(0.01, 0.9),
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_headers_that_state_a_part(tmp_path, container, frames, channels, subtype, part):
    signal, width = music(frames, channels), channels * subtype[1]
    data = stating(encoded(signal, container, subtype[0]), container, width, max(1, int(part * frames)) * width)
    samples, warnings = found(tmp_path / "x", data)
    assert 0 <= len(samples) - frames <= 8
    np.testing.assert_allclose(samples[:frames], mean(signal), rtol=0, atol=1e-7)
    assert any("behind the end that its header states" in warning for warning in warnings)


@few
@given(frames=st.integers(RATE, 6 * RATE), lost=st.integers(1, 40_000), subtype=SUBTYPES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_cut_containers(tmp_path, container, frames, lost, subtype):
    """What lacks more than 0.1 s is refused; what lacks less is told."""
    signal = music(frames)
    data = encoded(signal, container, subtype[0])
    audio = frames * subtype[1]
    padding = len(data) - stating_end(data, container, audio)
    del data[len(data) - min(lost + padding, len(data) - 200) :]
    missing = min(lost, audio - 200) / subtype[1]
    try:
        samples, warnings = found(tmp_path / "x", data)
    except AudioError as error:
        assert missing > 0.1 * RATE or frames - missing < RATE
        assert "x" in str(error)  # noqa: PT017
    else:
        assert frames - missing - 1 <= len(samples) <= frames + 4
        assert missing <= 0.1 * RATE + 1
        assert len(samples) >= frames or any("fewer" in warning for warning in warnings)


def stating_end(data, container, audio):
    """Where the audio ends."""
    start = {"AU": lambda: struct.unpack(">I", data[4:8])[0], "AIFF": lambda: data.find(b"SSND") + 16}
    behind = {"W64": 24, "CAF": 16}.get(container, 8)
    name = b"data\xf3\xac\xd3\x11" if container == "W64" else b"data"
    return (start[container]() if container in start else data.find(name) + behind) + audio


TAGS = {
    "ID3v1": b"TAG".ljust(128, b"x"),
    "ID3v2": b"ID3\x04\0\0\0\0\x10\0" + bytes(2_048),
    "a line break": b"\n",
    "a chunk": b"LIST" + struct.pack("<I", 2_000) + b"INFO" + bytes(1_996),
    "a cut chunk": b"LIST" + struct.pack("<I", 9_000) + b"INFO" + bytes(1_996),
    "an unknown chunk": b"myap" + struct.pack("<I", 3_000) + bytes(3_000),
}


@pytest.mark.parametrize("behind", TAGS)
@pytest.mark.parametrize("frames", [RATE, 5 * RATE, 10 * RATE, 10 * RATE + 1])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_tags_and_chunks_behind_the_audio_are_no_audio(tmp_path, container, frames, behind):
    signal = music(frames)
    data = encoded(signal, container, "PCM_16")
    samples, warnings = found(tmp_path / "x", data + TAGS[behind])
    np.testing.assert_array_equal(samples, mean(signal))
    assert warnings == []


def test_recordings_one_behind_the_other_are_refused(tmp_path):
    data = encoded(music(2 * RATE), "WAV", "PCM_16")
    (tmp_path / "x.wav").write_bytes(data + data)
    with pytest.raises(AudioFormatError, match="another recording behind the first"):
        load_audio(tmp_path / "x.wav")


@pytest.mark.slow
@few
@given(
    frames=st.integers(RATE, 4 * RATE),
    channels=st.integers(1, 2),
    bits=st.sampled_from([(24, 4), (20, 4), (20, 3), (18, 3), (12, 2), (16, 4)]),
)
def test_samples_in_more_bytes_than_they_need(tmp_path, frames, channels, bits):
    valid, width = bits
    whole = np.round(music(frames, channels) * 2 ** (valid - 1)).astype(np.int64) << (8 * width - valid)
    data = b"".join(int(x).to_bytes(width, "little", signed=True) for x in whole.ravel())
    block = channels * width
    head = struct.pack("<HHIIHHHHI", 0xFFFE, channels, RATE, RATE * block, block, valid, 22, valid, 0)
    form = head + bytes.fromhex("0100000000001000800000aa00389b71")
    riff = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", data)
    samples, _ = found(tmp_path / "x.wav", b"RIFF" + struct.pack("<I", len(riff)) + riff)
    np.testing.assert_allclose(samples, (whole / 2.0 ** (8 * width - 1)).mean(axis=1), rtol=0, atol=1e-7)


@pytest.mark.slow
@few
@given(
    frames=st.integers(RATE, 4 * RATE),
    block=st.integers(64, 20_000),
    channels=st.integers(1, 2),
    cut=st.floats(0.4, 1),
)
def test_voc_of_many_blocks(tmp_path, frames, block, channels, cut):
    signal, block = music(frames, channels), block // 4 * 4
    data = (signal * 32_768).astype("<i2").tobytes()

    def piece(kind, content):
        return bytes([kind]) + len(content).to_bytes(3, "little") + content

    voc = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x0114, 0x011F)
    voc += piece(9, struct.pack("<IBBHI", RATE, 16, channels, 4, 0) + data[:block])
    voc += b"".join(piece(2, data[i : i + block]) for i in range(block, len(data), block))
    samples, _ = found(tmp_path / "x.voc", voc + b"\0")
    np.testing.assert_array_equal(samples, mean(signal))
    with pytest.raises(AudioFormatError, match="truncated"):
        found(tmp_path / "y.voc", voc[: int(cut * len(voc))])


LOSSY = [
    ("x.m4a", "aac", 3 * 1024),
    ("x.mka", "aac", 3 * 1024),
    ("x.wma", "wmav2", 4 * 2048),
    ("x.aac", "aac", 3 * 1024),
]
LOSSLESS = [("x.m4a", "alac"), ("x.wv", "wavpack"), ("x.tta", "tta"), ("x.caf", "alac")]


def by_ffmpeg(path, codec, signal, rate):
    """A file that FFmpeg's own encoder writes."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", bit_rate=128_000)
        forms = [form.name for form in stream.codec_context.codec.audio_formats]
        form = next((name for name in ("s16", "s16p") if name in forms), forms[0])
        stream.codec_context.format = form
        resampler = av.AudioResampler(format=form, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray((signal.T * 32_768).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        for part in resampler.resample(frame) + resampler.resample(None):
            fifo.write(part)
        size = stream.codec_context.frame_size or 4_096
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("name", "codec"), LOSSLESS)
@pytest.mark.parametrize("frames", [44_100, 100_001, 3 * 44_100 + 17])
def test_lossless_formats_of_ffmpeg(tmp_path, name, codec, frames):
    signal = music(frames, rate=44_100)
    by_ffmpeg(tmp_path / name, codec, signal, 44_100)
    told = Found()
    np.testing.assert_array_equal(np.concatenate(list(decode(tmp_path / name, 44_100, found=told))), mean(signal))
    assert told.warnings == []


@pytest.mark.parametrize(("name", "codec", "delay"), LOSSY)
def test_lossy_formats_of_ffmpeg(tmp_path, name, codec, delay):
    signal = music(5 * 44_100, rate=44_100)
    by_ffmpeg(tmp_path / name, codec, signal, 44_100)
    told = Found()
    samples = np.concatenate(list(decode(tmp_path / name, 44_100, found=told)))
    assert told.warnings == []
    assert abs(len(samples) - len(signal)) <= delay
    lags = np.correlate(samples[40_000:60_000], mean(signal)[45_000:50_000], "valid")
    assert abs(5_000 - int(np.argmax(lags))) <= delay


@pytest.mark.slow
def test_cut_files_of_ffmpeg_are_refused(tmp_path):
    for name, codec in [*LOSSLESS, ("y.mka", "aac"), ("y.wma", "wmav2")]:
        by_ffmpeg(tmp_path / name, codec, music(6 * 44_100, rate=44_100), 44_100)
        data = (tmp_path / name).read_bytes()
        with pytest.raises(AudioFormatError, match=name):
            found(tmp_path / name, data[: len(data) * 3 // 5], 44_100)


def test_what_names_other_files_is_not_opened(tmp_path):
    """A playlist could name any file of this machine, or an address."""
    soundfile.write(tmp_path / "secret.wav", music(2 * RATE), RATE)
    (tmp_path / "a.mp3").write_text(f"#EXTM3U\n#EXTINF:2,\nfile://{tmp_path}/secret.wav\n")
    (tmp_path / "b.wav").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n")
    for name in ("a.mp3", "b.wav", "concat:secret.wav"):
        with pytest.raises(AudioError):
            load_audio(tmp_path / name)


def test_silence_clipping_and_channels_that_cancel_are_told(tmp_path):
    def warnings(signal, subtype="PCM_16"):
        return found(tmp_path / "x.wav", encoded(signal, "WAV", subtype))[1]

    one = music(2 * RATE)
    [cancelled] = warnings(np.hstack([one, -one]))
    assert "cancel each other out" in cancelled
    [silent] = warnings(0 * one)
    assert "silent" in silent
    [clipped] = warnings(np.clip(8 * one, -1, 32_767 / 32_768))
    assert "clipped" in clipped
    assert warnings(one) == warnings(np.hstack([one, one])) == warnings(np.hstack([one, 0 * one])) == []


def test_levels_are_those_of_the_mono_signal(tmp_path):
    signal = music(3 * RATE, 2)
    signal[:800] = 1
    told = Found()
    (tmp_path / "x.wav").write_bytes(encoded(signal, "WAV", "FLOAT"))
    list(decode(tmp_path / "x.wav", RATE, found=told))
    mono = mean(signal)
    levels = told.levels()
    assert levels["rms"] == pytest.approx(np.sqrt(np.mean(mono.astype(float) ** 2)), rel=1e-5)
    assert levels["peak"] == np.abs(mono).max() == 1
    assert levels["clipped"] == pytest.approx(800 / (3 * RATE))


@pytest.mark.parametrize("value", [1e19, 1e12, -1e11])
def test_magnitudes_that_no_sound_has_are_refused(tmp_path, value):
    signal = music(2 * RATE)
    signal[RATE] = value
    with pytest.raises(AudioError, match="beyond 1e"):
        found(tmp_path / "x.wav", encoded(signal, "WAV", "DOUBLE"))
