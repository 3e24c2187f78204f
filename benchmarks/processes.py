"""Several processes to the plain build, in one run: seconds of audio a second of encoding, model opened before.

    python -m benchmarks.processes CHECKPOINT [--processes 2] [--minutes 4] [--tracks 8] [--rounds 2] [--json F]

Each process has its share of the cores. CHECKPOINT is a folder, or random, which is one of MERT-v1-95M's shape.
Best of `--rounds`, taken in turn. The bar is 0.97 of the plain build.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from featurestore.pipeline import build
from featurestore.testing import save_random_checkpoint

BAR = 0.97
_RATE = 24_000


def measure(model: Path, *, processes: int, minutes: float, tracks: int, rounds: int) -> dict[str, float]:
    """Return the speeds, times real time, of both builds, and their ratio."""
    speeds: dict[int, list[float]] = {1: [], processes: []}
    with tempfile.TemporaryDirectory() as folder:
        music, random = Path(folder, "music"), np.random.default_rng(0)
        music.mkdir()
        for number in range(tracks):
            samples = random.normal(0, 0.1, round(minutes * 60 / tracks * _RATE))
            soundfile.write(music / f"{number}.wav", samples, _RATE)
        for number in range(rounds):
            for count, found in speeds.items():
                report = build(music, Path(folder, f"{count}.{number}.zarr"), model=model, processes=count)
                assert report.processed == tracks, report
                found.append(report.x_real_time or 0.0)
    plain, several = max(speeds[1]), max(speeds[processes])
    return {"plain": plain, f"{processes} processes": several, "ratio": several / plain}


def main() -> int:
    """Measure and print; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint")
    for name, default in (("processes", 2), ("tracks", 8), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(options.checkpoint)
        if options.checkpoint == "random":
            model = save_random_checkpoint(Path(folder, "model"))
        settings = {name: getattr(options, name) for name in ("processes", "minutes", "tracks", "rounds")}
        found = measure(model, **settings)
    for name, value in found.items():
        print(f"{name:12} {value:8.2f}" + (f"   bar {BAR}" if name == "ratio" else " x real time"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return int(found["ratio"] < BAR)


if __name__ == "__main__":
    raise SystemExit(main())
