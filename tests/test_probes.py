"""What the small model learns from and how it is judged: labels, what is held out, and probes that tell."""

import argparse
import random

import numpy as np
import pytest
import soundfile

from benchmarks.training import corpus, probe, render_training_music
from benchmarks.training.midi import FAMILIES, PROGRAMS, Note, family
from benchmarks.training.probe_curve import accuracy, effective_rank
from benchmarks.training.render_training_music import HELD_OUT_PROGRAMS, HOP, RATE, TRAINING_PROGRAMS, labels


def test_labels_say_what_sounds_when():
    second = RATE // HOP
    notes = [Note(0.0, 1.0, 0, 60), Note(0.5, 1.0, 1, 64), Note(0.5, 1.0, 1, 110)]
    found = labels(notes, [0, 40], 2 * RATE)
    classes = {"notes": 88, "programs": 104, "families": 13, "voices": 8}
    assert {kind: x.shape for kind, x in found.items()} == {kind: (2 * second, n) for kind, n in classes.items()}
    early, late, after = second // 4, 3 * second // 4, 3 * second // 2
    assert np.flatnonzero(found["notes"][early]).tolist() == [60 - 21]
    assert np.flatnonzero(found["notes"][late]).tolist() == [60 - 21, 64 - 21]  # the piano has no key 110
    assert np.flatnonzero(found["programs"][late]).tolist() == [0, 40]
    assert np.flatnonzero(found["families"][late]).tolist() == [FAMILIES.index("piano"), FAMILIES.index("strings")]
    assert [int(found["voices"][x].argmax()) for x in (early, late, after)] == [1, 2, 0]
    assert not found["notes"][after].any()
    assert (found["voices"].sum(axis=1) == 1).all()


def test_two_programs_of_each_family_are_held_out():
    assert set(TRAINING_PROGRAMS) | HELD_OUT_PROGRAMS == set(PROGRAMS)
    assert not set(TRAINING_PROGRAMS) & HELD_OUT_PROGRAMS
    counts = np.bincount([family(x) for x in HELD_OUT_PROGRAMS], minlength=len(FAMILIES))
    assert counts.tolist() == [2] * len(FAMILIES)


def test_training_never_plays_what_is_held_out():
    draw = random.Random(0)
    for make in (render_training_music.melody, render_training_music.chords):
        for _ in range(200):
            notes, programs = make(draw)
            assert set(programs) <= set(TRAINING_PROGRAMS)
            assert {note.channel for note in notes} <= set(range(len(programs)))


class Sine:
    """A player with one sound."""

    def __init__(self, soundfont, rate):
        self.soundfont, self.rate = soundfont, rate

    def has(self, program):
        return self.soundfont != "piano" or program == 0

    def play(self, notes, programs, seconds):
        assert all(map(self.has, programs))
        out = np.zeros((round(seconds * self.rate), 2), np.float32)
        for note in notes:
            first, last = (int(x * self.rate) for x in (note.start, note.stop))
            time = np.arange(len(out[first:last])) / self.rate
            out[first:last] += 0.1 * np.sin(2 * np.pi * 440 * 2 ** ((note.key - 69) / 12) * time)[:, None]
        return out


@pytest.mark.slow
def test_rendered_files_have_labels_of_their_length(tmp_path, monkeypatch):
    monkeypatch.setattr(render_training_music, "Player", Sine)
    monkeypatch.setattr(corpus, "pieces", lambda *, held_out: [("bach", "a")])
    monkeypatch.setattr(corpus, "notes_of", lambda name, cache: [Note(0.0, 1.0, 0, 60), Note(1.0, 30.0, 1, 64)])
    arguments = {"out": tmp_path, "soundfont": ["any", "piano"], "hours": 3 * 20 / 3600, "seed": 0, "slice": "0/1"}
    render_training_music.render_files(argparse.Namespace(**arguments))
    render_training_music.finish(tmp_path)
    rows = [x.split("\t") for x in (tmp_path / "train.tsv").read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == ["00001.wav", "00002.wav"]  # the first is for validation
    frames = sum(int(samples) // HOP for _, samples in rows)
    for kind, classes in (("notes", 88), ("programs", 104), ("families", 13), ("voices", 8), ("notes_low", 88)):
        assert np.load(tmp_path / f"train.{kind}.npy").shape == (frames, classes)
    before = (tmp_path / "00001.wav").read_bytes()
    (tmp_path / "00001.wav").unlink()
    render_training_music.render_files(argparse.Namespace(**arguments))
    assert (tmp_path / "00001.wav").read_bytes() == before
    samples, rate = soundfile.read(tmp_path / "00001.wav")
    assert rate == RATE
    assert np.abs(samples).max() > 0.01


def clips(groups=20, each=3):
    return [{"group": str(g), "held_out": str(int(g % 4 == 0))} for g in range(groups) for _ in range(each)]


@pytest.mark.parametrize("task", ["pitch", "composer"])
def test_no_instrument_or_piece_is_on_two_sides(task):
    rows = clips()
    for split in probe.splits(rows, task, 6, 0):
        sides = [{rows[i]["group"] for i in side} for side in (split.train, split.choose, split.test)]
        assert all(sides)
        assert len(set.union(*sides)) == sum(map(len, sides))
        if task == "pitch":
            assert {rows[i]["held_out"] for i in split.test} == {"1"}
            assert {rows[i]["held_out"] for i in (*split.train, *split.choose)} == {"0"}


@pytest.mark.slow
def test_probes_tell_features_that_say_it_from_noise():
    draw = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[np.arange(180) % 3]
    telling = np.eye(3)[np.arange(180) % 3] + 0.1 * draw.normal(size=(180, 3))
    noise = draw.normal(size=(180, 3))
    split = probe.Split(*np.split(draw.permutation(180), [90, 120]))
    assert probe.score(telling, y, split)[1] > 95
    assert probe.score(noise, y, split)[1] < 60
    numbers = np.arange(180) % 3
    test = np.arange(180) >= 120
    assert accuracy(telling, numbers, test) > 95 > 60 > accuracy(noise, numbers, test)
    assert effective_rank(telling) < effective_rank(noise) <= 3.01


def test_the_layer_is_chosen_on_the_training_side():
    common = {"task": "pitch", "pooling": "mean", "split": 0}
    rows = [{**common, "layer": 0, "choose": 50, "test": 10}, {**common, "layer": 1, "choose": 40, "test": 90}]
    assert probe.best(rows, "pitch", "mean").tolist() == [10]
