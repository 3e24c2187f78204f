"""What the host delivers to a card: files to windows, and windows to a store, with a model that takes no time.

    python -m benchmarks.host [--seconds 300] [--tracks 4] [--rounds 3] [--json F]

per core-second   a file decoded, mixed down, resampled and hashed by one core: seconds of audio a second of it
workers           tracks as `build` decodes them ahead, by 2 workers, to 1: wall; and what the machine allows: two
                  processes that decode for nobody, to one
main thread       `build` at level `segments` of three times as many tracks (an hour): time of the main thread a
                  batch of 16 windows, model excluded, all that a build does once included

Files are 44.1 kHz stereo: tones and noise, as WAV and FLAC of 16 bits and MP3 of 192 kbit/s. Best of `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from featurestore.audio import AudioFile
from featurestore.encode import WindowEncoder
from featurestore.pipeline import build
from featurestore.pipeline.decoder import decode_track
from featurestore.pipeline.prefetch import AudioBuffer, TrackAudio, decode_ahead

RATE, MODEL_RATE = 44_100, 24_000
BARS = {"wav": 1000, "flac": 550, "mp3": 550, "workers": 1.8, "main thread": 4.0}
_CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame"}

_FOR_NOBODY = """
import sys
from pathlib import Path
from featurestore.pipeline.decoder import decode_track
for number in range(int(sys.argv[2]) + 1):
    for _ in decode_track(Path(sys.argv[1]), int(sys.argv[3])):
        pass
    if not number:  # all is imported
        print(flush=True)
        input()
"""


class NoTime:
    """A model of the shape of MERT-v1-95M that takes no time: its states are always the same."""

    name, revision, weights_sha256 = "no-time", None, None
    sample_rate, layers, dim, do_normalize, min_samples = MODEL_RATE, 12, 768, True, 400

    def __init__(self) -> None:
        self.seconds, self.batches = 0.0, 0
        self._states: dict[int, torch.Tensor] = {}

    def frames(self, n_samples: int) -> int:  # noqa: ARG002
        """Return the frames of a window, few, so that their means take no time either."""
        return 1

    def states(self, wave: torch.Tensor, last: int | None = None) -> Any:
        """Yield the states."""
        self.batches += 1
        state = self._states.setdefault(len(wave), torch.ones(len(wave), 1, self.dim))
        for _ in range(13 if last is None else last + 1):
            yield state

    def hidden_states(self, wave: torch.Tensor) -> torch.Tensor:
        """Return all states."""
        return torch.stack(list(self.states(wave)), dim=1)

    def to(self, device: torch.device) -> NoTime:  # noqa: ARG002
        """Return the model, which is anywhere."""
        return self


def write_music(folder: Path, seconds: float) -> dict[str, Path]:
    """Write one signal in three formats."""
    t = np.arange(round(RATE * seconds)) / RATE
    random = np.random.default_rng(0)
    tones = sum(np.sin(2 * np.pi * f * t) / f for f in (110, 220, 331, 440, 1100, 3300)) * 20
    stereo = tones[:, None] * [0.9, 1.1] + random.normal(0, 0.01, (len(t), 2))
    pcm = (stereo / np.abs(stereo).max() * 30_000).astype(np.int16)
    found = {}
    for kind, codec in _CODECS.items():
        found[kind] = folder / f"music.{kind}"
        with av.open(str(found[kind]), "w", format=kind) as container:
            stream: Any = container.add_stream(codec, rate=RATE, layout="stereo")
            stream.bit_rate = 192_000
            resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=RATE)
            for start in range(0, len(pcm), RATE):
                frame = av.AudioFrame.from_ndarray(pcm[start : start + RATE].reshape(1, -1), layout="stereo")
                frame.sample_rate, frame.pts = RATE, start
                for part in resampler.resample(frame):
                    container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    return found


def per_core_second(path: Path, seconds: float, rounds: int) -> float:
    """Seconds of audio that a core brings to the model in a second of its time."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        for _item in decode_track(path, MODEL_RATE):
            pass
        spent.append(time.process_time() - began)
    return seconds / min(spent)


def with_workers(path: Path, seconds: float, tracks: int, rounds: int) -> dict[int, float]:
    """Seconds of audio a second of wall that 1 and 2 workers decode, in turns; their start counts for nothing."""
    best = {1: 1e-9, 2: 1e-9}
    for _ in range(rounds):
        for workers in best:
            files = [AudioFile(str(i), path) for i in range(tracks + workers)]
            audios = [TrackAudio(file, MODEL_RATE, AudioBuffer(2**40)) for file in files]
            with decode_ahead(audios, workers=workers) as ahead:
                for number, audio in enumerate(ahead):
                    for _block in audio.blocks():
                        pass
                    if number == workers - 1:  # all have begun
                        began, done = time.perf_counter(), sum(other._buffer.used for other in audios)
            samples = tracks * seconds * MODEL_RATE - done / 4
            best[workers] = max(best[workers], samples / MODEL_RATE / (time.perf_counter() - began))
    return best


def limit(path: Path, tracks: int, rounds: int) -> float:
    """How many times as fast as one process two are that share nothing but the machine."""
    best = {1: 1e9, 2: 1e9}
    command = [sys.executable, "-c", _FOR_NOBODY, str(path), str(tracks), str(MODEL_RATE)]
    for _ in range(rounds):
        for count in best:
            started = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
            ]
            for process in started:
                process.stdout.readline()  # type: ignore[union-attr]
            began = time.perf_counter()
            for process in started:
                process.stdin.write(b"\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            for process in started:
                process.communicate()
            best[count] = min(best[count], time.perf_counter() - began)
    return 2 * best[1] / best[2]


def main_thread(path: Path, tracks: int, rounds: int) -> float:
    """Milliseconds of the main thread a batch of 16 windows."""
    spent = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "list.csv")
            source.write_text("track_id,path\n" + "".join(f"{i},{path}\n" for i in range(tracks)))
            encoder = WindowEncoder(model=NoTime(), batch_size=16)
            began = time.thread_time()
            report = build(source, Path(scratch, "s.zarr"), extractor=encoder, feature_level="segments", workers=2)
            spent.append((time.thread_time() - began) / encoder.model.batches)
            assert report.processed == tracks, report.errors
    return 1000 * min(spent)


def measure(seconds: float, tracks: int, rounds: int) -> dict[str, float]:
    """Measure all, and print it as it comes."""
    found: dict[str, float] = {}

    def tell(name: str, value: float, unit: str, bar: float) -> None:
        found[name] = value
        print(f"{name:24} {value:9.2f} {unit:24} bar {bar:g}", flush=True)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        music = write_music(Path(scratch), seconds)
        for kind, path in music.items():
            tell(kind, per_core_second(path, seconds, rounds), "x real time a core-second", BARS[kind])
        for kind in ("flac", "mp3"):
            one, two = with_workers(music[kind], seconds, tracks, rounds).values()
            print(f"{kind}: 1 worker {one:.0f}, 2 workers {two:.0f} x real time")
            tell(f"2 workers to 1, {kind}", two / one, "x", BARS["workers"])
            found[f"limit of 2 to 1, {kind}"] = most = limit(music[kind], tracks, rounds)
            print(f"{kind}: two processes that share nothing, to one: {most:.2f} x")
        tell("main thread", main_thread(music["wav"], 3 * tracks, rounds), "ms a batch of 16", BARS["main thread"])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="length of a track")
    parser.add_argument("--tracks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    found = measure(chosen.seconds, chosen.tracks, chosen.rounds)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
