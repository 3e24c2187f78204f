"""Render scores of music21's corpus to audio files of mixed formats, rates and channels.

    python -m benchmarks.training.render_scores OUT --soundfont /usr/share/sounds/sf2/TimGM6mb.sf2 --count 24

Needs music21, tinysoundfont and a General MIDI soundfont; the scores are works in the public domain.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.training.midi import Player, score_notes

PROGRAMS = [0, 6, 16, 24, 32, 40, 41, 42, 48, 52, 56, 60, 64, 68, 70, 71, 73, 74]
FORMATS = [("wav", 44_100), ("flac", 48_000), ("ogg", 44_100), ("mp3", 44_100), ("wav", 24_000), ("aiff", 22_050)]
PARTS, TAIL = 8, 1.0
"""Most parts of a score that are played, and seconds after the last note."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--soundfont", required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=60.0, help="render at most this much of a score")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from music21 import corpus

    chosen = random.Random(arguments.seed)
    players = {rate: Player(arguments.soundfont, rate) for _, rate in FORMATS}
    names = [path for who in ("bach", "mozart", "beethoven", "haydn") for path in corpus.getComposer(who)]
    for number, name in enumerate(chosen.sample(sorted(map(str, names)), arguments.count)):
        suffix, rate = FORMATS[number % len(FORMATS)]
        programs = [chosen.choice(PROGRAMS) for _ in range(PARTS)]
        notes = score_notes(corpus.parse(name), parts=PARTS)
        seconds = min(arguments.seconds, max(x.stop for x in notes)) + TAIL
        samples = players[rate].play(notes, programs, seconds)
        samples = samples if number % 3 else samples.mean(axis=1)
        folder = arguments.out / Path(name).parent.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{Path(name).name.split('.')[0]}-{number:02d}.{suffix}"
        soundfile.write(path, np.clip(samples, -1, 1), rate)
        print(path, f"{len(samples) / rate:.1f} s, {rate} Hz, {samples.ndim} channel(s)")


if __name__ == "__main__":
    main()
