"""Disks that have room, and no names (inodes) for more files."""

import pytest
from samples import SPEC, assert_same, features, read_all

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError
from featurestore.store.reading import free_files


def test_free_files_are_counted(tmpfs, tmp_path):
    disk = tmpfs("size=64m,nr_inodes=70")
    before = free_files(disk)
    (disk / "file").touch()
    assert before <= 70
    assert free_files(disk) == free_files(disk / "not" / "there") == before - 1


def test_a_disk_without_a_limit_has_none(tmpfs):
    assert free_files(tmpfs("size=64m,nr_inodes=0")) is None


def fill(writer, **options):
    for seed in range(200):
        writer.put(str(seed), features(seed, **options))


def test_no_more_files_are_told_from_no_more_room(tmpfs):
    path = tmpfs("size=64m,nr_inodes=70") / "store.zarr"
    told = r"the disk is full: it has room, but no names \(inodes\).*df -i"
    with StoreWriter(path, spec=SPEC) as writer, pytest.raises(StoreAccessError, match=told):
        fill(writer)
    store = FeatureStore(path)
    assert 0 < len(store) < 20
    for track_id in store:
        assert_same(read_all(store, track_id), features(int(track_id)))


def test_a_disk_without_room_is_just_full(tmpfs):
    path = tmpfs("size=1m") / "store.zarr"
    with (
        StoreWriter(path, spec=SPEC) as writer,
        pytest.raises(StoreAccessError, match="the disk is full: free some"),
    ):
        fill(writer, segments=50)
