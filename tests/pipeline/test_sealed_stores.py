"""Builds of a store whose tracks are sealed do what they do with any other."""

import numpy as np
import pytest

from featurestore import FeatureStore, build

OPTIONS = {"model": "logmel", "segment_duration": 1.0, "layers": [0, 2]}

pytestmark = pytest.mark.slow


@pytest.fixture(params=["segments", "all"])
def store(request, music, tmp_path):
    build(music, tmp_path / "s.zarr", **OPTIONS, feature_level=request.param)
    FeatureStore(tmp_path / "s.zarr").pack(seal=True)
    return tmp_path / "s.zarr"


def in_folders(store):
    return sorted(path.name for path in (store / "aggregated").iterdir() if path.is_dir())


def arrays(store):
    found = FeatureStore(store)
    return np.asarray(found.aggregated(tracks=sorted(found))), np.asarray(found.segments(tracks=sorted(found)))


def test_what_is_sealed_is_there(music, store, clip):
    report = build(music, store)
    assert (report.processed, report.cached) == (0, 4)
    clip(music / "new.wav", seed=9)
    report = build(music, store)
    assert (report.processed, report.cached) == (1, 4)
    assert in_folders(store) == ["new"]
    assert FeatureStore(store).verify(deep=True).ok


def test_all_of_it_is_extracted_again_when_asked(music, store):
    before = arrays(store)
    assert build(music, store, force=True).processed == 4
    assert len(in_folders(store)) == 4
    for found, expected in zip(arrays(store), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    FeatureStore(store).pack(seal=True)
    assert in_folders(store) == []
    for found, expected in zip(arrays(store), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert FeatureStore(store).verify(deep=True).ok


def test_tracks_of_deleted_and_moved_files(music, store):
    (music / "a" / "one.wav").unlink()
    (music / "a" / "two.flac").rename(music / "moved.flac")
    report = build(music, store, prune=True)
    assert report.pruned == 1
    assert sorted(FeatureStore(store)) == ["b/one", "b/three", "moved"]
    assert build(music, store).cached == 3
    assert FeatureStore(store).verify(deep=True).ok


def test_more_layers(music, store):
    before = FeatureStore(store).segments(layer=2, tracks=["a/one"]).to_numpy()
    report = build(music, store, layers=[1], upgrade=True)
    assert report.processed == 4
    found = FeatureStore(store)
    assert found.spec.layers == (0, 1, 2)
    assert found.info()["sealed"] == 0
    assert not (store / "bundles").exists()
    np.testing.assert_array_equal(found.segments(layer=2, tracks=["a/one"]), before)
    assert found.verify(deep=True).ok
