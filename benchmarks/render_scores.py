"""Render scores of music21's corpus to audio files of mixed formats, rates and channels.

    python -m benchmarks.render_scores OUT --soundfont /usr/share/sounds/sf2/TimGM6mb.sf2 --count 24

Needs music21, tinysoundfont and a General MIDI soundfont; the scores are works in the public domain.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

PROGRAMS = [0, 6, 16, 24, 32, 40, 41, 42, 48, 52, 56, 60, 64, 68, 70, 71, 73, 74]
FORMATS = [("wav", 44_100), ("flac", 48_000), ("ogg", 44_100), ("mp3", 44_100), ("wav", 24_000), ("aiff", 22_050)]
SECONDS_PER_QUARTER = 0.5


def note_events(score, instruments: list[int]) -> list[tuple[float, int, int, int]]:
    """(second, channel, key, velocity or 0) of all notes, in order."""
    events = []
    for channel, part in enumerate(score.parts[: len(instruments)]):
        for note in part.flatten().notes:
            start = float(note.offset) * SECONDS_PER_QUARTER
            stop = start + max(0.05, float(note.quarterLength) * SECONDS_PER_QUARTER - 0.02)
            for pitch in note.pitches:
                events += [(start, channel, pitch.midi, 96), (stop, channel, pitch.midi, 0)]
    return sorted(events, key=lambda event: (event[0], event[3]))


def render(score, soundfont: str, rate: int, instruments: list[int], limit: float) -> np.ndarray:
    """Samples [n, 2] of a score."""
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=rate, gain=-6)
    font = synth.sfload(soundfont)
    for channel, program in enumerate(instruments):
        synth.program_select(channel, font, 0, program)
    blocks, now = [], 0
    for second, channel, key, velocity in note_events(score, instruments):
        if second > limit:
            break
        if (samples := round(second * rate) - now) > 0:
            blocks.append(np.array(synth.generate(samples)).view(np.float32).copy())
            now += samples
        if velocity:
            synth.noteon(channel, key, velocity)
        else:
            synth.noteoff(channel, key)
    blocks.append(np.array(synth.generate(rate)).view(np.float32).copy())
    return np.concatenate([block.reshape(-1, 2) for block in blocks])


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
    names = [path for who in ("bach", "mozart", "beethoven", "haydn") for path in corpus.getComposer(who)]
    for number, name in enumerate(chosen.sample(sorted(map(str, names)), arguments.count)):
        suffix, rate = FORMATS[number % len(FORMATS)]
        instruments = [chosen.choice(PROGRAMS) for _ in range(8)]
        samples = render(corpus.parse(name), arguments.soundfont, rate, instruments, arguments.seconds)
        samples = samples if number % 3 else samples.mean(axis=1)
        folder = arguments.out / Path(name).parent.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{Path(name).name.split('.')[0]}-{number:02d}.{suffix}"
        soundfile.write(path, np.clip(samples, -1, 1), rate)
        print(path, f"{len(samples) / rate:.1f} s, {rate} Hz, {samples.ndim} channel(s)")


if __name__ == "__main__":
    main()
