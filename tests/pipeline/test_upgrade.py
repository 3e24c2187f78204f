"""More layers for a store that is there: a new store takes its place, whole, or the old one stays."""

import numpy as np
import pytest

from featurestore import FeatureStore, StoreWriter, build
from featurestore.errors import BuildStoppedError, SpecMismatchError, StoreAccessError
from featurestore.store import filesystem

SETTINGS = {"model": "logmel", "segment_duration": 1.0, "dtype": "float16"}

pytestmark = pytest.mark.slow


@pytest.fixture
def store(music, tmp_path):
    build(music, tmp_path / "s.zarr", **SETTINGS, layers=[1])
    return tmp_path / "s.zarr"


def layers(store):
    return FeatureStore(store).spec.layers


def names(store):
    return sorted(path.name for path in store.parent.iterdir() if path.name.startswith(store.name))


def test_it_needs_leave_and_says_what_it_costs(music, store):
    with pytest.raises(SpecMismatchError) as caught:
        build(music, store, layers=[0])
    assert caught.value.differences == {"layers": ([1], [0, 1])}
    text = str(caught.value)
    assert "has `layers=[1]`: with `layers=[0, 1]` 4 tracks (7.1 s of audio) are extracted" in text
    assert "kB are needed beside it meanwhile. Give `upgrade=True`" in text
    assert build(music, store, layers=[0], dry_run=True).to_do == 4
    assert (layers(store), names(store)) == ((1,), ["s.zarr"])


def test_the_new_store_is_what_a_fresh_one_would_be(music, store, tmp_path):
    (store / "README").write_text("mine")
    before = FeatureStore(store)
    report = build(music, store, layers=[0, 2], upgrade=True)
    assert (report.processed, report.cached, report.store) == (4, 0, str(store))
    fresh = tmp_path / "fresh.zarr"
    build(music, fresh, **SETTINGS)
    ours, theirs = FeatureStore(store), FeatureStore(fresh)
    assert ours.spec == theirs.spec
    assert ours.track_ids == theirs.track_ids
    np.testing.assert_array_equal(ours.aggregated().to_numpy(), theirs.aggregated().to_numpy())
    assert ours.verify(deep=True).ok
    assert [run["processed"] for run in ours.runs()] == [4, 4]
    assert (store / "README").read_text() == "mine"
    assert names(store) == ["s.zarr"]
    with pytest.raises(StoreAccessError, match="has been replaced by one of other settings: open it again"):
        before.aggregated().to_numpy()
    assert build(music, store).cached == 4


def test_a_part_of_the_tracks_is_kept_and_gone_on_with(music, store):
    with pytest.raises(BuildStoppedError, match=r"stays as it was, .* 3 tracks of it were not") as caught:
        build(music, store, layers=[0], upgrade=True, limit=1)
    assert caught.value.report.processed == 1
    assert (layers(store), len(FeatureStore(store))) == ((1,), 4)
    report = build(music, store, layers=[0], upgrade=True)
    assert (report.processed, report.cached) == (3, 1)
    assert (layers(store), names(store)) == ((0, 1), ["s.zarr"])


def test_tracks_of_several_sources_come_together(music, store, tmp_path, clip):
    clip(tmp_path / "more" / "other.wav")
    build(tmp_path / "more", store)
    with pytest.raises(BuildStoppedError, match=r"1 tracks of it were not extracted .*'other'"):
        build(music, store, layers=[0], upgrade=True)
    build(tmp_path / "more", store, layers=[0], upgrade=True)
    assert (layers(store), len(FeatureStore(store))) == ((0, 1), 5)


def test_tracks_of_files_that_are_gone_go_only_if_that_is_wanted(music, store):
    (music / "a" / "one.wav").unlink()
    with pytest.raises(BuildStoppedError, match="'a/one'"):
        build(music, store, layers=[0], upgrade=True)
    build(music, store, layers=[0], upgrade=True, prune=True)
    assert len(FeatureStore(store)) == 3


def test_a_file_that_was_moved_takes_its_features_along(music, store):
    (music / "a" / "one.wav").rename(music / "a" / "first.wav")
    build(music, store, layers=[0], upgrade=True)
    assert "a/first" in FeatureStore(store)
    assert "a/one" not in FeatureStore(store)


def test_other_settings_are_no_upgrade(music, store):
    with pytest.raises(SpecMismatchError) as caught:
        build(music, store, layers=[0], overlap=0.25, upgrade=True)
    assert set(caught.value.differences) == {"overlap"}
    assert names(store) == ["s.zarr"]


def test_one_upgrade_at_a_time(music, store):
    with pytest.raises(BuildStoppedError):
        build(music, store, layers=[0], upgrade=True, limit=1)
    with pytest.raises(SpecMismatchError, match="upgrading holds features of other settings"):
        build(music, store, layers=[2], upgrade=True)


def test_a_writer_at_work_keeps_the_store_in_its_place(music, store):
    with (
        StoreWriter(store, spec=FeatureStore(store).spec),
        pytest.raises(BuildStoppedError, match="another process is at work on it"),
    ):
        build(music, store, layers=[0], upgrade=True)
    assert layers(store) == (1,)
    report = build(music, store, layers=[0], upgrade=True)
    assert (report.cached, layers(store)) == (4, (0, 1))


@pytest.mark.parametrize("step", ["exchange", "remove_tree"])
def test_a_kill_at_any_step_leaves_the_old_one_or_the_new_one(music, store, monkeypatch, step):
    class KilledError(BaseException):
        pass

    real = getattr(filesystem, step)

    def kill(path, *others):
        if path == store.with_name("s.zarr.upgrading"):
            raise KilledError
        return real(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, step, kill)
        with pytest.raises(KilledError):
            build(music, store, layers=[0], upgrade=True, workers=1)
    assert layers(store) == ((1,) if step == "exchange" else (0, 1))
    assert names(store) == ["s.zarr", "s.zarr.upgrading"]
    build(music, store, layers=[0], upgrade=True)
    assert (layers(store), names(store)) == ((0, 1), ["s.zarr"])


def test_where_folders_cannot_be_exchanged_both_are_named(music, store, monkeypatch):
    real = filesystem.exchange
    monkeypatch.setattr(filesystem, "exchange", lambda one, other: one.parent != store.parent and real(one, other))
    with pytest.raises(BuildStoppedError, match=f"move {store} away, and {store}.upgrading to its place"):
        build(music, store, layers=[0], upgrade=True)
    assert layers(store) == (1,)
    assert layers(store.with_name("s.zarr.upgrading")) == (0, 1)
