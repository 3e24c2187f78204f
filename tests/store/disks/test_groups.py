"""Stores that several users of a group write, with different umasks: nobody closes it to the others."""

import os
import random
import stat

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all
from users import ANN, BOB, GROUP, as_user

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackAccessError
from featurestore.store.commit.locks import stripe_of


def everything(path):
    return [path, *path.rglob("*")]


def put(path, track_id, seed, **options):
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put(track_id, features(seed), **options)
        writer.pack()


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_that_is_made_in_a_store_is_open_as_its_root_is(shared, umask):
    path = shared / "store.zarr"
    as_user(ANN, lambda: put(path, "a", 0), umask=0o002)
    as_user(
        BOB,
        lambda: (put(path, "b", 1), put(path, "a", 2, overwrite=True), FeatureStore(path).remove("b")),
        umask=umask,
    )
    assert (path / "aggregated" / "a").stat().st_uid == BOB
    for found in everything(path):
        status = found.stat()
        assert stat.S_IMODE(status.st_mode) == (0o2775 if found.is_dir() else 0o664), found
        assert status.st_gid == GROUP


@pytest.mark.slow
def test_a_store_of_one_user_stays_his(shared):
    path = shared / "store.zarr"
    as_user(ANN, lambda: put(path, "a", 0), umask=0o077)
    assert all(stat.S_IMODE(found.stat().st_mode) & 0o077 == 0 for found in everything(path))
    with pytest.raises(StoreAccessError, match="permission denied"):
        as_user(BOB, lambda: FeatureStore(path))


def test_without_setgid_things_go_to_the_group_of_the_root(as_root, tmp_path):
    path = tmp_path / "store.zarr"
    StoreWriter(path, spec=SPEC).close()
    os.system(f"chgrp -R {GROUP} {path} && chmod -R g+rwX {path}")
    put(path, "a", 0)
    assert {found.stat().st_gid for found in everything(path)} == {GROUP}


def locked_by_ann(path, track_id, mode):
    """A lock file as Ann's cron job leaves it."""
    lock = path / ".featurestore" / "locks" / stripe_of(track_id)
    lock.touch()
    os.chown(lock, ANN, GROUP)
    lock.chmod(mode)


@pytest.mark.slow
def test_a_lock_file_of_somebody_else_locks(shared):
    path = shared / "store.zarr"
    as_user(ANN, lambda: put(path, "a", 0), umask=0o002)
    locked_by_ann(path, "b", 0o644)
    as_user(BOB, lambda: put(path, "b", 1))
    assert_same(read_all(FeatureStore(path), "b"), features(1))


@pytest.mark.slow
def test_a_lock_that_may_not_even_be_read_is_of_one_track(shared):
    path = shared / "store.zarr"
    as_user(ANN, lambda: put(path, "a", 0), umask=0o002)
    locked_by_ann(path, "b", 0o600)

    def work():
        with StoreWriter(path, spec=SPEC) as writer:
            with pytest.raises(TrackAccessError, match=rf"{stripe_of('b')} cannot be locked.*chmod"):
                writer.put("b", features(1))
            writer.put("c", features(2))
            writer.pack()

    as_user(BOB, work)
    assert FeatureStore(path).track_ids == ["a", "c"]


@pytest.mark.slow
def test_what_a_dead_writer_of_somebody_else_left_stops_nobody(shared):
    path = shared / "store.zarr"
    as_user(ANN, lambda: put(path, "a", 0), umask=0o002)

    def die():
        writer = StoreWriter(path, spec=SPEC)
        writer.session.staging.folder()
        os.system(f"chmod -R 755 {writer.session.staging.path}")

    as_user(ANN, die)
    as_user(BOB, lambda: put(path, "b", 1))
    assert len(os.listdir(path / ".featurestore" / "staging")) == 1
    as_user(ANN, lambda: StoreWriter(path, spec=SPEC).close())
    assert os.listdir(path / ".featurestore" / "staging") == []


@pytest.mark.slow
def test_two_hundred_changes_by_two_users_of_different_umasks(shared):
    path, chance = shared / "store.zarr", random.Random(0)
    expected = {}
    as_user(ANN, lambda: StoreWriter(path, spec=SPEC).close(), umask=0o002)
    names = [f"track {number}" for number in range(12)]
    for first in range(0, 200, 10):
        plan = [
            (chance.choice(["put", "put", "remove", "pack"]), chance.choice(names), n)
            for n in range(first, first + 10)
        ]

        def work(plan=plan):
            with StoreWriter(path, spec=SPEC, overwrite=True, durable=False) as writer:
                for what, name, seed in plan:
                    if what == "put":
                        writer.put(name, features(seed))
                    elif what == "pack":
                        assert writer.pack()
                    elif writer.existing(name) is not None:
                        writer.remove(name)

        as_user(chance.choice([ANN, BOB]), work, umask=chance.choice([0o002, 0o022, 0o077]))
        for what, name, seed in plan:
            if what == "put":
                expected[name] = seed
            elif what == "remove":
                expected.pop(name, None)
    store = FeatureStore(path)
    assert sorted(store.track_ids) == sorted(expected)
    for name, seed in expected.items():
        assert_same(read_all(store, name), features(seed))
    assert np.array_equal(store.aggregated(), [features(expected[name])["aggregated"] for name in store.track_ids])
    assert store.verify(deep=True).ok
