"""Notes and how they sound: from scores to notes, from notes to samples, through General MIDI soundfonts.

Needs tinysoundfont, and music21 for scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

GAIN_DB = -6.0
SECONDS_PER_QUARTER = 0.5

FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble",
    "brass", "reed", "pipe", "synth lead", "synth pad", "ethnic",
)  # fmt: skip
"""Families of General MIDI that play a pitch; each has eight programs."""

PROGRAMS = (*range(96), *range(104, 112))
"""Programs of `FAMILIES`, from 0."""


class Note(NamedTuple):
    """One note.

    Attributes
    ----------
    start, stop : float
        Seconds of pressing and releasing the key.
    channel : int
        Which instrument plays it.
    key : int
        MIDI number.
    velocity : int
        1 to 127.
    """

    start: float
    stop: float
    channel: int
    key: int
    velocity: int = 96


def family(program: int) -> int:
    """Index into `FAMILIES` of a program of `PROGRAMS`."""
    return program // 8 if program < 96 else 12


def score_notes(score: Any, *, parts: int = 16, quarter: float = SECONDS_PER_QUARTER) -> list[Note]:
    """All notes of a score of music21, in order of their starts; the channel is the number of the part."""
    notes = []
    for channel, part in enumerate(score.parts[:parts]):
        for note in part.flatten().notes:
            start = float(note.offset) * quarter
            stop = start + max(0.05, float(note.quarterLength) * quarter - 0.02)
            notes += [Note(start, stop, channel, pitch.midi) for pitch in note.pitches]
    return sorted(notes)


class Player:
    """A soundfont that plays notes.

    Parameters
    ----------
    soundfont : path
        General MIDI, .sf2 or .sf3.
    rate : int
        Hz.
    """

    def __init__(self, soundfont: str | Path, rate: int) -> None:
        import tinysoundfont

        self.rate = rate
        self._synth = tinysoundfont.Synth(samplerate=rate, gain=GAIN_DB)
        self._font = self._synth.sfload(str(soundfont))

    def has(self, program: int) -> bool:
        """Whether the soundfont has this program."""
        return self._synth.sfpreset_name(self._font, 0, program) is not None

    def play(self, notes: Iterable[Note], programs: Sequence[int], seconds: float) -> Samples:
        """Samples [n, 2] of the first `seconds` of notes; `programs` has one for each channel."""
        total = round(seconds * self.rate)
        for channel, program in enumerate(programs):
            self._synth.program_select(channel, self._font, 0, program)
        blocks, now = [], 0
        for second, velocity, channel, key in _events(notes):
            at = round(second * self.rate)
            if at >= total:
                break
            if at > now:
                blocks.append(self._generate(at - now))
                now = at
            if velocity:
                self._synth.noteon(channel, key, velocity)
            else:
                self._synth.noteoff(channel, key)
        blocks.append(self._generate(total - now))
        self._synth.sounds_off()
        self._generate(self.rate // 10)  # what still sounds would be heard in the next piece
        return np.concatenate(blocks)

    def _generate(self, samples: int) -> Samples:
        return np.array(self._synth.generate(samples)).view(np.float32).reshape(-1, 2).copy()


def _events(notes: Iterable[Note]) -> list[tuple[float, int, int, int]]:
    """(second, velocity or 0, channel, key) of pressing and releasing, releases first."""
    events = []
    for note in notes:
        events.append((note.start, note.velocity, note.channel, note.key))
        events.append((note.stop, 0, note.channel, note.key))
    return sorted(events)
