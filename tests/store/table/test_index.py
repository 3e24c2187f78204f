"""What a reader of many tracks sees while others change them: it follows a log instead of listing them again."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store.format.keys import encode_key
from featurestore.store.table import index

NAMES = ["a", "B/ü", "x" * 220, "d"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store.zarr"
    write_store(path, {name: features(seed) for seed, name in enumerate(NAMES)}, pack=True)
    return path


@pytest.fixture
def listings(monkeypatch):
    """How often a folder was listed; all stores have many tracks."""
    seen = []
    compare_keys = index.compare_keys
    monkeypatch.setattr(index, "_MANY_TRACKS", 0)
    monkeypatch.setattr(index, "compare_keys", lambda *args: seen.append(args) or compare_keys(*args))
    return seen


@pytest.fixture
def writer(path):
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        yield writer


def assert_has(store, expected):
    assert sorted(store) == sorted(expected)
    assert len(store) == len(expected)
    rows = np.asarray(store.aggregated())
    assert np.array_equal(rows, [expected[name]["aggregated"] for name in store.track_ids])
    segments = store.segments()
    assert segments.shape[0] == sum(len(expected[name]["segments"]) for name in store)
    assert np.array_equal(segments, np.concatenate([expected[name]["segments"] for name in store]))


def test_changes_are_seen_at_once_and_nothing_is_listed(path, writer, listings):
    expected = {name: features(seed) for seed, name in enumerate(NAMES)}
    store = FeatureStore(path)
    assert_has(store, expected)
    for seed, name in enumerate(["new", "y" * 230, "a", "New/é"], 10):
        expected[name] = features(seed, segments=seed)
        writer.put(name, expected[name], overwrite=True)
        assert_has(store, expected)
    for name in ["new", "x" * 220, "a", "y" * 230]:
        writer.remove(name)
        del expected[name]
        assert_has(store, expected)
    expected["a"] = features(99)
    writer.put("a", expected["a"])
    assert_has(store, expected)
    assert listings == []


def test_it_lists_once_where_the_table_does_not_tell(path, writer, listings):
    writer.put("e", features(4))
    store = FeatureStore(path)
    for number in range(10):
        writer.put(f"f{number}", features(number))
        assert len(store) == 6 + number
    assert len(listings) == 1


def test_packing_begins_a_new_log(path, writer, listings):
    store = FeatureStore(path)
    assert len(store) == 4
    for number in range(4):
        writer.put(f"f{number}", features(number))
        assert len(store) == 5 + number
        writer.pack()
        assert not (path / ".featurestore" / "changes").exists()
        assert len(store) == 5 + number
    assert listings == []


def test_a_change_that_nobody_logged_is_seen_at_once(path, listings):
    store = FeatureStore(path)
    assert len(store) == 4
    shutil.rmtree(path / "aggregated" / "a")
    assert len(store) == 3
    assert len(listings) == 1


def test_a_change_by_hand_between_logged_ones_is_seen_at_the_next_listing(path, writer, listings, monkeypatch):
    monkeypatch.setattr(index, "_PAUSE", 0.2)
    monkeypatch.setattr(index, "_SHARE", 0)
    store = FeatureStore(path)
    assert len(store) == 4
    shutil.rmtree(path / "aggregated" / "a")
    writer.put("e", features(4))
    assert len(store) in (4, 5)
    time.sleep(0.3)
    assert sorted(store) == sorted(["B/ü", "d", "e", "x" * 220])


@pytest.mark.parametrize("found", [b"\x00\xff\n../../a\n=zz\n", b"torn", b""])
def test_a_log_of_nonsense_does_no_harm(path, writer, listings, found):
    store = FeatureStore(path)
    assert len(store) == 4
    log = path / ".featurestore" / "changes"
    log.write_bytes(found)
    assert len(store) == 4
    writer.put("e", features(4))
    writer.remove("d")
    assert sorted(store) == sorted(["a", "B/ü", "x" * 220, "e"])
    log.unlink()
    writer.put("f", features(5))
    assert len(store) == 5


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda log: log.symlink_to("/dev/zero")])
def test_a_log_that_is_no_file_only_makes_readers_list(path, writer, listings, make):
    store = FeatureStore(path)
    assert len(store) == 4
    make(path / ".featurestore" / "changes")
    writer.put("e", features(4))
    assert len(store) == 5
    writer.remove("e")
    assert len(store) == 4


def test_the_shape_of_all_segments_comes_from_the_table(path, monkeypatch):
    store = FeatureStore(path)
    monkeypatch.setattr(store._source.reader, "describe", None)
    view = store.segments(layer=1)
    assert view.shape == (4 * 2, SPEC.dim)
    assert view.row_tracks.tolist() == [name for name in store for _ in range(2)]
    assert np.array_equal(view[3], features(0)["segments"][1, 1])


def test_a_track_that_was_restored_with_more_segments_is_read_by_the_next_view(path, tmp_path):
    write_store(tmp_path / "other.zarr", {"a": features(9, segments=5)})
    for kind in ("raw", "segments", "aggregated"):
        shutil.rmtree(path / kind / "a")
        shutil.copytree(tmp_path / "other.zarr" / kind / "a", path / kind / encode_key("a"))
    view = FeatureStore(path).segments(tracks=["a"])
    assert np.array_equal(view[-1], features(9, segments=5)["segments"][-1])
    assert view.shape[0] == 5
