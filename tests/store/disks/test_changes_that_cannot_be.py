"""A change of one track that cannot be carried out: it is refused before it is decided, and stops nobody else."""

import os
import shutil

import pytest
from samples import SPEC, assert_same, features, read_all, write_store
from users import ANN, BOB, as_user

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackAccessError
from featurestore.store.commit import transaction


def put(path, track_id, seed, **options):
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put(track_id, features(seed), **options)


@pytest.fixture
def closed(shared):
    """A store of a group in which the arrays of "anns" are closed to all but Ann."""
    path = shared / "store.zarr"
    as_user(
        ANN, lambda: write_store(path, {"anns": features(0), "free": features(1)}, pack=True) and None, umask=0o002
    )
    for kind in ("raw", "segments", "aggregated"):
        (path / kind / "anns").chmod(0o755)
    return path


def of_bob(path):
    """What Bob sees and what he can do when he is about to change a track of Ann's."""
    with pytest.raises(TrackAccessError, match=r"key anns cannot be changed, and stays as it is.*chmod"):
        put(path, "anns", 7, overwrite=True)
    with StoreWriter(path, spec=SPEC) as writer, pytest.raises(TrackAccessError, match="cannot be changed"):
        writer.remove("anns")


@pytest.mark.slow
def test_a_change_of_somebody_elses_track_is_refused_before_it_is_decided(closed):
    as_user(BOB, lambda: of_bob(closed), umask=0o002)
    assert os.listdir(closed / ".featurestore" / "journal") == []
    assert os.listdir(closed / ".featurestore" / "staging") == []
    assert_same(read_all(FeatureStore(closed), "anns"), features(0))


@pytest.mark.slow
def test_all_other_tracks_go_on(closed):
    def work():
        of_bob(closed)
        put(closed, "free", 8, overwrite=True)
        put(closed, "bobs", 9)
        store = FeatureStore(closed)
        store.pack()
        store.remove("free")

    as_user(BOB, work, umask=0o002)
    as_user(ANN, lambda: put(closed, "anns", 10, overwrite=True), umask=0o022)
    store = FeatureStore(closed)
    assert sorted(store.track_ids) == ["anns", "bobs"]
    assert_same(read_all(store, "anns"), features(10))
    assert_same(read_all(store, "bobs"), features(9))
    assert store.verify(deep=True).ok


@pytest.fixture
def decided(closed):
    """The same with a change that was decided, and whose track was closed before it was carried out."""
    with StoreWriter(closed, spec=SPEC) as writer:
        folder = writer.session.staging.folder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transaction, "_carry_out", lambda *_, **__: None)
            with writer.track("anns", overwrite=True) as track:
                track.append(raw=features(7)["raw"])
        folder.rmdir()
        writer.session._recover = set
    assert os.listdir(closed / ".featurestore" / "journal") == ["anns"]
    os.system(f"chown -R {BOB}:5000 {closed}/.featurestore/journal/anns && chmod -R g+rwX {closed}/.featurestore")
    return closed


@pytest.mark.slow
def test_a_decided_change_that_cannot_be_carried_out_is_named_and_kept(decided, caplog):
    def work():
        put(decided, "bobs", 9)
        with pytest.raises(TrackAccessError, match=r"key anns.*cannot be finished.*Permission denied"):
            put(decided, "anns", 3, overwrite=True)
        FeatureStore(decided).pack()

    as_user(BOB, work)
    assert os.path.isdir(decided / ".featurestore" / "journal" / "anns")
    store = FeatureStore(decided)
    assert_same(read_all(store, "bobs"), features(9))
    assert_same(read_all(store, "anns"), features(0))
    for deep in (False, True):
        report = store.verify(deep=deep)
        (problem,) = report.problems
        assert (problem.what, problem.key, problem.track_id) == ("unfinished", "anns", "anns")
        assert "Permission denied" in problem.message
        assert "verify --repair" in problem.message
        assert report.unfinished == 1


@pytest.mark.slow
def test_a_writer_says_so_once(decided, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transaction, "_carry_out", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied", "x"))
        )
        with caplog.at_level("WARNING", "featurestore"), StoreWriter(decided, spec=SPEC) as writer:
            writer.put("other", features(5))
    assert sum("key anns" in record.message for record in caplog.records) == 1


@pytest.mark.slow
def test_it_is_finished_once_it_can_be(decided):
    as_user(BOB, lambda: StoreWriter(decided, spec=SPEC).close())
    as_user(ANN, lambda: StoreWriter(decided, spec=SPEC).close())
    store = FeatureStore(decided)
    assert (store.raw("anns").to_numpy() == features(7)["raw"]).all()
    assert os.listdir(decided / ".featurestore" / "journal") == []
    assert store.verify(deep=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rm", "repair"])
def test_a_decision_is_taken_back_while_nothing_of_it_is_placed(decided, how):
    def work():
        with StoreWriter(decided, spec=SPEC) as writer:
            if how == "repair":
                writer.repair()
            else:
                with pytest.raises(TrackAccessError, match="stays as it is"):
                    writer.remove("anns")

    as_user(BOB, lambda: StoreWriter(decided, spec=SPEC).close())
    as_user(BOB, work)
    assert os.listdir(decided / ".featurestore" / "journal") == []
    store = FeatureStore(decided)
    assert_same(read_all(store, "anns"), features(0))
    assert store.verify(deep=True).ok


@pytest.mark.slow
def test_a_decision_of_which_something_is_placed_can_only_be_finished(decided):
    entry = decided / ".featurestore" / "journal" / "anns"
    os.rename(decided / "raw" / "anns", entry / "raw.old")
    os.rename(entry / "raw", decided / "raw" / "anns")
    as_user(BOB, lambda: StoreWriter(decided, spec=SPEC).close())

    def work():
        with (
            StoreWriter(decided, spec=SPEC) as writer,
            pytest.raises(TrackAccessError, match="cannot be finished"),
        ):
            writer.remove("anns")

    as_user(BOB, work)
    assert (FeatureStore(decided).raw("anns").to_numpy() == features(0)["raw"]).all()
    StoreWriter(decided, spec=SPEC).close()
    assert (FeatureStore(decided).raw("anns").to_numpy() == features(7)["raw"]).all()
    assert FeatureStore(decided).verify(deep=True).ok


def test_a_decision_that_fails_at_its_first_step_is_taken_back_by_its_own_writer(path, monkeypatch):
    write_store(path, {"a": features(0), "b": features(1)})
    monkeypatch.setattr(
        transaction.fallbacks,
        "replace_dir",
        lambda source, target, *_, **__: (_ for _ in ()).throw(
            OSError(18, "Invalid cross-device link", str(target))
        ),
    )
    with StoreWriter(path, spec=SPEC) as writer:
        with pytest.raises(TrackAccessError, match=r"key a cannot be changed.*cross-device"):
            writer.put("a", features(2), overwrite=True)
        writer.put("c", features(3))
    assert os.listdir(path / ".featurestore" / "journal") == []
    assert_same(read_all(FeatureStore(path), "a"), features(0))
    assert FeatureStore(path).verify(deep=True).ok


def test_kinds_on_another_disk_are_refused_before_anything_is_decided(path, mount):
    """A large kind on another disk, by a mount."""
    write_store(path, {"a": features(0, kinds=["aggregated"])})
    shutil.rmtree(path / "raw")
    mount(path / "raw", "mount", "-t", "tmpfs", "none")
    with StoreWriter(path, spec=SPEC) as writer:
        with pytest.raises(TrackAccessError, match="on the disk of the store"):
            writer.put("a", features(1), overwrite=True)
        with pytest.raises(StoreAccessError, match="raw"):
            writer.put("b", features(1))
        writer.put("c", features(2, kinds=["segments", "aggregated"]))
    store = FeatureStore(path)
    assert store.track_ids == ["a", "c"]
    assert_same(read_all(store, "a"), features(0, kinds=["aggregated"]))
