"""Labels belong to frames: they are found where they are, and files that do not fit are named with their line."""

import errno
import os

import numpy as np
import pytest
import soundfile

from featurestore.errors import SettingError, SourceError
from featurestore.models.spectra import ConstantQ
from featurestore.training.pretrain.batches import Part, Reader
from featurestore.training.pretrain.corpus import codebook_classes, open_corpus
from featurestore.training.pretrain.cqt import CqtFile, CqtTarget
from featurestore.training.pretrain.network import start
from featurestore.training.pretrain.plan import Window
from featurestore.training.pretrain.training import layout_of
from tests.training.pretrain.conftest import HOP, RATE, recipe_for


def open_train(folder, **tables):
    recipe = recipe_for(folder, **tables)
    layout = layout_of(start(recipe).encoder, recipe.data.window)
    return open_corpus("train", recipe, layout, codebook_classes(recipe))


def test_five_seconds_have_374_frames_and_375_labels(shared_data):
    layout = layout_of(start(recipe_for(shared_data)).encoder, 5.0)
    assert (layout.window, layout.hop, layout.count) == (120_000, 320, 374)
    assert layout.window // layout.hop == 375


def test_a_window_gets_the_labels_and_samples_of_its_frames(shared_data):
    corpus = open_train(shared_data)
    batch = Reader(corpus, None).read([Window(2, 7)], [np.zeros(37, bool)], [[]])
    tokens = np.array((shared_data / "train.km").read_text().splitlines()[2].split(), int)
    assert batch.tokens["km"][0].tolist() == tokens[7 : 7 + 37].tolist()
    assert batch.dense["keys"][0].argmax(dim=1).tolist() == tokens[7 : 7 + 37].tolist()
    wave, _ = soundfile.read(shared_data / "train2.wav", dtype="float32")
    assert np.array_equal(batch.wave[0], wave[7 * HOP : 7 * HOP + corpus.layout.window])


def test_what_is_mixed_in_is_added_to_the_wave_and_to_no_target(shared_data):
    corpus = open_train(shared_data)
    part = Part(Window(1, 3), start=100, samples=2_000, into=500, volume=0.5)
    plain, mixed = (Reader(corpus, None).read([Window(0, 0)], [np.zeros(37, bool)], [x]) for x in ([], [part]))
    other, _ = soundfile.read(shared_data / "train1.wav", dtype="float32")
    expected = plain.wave[0].numpy().copy()
    expected[500:2_500] += 0.5 * other[3 * HOP + 100 : 3 * HOP + 2_100]
    assert np.array_equal(mixed.wave[0], expected)
    assert np.array_equal(mixed.clean, plain.wave)


def test_audio_of_another_rate_is_resampled(own_data):
    wave, _ = soundfile.read(own_data / "train1.wav")
    soundfile.write(own_data / "train1.wav", np.repeat(wave, 2), 2 * RATE)
    manifest = (own_data / "train.tsv").read_text().splitlines()
    manifest[2] = f"train1.wav\t{2 * len(wave)}"
    (own_data / "train.tsv").write_text("\n".join(manifest))
    corpus = open_train(own_data)
    assert corpus.entries[1].samples == len(wave)
    batch = Reader(corpus, None).read([Window(1, 2)], [np.zeros(37, bool)], [[]])
    middle = wave[2 * HOP : 2 * HOP + corpus.layout.window]
    assert np.corrcoef(batch.wave[0], middle)[0, 1] > 0.99


def test_cached_spectra_are_those_of_the_whole_file_and_can_be_finished_later(shared_data, tmp_path):
    recipe = recipe_for(shared_data)
    corpus = open_train(shared_data)
    file = CqtFile(tmp_path, corpus, recipe.cqt)
    assert file.missing() == list(range(6))
    file.make()
    file.fill([0, 3])
    again = CqtFile(tmp_path, corpus, recipe.cqt)
    assert again.missing() == [1, 2, 4, 5]
    again.make()
    again.fill([1])
    wave = Reader(corpus, None).samples(Window(3, 0), 0, corpus.entries[3].samples)
    target = CqtTarget(recipe.cqt, corpus.layout)
    expected = target(target.transform.lengths.new_tensor(wave)[None], 90)[0].numpy()
    entry = corpus.entries[3]
    found = again.values()[entry.first : entry.first + entry.frames]
    np.testing.assert_allclose(found, expected[: entry.frames], rtol=2e-3, atol=1e-4)
    assert isinstance(target.transform, ConstantQ)


def test_spectra_that_were_lost_are_computed_again(shared_data, tmp_path):
    corpus = open_train(shared_data)
    file = CqtFile(tmp_path, corpus, recipe_for(shared_data).cqt)
    file.make()
    file.fill([0])
    (values,) = tmp_path.glob("*.f16")
    values.write_bytes(b"")
    file.make()
    assert file.missing() == list(range(6))
    assert values.stat().st_size == corpus.frames * 60 * 2


@pytest.mark.parametrize("length", [0, 5, 7])
def test_a_note_of_what_is_computed_that_was_cut_off_says_nothing(shared_data, tmp_path, length):
    file = CqtFile(tmp_path, open_train(shared_data), recipe_for(shared_data).cqt)
    file.make()
    file.fill([0])
    (done,) = tmp_path.glob("*.done")
    done.write_bytes(b"\1" * length)
    assert file.missing() == list(range(6))
    file.make()
    assert done.read_bytes() == bytes(6)


def test_a_note_that_could_not_be_written_is_not_there(shared_data, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = CqtFile(tmp_path, open_train(shared_data), recipe_for(shared_data).cqt)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingError, match=r"cannot be written \(No space left"):
        file.make()
    assert not list(tmp_path.glob("train.*.done"))
    assert file.missing() == list(range(6))


def test_spectra_of_files_that_have_changed_replace_the_old_ones_and_no_others(own_data, tmp_path):
    recipe, fewer = recipe_for(own_data), recipe_for(own_data, cqt={"bins": 20})
    for settings in (recipe.cqt, fewer.cqt):
        CqtFile(tmp_path, open_train(own_data), settings).make()
    before = set(tmp_path.glob("train.*"))
    (own_data / "train0.wav").touch()
    CqtFile(tmp_path, open_train(own_data), recipe.cqt).make()
    after = set(tmp_path.glob("train.*"))
    assert len(before) == len(after) == 4
    assert len(before & after) == 2


def test_a_cache_that_cannot_be_written_is_named(shared_data, tmp_path):
    (tmp_path / "file").write_text("")
    file = CqtFile(tmp_path / "file", open_train(shared_data), recipe_for(shared_data).cqt)
    with pytest.raises(SettingError, match=r"cannot be written .* set data\.cache"):
        file.make()


def break_manifest(folder, line, text):
    lines = (folder / "train.tsv").read_text().splitlines()
    lines[line - 1] = text
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")


def break_tokens(folder, line, change):
    lines = (folder / "train.km").read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    (folder / "train.km").write_text("\n".join(lines) + "\n")


def cut_lines(folder, kept):
    lines = (folder / "train.km").read_text().splitlines()
    (folder / "train.km").write_text("\n".join(lines[:kept]) + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: (x / "train.tsv").unlink(), r"has no train\.tsv"),
        (
            lambda x: break_manifest(x, 3, "train1.wav\t100"),
            r"line 3 of .*train\.tsv.* says 100 samples, but .* has 28800",
        ),
        (lambda x: break_manifest(x, 2, "gone.wav\t28800"), r"line 2 of .*train\.tsv.*gone\.wav"),
        (lambda x: break_manifest(x, 2, "train0.wav"), "line 2 of .* is not that of a manifest"),
        (lambda x: (x / "train.km").unlink(), r"train\.km cannot be read: No such file"),
        (lambda x: (x / "dict.km.txt").unlink(), r"dict\.km\.txt cannot be read: No such file"),
        (lambda x: (x / "dict.km.txt").write_text("0 1\nx\n"), r"line 2 of .*dict\.km\.txt"),
        (lambda x: cut_lines(x, 2), r"train\.km ends after line 2, but .*train\.tsv has 3 files"),
        (
            lambda x: break_tokens(x, 2, lambda y: y[:60]),
            r"line 2 of .*train\.km has \d+ labels for the 1\.20 s of",
        ),
        (
            lambda x: break_tokens(x, 3, lambda y: " ".join(y.split()[::3])),
            r"line 3 of .*train\.km .* 25\.00 a second, not 75",
        ),
        (
            lambda x: break_tokens(x, 1, lambda y: "99 " + y),
            r"line 1 of .*train\.km has the label 99, which .*dict\.km\.txt has not",
        ),
        (
            lambda x: break_tokens(x, 1, lambda y: "a " + y),
            r"line 1 of .*train\.km is not a line of whole numbers",
        ),
        (lambda x: (x / "train.keys.npy").unlink(), r"train\.keys\.npy are missing"),
        (lambda x: (x / "train.keys.npy").write_bytes(b"?"), r"train\.keys\.npy cannot be read"),
        (lambda x: np.save(x / "train.keys.npy", np.zeros((5, 12), np.uint8)), r"has 5 frames, but .* have 270"),
        (lambda x: np.save(x / "train.keys.npy", np.zeros((270, 12))), r"must be uint8 of shape"),
        (
            lambda x: np.save(x / "train.keys.npy", np.array([{}]), allow_pickle=True),
            r"train\.keys\.npy cannot be read",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(own_data, damage, message):
    damage(own_data)
    with pytest.raises(SourceError, match=message):
        open_train(own_data)


def test_windows_longer_than_every_file_are_refused(own_data):
    with pytest.raises(SourceError, match=r"no file is as long as a window, 2 s"):
        open_train(own_data, data={"window": 2.0})
