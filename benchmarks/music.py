"""Short pieces of music from nothing but numpy: chords, bass, melody and drums, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)


@dataclass(frozen=True)
class Timbre:
    """How a note sounds: loudness of its partials, attack and decay (s), vibrato (share of the pitch)."""

    partials: tuple[float, ...]
    attack: float
    decay: float
    vibrato: float = 0.0


PIANO = Timbre(tuple(0.9**k / (k + 1) for k in range(10)), 0.004, 0.9)
ORGAN = Timbre((1, 0.8, 0.1, 0.5, 0.05, 0.2, 0, 0.3), 0.02, 30.0)
STRINGS = Timbre(tuple(1 / (k + 1) for k in range(14)), 0.12, 8.0, 0.004)
FLUTE = Timbre((1, 0.25, 0.12, 0.03), 0.05, 5.0, 0.006)
PLUCK = Timbre(tuple(0.75**k for k in range(12)), 0.002, 0.35)


@dataclass(frozen=True)
class Piece:
    """A piece and the file it goes into.

    Attributes
    ----------
    name : str
        Path of the file without suffix.
    suffix : str
        Format of the file.
    rate, channels : int
        Of the file.
    key : int
        Tonic, MIDI number.
    scale : tuple of int
        Semitones of the scale.
    chords : tuple of int
        Steps of the scale, one per bar.
    tempo : float
        Beats per minute.
    backing, lead : Timbre
    drums : bool
    """

    name: str
    suffix: str
    rate: int
    channels: int
    key: int
    scale: tuple[int, ...]
    chords: tuple[int, ...]
    tempo: float
    backing: Timbre
    lead: Timbre
    drums: bool


PIECES = (
    Piece("piano/waltz-in-g", ".wav", 44_100, 2, 55, MAJOR, (0, 3, 4, 0), 96, PIANO, PIANO, False),
    Piece("piano/evening", ".flac", 48_000, 2, 57, MINOR, (0, 5, 3, 4), 80, PIANO, FLUTE, False),
    Piece("band/morning-run", ".ogg", 44_100, 2, 60, MAJOR, (0, 4, 5, 3), 124, ORGAN, PLUCK, True),
    Piece("band/night-bus", ".wav", 22_050, 1, 52, MINOR, (0, 6, 5, 4), 108, STRINGS, PLUCK, True),
    Piece("strings/hymn", ".flac", 96_000, 1, 50, MAJOR, (0, 3, 0, 4), 72, STRINGS, STRINGS, False),
    Piece("strings/procession", ".ogg", 48_000, 1, 48, MINOR, (0, 3, 4, 0), 88, STRINGS, ORGAN, True),
)


def write_pieces(folder: Path, *, seed: int = 0) -> list[Path]:
    """Write all pieces below a folder; those that are there already stay as they are."""
    import soundfile

    paths = []
    for number, piece in enumerate(PIECES):
        path = folder / (piece.name + piece.suffix)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, play(piece, np.random.default_rng([seed, number])), piece.rate)
        paths.append(path)
    return paths


def play(piece: Piece, random: np.random.Generator) -> Samples:
    """The samples of a piece [sample, channel], within [-0.8, 0.8]."""
    beat = 60 / piece.tempo
    bar = 4 * beat
    length = round((len(piece.chords) * bar + 0.6) * piece.rate)
    left, right = np.zeros(length), np.zeros(length)

    def add(start: float, sound: Samples, loud: float, place: float) -> None:
        """Mix a sound in, at `place` between left (0) and right (1)."""
        first = round(start * piece.rate)
        sound = sound[: length - first] * loud
        left[first : first + len(sound)] += sound * np.cos(place * np.pi / 2)
        right[first : first + len(sound)] += sound * np.sin(place * np.pi / 2)

    step = int(random.integers(7))
    for number, root in enumerate(piece.chords):
        start = number * bar
        for voice, third in enumerate((0, 2, 4)):
            pitch = _pitch(piece, root + third)
            add(start + 0.01 * voice, note(pitch, bar, piece.backing, piece.rate), 0.16, 0.2 + 0.3 * voice)
        for half in (0, 2):
            bass = note(_pitch(piece, root) / 2, 2 * beat, PLUCK, piece.rate)
            add(start + half * beat, bass, 0.3, 0.5)
        at = 0.0
        while at < 4:
            value = float(random.choice([0.5, 1.0, 1.5, 2.0]))
            # Long notes rest on the chord, short ones walk.
            step = (
                root + int(random.choice([0, 2, 4])) if value >= 1.5 else step + int(random.choice([-2, -1, 1, 2]))
            )
            step = max(-2, min(step, 11))
            lead = note(2 * _pitch(piece, step), min(value, 4 - at) * beat, piece.lead, piece.rate)
            add(start + at * beat, lead, 0.22, 0.6)
            at += value
        if piece.drums:
            for eighth in range(8):
                add(start + eighth * beat / 2, _hat(piece.rate, random), 0.07, 0.7)
            for at in (0, 2, 2.5):
                add(start + at * beat, _kick(piece.rate), 0.55, 0.5)
            for at in (1, 3):
                add(start + at * beat, _snare(piece.rate, random), 0.28, 0.45)
    mix = np.stack([left, right], axis=1) if piece.channels == 2 else (left + right)[:, None] / 2
    return np.asarray(0.8 * mix / np.abs(mix).max())


def note(pitch: float, seconds: float, timbre: Timbre, rate: int) -> Samples:
    """A note of a pitch (Hz), with a release of 0.1 s after its length."""
    time = np.arange(round((seconds + 0.1) * rate)) / rate
    swing = timbre.vibrato * np.sin(2 * np.pi * 5.5 * time) / (2 * np.pi * 5.5)
    phase = 2 * np.pi * pitch * (time + swing)
    sound = np.zeros_like(time)
    for number, loud in enumerate(timbre.partials, start=1):
        if pitch * number < 0.45 * rate:  # higher ones would alias
            sound += loud * np.sin(number * phase) * np.exp(-time * number / (6 * timbre.decay))
    envelope = np.minimum(1, time / timbre.attack) * np.exp(-time / timbre.decay)
    release = np.clip((seconds + 0.1 - time) / 0.1, 0, 1)
    return np.asarray(sound * envelope * release / sum(timbre.partials))


def _pitch(piece: Piece, step: int) -> float:
    octave, degree = divmod(step, len(piece.scale))
    return float(440 * 2 ** ((piece.key + 12 * octave + piece.scale[degree] - 69) / 12))


def _kick(rate: int) -> Samples:
    time = np.arange(round(0.3 * rate)) / rate
    return np.asarray(np.sin(2 * np.pi * (45 * time - 4 * np.exp(-time * 30))) * np.exp(-time * 12))


def _snare(rate: int, random: np.random.Generator) -> Samples:
    time = np.arange(round(0.2 * rate)) / rate
    noise = random.standard_normal(len(time)) * np.exp(-time * 22)
    return np.asarray(0.5 * noise + 0.5 * np.sin(2 * np.pi * 190 * time) * np.exp(-time * 30))


def _hat(rate: int, random: np.random.Generator) -> Samples:
    time = np.arange(round(0.06 * rate)) / rate
    noise = np.diff(random.standard_normal(len(time) + 1))
    return np.asarray(noise * np.exp(-time * 70))
