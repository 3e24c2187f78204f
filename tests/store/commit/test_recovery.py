"""What is left of a writer that died while it placed a new track."""

import os
import shutil

import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackNotFoundError
from featurestore.store import filesystem
from featurestore.store.commit import transaction
from featurestore.store.commit.locks import TrackLocks


@pytest.fixture
def left(path):
    """A store with raw of a track that was never published, its writer dead."""
    write_store(path, {"whole": features(0)})
    if not (pid := os.fork()):
        rename = filesystem.rename

        def rename_and_die(source, target):
            rename(source, target)
            if target == path.resolve() / "raw" / "a":
                os._exit(0)

        filesystem.rename = rename_and_die
        try:
            with StoreWriter(path, spec=SPEC) as writer:
                writer.put("a", features(1))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (path / "raw" / "a").exists()
    return path


def staged(path):
    return [folder for owner in (path / ".featurestore" / "staging").iterdir() for folder in owner.glob("*/*")]


@pytest.mark.slow
def test_readers_do_not_see_it(left):
    store = FeatureStore(left)
    assert store.track_ids == ["whole"]
    assert "a" not in store
    with pytest.raises(TrackNotFoundError):
        store.raw("a")


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_it_is_unfinished_and_not_damaged(left, deep):
    report = FeatureStore(left).verify(deep=deep)
    assert report.ok
    assert report.unfinished == 1


@pytest.mark.slow
def test_the_next_writer_takes_it_back(left):
    StoreWriter(left, spec=SPEC).close()
    assert {key for kind in ("raw", "segments", "aggregated") for key in os.listdir(left / kind)} == {
        "zarr.json",
        "whole",
    }
    assert staged(left) == []


@pytest.mark.slow
def test_the_next_writer_may_write_the_track(left):
    with StoreWriter(left, spec=SPEC) as writer:
        writer.put("a", features(2, kinds=["aggregated"]))
    assert_same(read_all(FeatureStore(left), "a"), features(2, kinds=["aggregated"]))
    assert FeatureStore(left).verify(deep=True).ok


@pytest.mark.slow
def test_a_writer_at_work_on_the_track_is_left_alone(left):
    """Whoever dies next, it is still known what to take back."""
    with TrackLocks(left / ".featurestore" / "locks").holding("a"):
        StoreWriter(left, spec=SPEC).close()
        assert (left / "raw" / "a").exists()
        assert staged(left)
    StoreWriter(left, spec=SPEC).close()
    assert not (left / "raw" / "a").exists()
    assert staged(left) == []


@pytest.mark.slow
def test_arrays_of_another_revision_are_not_taken_back(left):
    """Somebody's only copy of raw, of which `aggregated` was lost, is no litter."""
    other = left.parent / "other.zarr"
    write_store(other, {"a": features(3)})
    filesystem.remove_tree(left / "raw" / "a")
    os.rename(other / "raw" / "a", left / "raw" / "a")
    StoreWriter(left, spec=SPEC).close()
    assert (left / "raw" / "a").exists()
    assert [problem.what for problem in FeatureStore(left).verify().problems] == ["orphan"]


def test_arrays_of_a_published_track_are_not_taken_back(path):
    """Whatever says that it waits to be published."""
    write_store(path, {"a": features(1)})
    shutil.copytree(path / "aggregated" / "a", path / ".featurestore" / "staging" / "x.1.y" / "z" / "aggregated")
    StoreWriter(path, spec=SPEC).close()
    assert_same(read_all(FeatureStore(path), "a"), features(1))


def test_a_track_that_cannot_be_placed_is_taken_back_at_once(path, monkeypatch):
    write_store(path, {})
    sync = filesystem.sync_dir

    def fail(folder):
        if folder.name == "segments" and folder.parent == path.resolve():
            raise OSError(5, "the disk fails")
        sync(folder)

    with StoreWriter(path, spec=SPEC) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(transaction.filesystem, "sync_dir", fail)
            with pytest.raises(StoreAccessError, match="the disk fails"):
                writer.put("a", features(1))
        writer.put("b", features(2))
    assert not (path / "raw" / "a").exists()
    assert FeatureStore(path).track_ids == ["b"]
    assert FeatureStore(path).verify(deep=True).ok
