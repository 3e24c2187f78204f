"""Render the music that `mini` is trained on, with exact labels of what sounds when.

    python -m benchmarks.training.render_training_music OUT --hours 5 \\
        --soundfont TimGM6mb.sf2 --soundfont sf_GMbank.sf2
    python -m benchmarks.training.render_training_music OUT --finish

The first command renders files and goes on where it was stopped (`--slice 0/2` and `1/2` share the work of two
processes); the second writes train.tsv, valid.tsv and the labels of both:

    train.notes.npy      uint8 [frame, 88]   keys 21 to 108 that are pressed, many at a time
    train.families.npy   uint8 [frame, 13]   families of instruments that play (`midi.FAMILIES`)
    train.programs.npy   uint8 [frame, 104]  instruments that play (`midi.PROGRAMS`)
    train.voices.npy     uint8 [frame, 8]    how many keys are pressed, one of 0 to 7 or more
    train.notes_low.npy, train.families_low.npy     the same again, for a head on a lower layer

Frames are 320 samples long, 75 in a second. Of ten files four are single notes, three random chords, three
scores. The same seed gives the same files. What is held out for probes: `HELD_OUT_PROGRAMS`, and the pieces that
`benchmarks.training.corpus` names. Needs tinysoundfont, music21 and scipy.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.training import corpus
from benchmarks.training.colour import RATE, coloured
from benchmarks.training.midi import FAMILIES, PROGRAMS, Note, Player, family

HOP, CENTRE = 320, 200
"""Samples of a frame, and where in its receptive field of 400 the network looks."""

LOWEST, KEYS, MOST_VOICES = 21, 88, 7
SECONDS = 20.0
SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
"""Semitones by which recordings run faster or slower: the same keys with other formants."""

VALID_EVERY = 50
"""One file in so many is for validation."""

HELD_OUT_PROGRAMS = frozenset(
    8 * group + offset
    for group in (*range(12), 13)
    for offset in random.Random(f"held out {group}").sample(range(8), 2)
)
"""Two of the eight programs of each family, never rendered for training."""

TRAINING_PROGRAMS = tuple(x for x in PROGRAMS if x not in HELD_OUT_PROGRAMS)


def melody(draw: random.Random) -> tuple[list[Note], list[int]]:
    """Random single notes of one instrument."""
    notes, now = [], draw.uniform(0, 0.3)
    while now < SECONDS:
        length = 0.12 * 12 ** draw.random()
        notes.append(Note(now, now + length, 0, draw.randint(30, 98), draw.randint(40, 127)))
        now += length + (draw.uniform(0, 0.4) if draw.random() < 0.5 else 0.0)
    return notes, [draw.choice(TRAINING_PROGRAMS)]


def chords(draw: random.Random) -> tuple[list[Note], list[int]]:
    """Random chords of up to seven notes, of one or two instruments."""
    programs = [draw.choice(TRAINING_PROGRAMS) for _ in range(draw.randint(1, 2))]
    notes, now = [], draw.uniform(0, 0.3)
    while now < SECONDS:
        length = 0.2 * 12 ** draw.random()
        for key in draw.sample(range(30, 98), draw.randint(1, 7)):
            start = now + (draw.uniform(0, 0.5) * length if draw.random() < 0.3 else 0.0)
            channel = draw.randrange(len(programs))
            notes.append(Note(start, now + length, channel, key, draw.randint(40, 127)))
        now += length + (draw.uniform(0, 0.3) if draw.random() < 0.3 else 0.0)
    return notes, programs


def excerpt(draw: random.Random, names: list[str], cache: Path) -> tuple[list[Note], list[int]]:
    """An excerpt of a score in another key, tempo and instrumentation."""
    notes = corpus.notes_of(draw.choice(names), cache)
    speed, shift = draw.uniform(0.6, 1.8), draw.randint(-7, 7)
    first = draw.uniform(0, max(0.0, notes[-1].start * speed - SECONDS))
    programs = [draw.choice(TRAINING_PROGRAMS) for _ in range(16)]
    if draw.random() < 0.6:
        programs = programs[:1] * 16
    loudness = [draw.randint(50, 120) for _ in programs]
    moved = [
        Note(x.start * speed - first, x.stop * speed - first, x.channel, x.key + shift, loudness[x.channel])
        for x in notes
    ]
    return [x for x in moved if -0.5 < x.start < SECONDS and 0 < x.key < 128], programs


def labels(notes: list[Note], programs: list[int], samples: int) -> dict[str, npt.NDArray[np.uint8]]:
    """By frame: notes [frame, 88], programs [frame, 104], families [frame, 13], voices [frame, 8]."""
    frames = samples // HOP
    pressed = np.zeros((frames, KEYS), np.uint8)
    playing = np.zeros((frames, len(PROGRAMS)), np.uint8)
    playing_families = np.zeros((frames, len(FAMILIES)), np.uint8)
    for note in notes:
        first, last = (max(0, round((at * RATE - CENTRE) / HOP)) for at in (note.start, note.stop))
        last = max(last, first + 1)
        if 0 <= note.key - LOWEST < KEYS:
            pressed[first:last, note.key - LOWEST] = 1
        program = programs[note.channel]
        playing[first:last, PROGRAMS.index(program)] = 1
        playing_families[first:last, family(program)] = 1
    voices = np.eye(MOST_VOICES + 1, dtype=np.uint8)[pressed.sum(axis=1).clip(0, MOST_VOICES)]
    return {"notes": pressed, "programs": playing, "families": playing_families, "voices": voices}


def render_files(arguments: argparse.Namespace) -> None:
    """Render the files of a slice that are not there yet."""
    names = [name for _, name in corpus.pieces(held_out=False)]
    players = {
        (font, x): Player(font, round(RATE * 2 ** (x / 12))) for font in arguments.soundfont for x in SHIFTS
    }
    part, parts = map(int, arguments.slice.split("/"))
    for number in range(part, round(arguments.hours * 3600 / SECONDS), parts):
        path = arguments.out / f"{number:05d}.wav"
        if path.exists():
            continue
        draw = random.Random(f"{arguments.seed} {number}")
        kind = draw.choices(("melody", "chords", "score"), (4, 3, 3))[0]
        notes, programs = (
            melody(draw) if kind == "melody"
            else chords(draw) if kind == "chords"
            else excerpt(draw, names, arguments.out / "scores")
        )  # fmt: skip
        shift = draw.choice(SHIFTS) if draw.random() < 0.3 else 0
        complete = [x for x in arguments.soundfont if all(map(players[x, 0].has, programs))]
        # A recording made at a higher rate runs slower here: the key that is heard is `shift` below the played.
        player = players[draw.choice(complete), shift]
        played = [
            x._replace(start=x.start * RATE / player.rate, stop=x.stop * RATE / player.rate, key=x.key + shift)
            for x in notes
            if 0 <= x.key + shift < 128
        ]
        stereo = player.play(played, programs, SECONDS * RATE / player.rate)
        effects = np.random.default_rng([arguments.seed, number])
        mono = coloured(stereo.mean(axis=1), effects)
        np.savez_compressed(path.with_suffix(".npz"), **labels(notes, programs, len(mono)))
        soundfile.write(path.with_suffix(".tmp"), mono, RATE, format="WAV", subtype="PCM_16")
        path.with_suffix(".tmp").rename(path)


def finish(out: Path) -> None:
    """Write the manifests and the labels of all files in their order."""
    files = sorted(out.glob("[0-9]*.wav"))
    for name in ("train", "valid"):
        chosen = [x for x in files if (int(x.stem) % VALID_EVERY == 0) == (name == "valid")]
        lines = [f"{x.name}\t{soundfile.info(x).frames}\n" for x in chosen]
        (out / f"{name}.tsv").write_text(f"{out.resolve()}\n{''.join(lines)}", encoding="utf-8")
        loaded = [dict(np.load(x.with_suffix(".npz"))) for x in chosen]
        for kind in ("notes", "programs", "families", "voices"):
            np.save(out / f"{name}.{kind}.npy", np.concatenate([x[kind] for x in loaded]))
        for kind in ("notes", "families"):
            # The recipe asks two layers for them, and each of its heads has a file of its own.
            low = out / f"{name}.{kind}_low.npy"
            low.unlink(missing_ok=True)
            low.symlink_to(f"{name}.{kind}.npy")
        print(f"{name}: {len(chosen)} files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--soundfont", action="append", default=[], help="may be given several times")
    parser.add_argument("--hours", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slice", default="0/1", metavar="PART/PARTS")
    parser.add_argument("--finish", action="store_true", help="write manifests and labels of what is rendered")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.finish:
        finish(arguments.out)
    else:
        render_files(arguments)


if __name__ == "__main__":
    main()
