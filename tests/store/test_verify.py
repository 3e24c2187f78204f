"""Verify finds what is wrong and says what it is; repair leaves a sound store and deletes nothing."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import NotAStoreError
from featurestore.store import reading
from featurestore.store.paths import HIDDEN_DIRS

LONG = "x" * 300
TRACKS = {name: features(seed) for seed, name in enumerate(["a", "b", LONG])}


@pytest.fixture
def store(path):
    return write_store(path, TRACKS, pack=True)


def found(store, *, deep=False):
    return {(p.what, p.track_id or p.key) for p in store.verify(deep=deep).problems}


def test_a_sound_store_has_no_problems(store):
    for deep in (False, True):
        report = store.verify(deep=deep)
        assert report.ok
        assert (report.tracks, report.arrays, report.packed, report.unfinished) == (3, 9, 3, 0)
        assert (report.bytes_read > 0) == deep
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        assert report.to_dict()["ok"]


def remove(name):
    def damage(path):
        place = path / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return damage


def move(name, to):
    return lambda path: (path / name).rename(path / to)


def link(name, to):
    def damage(path):
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere" if to is None else to)

    return damage


def stale_row(path):
    """A row of the table that is not the track's, and no mark that says so."""
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("a", features(9), overwrite=True)
    for mark in (path / ".featurestore" / "stale").iterdir():
        mark.unlink()


QUICK = {
    "a stale row": (stale_row, {("packed", "a")}),
    "no shard": (remove("raw/a/c.0.0.0.0"), {("track", "a")}),
    "no metadata": (remove("segments/a/zarr.json"), {("track", "a")}),
    "no folder": (remove("raw/a"), {("track", "a")}),
    "no aggregated": (remove("aggregated/a/c.0.0"), {("track", "a")}),
    "no metadata of aggregated": (remove("aggregated/a/zarr.json"), {("track", "a")}),
    "cut short": (lambda path: (path / "raw/a/c.0.0.0.0").write_bytes(b"x" * 50), {("track", "a")}),
    "of another track": (move("segments/a", "segments/c"), {("track", "a"), ("orphan", "c")}),
    "under another key": (
        move("aggregated/a", "aggregated/c"),
        {("track", "c"), ("orphan", "a"), ("packed", "a")},
    ),
    "linked folder": (link("raw/a", None), {("track", "a")}),
    "linked shard": (link("raw/a/c.0.0.0.0", None), {("track", "a")}),
    "linked metadata": (link("raw/a/zarr.json", None), {("track", "a")}),
    "a file instead": (lambda path: (path / "aggregated/d").touch(), {("track", "d")}),
    "no key": (lambda path: (path / "aggregated/D").mkdir(), {("orphan", "D")}),
    "an empty folder": (lambda path: (path / "aggregated/d").mkdir(), {("track", "d")}),
    "an orphan": (lambda path: (path / "raw/d").mkdir(), {("orphan", "d")}),
    "a group is gone": (remove("raw/zarr.json"), {("structure", "")}),
    "no table shard": (remove("packed/features/c.0.0.0"), {("packed", "")}),
    "no table ids": (remove("packed/track_id"), {("packed", "")}),
    "linked table": (link("packed", None), {("structure", ""), ("packed", "")}),
}


@pytest.mark.parametrize("damage", QUICK)
def test_what_is_missing_or_in_the_wrong_place_is_found_quickly(store, damage):
    work, expected = QUICK[damage]
    work(store.path)
    assert found(store) == expected
    assert found(store, deep=True) == expected
    report = store.verify()
    assert not report.ok
    assert all(problem.message for problem in report.problems)


def change_value(path):
    """A number that a reader takes for good: everything that can be checked without the track fits."""
    import zarr

    zarr.open_array(path / "aggregated" / "a", mode="r+")[0, 0] = 7


def not_finite(path):
    import zarr

    zarr.open_array(path / "segments" / "a", mode="r+")[0, 0, 0] = np.nan


DEEP = {
    "a changed number": (change_value, {("track", "a")}),
    "a value that is not finite": (not_finite, {("track", "a")}),
}


@pytest.mark.parametrize("damage", DEEP)
def test_what_only_shows_in_the_numbers_is_found_deeply(store, damage):
    work, expected = DEEP[damage]
    work(store.path)
    assert found(store) == set()
    assert found(store, deep=True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", sorted({*QUICK, *DEEP} - {"linked table"}))
def test_repair_leaves_a_sound_store(store, damage):
    work, expected = {**QUICK, **DEEP}[damage]
    work(store.path)
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        report, moved = writer.repair()
    assert {(p.what, p.track_id or p.key) for p in report.problems} == expected
    assert store.verify(deep=True).problems == ()
    tracks = {**TRACKS, "a": features(9)} if damage == "a stale row" else TRACKS
    lost = {name for what, name in expected if what == "track"} | ({"a"} if "another key" in damage else set())
    assert set(store.track_ids) == set(tracks) - lost
    for name in store.track_ids:
        assert_same(read_all(store, name), tracks[name])
    assert all(folder.is_dir() for folder in moved)
    assert bool(moved) == bool({what for what, _ in expected} & {"track", "orphan"})
    for name in lost - {"d", "c"}:
        with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
            writer.put(name, TRACKS[name])
    assert store.verify(deep=True).problems == ()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("deep", [False, True])
def test_a_track_that_the_file_system_refuses_is_named_and_left_alone(store, monkeypatch, code, deep):
    opened = reading.open_dir

    def refusing(path, **options):
        if path == "a":
            raise OSError(code, os.strerror(code), path)
        return opened(path, **options)

    monkeypatch.setattr(reading, "open_dir", refusing)
    with pytest.raises(OSError, match=os.strerror(code)):
        reading.open_dir("a")
    (problem,) = store.verify(deep=deep).problems
    assert (problem.what, problem.track_id) == ("unreadable", "a")
    assert os.strerror(code) in problem.message
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        assert writer.repair(deep=deep)[1] == []
    monkeypatch.undo()
    assert store.verify(deep=True).ok


def test_repair_of_a_sound_store_changes_nothing(store):
    before = {p: p.stat().st_ino for p in store.path.rglob("*") if ".featurestore" not in p.parts}
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        report, moved = writer.repair()
    assert report.ok
    assert moved == []
    assert before == {p: p.stat().st_ino for p in store.path.rglob("*") if ".featurestore" not in p.parts}


def test_what_a_replaced_track_left_is_moved_without_the_track(store):
    """Files of a kind that the published revision does not have."""
    shutil.copytree(store.path / "raw" / "a", store.path.parent / "old")
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("a", features(5, kinds=["segments"]), overwrite=True)
        shutil.move(store.path.parent / "old", store.path / "raw" / "a")
        assert found(store) == {("orphan", "a")}
        _, (moved,) = writer.repair()
    assert [p.name for p in moved.iterdir()] == ["raw"]
    assert_same(read_all(store, "a"), features(5, kinds=["segments", "aggregated"]))
    assert store.verify(deep=True).ok


def test_repair_leaves_a_track_alone_that_a_writer_is_at_work_on(store):
    (store.path / "raw" / "a" / "c.0.0.0.0").unlink()
    with (
        StoreWriter(store.path, spec=SPEC, durable=False) as writer,
        StoreWriter(store.path, spec=SPEC, durable=False) as other,
        other.track("a", overwrite=True) as track,
    ):
        assert writer.repair()[1] == []
        track.append(raw=TRACKS["a"]["raw"])
    assert_same(read_all(FeatureStore(store.path), "a"), TRACKS["a"])
    assert store.verify(deep=True).ok


def test_metadata_of_others_survives_the_repair_of_the_structure(store):
    import zarr

    zarr.open_group(store.path / "raw", mode="a").attrs["note"] = "mine"
    file = store.path / "raw" / "zarr.json"
    file.write_text(file.read_text().replace('"zarr_format": 3', '"zarr_format": 2'))
    assert found(store) == {("structure", "")}
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.repair()
    assert zarr.open_group(store.path / "raw", mode="r").attrs["note"] == "mine"
    assert store.verify(deep=True).ok


def test_stray_files_of_a_track_are_found_and_put_aside_without_it(store):
    strays = {"raw/a/c.1.0.0.0": b"x", "raw/a/c.0.0.0.0.tmp": b"y", "aggregated/b/notes": b"z"}
    for name, content in strays.items():
        (store.path / name).write_bytes(content)
    assert found(store) == {("orphan", "a"), ("orphan", "b")}
    assert {p.message.split()[0] for p in store.verify().problems} == set(strays)
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        _, moved = writer.repair()
    assert sorted(file.read_bytes() for folder in moved for file in folder.iterdir()) == [b"x", b"y", b"z"]
    assert store.verify(deep=True).ok
    for name, arrays in TRACKS.items():
        assert_same(read_all(store, name), arrays)


def test_a_long_name_of_a_stray_file_does_not_keep_repair_from_it(store):
    for name in ("é" * 127, "é" * 126 + "a"):
        (store.path / "segments" / "a" / name).touch()
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        _, (moved,) = writer.repair()
    assert len(list(moved.iterdir())) == 2
    assert store.verify(deep=True).ok


def test_foreign_folders_in_the_root_are_named_and_left_alone(store):
    for name in ("mine", ".git"):
        (store.path / name).mkdir()
    (store.path / "README.md").touch()
    (problem,) = store.verify().problems
    assert (problem.what, problem.key, problem.message.split()[0]) == ("orphan", "", "mine")
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        assert writer.repair()[1] == []
    assert (store.path / "mine").is_dir()


@pytest.mark.parametrize("name", ["packed", ".featurestore", *map(".featurestore/{}".format, HIDDEN_DIRS)])
def test_a_link_in_the_place_of_a_folder_is_named_as_a_writer_names_it(store, name):
    (store.path / name).rename(store.path.parent / "elsewhere")
    (store.path / name).symlink_to(store.path.parent / "elsewhere")
    told = [x.message for x in store.verify().problems if x.what == "structure"]
    assert f"{name} is a link or a file where a store has a folder: move it away" in told
    with pytest.raises(NotAStoreError, match=f"/{name} is a link .* before it is moved away"):
        StoreWriter(store.path, spec=SPEC)


def test_what_dead_writers_left_is_counted(store):
    assert store.verify().left == 0
    (store.path / ".featurestore" / "staging" / "another-host.1.abc").mkdir()
    (store.path / ".featurestore" / "trash" / "x").mkdir()
    report = store.verify()
    assert (report.left, report.ok) == (2, True)


def test_nothing_is_put_aside_from_where_a_link_leads(store):
    outside = store.path.parent / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (store.path / "raw" / "a").rename(store.path.parent / "elsewhere")
    (store.path / "raw" / "a").symlink_to(outside)
    (store.path / "segments" / "a" / "stray").touch()
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.repair()
    assert (outside / "mine").exists()
    assert store.verify(deep=True).ok
