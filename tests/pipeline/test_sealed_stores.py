"""Builds of a store whose tracks are sealed do what they do with any other."""

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter, build
from featurestore.errors import BuildStoppedError, StoreAccessError
from featurestore.pipeline import job
from featurestore.pipeline.orphans import find_orphans
from featurestore.store.bundles import bundle

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


def test_a_build_seals_when_asked_or_when_there_are_many(music, tmp_path, monkeypatch, clip):
    store = tmp_path / "t.zarr"
    build(music, store, **OPTIONS)
    assert len(in_folders(store)) == 4
    build(music, store, seal=True)
    assert in_folders(store) == []
    clip(music / "new.wav", seed=9)
    build(music, store)
    assert in_folders(store) == ["new"]
    build(music, store, seal=True)
    assert in_folders(store) == []
    FeatureStore(store).pack(seal=False)
    monkeypatch.setattr(job, "SEAL_ABOVE", 4)
    build(music, store)
    assert len(in_folders(store)) == 5  # too few for a bundle
    monkeypatch.setattr("featurestore.store.sealing.packing.LEAST_TRACKS", 3)
    build(music, store, seal=False)
    assert len(in_folders(store)) == 5
    build(music, store)
    assert in_folders(store) == []
    assert FeatureStore(store).verify(deep=True).ok


def test_a_disk_without_room_for_bundles_stops_only_who_asked_for_them(music, tmp_path, monkeypatch, caplog):
    def no_room(paths, size):
        raise StoreAccessError(f"store {paths.name}: no room")

    monkeypatch.setattr(job, "SEAL_ABOVE", 1)
    monkeypatch.setattr("featurestore.store.sealing.packing.LEAST_TRACKS", 1)
    monkeypatch.setattr("featurestore.store.sealing.seal.check_room", no_room)
    assert build(music, tmp_path / "t.zarr", **OPTIONS).processed == 4
    assert "stay in their folders" in caplog.text
    with pytest.raises(BuildStoppedError, match="no room"):
        build(music, tmp_path / "t.zarr", seal=True)


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


def test_what_is_known_of_tracks_whose_files_are_gone_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.store.bundles.layout.ATTRIBUTE_ROWS", 4)
    monkeypatch.setattr(bundle, "_KEPT_BYTES", 0)
    decoded, decode = [], bundle._texts
    names = [f"{number:02}" for number in range(16)]
    spec = FeatureSpec.for_arrays(layers=1, dim=2)
    with StoreWriter(tmp_path / "s.zarr", spec=spec, durable=False) as writer:
        for name in names:
            (tmp_path / name).touch()
            writer.put(name, {"aggregated": np.ones((1, 2))}, audio=tmp_path / name)
            (tmp_path / name).unlink()
        writer.pack(seal=True)
    there = FeatureStore(tmp_path / "s.zarr")
    assert there.track_ids == names
    monkeypatch.setattr(bundle, "_texts", lambda *args: decoded.append(args[1]) or decode(*args))
    assert list(find_orphans(there, [], str(tmp_path))) == names
    assert decoded.count(4) == 4  # rows of a chunk
