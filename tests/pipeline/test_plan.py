"""The plan: what there is to do and what it takes, before the model runs."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from featurestore import build
from featurestore.amounts import bytes_in_words
from featurestore.audio import AudioFile
from featurestore.errors import StoreAccessError
from featurestore.pipeline.plan import Job, bytes_needed, plan_track, plan_windows


def used(folder):
    return sum(path.stat().st_blocks * 512 for path in Path(folder).rglob("*"))


def planned(tracks, extractor, level_kinds):
    job, spec = Job(store=Path(), kinds=level_kinds), extractor.spec()
    plans = [plan_track(number, track, None, job, spec) for number, track in enumerate(tracks)]
    return plan_windows(plans, extractor.model.sample_rate, extractor.planned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "kinds"), [("all", ("raw", "segments", "aggregated")), ("segments", ("segments", "aggregated"))]
)
def test_the_estimate_is_about_what_the_store_takes(tmp_path, clip, extractor, level, kinds):
    source = tmp_path / "music"
    tracks = [AudioFile(f"{n}", clip(source / f"{n}.wav", 4 + n)) for n in range(4)]
    needed = bytes_needed(planned(tracks, extractor, kinds), extractor.spec(), kinds)
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level=level)
    assert report.estimated_bytes == needed
    # The empty store with its locks and folders is not part of the estimate.
    empty = 120_000
    assert 0.7 * (used(tmp_path / "s.zarr") - empty) < needed < 1.5 * used(tmp_path / "s.zarr")


def test_windows_and_frames_are_counted_as_they_will_be(tmp_path, clip, extractor):
    track = AudioFile("x", clip(tmp_path / "x.wav", 2.3, rate=44_100))
    (plan,) = planned([track], extractor, ("aggregated",))
    features = extractor.extract_track_features(track.path)
    assert plan.segments == len(features["segments"])
    assert plan.frames == features["raw"].shape[0] * features["raw"].shape[2]
    assert plan.seconds == pytest.approx(2.3)


def sparse_wav(path, hours):
    """A WAV file of silence, 1,000 samples of 8 bits a second, that takes no room on the disk."""
    size = round(hours * 3600 * 1000)
    header = (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 1000, 1000, 1, 8)
    )
    path.write_bytes(header + b"data" + struct.pack("<I", size))
    os.truncate(path, 44 + size)


def test_a_build_that_cannot_fit_is_refused_with_a_way_out(tmp_path, extractor):
    source = tmp_path / "music"
    source.mkdir()
    free = shutil.disk_usage(tmp_path).free
    bytes_per_hour = 3600 * 2 * 74 * 4 * 64 * 4  # two windows of 74 frames a second, 4 layers of 64 float32
    for number in range(2 + free // (1000 * bytes_per_hour)):
        sparse_wav(source / f"{number}.wav", 1000)
    with pytest.raises(StoreAccessError) as caught:
        build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    message = str(caught.value)
    ways = ("feature_level='segments'", "feature_level='aggregated'", "dtype='float16'", "layers=[2]")
    for setting in ways:
        assert f"`{setting}`" in message
    assert not (tmp_path / "s.zarr").exists()
    report = build(source, tmp_path / "s.zarr", extractor=extractor, feature_level="all", dry_run=True)
    assert report.estimated_bytes > report.free_bytes


@pytest.mark.slow
def test_replacing_tracks_needs_room_for_one_of_them_only(tmp_path, music, extractor):
    new = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all").estimated_bytes
    again = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", force=True, dry_run=True)
    assert (again.to_do, again.estimated_bytes < new / 2) == (4, True)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_500, "1.5 kB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")],
)
def test_sizes_in_words(size, text):
    assert bytes_in_words(size) == text
