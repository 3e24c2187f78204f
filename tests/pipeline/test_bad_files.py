"""One bad file never stops the others: it is named in the report, and everything else is in the store."""

import os
from collections import Counter

import numpy as np
import pytest
import soundfile

from featurestore import FeatureStore, build
from featurestore.errors import AudioFormatError
from featurestore.pipeline import plan


def text(path):
    path.write_text("this is no audio\n" * 100)


def truncated(path):
    whole = path.with_suffix(".whole.flac")
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 48_000), 24_000)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def samples(number, value=0.1, rate=24_000):
    return lambda path: soundfile.write(path, np.full(number, value), rate, subtype="FLOAT")


def with_one(value):
    def write(path):
        audio = np.zeros(48_000)
        audio[40_000] = value
        soundfile.write(path, audio, 24_000, subtype="FLOAT")

    return write


def unreadable(path):
    samples(48_000)(path)
    path.chmod(0)


BAD = {
    "text.wav": (text, "AudioFormatError"),
    "truncated.flac": (truncated, "AudioFormatError"),
    "empty.wav": (lambda path: path.touch(), "AudioFormatError"),
    "no-samples.wav": (samples(0), "AudioTooShortError"),
    "399-samples.wav": (samples(399), "AudioTooShortError"),
    "third-of-a-second.wav": (samples(7_200), "AudioTooShortError"),
    "nan.wav": (with_one(np.nan), "AudioContentError"),
    "inf.wav": (with_one(np.inf), "AudioContentError"),
    "one-hertz.wav": (samples(5, rate=1), "AudioFormatError"),
    "dangling.wav": (lambda path: path.symlink_to("nowhere.wav"), "AudioNotFoundError"),
}


@pytest.fixture
def good_and_bad(tmp_path, clip):
    source = tmp_path / "music"
    clip(source / "a-good.wav")
    for name, (write, _) in BAD.items():
        write(source / name)
    clip(source / "z-good.wav")
    clip(source / "directory.wav" / "inside.wav")
    clip(source / "eight-channels.wav", channels=8)
    soundfile.write(source / "high-rate.wav", np.random.default_rng(0).normal(0, 0.1, 1_000_000), 768_000)
    return source


@pytest.mark.slow
def test_every_bad_file_is_named_and_every_good_one_is_stored(good_and_bad, tmp_path, extractor):
    report = build(good_and_bad, tmp_path / "s.zarr", extractor=extractor, feature_level="all", workers=2)
    found = {failure.path.rpartition("/")[2]: failure for failure in report.errors}
    assert {name: failure.error for name, failure in found.items()} == {
        name: kind for name, (_, kind) in BAD.items()
    }
    for name, failure in found.items():
        assert name in str(failure)
    good = ["a-good", "directory.wav/inside", "eight-channels", "high-rate", "z-good"]
    assert FeatureStore(tmp_path / "s.zarr").track_ids == good
    assert (report.failed, report.processed, report.exit_code) == (len(BAD), 5, 1)
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok


def test_a_dry_run_names_the_files_whose_header_is_bad(good_and_bad, tmp_path, extractor):
    report = build(good_and_bad, tmp_path / "s.zarr", extractor=extractor, feature_level="all", dry_run=True)
    assert {failure.track_id for failure in report.errors} >= {"text", "no-samples", "dangling", "one-hertz"}
    assert report.exit_code == 0


def test_a_bad_file_that_is_repaired_is_extracted_by_the_next_run(tmp_path, extractor, clip):
    source = tmp_path / "music"
    clip(source / "good.wav")
    text(source / "bad.wav")
    assert build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all").failed == 1
    clip(source / "bad.wav")
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert (report.processed, report.cached, report.failed) == (1, 1, 0)


def test_fail_fast_stops_at_the_first(tmp_path, extractor, clip):
    source = tmp_path / "music"
    clip(source / "a.wav")
    with_one(np.nan)(source / "b.wav")
    clip(source / "c.wav")
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all", fail_fast=True)
    assert (report.processed, report.failed, report.total_files) == (1, 1, 3)
    text(source / "d.wav")  # shows already in the header
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all", fail_fast=True)
    assert (report.processed, report.failed, report.cached) == (0, 1, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_named(tmp_path, extractor, clip):
    source = tmp_path / "music"
    clip(source / "good.wav")
    unreadable(source / "secret.wav")
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert (report.processed, report.failed) == (1, 1)
    assert "secret.wav" in str(report.errors[0])


@pytest.mark.slow
def test_a_file_that_cannot_be_read_any_more_does_not_stop_the_others(tmp_path, extractor, clip, monkeypatch):
    """Of the same size as before and another time: its digest decides, when it is its turn."""
    source = tmp_path / "music"
    for number in range(3):
        clip(source / f"{number}.wav", seed=number)
    build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    for number in range(3):
        os.utime(clip(source / f"{number}.wav", seed=number + 5), (0, 0))
    digest = plan.file_sha256
    looks = Counter()

    def failing(path):
        looks[path.name] += 1
        if path.name == "1.wav" and looks["1.wav"] > 1:
            raise AudioFormatError(f"{path} cannot be read: Input/output error")
        return digest(path)

    monkeypatch.setattr(plan, "file_sha256", failing)
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert looks["1.wav"] > 1
    assert report.processed + report.failed == 3
    assert report.processed >= 2


@pytest.mark.parametrize("track_id", ["../../up", "..", "zarr.json", "a\nb", "🎻", "x" * 5_000, "a/../../../b"])
def test_ids_of_a_list_cannot_leave_the_store(tmp_path, extractor, clip, track_id):
    clip(tmp_path / "music" / "one.wav")
    (tmp_path / "list.csv").write_text(f'track_id,path\n"{track_id}",music/one.wav\n')
    outside = sorted(tmp_path.iterdir())
    report = build(tmp_path / "list.csv", tmp_path / "stores" / "s.zarr", extractor=extractor, feature_level="all")
    assert (report.processed, report.exit_code) == (1, 0)
    store = FeatureStore(tmp_path / "stores" / "s.zarr")
    assert store.track_ids == [track_id]
    assert store.segments(track_id, layer=2).to_numpy().shape == (3, 64)
    assert sorted(tmp_path.iterdir()) == [*outside, tmp_path / "stores"]
    assert list((tmp_path / "stores").iterdir()) == [tmp_path / "stores" / "s.zarr"]
