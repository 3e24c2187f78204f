"""Decoding ahead: in order, in bounded memory, and errors reach the track that they are about."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from featurestore.audio import AudioFile, load_audio
from featurestore.errors import AudioError
from featurestore.pipeline.decoder import DecoderProcess, decode_track
from featurestore.pipeline.prefetch import AudioBuffer, TrackAudio, decode_ahead


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("featurestore-decode")]


@pytest.fixture
def tracks(tmp_path, clip):
    return [AudioFile(str(n), clip(tmp_path / f"{n}.wav", seed=n)) for n in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_tracks_come_in_order_and_whole(tracks, workers):
    with decode_ahead((TrackAudio(track, 16_000) for track in tracks), workers=workers) as audios:
        for track, audio in zip(tracks, audios, strict=True):
            assert audio.track is track
            samples = np.concatenate(list(audio.blocks()))
            np.testing.assert_array_equal(samples, load_audio(track.path, 16_000))
            assert audio.seconds == pytest.approx(len(samples) / 16_000)
            assert audio.attributes["audio"]["size"] == track.path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_are_at_most_so_many_tracks_ahead(tracks, workers):
    begun = []

    def source():
        for track in tracks:
            begun.append(track)
            yield track

    with decode_ahead((TrackAudio(track, 24_000) for track in source()), workers=workers) as audios:
        for number, audio in enumerate(audios):
            time.sleep(0.05)
            assert len(begun) == min(len(tracks), number + 1 + workers)
            list(audio.blocks())


@pytest.mark.slow
def test_all_that_is_ahead_waits_in_bounded_memory(tmp_path, clip):
    tracks = [AudioFile(str(n), clip(tmp_path / f"{n}.wav", 60, rate=8_000)) for n in range(3)]
    buffer = AudioBuffer(4_000_000)  # a track of 60 s at 24 kHz has 5.8 MB
    with decode_ahead((TrackAudio(track, 24_000, buffer) for track in tracks), workers=2) as audios:
        for audio in audios:
            while buffer.used <= buffer.size - 500_000:  # a block has 480,000 bytes
                time.sleep(0.01)
            time.sleep(0.1)
            assert buffer.used <= buffer.size
            assert sum(map(len, audio.blocks())) == 60 * 24_000
            if audio.track is tracks[1]:
                break
    assert buffer.used == 0


def test_a_track_that_is_waited_for_passes_those_that_fill_the_buffer(tmp_path, clip):
    buffer = AudioBuffer(1_000_000)
    first, second = (
        TrackAudio(AudioFile(str(n), clip(tmp_path / f"{n}.wav", 20, rate=8_000)), 24_000, buffer) for n in (1, 2)
    )
    later = threading.Thread(target=second.produce, args=(decode_track,), daemon=True)
    later.start()
    while buffer.used < 900_000:
        time.sleep(0.01)
    sooner = threading.Thread(target=first.produce, args=(decode_track,), daemon=True)
    sooner.start()
    assert sum(map(len, first.blocks())) == sum(map(len, second.blocks())) == 20 * 24_000
    sooner.join(10)
    later.join(10)
    assert buffer.used == 0


@pytest.mark.slow
def test_an_error_reaches_its_track_and_no_other(tmp_path, tracks):
    (tmp_path / "bad.wav").write_text("no audio")
    mixed = [tracks[0], AudioFile("bad", tmp_path / "bad.wav"), tracks[1]]
    with decode_ahead((TrackAudio(track, 24_000) for track in mixed), workers=2) as audios:
        assert len(list(next(audios).blocks())) >= 1
        with pytest.raises(AudioError, match=r"bad\.wav"):
            list(next(audios).blocks())
        assert len(list(next(audios).blocks())) >= 1


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, clip):
    track = AudioFile("growing", clip(tmp_path / "growing.wav", 120, rate=8_000))
    with decode_ahead([TrackAudio(track, 24_000)], workers=1) as audios:
        blocks = next(audios).blocks()
        next(blocks)
        with track.path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(AudioError, match="changed"):
            list(blocks)


def decoder_processes():
    """The processes that this one has started for decoding."""
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "decoder import serve"], capture_output=True)
    return [int(x) for x in children.stdout.split()]


def is_open(path, process):
    try:
        return str(path) in [os.readlink(x) for x in Path(f"/proc/{process}/fd").iterdir()]
    except FileNotFoundError:  # closed just now
        return False


@pytest.mark.slow
def test_a_decoder_that_died_since_the_last_file_is_replaced(clip, tmp_path):
    paths = [clip(tmp_path / f"{n}.wav", seed=n) for n in range(2)]
    decoder = DecoderProcess()
    for path in paths:
        *blocks, known = decoder.decode(path, 24_000)
        np.testing.assert_array_equal(np.concatenate(blocks), load_audio(path, 24_000))
        assert known["audio"]["path"] == str(path)
        (process,) = decoder_processes()
        os.kill(process, signal.SIGSEGV)
        decoder._process.wait()
    decoder.close()


@pytest.mark.slow
def test_a_decoder_that_dies_fails_its_track_and_no_other(tmp_path, clip):
    long = AudioFile("long", clip(tmp_path / "long.wav", 120, rate=8_000))
    tracks = [AudioFile(str(n), clip(tmp_path / f"{n}.wav", seed=n)) for n in range(4)]
    buffer = AudioBuffer(1_000_000)
    ahead = [TrackAudio(track, 24_000, buffer) for track in (long, *tracks)]
    with decode_ahead(ahead, workers=2) as audios:
        blocks = next(audios).blocks()
        while buffer.used < 400_000 or not (decoding := [x for x in decoder_processes() if is_open(long.path, x)]):
            time.sleep(0.01)
        os.kill(*decoding, signal.SIGSEGV)
        with pytest.raises(AudioError, match=r"long\.wav cannot be decoded.*SIGSEGV"):
            list(blocks)
        for track, audio in zip(tracks, audios, strict=True):
            samples = np.concatenate(list(audio.blocks()))
            np.testing.assert_array_equal(samples, load_audio(track.path, 24_000))
    assert decoder_processes() == []


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_said_as_by_one_worker(tmp_path, clip):
    (tmp_path / "bad.wav").write_text("no audio")
    paths = [tmp_path / "bad.wav", clip(tmp_path / "short.wav", 0.5), tmp_path / "none.wav"]

    def errors(workers):
        tracks = (TrackAudio(AudioFile(path.stem, path), 24_000) for path in paths)
        with decode_ahead(tracks, workers=workers) as audios:
            for audio in audios:
                with pytest.raises(AudioError) as caught:
                    list(audio.blocks())
                yield type(caught.value), str(caught.value)

    assert list(errors(2)) == list(errors(1))


@pytest.mark.slow
def test_threads_end_when_nobody_wants_the_rest(tmp_path, clip):
    tracks = [AudioFile(str(n), clip(tmp_path / f"{n}.wav", 60, rate=8_000)) for n in range(3)]
    with decode_ahead((TrackAudio(track, 24_000) for track in tracks), workers=2) as audios:
        next(next(audios).blocks())
        assert len(decoding_threads()) == 2
        assert all(thread.daemon for thread in decoding_threads())
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert decoding_threads() == []
    assert decoder_processes() == []
