"""Stores whose files are links, as the hub's cache, DVC and git-annex lay them out: read where that is wanted."""

import hashlib
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import FeatureStoreError, NotAStoreError

SEEDS = {"a": 0, "b": 1, "c": 2}


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot whose files are links to blobs; the folders are real, and empty ones are not there."""
    path = tmp_path / "store.zarr"
    write_store(path, {name: features(SEEDS[name]) for name in "ab"}, pack=True)
    write_store(path, {"c": features(SEEDS["c"])})
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    for folder, _, files in os.walk(path):
        for name in files:
            content = Path(folder, name).read_bytes()
            blob = blobs / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            place = snapshot / os.path.relpath(folder, path)
            place.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(os.path.relpath(blob, place))
    return snapshot


def test_links_are_not_followed_unless_that_is_wanted(snapshot):
    for make in (FeatureStore, lambda path: StoreWriter(path, spec=SPEC)):
        with pytest.raises(NotAStoreError, match=r"is a link.*`follow_links=True`.*cp -rL"):
            make(snapshot)


def test_where_links_are_followed_everything_is_read(snapshot):
    store = FeatureStore(snapshot, follow_links=True)
    for again in (store, pickle.loads(pickle.dumps(store))):
        assert sorted(again.track_ids) == ["a", "b", "c"]
        for name, seed in SEEDS.items():
            assert_same(read_all(again, name), features(seed))
        rows = [features(SEEDS[name])["aggregated"] for name in again.track_ids]
        assert np.array_equal(again.aggregated(), rows)
        assert np.array_equal(again.aggregated(layer=1, tracks=["c", "a"]), [rows[2][1], rows[0][1]])
    assert {problem.what for problem in store.verify(deep=True).problems} <= {"structure"}


def test_such_a_store_is_not_written(snapshot):
    store = FeatureStore(snapshot, follow_links=True)
    before = sorted(snapshot.rglob("*"))
    for change in (store.pack, lambda: store.remove("a")):
        with pytest.raises(FeatureStoreError, match="cp -rL"):
            change()
    assert sorted(snapshot.rglob("*")) == before


def test_a_copy_of_what_the_links_lead_to_is_a_store(snapshot, tmp_path):
    subprocess.run(["cp", "-rL", snapshot, tmp_path / "copy.zarr"], check=True)
    with StoreWriter(tmp_path / "copy.zarr", spec=SPEC) as writer:
        writer.put("d", features(3))
    assert sorted(FeatureStore(tmp_path / "copy.zarr").track_ids) == ["a", "b", "c", "d"]


def test_damage_behind_a_link_is_found(snapshot):
    shard = snapshot / "segments" / "a" / "c.0.0.0"
    blob = shard.resolve()
    content = bytearray(blob.read_bytes())
    content[5] ^= 1
    blob.write_bytes(content)
    store = FeatureStore(snapshot, follow_links=True)
    with pytest.raises(FeatureStoreError, match="checksum"):
        store.segments("a").to_numpy()
    assert any(problem.track_id == "a" for problem in store.verify(deep=True).problems)


def test_a_backup_by_hard_links_stays_as_it_was(path, tmp_path):
    write_store(path, {"a": features(0), "b": features(1)}, pack=True)
    backup = tmp_path / "backup.zarr"
    shutil.copytree(path, backup, copy_function=os.link)
    before = {file: file.read_bytes() for file in backup.rglob("*") if file.is_file() and file.suffix != ".lock"}
    with StoreWriter(path, spec=SPEC, overwrite=True) as writer:
        writer.put("a", features(5))
        writer.put("c", features(6))
        writer.remove("b")
        writer.pack()
    assert {file: file.read_bytes() for file in before} == before
    assert_same(read_all(FeatureStore(backup), "b"), features(1))
