"""How long windows are: as a model was trained, as asked for, or as long as their track."""

import json

import numpy as np
import pytest

from featurestore import FeatureExtractor, FeatureStore, build, load_model
from featurestore.encode import WindowEncoder, batching, track_windows
from featurestore.errors import AudioTooShortError, SettingError
from featurestore.models import save_random_checkpoint


@pytest.fixture(scope="module")
def mert2(tmp_path_factory):
    return save_random_checkpoint(tmp_path_factory.mktemp("models") / "mert2", shape="mert2-tiny")


@pytest.fixture(scope="module")
def of_two_seconds(tmp_path_factory):
    """A model that hears 2 s at most."""
    folder = save_random_checkpoint(tmp_path_factory.mktemp("models") / "two", shape="mert2-tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "context_seconds": 2.0}))
    return folder


def windows_of(spec):
    return spec.segment_duration, spec.overlap


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (30.0, 0.0)),
        ({"overlap": 0.25}, (30.0, 0.25)),
        ({"segment_duration": "full"}, ("full", 0.0)),
        ({"segment_duration": "full", "overlap": 0.5}, ("full", 0.5)),
        ({"segment_duration": 5}, (5.0, 0.5)),
    ],
)
def test_windows_are_those_of_the_training_unless_others_are_asked_for(mert2, given, expected):
    assert windows_of(WindowEncoder(model=mert2, **given).spec()) == expected


def test_those_of_mert_stay_what_they_were(model_folder):
    assert windows_of(WindowEncoder(model=model_folder).spec()) == (5.0, 0.5)
    with_words = WindowEncoder(model=model_folder, segment_duration="auto").spec()
    assert (
        with_words.fingerprint
        == WindowEncoder(model=model_folder, segment_duration=5, overlap=0.5).spec().fingerprint
    )


def test_a_full_window_is_the_track(model_folder, clip, tmp_path):
    extractor = FeatureExtractor(model=model_folder, segment_duration="full")
    features = extractor.extract_track_features(clip(tmp_path / "x.wav", 2.3))
    whole = load_model(model_folder).frames(round(2.3 * 24_000))
    assert features["raw"].shape[::2] == (1, whole)
    assert extractor.planned(round(2.3 * 24_000)) == (1, whole)


@pytest.mark.slow
def test_beyond_a_limit_full_windows_are_equal_and_cover_the_track(of_two_seconds):
    encoder = WindowEncoder(model=of_two_seconds, segment_duration="full")
    track = np.arange(120_001, dtype=np.float32)
    found = list(encoder.windows(np.array_split(track, 7)))
    assert [start for start, _ in found] == [0, 40_000, 80_000]
    assert {len(samples) for _, samples in found} == {40_001}
    assert all(np.array_equal(samples, track[start : start + 40_001]) for start, samples in found)
    assert encoder.planned(len(track))[0] == 3
    halves = WindowEncoder(model=of_two_seconds, segment_duration="full", overlap=0.5)
    found = list(halves.windows([track]))
    assert [start for start, _ in found] == [0, 20_000, 40_000, 60_000, 80_000]
    assert {len(samples) for _, samples in found} == {40_001}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"dtype": "float16"}])
def test_states_that_are_streamed_are_stored_as_all_at_once(model_folder, music, tmp_path, monkeypatch, settings):
    options = {"model": model_folder, "segment_duration": "full", "feature_level": "all", **settings}
    build(music, tmp_path / "whole.zarr", **options)
    monkeypatch.setattr(batching, "STREAM_BYTES", 0)
    report = build(music, tmp_path / "streamed.zarr", **options)
    assert report.failed == 0
    whole, streamed = FeatureStore(tmp_path / "whole.zarr"), FeatureStore(tmp_path / "streamed.zarr")
    assert streamed.verify(deep=True).problems == ()
    for track_id in whole.track_ids:
        for kind in ("raw", "segments"):
            assert np.array_equal(getattr(whole, kind)(track_id), getattr(streamed, kind)(track_id))
    assert np.array_equal(whole.aggregated(), streamed.aggregated())


@pytest.mark.slow
def test_several_streamed_windows_of_a_track_stay_in_order(of_two_seconds, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "STREAM_BYTES", 0)
    track = clip(tmp_path / "x.wav", 5.0)
    build(track, tmp_path / "s.zarr", model=of_two_seconds, feature_level="all")
    features = FeatureExtractor(model=of_two_seconds).extract_track_features(track)
    assert np.allclose(FeatureStore(tmp_path / "s.zarr").raw("x"), features["raw"], atol=1e-4)


@pytest.mark.slow
def test_a_store_that_exists_goes_on_with_its_windows(mert2, music, tmp_path):
    settings = {"model": mert2, "feature_level": "segments", "layers": [1]}
    build(music, tmp_path / "s.zarr", segment_duration=5.0, limit=2, **settings)
    before = FeatureStore(tmp_path / "s.zarr").spec
    report = build(music, tmp_path / "s.zarr", **settings)
    assert (report.cached, report.processed, report.fingerprint) == (2, 2, before.fingerprint)
    assert windows_of(before) == (5.0, 0.5)


def test_a_window_is_refused_that_is_longer_than_the_model_hears(mert2):
    with pytest.raises(SettingError, match=r"30 s at most.*choose a shorter `segment_duration`"):
        WindowEncoder(model=mert2, segment_duration=30.1)


def test_a_layer_is_refused_that_the_model_has_not(mert2):
    with pytest.raises(SettingError, match=r"has 4, which does not exist; .* has layers 0 to 3"):
        WindowEncoder(model=mert2, layers=[4])


def test_audio_that_is_too_short_for_a_frame_is_refused(mert2):
    encoder = WindowEncoder(model=mert2, segment_duration="full")
    with pytest.raises(AudioTooShortError, match=r"1024 samples at 24000 Hz are too short for .* needs 1025"):
        list(encoder.encode([np.zeros(1024, np.float32)], raw=False))


@pytest.mark.slow
def test_a_window_that_memory_cannot_hold_is_refused_before_any_work(model_folder, clip, tmp_path, monkeypatch):
    music = clip(tmp_path / "music" / "short.wav", 2.0).parent
    clip(music / "long.wav", 60.0, rate=8000)
    monkeypatch.setattr(track_windows, "free_memory", lambda _: 50_000_000)
    options = {"model": model_folder, "segment_duration": "full", "feature_level": "segments"}
    report = build(music, tmp_path / "s.zarr", dry_run=True, **options)
    (failure,) = report.errors
    assert "long.wav: one window of 60 s needs about 0.1 GB" in str(failure)
    assert "choose `segment_duration='auto'`" in str(failure)
    report = build(music, tmp_path / "s.zarr", **options)
    assert (report.processed, report.failed) == (1, 1)


@pytest.mark.parametrize("given", ["fulll", float("nan"), -1, 0, None, True])
def test_windows_are_seconds_auto_or_full(music, tmp_path, given):
    with pytest.raises(SettingError, match="`segment_duration`"):
        build(music, tmp_path / "s.zarr", segment_duration=given)


@pytest.mark.slow
def test_a_dry_run_counts_full_windows(mert2, clip, tmp_path):
    report = build(
        clip(tmp_path / "x.wav", 40.0),
        tmp_path / "s.zarr",
        model=mert2,
        segment_duration="full",
        feature_level="all",
        dry_run=True,
    )
    raw = 4 * (2 * 500) * 4 * load_model(mert2).dim  # two windows of 20 s, four states
    assert raw < report.estimated_bytes < raw + 250_000
