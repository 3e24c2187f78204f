"""Files that are deleted or moved: their tracks are named, removed, or renamed."""

import shutil

import numpy as np
import pytest

from featurestore import FeatureStore, StoreWriter, build

OPTIONS = {"model": "logmel", "segment_duration": 1.0, "layers": [0, 2], "feature_level": "all"}


@pytest.fixture
def store(music, tmp_path):
    build(music, tmp_path / "s.zarr", **OPTIONS)
    return tmp_path / "s.zarr"


@pytest.mark.slow
def test_tracks_of_deleted_files_are_named_and_removed_when_asked(music, store):
    (music / "a" / "one.wav").unlink()
    report = build(music, store)
    assert (report.cached, report.orphans, report.pruned) == (3, ("a/one",), 0)
    assert "a/one" in FeatureStore(store)
    report = build(music, store, prune=True, dry_run=True)
    assert (report.orphans, report.pruned, len(FeatureStore(store))) == (("a/one",), 0, 4)
    report = build(music, store, prune=True)
    assert (report.orphans, report.pruned) == (("a/one",), 1)
    assert FeatureStore(store).track_ids == ["a/two", "b/one", "b/three"]
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_other_sources_and_files_that_are_only_left_out_are_no_orphans(music, store, tmp_path, clip):
    clip(tmp_path / "other" / "x.wav")
    shutil.rmtree(music / "a")
    assert build(tmp_path / "other", store, prune=True).orphans == ()
    assert build(music, store, file_pattern="three*").orphans == ("a/one", "a/two")
    assert len(FeatureStore(store)) == 5


@pytest.mark.slow
def test_a_folder_of_the_same_name_elsewhere_is_another_source(tmp_path, clip, monkeypatch):
    for place in "xy":
        clip(tmp_path / place / "music" / f"{place}.wav")
        monkeypatch.chdir(tmp_path / place)
        assert build("music", tmp_path / "s.zarr", **OPTIONS, prune=True).orphans == ()
    (tmp_path / "x" / "music" / "x.wav").rename(tmp_path / "x" / "music" / "z.wav")
    assert build(tmp_path / "x" / "music", tmp_path / "s.zarr").moved == 1
    assert FeatureStore(tmp_path / "s.zarr").track_ids == ["y", "z"]
    assert "folder" not in FeatureStore(tmp_path / "s.zarr").provenance("z")["audio"]


@pytest.mark.slow
@pytest.mark.parametrize("audio", [7, {"path": 7}, {"path": "gone.wav", "size": [7]}, {"path": "x", "folder": 7}])
def test_what_a_store_says_of_audio_may_be_nonsense(music, tmp_path, audio, monkeypatch):
    monkeypatch.chdir(music)
    build(music, tmp_path / "s.zarr", **OPTIONS, limit=1)
    spec = FeatureStore(tmp_path / "s.zarr").spec
    with StoreWriter(tmp_path / "s.zarr", spec=spec) as writer:
        writer.put("odd", {"segments": np.ones((1, 2, spec.dim))}, attributes={"audio": audio})
    assert build(music, tmp_path / "s.zarr").failed == 0


@pytest.mark.slow
def test_a_track_follows_its_file(music, store):
    before = FeatureStore(store)
    old = {kind: np.asarray(getattr(before, kind)("a/two")) for kind in ("raw", "segments")}
    known = before.provenance("a/two")
    (music / "a" / "two.flac").rename(music / "b" / "renamed.flac")
    assert build(music, store, dry_run=True).to_do == 0
    report = build(music, store)
    assert (report.moved, report.cached, report.processed, report.orphans) == (1, 4, 0, ())
    after = FeatureStore(store)
    assert sorted(after) == sorted(["a/one", "b/one", "b/renamed", "b/three"])
    for kind, array in old.items():
        assert np.array_equal(array, getattr(after, kind)("b/renamed"))
    now = after.provenance("b/renamed")
    assert now["starts"] == known["starts"]
    assert now["audio"]["path"] == str(music / "b" / "renamed.flac")
    assert now["audio"]["sha256"] == known["audio"]["sha256"]
    assert after.verify(deep=True).ok
    assert after.info()["packed"] == 4


@pytest.mark.slow
def test_moves_and_new_files_in_one_run(music, store, clip):
    (music / "a" / "two.flac").rename(music / "moved.flac")
    clip(music / "new.wav", seed=9)
    report = build(music, store)
    assert (report.moved, report.cached, report.processed) == (1, 4, 1)
    assert sorted(FeatureStore(store)) == ["a/one", "b/one", "b/three", "moved", "new"]


@pytest.mark.slow
def test_a_file_that_was_moved_and_changed_is_a_new_one(music, store, clip):
    (music / "a" / "one.wav").unlink()
    clip(music / "c.wav", seed=77)
    report = build(music, store)
    assert (report.moved, report.processed, report.orphans) == (0, 1, ("a/one",))
