"""Batches go across tracks: what happens to one of them is no business of its neighbours in a batch."""

import numpy as np
import pytest
import soundfile
import torch

import featurestore.pipeline.extraction as extraction
from featurestore import FeatureExtractor, FeatureStore, build


class Watched:
    """An encoder of one's own that notes the sizes of batches, and may do something before each."""

    def __init__(self, inner, before=lambda wave: None):
        self.inner, self.before, self.sizes = inner, before, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def states(self, wave, last=None):
        self.sizes.append(len(wave))
        self.before(wave)
        return self.inner.states(wave, last)

    def to(self, device):
        return self


@pytest.fixture
def watched(extractor):
    """Makes an extractor of batches of 8, and the encoder that it uses."""

    def make(before=lambda wave: None, **settings):
        model = Watched(extractor.model, before)
        return FeatureExtractor(model=model, segment_duration=1.0, batch_size=8, **settings), model

    return make


@pytest.fixture
def clips(tmp_path, clip):
    """Nine clips of three windows each."""
    for number in range(9):
        clip(tmp_path / "music" / f"{number}.wav", 1.6, seed=number)
    return tmp_path / "music"


@pytest.fixture
def check(assert_states_close):
    """Compares a store with the features of each of its tracks by itself."""

    def compare(store, extractor, source, track_ids):
        opened = FeatureStore(store)
        assert opened.track_ids == track_ids
        for track_id in track_ids:
            alone = extractor.extract_track_features(source / f"{track_id}.wav")
            assert_states_close(opened.raw(track_id), alone["raw"])
            assert_states_close(opened.segments(track_id), alone["segments"])
            assert opened.provenance(track_id)["starts"] == [0.0, 0.5, 0.6]
        assert opened.verify(deep=True).ok

    return compare


@pytest.mark.slow
def test_batches_are_full_whatever_the_tracks(clips, tmp_path, watched, extractor, check):
    batching, model = watched()
    report = build(clips, tmp_path / "s.zarr", extractor=batching, feature_level="all")
    assert report.processed == 9
    assert model.sizes == [8, 8, 8, 3]
    check(tmp_path / "s.zarr", extractor, clips, [str(n) for n in range(9)])


@pytest.mark.slow
def test_a_file_that_breaks_off_in_the_middle(clips, tmp_path, watched, extractor, check):
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000 * 3)
    samples[-10] = np.nan
    soundfile.write(clips / "4.wav", samples, 24_000, subtype="FLOAT")
    batching, _ = watched()
    report = build(clips, tmp_path / "s.zarr", extractor=batching, feature_level="all")
    assert [failure.track_id for failure in report.errors] == ["4"]
    check(tmp_path / "s.zarr", extractor, clips, list("01235678"))


@pytest.mark.slow
def test_a_track_that_the_model_cannot_bear(clips, tmp_path, watched, extractor, check):
    peak = 7.0
    samples = soundfile.read(clips / "4.wav")[0]
    samples[20_000] = peak
    soundfile.write(clips / "4.wav", samples, 24_000, subtype="FLOAT")

    def break_down(wave):
        if (wave.amax(dim=1) == peak).any():
            raise ZeroDivisionError("too loud")

    batching, _ = watched(break_down)
    report = build(clips, tmp_path / "s.zarr", extractor=batching, feature_level="all")
    (failure,) = report.errors
    assert (failure.track_id, failure.error) == ("4", "ExtractionError")
    assert "4.wav: encoding failed with ZeroDivisionError: too loud" in failure.message
    check(tmp_path / "s.zarr", extractor, clips, list("01235678"))


@pytest.mark.slow
def test_memory_that_is_full_for_a_while(clips, tmp_path, watched, extractor, check):
    def full(wave):
        if len(wave) > 3:
            raise torch.OutOfMemoryError("full")

    batching, model = watched(full)
    report = build(clips, tmp_path / "s.zarr", extractor=batching, feature_level="all")
    assert (report.processed, report.failed) == (9, 0)
    assert model.sizes[:4] == [8, 4, 2, 2]
    check(tmp_path / "s.zarr", extractor, clips, [str(n) for n in range(9)])


@pytest.mark.slow
def test_no_more_tracks_are_open_than_files_allow(clips, tmp_path, watched, extractor, monkeypatch, check):
    monkeypatch.setattr(extraction, "most_open", lambda: 2)
    monkeypatch.setattr(extraction, "MOST_PUBLISHING", 1)
    store, most = tmp_path / "s.zarr", []

    def look(wave):
        most.append(len([p for p in (store / ".featurestore" / "staging").glob("*/*") if p.is_dir()]))

    batching, model = watched(look)
    assert build(clips, store, extractor=batching, feature_level="all").processed == 9
    assert 4 <= max(most) <= 6  # two are claimed and decoded ahead, two may be on their way into the store
    assert max(model.sizes) == 6
    check(store, extractor, clips, [str(n) for n in range(9)])


@pytest.mark.slow
def test_fail_fast_finishes_what_is_decoded_and_begins_nothing(clips, tmp_path, watched):
    batching, _ = watched()
    samples = np.full(48_000, 0.1)
    samples[-1] = np.inf
    soundfile.write(clips / "3.wav", samples, 24_000, subtype="FLOAT")
    report = build(clips, tmp_path / "s.zarr", extractor=batching, feature_level="all", fail_fast=True)
    assert (report.processed, report.failed) == (3, 1)
    assert FeatureStore(tmp_path / "s.zarr").track_ids == ["0", "1", "2"]
