"""Stores that were copied: over another store, back from a backup, or without their empty folders."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError, StoreAccessError
from featurestore.store.commit import transaction
from featurestore.store.table import index, layout

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
    compare_keys = index.compare_keys
    monkeypatch.setattr(index, "compare_keys", lambda *args: looks.append(args) or compare_keys(*args))
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
    assert store.verify(deep=True).ok
    assert sorted(store.track_ids) == ["a", "b", "c"]
    write_store(path, some("d"), pack=True)
    assert_holds_all(path)
    assert store.verify(deep=True).ok


def test_a_copy_without_hidden_files_is_a_store(path, tmp_path):
    """As `rsync --exclude ".*"` makes it. Rows of its table that were superseded are not asked for."""
    write_store(path, {**some("abcd"), "a": features(9)}, pack=True)
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("b", TRACKS["b"], overwrite=True)
        writer.pack()
        shutil.copytree(path, tmp_path / "sound.zarr", ignore=shutil.ignore_patterns(".*"))
        writer.put("a", TRACKS["a"], overwrite=True)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".*"))
    assert FeatureStore(tmp_path / "sound.zarr").verify(deep=True).ok
    assert_holds_all(copy)
    (problem,) = FeatureStore(copy).verify().problems
    assert problem.message.endswith("is of another revision than the track: pack again")
    FeatureStore(copy).pack()
    assert_holds_all(copy)
    assert FeatureStore(copy).verify(deep=True).ok


@pytest.mark.parametrize("name", ["locks", "staging", "journal", "stale", "trash"])
def test_a_writer_makes_a_missing_folder_again(path, name):
    store = write_store(path, some("abc"), pack=True)
    shutil.rmtree(path / ".featurestore" / name)
    assert store.verify().ok
    write_store(path, some("d"))
    assert_holds_all(path)
    assert store.verify(deep=True).ok
    # Without the stale markers, nobody knows which of its rows are superseded.
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
    assert f"{kind}: zarr.json is damaged or missing: verify --repair writes it" in [
        p.message for p in problems if p.what == "structure"
    ]
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


def rows_to_pack(path, change):
    """A store of 20 packed tracks, and what its tracks are after a change that is packed as well."""
    expected = {f"t{n:03}": np.full((3, 4), n + 1, np.float32) for n in range(20)}
    write_store(path, {t: {"aggregated": values} for t, values in expected.items()}, pack=True)
    yield expected
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        if change in ("added", "everything"):
            for n in range(20, 40):
                expected[f"t{n:03}"] = np.full((3, 4), n + 1, np.float32)
                writer.put(f"t{n:03}", {"aggregated": expected[f"t{n:03}"]})
        if change in ("replaced", "everything"):
            for n in range(7):
                expected[f"t00{n}"] = np.full((3, 4), -n - 1, np.float32)
                writer.put(f"t00{n}", {"aggregated": expected[f"t00{n}"]}, overwrite=True)
        if change in ("removed", "everything"):
            writer.remove("t014")
            del expected["t014"]
        writer.pack()
    yield expected


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "replaced", "removed", "everything"])
def test_a_copy_that_was_made_while_the_table_changed_gives_no_wrong_row(tmp_path, change, monkeypatch):
    """Path by path, as rsync and many others copy: one file is from before, all others from after."""
    monkeypatch.setattr(layout, "SMALL_ROWS", 16)
    monkeypatch.setattr(layout, "first_layout", lambda: 2)
    path = tmp_path / "store.zarr"
    states = rows_to_pack(path, change)
    next(states)
    copy_over(path, tmp_path / "before.zarr")
    expected = next(states)
    before = {
        file.relative_to(tmp_path / "before.zarr") for file in (tmp_path / "before.zarr/packed").rglob("*.*")
    }
    torn = 0
    for name in sorted({*before, Path("packed/track_id/rows")}):
        copy = tmp_path / "copy.zarr"
        copy_over(path, copy)
        shutil.copy2(tmp_path / "before.zarr" / name, copy / name)
        same = (copy / name).read_bytes() == (path / name).read_bytes() if (path / name).exists() else True
        store = FeatureStore(copy)
        with contextlib.suppress(CorruptTrackError):
            found = store.aggregated().to_numpy()
            assert np.array_equal(found, [expected[t] for t in store.track_ids]), name
        assert store.verify().ok == same, name
        torn += not same
        store.pack()
        assert np.array_equal(store.aggregated().to_numpy(), [expected[t] for t in store.track_ids]), name
        assert store.info()["packed"] == len(expected)
        assert store.verify(deep=True).ok, name
        shutil.rmtree(copy)
    assert torn >= 3


def replaced_whole(backup, place):
    shutil.rmtree(place)
    shutil.copytree(backup, place)


def replaced_in_place(backup, place):
    shutil.copytree(backup, place, dirs_exist_ok=True)


def file_by_file(backup, place):
    for file in backup.iterdir():
        (place / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("where", ["store.zarr", "other.zarr"])
@pytest.mark.parametrize("copy", [replaced_whole, replaced_in_place, file_by_file])
def test_a_track_that_was_brought_back_has_its_row_after_the_next_pack(tmp_path, copy, where):
    """From a backup, or from another store: nothing marks that its row is of another revision."""
    path = tmp_path / "store.zarr"
    write_store(tmp_path / where, {"b": features(8)})
    copy_over(tmp_path / where, tmp_path / "backup.zarr")
    with StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as writer:
        for name in "abcd":
            writer.put(name, TRACKS[name])
        writer.pack()
        for kind in ("raw", "segments", "aggregated"):
            copy(tmp_path / "backup.zarr" / kind / "b", path / kind / "b")
        store = FeatureStore(path)
        (problem,) = store.verify().problems
        assert (problem.what, problem.track_id) == ("packed", "b")
        assert "another revision" in problem.message
        writer.pack()
    expected = {**TRACKS, "b": features(8)}
    assert np.array_equal(store.aggregated(), [expected[name]["aggregated"] for name in store.track_ids])
    assert_same(read_all(store, "b"), features(8))
    assert store.verify(deep=True).ok
