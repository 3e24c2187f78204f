"""Who removes a track and who puts a bundle in its place wait for each other for an instant only."""

import contextlib
import errno
import os
import threading
from pathlib import Path
from unittest import mock

import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackLockedError
from featurestore.store import reading
from featurestore.store.commit import flock, sealing_lock, transaction
from featurestore.store.commit import locks as locking
from featurestore.store.commit.locks import exclusive
from featurestore.store.commit.sealing_lock import placing, removing
from featurestore.store.paths import StorePaths
from featurestore.store.sealing import seal

pytestmark = pytest.mark.slow

TRACKS = {name: features(seed, kinds=("segments", "aggregated")) for seed, name in enumerate("abcd")}


def opened(path):
    return StoreWriter(path, spec=SPEC, durable=False)


@pytest.fixture
def paths(path):
    write_store(path, TRACKS)
    found = StorePaths.of(path)
    found.sealing.mkdir()
    return found


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sealing_lock, "PATIENCE", 0.0)


@contextlib.contextmanager
def nobody_waits():
    with mock.patch.object(locking.time, "sleep", side_effect=AssertionError("waits")):
        yield


def test_a_removal_does_not_wait_while_a_bundle_is_written(path, paths):
    write, check = seal.write_bundle, seal.check_bundle

    def remove(name):
        with nobody_waits(), opened(path) as other:
            other.remove(name)

    def write_and_remove(*args):
        write(*args)
        remove("b")

    def check_and_remove(*args):
        check(*args)
        remove("c")

    patches = mock.patch.multiple(seal, write_bundle=write_and_remove, check_bundle=check_and_remove)
    with patches, opened(path) as writer:
        writer.pack(seal=True)
    assert FeatureStore(path).track_ids == ["a", "d"]
    assert FeatureStore(path).verify(deep=True).ok


def test_who_removes_waits_for_two_listings_and_no_look_at_tracks(path, paths):
    """Whatever the number of tracks in the bundle, or in the store's bundles."""
    read, listed = [], []

    def list_and_tell(folder, real=os.listdir):
        listed.append(Path(folder).name)
        return real(folder)

    @contextlib.contextmanager
    def watched(*args, real=placing):
        with (
            real(*args),
            mock.patch.object(reading, "read_file", lambda file, **_: read.append(file)),
            mock.patch.object(os, "listdir", list_and_tell),
        ):
            yield

    with mock.patch.object(seal, "placing", watched), opened(path) as writer:
        writer.pack(seal=True)
    assert read == []
    assert listed == ["aggregated", "journal"]
    assert FeatureStore(path).info()["sealed"] == 4


def test_a_track_that_is_removed_but_not_yet_gone_is_not_brought_back(path, paths):
    """Its removal was decided, and its writer died, before the bundle was put in its place."""
    place = seal.Sealing._place

    def decide_first(self, *args):
        other, failing = (
            opened(path),
            mock.patch.object(transaction, "_carry_out", side_effect=OSError(errno.EIO, "")),
        )
        with failing, pytest.raises(StoreAccessError):
            other.remove("b")
        return place(self, *args)

    with mock.patch.object(seal.Sealing, "_place", decide_first), opened(path) as writer:
        writer.pack(seal=True)
    opened(path).close()
    assert FeatureStore(path).track_ids == ["a", "c", "d"]


def test_a_sealed_track_is_removed_whatever_is_sealed(path, paths, impatient):
    with opened(path) as writer:
        writer.pack(seal=True)
        writer.put("e", TRACKS["a"])
        with placing(paths):
            with nobody_waits():
                writer.remove("a")
            with pytest.raises(TrackLockedError, match="another writer has been putting a bundle in its place"):
                writer.remove("e")
    assert FeatureStore(path).track_ids == ["b", "c", "d"]  # it was decided on, and is done by the next


def test_who_seals_says_who_is_in_its_way(paths, impatient):
    with removing(paths):
        with pytest.raises(TrackLockedError, match="another writer has been removing a track"), placing(paths):
            pass
        with removing(paths):
            pass  # together


def test_who_seals_comes_next_however_many_remove(paths):
    paths.sealing.joinpath("0" * 32).touch()
    order, asked = [], threading.Event()

    def seal_now():
        with placing(paths):
            order.append("sealed")

    def remove_now():
        with removing(paths):
            order.append("removed")

    sealer, remover = threading.Thread(target=seal_now), threading.Thread(target=remove_now)
    with removing(paths):
        sealer.start()
        while True:  # until it waits for us
            with exclusive(paths.locks / "seal.next", timeout=0) as free:
                if not free:
                    break
            asked.wait(0.001)
        remover.start()
        remover.join(0.1)
        assert order == []  # though it could have the lock together with us
    sealer.join()
    remover.join()
    assert order == ["sealed", "removed"]
    assert flock._held == {}
