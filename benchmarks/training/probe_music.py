"""Render what the probes listen to: instruments, pieces and a soundfont that training never heard.

    python -m benchmarks.training.probe_music OUT --soundfont FluidR3Mono_GM.sf3

Writes OUT/audio/{notes,voices,pieces}/*.wav and OUT/clips.csv with track_id, probe set, key, family, voices,
composer, group (the program or the piece) and held_out (1 if training never rendered this program or piece). The
same seed gives the same files. Needs tinysoundfont and music21.
"""

from __future__ import annotations

import argparse
import csv
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.training import corpus
from benchmarks.training.midi import FAMILIES, PROGRAMS, Note, Player, family
from benchmarks.training.render_training_music import HELD_OUT_PROGRAMS, RATE

NOTE_SECONDS, CHORD_SECONDS, PIECE_SECONDS = 1.5, 2.0, 10.0
KEYS = range(36, 85)
NOTES_PER_PROGRAM, CHORDS_PER_COUNT, EXCERPTS_PER_PIECE = 16, 120, 2
MOST_VOICES = 6


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A row of clips.csv; what does not apply is empty."""

    track_id: str
    probe_set: str
    group: str
    held_out: int
    key: int | str = ""
    family: str = ""
    voices: int | str = ""
    composer: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--soundfont", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", dest="sets", choices=("notes", "voices", "pieces"))
    arguments = parser.parse_args()
    player, draw = Player(arguments.soundfont, RATE), random.Random(arguments.seed)
    makers = {"notes": single_notes, "voices": chords, "pieces": excerpts}
    clips = []
    for name in arguments.sets or makers:
        (arguments.out / "audio" / name).mkdir(parents=True, exist_ok=True)
        for clip, notes, programs, seconds in makers[name](draw, arguments.out):
            mono = player.play(notes, programs, seconds).mean(axis=1)
            peak = np.abs(mono).max()
            # Loudness tells nothing of what is asked: all clips have one.
            mono = mono / peak * 0.5 if peak > 1e-4 else mono
            soundfile.write(arguments.out / "audio" / f"{clip.track_id}.wav", mono, RATE)
            clips.append(asdict(clip))
    with open(arguments.out / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(clips[0]))
        writer.writeheader()
        writer.writerows(clips)
    print(f"{len(clips)} clips")


def single_notes(draw, _out):
    """Notes of one second of all programs, for pitch and family."""
    for program in PROGRAMS:
        for number in range(NOTES_PER_PROGRAM):
            key = draw.choice(KEYS)
            clip = Clip(
                track_id=f"notes/{program:03d}-{number:02d}", probe_set="notes", group=str(program),
                held_out=int(program in HELD_OUT_PROGRAMS), key=key, family=FAMILIES[family(program)],
            )  # fmt: skip
            yield clip, [Note(0.0, 1.0, 0, key, draw.randint(60, 120))], [program], NOTE_SECONDS


def chords(draw, _out):
    """One to six notes at a time, of up to three instruments: in every third clip of those held out."""
    others = [x for x in PROGRAMS if x not in HELD_OUT_PROGRAMS]
    for voices in range(1, MOST_VOICES + 1):
        for number in range(CHORDS_PER_COUNT):
            held_out = number % 3 == 0
            programs = [draw.choice(sorted(HELD_OUT_PROGRAMS) if held_out else others) for _ in range(3)]
            notes = [
                Note(0.0, 1.9, draw.randrange(3), key, draw.randint(60, 120)) for key in draw.sample(KEYS, voices)
            ]
            clip = Clip(
                track_id=f"voices/{voices}-{number:03d}", probe_set="voices", group=f"{voices}-{number}",
                held_out=int(held_out), voices=voices,
            )  # fmt: skip
            yield clip, notes, programs, CHORD_SECONDS


def excerpts(draw, out):
    """Excerpts of pieces that training never heard, each on one instrument."""
    for composer, name in corpus.pieces(held_out=True):
        notes = corpus.notes_of(name, out / "scores")
        for number in range(EXCERPTS_PER_PIECE):
            first = draw.uniform(0, max(0.0, notes[-1].start - PIECE_SECONDS))
            cut = [x._replace(start=x.start - first, stop=x.stop - first) for x in notes]
            cut = [x for x in cut if 0 <= x.start < PIECE_SECONDS]
            program = draw.choice(sorted(HELD_OUT_PROGRAMS))
            clip = Clip(
                track_id=f"pieces/{composer}-{Path(name).stem.replace('.', '_')}-{number}", probe_set="pieces",
                group=name, held_out=1, composer=composer,
            )  # fmt: skip
            yield clip, cut, [program] * 16, PIECE_SECONDS


if __name__ == "__main__":
    main()
