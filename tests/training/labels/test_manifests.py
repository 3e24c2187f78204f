"""Manifests: which files are in them and in which split, how long they are, and that builds read them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from featurestore import load_audio
from featurestore.audio import count_samples, discover
from featurestore.errors import SettingError, SourceError, StoreAccessError
from featurestore.training.labels import write_manifests
from featurestore.training.labels.manifests import _held_out


def lines(path):
    root, *rest = os.fsdecode(path.read_bytes()).removesuffix("\n").split("\n")
    return root, {name: int(samples) for name, samples in (line.split("\t") for line in rest)}


@pytest.mark.slow
def test_a_manifest_is_what_fairseq_reads(music, tmp_path):
    report = write_manifests(music, tmp_path / "data", valid=0.2)
    root, train = lines(tmp_path / "data" / "train.tsv")
    assert root == str(music)
    assert lines(tmp_path / "data" / "valid.tsv")[0] == root
    valid = lines(tmp_path / "data" / "valid.tsv")[1]
    assert (len(train), len(valid)) == (report.train, report.valid) == (8, 2)
    assert train | valid == {f"{'ab'[n % 2]}/{n}.wav": 31_200 + 3_611 * n for n in range(10)}
    assert list(train) == sorted(train)
    assert report.sample_rates == {24_000: 10}
    assert report.hours * 3600 * 24_000 == pytest.approx(sum((train | valid).values()))


@pytest.mark.slow
def test_the_split_is_of_the_names_and_the_seed_alone(music, tmp_path):
    def splits(source, **settings):
        write_manifests(source, tmp_path / "data", **settings)
        return [lines(tmp_path / "data" / f"{split}.tsv")[1] for split in ("train", "valid")]

    first = splits(music, valid=0.3)
    elsewhere = tmp_path / "elsewhere"  # made in another order
    for path in sorted(music.rglob("*.wav"), reverse=True):
        (elsewhere / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, elsewhere / path.parent.name)
    assert splits(elsewhere, valid=0.3) == first
    assert splits(music, valid=0.3, seed=1) != first


@given(st.sets(st.text("abc/", min_size=1), min_size=2), st.floats(0, 0.99), st.integers(0, 9))
def test_as_many_are_held_out_as_asked_for_and_a_file_more_moves_at_most_one(names, share, seed):
    names = sorted(names)
    held_out = _held_out(names, share, seed)
    assert held_out <= set(names)
    assert len(held_out) == (max(1, min(round(share * len(names)), len(names) - 1)) if share else 0)
    assert len(_held_out(names[1:], share, seed) - held_out) <= 1


def test_samples_are_counted_exactly_whatever_the_format(tmp_path, clip):
    music = tmp_path / "music"
    expected = {}
    for name, rate in {
        "a.wav": 24_000,
        "b.flac": 44_100,
        "c.ogg": 32_000,
        "d.opus": 48_000,
        "e.mp3": 44_100,
    }.items():
        options = {"subtype": "OPUS", "format": "OGG"} if name == "d.opus" else {}
        clip(music / name, 50_021, rate, **options)
        # At its own rate nothing is resampled, so this is all of it.
        expected[name] = len(load_audio(music / name, rate))
    adpcm = clip(music / "f.wav", 50_021, subtype="MS_ADPCM")
    expected["f.wav"] = len(load_audio(adpcm, 24_000))
    clip(music / "g.wav", 50_021, subtype="FLOAT")
    expected["g.wav"] = 50_021
    report = write_manifests(music, tmp_path / "data", valid=0)
    assert lines(tmp_path / "data" / "train.tsv")[1] == expected
    assert [expected[name] for name in ("a.wav", "b.flac", "c.ogg", "d.opus")] == [50_021] * 4
    assert report.sample_rates == {24_000: 3, 32_000: 1, 44_100: 2, 48_000: 1}
    assert not (tmp_path / "data" / "valid.tsv").exists()


def test_an_mp3_without_a_count_of_its_frames_is_decoded(tmp_path, clip):
    whole = clip(tmp_path / "whole.mp3", 60_000, 44_100)
    data = whole.read_bytes()
    first = data.index(b"Xing") if b"Xing" in data else data.index(b"Info")
    (tmp_path / "bare.mp3").write_bytes(data[:first] + b"\0\0\0\0" + data[first + 4 :])
    samples, rate = count_samples(tmp_path / "bare.mp3")
    assert (samples, rate) == (len(load_audio(tmp_path / "bare.mp3", 44_100)), 44_100)


@pytest.mark.parametrize("relative_root", [False, True])
def test_what_is_written_is_what_a_build_finds(music, tmp_path, monkeypatch, relative_root):
    write_manifests(music, tmp_path / "data", relative_root=relative_root)
    found = []
    for split in ("train", "valid"):
        found += discover(tmp_path / "data" / f"{split}.tsv")
    assert {(x.track_id, os.path.realpath(x.path)) for x in found} == {
        (x.track_id, os.path.realpath(x.path)) for x in discover(music)
    }
    # A relative root is moved together with what it leads to; an absolute one holds from anywhere.
    (tmp_path / "moved").mkdir()
    for name in ("data", "music") if relative_root else ("data",):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir("/")
    assert all(x.path.is_file() for x in discover(tmp_path / "moved" / "data" / "train.tsv"))


def test_a_relative_root_leads_back_through_links(music, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    write_manifests(music, tmp_path / "link", relative_root=True)
    assert all(x.path.is_file() for x in discover(tmp_path / "link" / "train.tsv"))


def test_names_may_be_of_any_bytes_but_tabs_and_line_breaks(music, tmp_path, clip):
    clip(tmp_path / "plain.wav")
    odd = os.fsencode(music) + b"/b\xe9 \xe2\x99\xab, 'x'.wav"
    os.rename(tmp_path / "plain.wav", odd)
    write_manifests(music, tmp_path / "data", valid=0)
    assert odd in [os.fsencode(x.path) for x in discover(tmp_path / "data" / "train.tsv")]


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", "a\rb.wav"])
def test_a_name_that_a_manifest_cannot_hold_is_refused(music, tmp_path, clip, name):
    clip(music / name)
    with pytest.raises(SourceError, match=r"the file 'a.*b\.wav' has a tab or a line break .* rename it"):
        write_manifests(music, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_files_that_cannot_be_used_are_named_and_left_out(music, tmp_path, clip):
    (music / "a" / "broken.wav").write_bytes(b"RIFF, not really")
    clip(music / "b" / "short.wav", 1_000)
    whole = clip(music / "b" / "cut.ogg", 100_000).read_bytes()
    (music / "b" / "cut.ogg").write_bytes(whole[: len(whole) // 2])
    report = write_manifests(music, tmp_path / "data")
    assert [path for path, _ in report.errors] == ["a/broken.wav", "b/cut.ogg", "b/short.wav"]
    assert "truncated" in report.errors[1][1]
    assert "at least 1.0 s" in report.errors[2][1]
    train, valid = (lines(tmp_path / "data" / f"{split}.tsv")[1] for split in ("train", "valid"))
    assert len(train | valid) == report.train + report.valid == 10


def test_one_file_at_least_is_left_for_training(music, tmp_path):
    report = write_manifests(music, tmp_path / "data", valid=0.99)
    assert len((tmp_path / "data" / "train.tsv").read_text().splitlines()) == 2
    assert len((tmp_path / "data" / "valid.tsv").read_text().splitlines()) == 10
    assert report


def test_a_source_that_gives_no_manifest_is_refused(music, tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        write_manifests(music / "a" / "0.wav", tmp_path / "data")
    with pytest.raises(SourceError, match="holds no audio"):
        write_manifests(music, tmp_path / "data", file_pattern="*.flac")
    with pytest.raises(SourceError, match="one usable file"):
        write_manifests(music, tmp_path / "data", file_pattern="0.wav")
    with pytest.raises(SettingError, match="`valid` must be"):
        write_manifests(music, tmp_path / "data", valid=1)
    for path in music.rglob("*.wav"):
        path.write_bytes(b"no audio")
    with pytest.raises(SourceError, match="none of the 10 files"):
        write_manifests(music, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_split_is_never_beside_another(music, tmp_path):
    write_manifests(music, tmp_path / "data")
    with pytest.raises(SettingError, match=r"valid\.tsv of another split"):
        write_manifests(music, tmp_path / "data", valid=0)


def test_nothing_is_left_of_a_failure(music, tmp_path):
    out = tmp_path / "data"
    (out / "train.tsv").mkdir(parents=True)
    with pytest.raises(StoreAccessError, match=r"train\.tsv cannot be written: Is a directory"):
        write_manifests(music, out)
    assert [x.name for x in out.iterdir() if x.name.startswith(".")] == []


def test_progress_is_told(music, tmp_path):
    told = []
    write_manifests(music, tmp_path / "data", progress=lambda *now: told.append(now))
    assert told == [(n, 10) for n in range(1, 11)]


def test_counting_agrees_with_decoding_for_silence_in_flac(tmp_path):
    """A megasample of silence in a few bytes is not taken for a damaged header."""
    soundfile.write(tmp_path / "a.flac", np.zeros(1_000_000), 24_000)
    assert count_samples(Path(tmp_path / "a.flac")) == (1_000_000, 24_000)


@pytest.mark.slow
def test_labels_do_not_outlive_their_manifest(music, tmp_path):
    write_manifests(music, tmp_path, valid=0.3)
    (tmp_path / "train.km").write_text("0\n")
    (tmp_path / "train.cqt-0.f16").write_text("")
    write_manifests(music, tmp_path, valid=0.3, relative_root=True)  # the same files
    before = (tmp_path / "train.tsv").read_bytes()
    with pytest.raises(SettingError, match=r"labels of the files that train\.tsv lists now \(train\.km\)"):
        write_manifests(music, tmp_path, valid=0.3, seed=3)
    assert (tmp_path / "train.tsv").read_bytes() == before
    (tmp_path / "train.km").unlink()
    write_manifests(music, tmp_path, valid=0.3, seed=3)
    assert (tmp_path / "train.tsv").read_bytes() != before
