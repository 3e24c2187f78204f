"""Stores that were copied: over another store, back from a backup, or without their empty folders."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError, StoreAccessError
from featurestore.store.commit import transaction
from featurestore.store.table import index

TRACKS = {name: features(seed) for seed, name in enumerate("abcd")}


def some(names):
    return {name: TRACKS[name] for name in names}


def copy_over(source, target):
    """As `cp -a source/. target/` does, with all times of change."""
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)


def merged(folder):
    write_store(folder / "other.zarr", some("ab"), pack=True)
    write_store(folder / "store.zarr", some("cd"), pack=True)
    copy_over(folder / "other.zarr", folder / "store.zarr")


def restored(folder):
    """An older state of the store, the table with it, over one that has more tracks."""
    write_store(folder / "store.zarr", some("ab"), pack=True)
    copy_over(folder / "store.zarr", folder / "backup.zarr")
    write_store(folder / "store.zarr", some("cd"), pack=True)
    copy_over(folder / "backup.zarr", folder / "store.zarr")


def assert_holds_all(path):
    store = FeatureStore(path)
    assert sorted(store.track_ids) == sorted(TRACKS)
    assert np.array_equal(store.aggregated(), [TRACKS[name]["aggregated"] for name in store.track_ids])
    for name, arrays in TRACKS.items():
        assert_same(read_all(store, name), arrays)


@pytest.mark.parametrize("copied", [merged, restored])
def test_no_track_vanishes_when_a_store_is_copied_over_another(tmp_path, copied):
    copied(tmp_path)
    assert_holds_all(tmp_path / "store.zarr")


@pytest.mark.parametrize("copied", [merged, restored])
def test_verify_finds_a_table_that_claims_to_be_whole_and_repair_makes_it_so(tmp_path, copied):
    copied(tmp_path)
    store = FeatureStore(tmp_path / "store.zarr")
    for deep in (False, True):
        (problem,) = store.verify(deep=deep).problems
        assert problem.what == "packed"
        assert "lacks 2" in problem.message
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.repair()
    assert store.verify(deep=True).ok
    assert store.info()["packed"] == 4
    assert_holds_all(store.path)


def test_a_copy_is_listed_until_it_is_packed(tmp_path, monkeypatch):
    path = tmp_path / "copy.zarr"
    write_store(tmp_path / "store.zarr", TRACKS, pack=True)
    copy_over(tmp_path / "store.zarr", path)
    looks = []
    list_keys = index.list_keys
    monkeypatch.setattr(index, "list_keys", lambda places: looks.append(places) or list_keys(places))
    assert FeatureStore(path).verify(deep=True).ok
    assert_holds_all(path)
    assert looks
    FeatureStore(path).pack()
    looks.clear()
    assert_holds_all(path)
    assert not looks


def without_empty_folders(path):
    """As version control, and many ways to send a folder, leave it."""
    dropped = [folder for folder in path.rglob("*") if folder.is_dir() and not any(folder.iterdir())]
    for folder in dropped:
        folder.rmdir()
    return {folder.name for folder in dropped}


def test_a_store_without_its_empty_folders_is_written_again(path):
    store = write_store(path, some("abc"), pack=True)
    dropped = without_empty_folders(path)
    assert dropped == {"staging", "journal", "stale", "trash"}
    problems = store.verify(deep=True).problems
    assert {problem.what for problem in problems} == {"structure"}
    assert {problem.message.split()[0] for problem in problems} == {f".featurestore/{name}" for name in dropped}
    assert sorted(store.track_ids) == ["a", "b", "c"]
    write_store(path, some("d"), pack=True)
    assert_holds_all(path)
    assert store.verify(deep=True).ok


@pytest.mark.parametrize("name", ["locks", "staging", "journal", "stale", "trash"])
def test_a_writer_makes_a_missing_folder_again(path, name):
    store = write_store(path, some("abc"), pack=True)
    shutil.rmtree(path / ".featurestore" / name)
    (problem,) = store.verify().problems
    assert (problem.what, problem.key) == ("structure", "")
    write_store(path, some("d"))
    assert_holds_all(path)
    assert store.verify(deep=True).ok
    # Without the marks, nobody knows which of its rows are superseded.
    assert (path / "packed").exists() == (name != "stale")


def test_rows_that_were_superseded_do_not_come_back_when_the_marks_are_lost(path):
    store = write_store(path, {**some("abcd"), "a": features(9)}, pack=True)
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("a", TRACKS["a"], overwrite=True)
    shutil.rmtree(path / ".featurestore" / "stale")
    assert_holds_all(path)
    StoreWriter(path, spec=SPEC).close()
    assert_holds_all(path)
    assert store.verify(deep=True).ok


@pytest.mark.parametrize("kind", ["raw", "segments", "aggregated"])
def test_a_missing_group_is_named_and_made_again_by_repair(path, kind):
    store = write_store(path, some("abc"), pack=True)
    shutil.rmtree(path / kind)
    problems = store.verify(deep=True).problems
    assert f"{kind}: zarr.json is damaged or missing" in [p.message for p in problems if p.what == "structure"]
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        with pytest.raises(StoreAccessError, match=f"folder {kind} is missing.*verify --repair"):
            writer.put("d", TRACKS["d"])
        if kind == "aggregated":
            with pytest.raises(StoreAccessError, match=r"folder aggregated is missing.*verify --repair"):
                len(store)
        writer.repair()
        assert store.verify(deep=True).ok
        for name, arrays in TRACKS.items():
            writer.put(name, arrays)
    assert_holds_all(path)


def test_a_change_that_was_decided_waits_until_a_missing_group_is_there(path, monkeypatch):
    store = write_store(path, some("abc"))
    writer = StoreWriter(path, spec=SPEC, durable=False)
    monkeypatch.setattr(transaction, "_carry_out", lambda *args, **options: None)
    writer.put("a", features(9), overwrite=True)
    monkeypatch.undo()
    shutil.rmtree(path / "segments")
    with StoreWriter(path, spec=SPEC, durable=False) as other:
        other.repair()
    assert_same(read_all(store, "a"), features(9))
    assert store.verify(deep=True).ok


def test_a_track_of_another_model_is_reported_and_not_packed(tmp_path, caplog):
    path, other = tmp_path / "store.zarr", tmp_path / "other.zarr"
    store = write_store(path, some("ab"), spec=replace(SPEC, model="one"), pack=True)
    write_store(other, some("c"), spec=replace(SPEC, model="another"))
    for kind in TRACKS["c"]:
        shutil.copytree(other / kind / "c", path / kind / "c")
    (problem,) = store.verify().problems
    assert (problem.what, problem.track_id) == ("track", "c")
    assert "another spec" in problem.message
    with pytest.raises(CorruptTrackError, match="another spec"):
        np.asarray(store.raw("c"))
    store.pack()
    assert "another spec; extract the track again, or run verify --repair: left out" in caplog.text
    assert store.info()["packed"] == 2
    with StoreWriter(path, spec=store.spec, durable=False) as writer:
        writer.repair(deep=False)
    assert store.track_ids == ["a", "b"]
    assert store.verify(deep=True).ok
    assert np.array_equal(store.aggregated(), [TRACKS[name]["aggregated"] for name in "ab"])


def test_shards_of_two_tracks_that_changed_places_are_found_by_a_deep_check_alone(path):
    """They are whole, and what says which is whose is in neither."""
    store = write_store(path, some("abc"))
    for kind, name in (("raw", "c.0.0.0.0"), ("aggregated", "c.0.0")):
        one, two = path / kind / "a" / name, path / kind / "b" / name
        one.rename(path / "aside")
        two.rename(one)
        (path / "aside").rename(two)
    assert store.verify().ok
    assert [problem.track_id for problem in store.verify(deep=True).problems] == ["a", "b"]
