"""Whole builds of two checkouts of this repository in turn, by format of the audio: is the newer one as fast?

    git worktree add ../older SOME_COMMIT
    python -m benchmarks.versions --against ../older

Each build is a process of its own, with the packages of this Python. Processor seconds of both and the median of
the ratios, pair by pair, are printed; music is composed, and written by libsndfile.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
_RATE = 44_100


def write_music(folder: Path, suffix: str, files: int, seconds: int) -> None:
    """Files of decaying notes and some noise, stereo."""
    random = np.random.default_rng(0)
    t = np.arange(seconds * _RATE) / _RATE
    for number in range(files):
        pitch = 110 * 2 ** (random.integers(0, 36, 2 * seconds) / 12)
        tone = np.sin(2 * np.pi * np.repeat(pitch, _RATE // 2) * t) * np.exp(-3 * (t % 0.5))
        stereo = 0.3 * tone[:, None] + random.normal(0, 0.01, (len(t), 2))
        with soundfile.SoundFile(
            folder / f"{number}.{suffix}", "w", _RATE, 2, subtype=FORMATS[suffix], format=suffix.upper()
        ) as file:
            for start in range(0, len(stereo), _RATE):
                file.write(stereo[start : start + _RATE])


def processor_seconds(checkout: Path, music: Path, store: Path, model: str) -> float:
    """Of a build with the code of a checkout."""
    shutil.rmtree(store, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fs_extract", "build", str(music), str(store), "--model", model]
    subprocess.run(
        [*command, "--feature-level", "segments", "--quiet"],
        env={**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'cli'}"},
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    here, there = Path(__file__).resolve().parents[1], arguments.against.resolve()
    print(f"{'format':8} {'this':>8} {'other':>8} {'ratio':>7}  (processor seconds, median of {arguments.turns})")
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "music").mkdir()
            write_music(folder / "music", suffix, arguments.files, arguments.seconds)
            pairs = []
            for turn in range(arguments.turns + 1):
                both = [
                    processor_seconds(checkout, folder / "music", folder / "store.zarr", arguments.model)
                    for checkout in (here, there)
                ]
                if turn:  # the first warms the caches
                    pairs.append(both)
        mine, other = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{suffix:8} {mine:8.2f} {other:8.2f} {ratio:7.3f}", flush=True)


if __name__ == "__main__":
    main()
