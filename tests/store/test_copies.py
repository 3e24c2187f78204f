"""Stores that were copied: over another store, back from a backup, or without their empty folders."""

import shutil

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store import catalogue

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
    list_keys = catalogue.list_keys
    monkeypatch.setattr(catalogue, "list_keys", lambda places: looks.append(places) or list_keys(places))
    assert FeatureStore(path).verify(deep=True).ok
    assert_holds_all(path)
    assert looks
    FeatureStore(path).pack()
    looks.clear()
    assert_holds_all(path)
    assert not looks
