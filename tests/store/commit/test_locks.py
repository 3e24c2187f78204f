"""Locks: one writer per track; who loses knows whether it is the same track."""

import contextlib
import errno
import multiprocessing
import os
import sys
import threading
import time

import pytest
from samples import SPEC, features, read_all

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import TrackLockedError
from featurestore.store.commit import flock
from featurestore.store.commit import locks as locking
from featurestore.store.commit.locks import STRIPES, TrackLocks, exclusive, stripe_of


@pytest.fixture(params=["bytes", "stripes"])
def kind(request, monkeypatch):
    """Locks of bytes, where this system has them, and the stripes of others and of earlier releases."""
    if request.param == "stripes":
        monkeypatch.setattr(TrackLocks, "_acquire_byte", lambda *_: False)
    elif sys.platform != "linux":
        pytest.skip("this system has no locks of single bytes")
    return request.param


@pytest.fixture
def earlier(tmp_path):
    """The locks of a writer of an earlier release, or where there are no locks of bytes."""
    return earlier_of(tmp_path)


def earlier_of(folder):
    """Locks of another writer of that kind."""
    locks = TrackLocks(folder)
    locks._has_bytes = False
    return locks


def colliding(key):
    """Another key with the same lock file."""
    return next(f"x{n}" for n in range(100 * STRIPES) if stripe_of(f"x{n}") == stripe_of(key))


def test_there_are_as_many_lock_files_as_stripes():
    stripes = {stripe_of(str(n)) for n in range(20 * STRIPES)}
    assert len(stripes) == STRIPES
    assert stripe_of("a") == stripe_of("a")


@pytest.mark.usefixtures("kind")
def test_a_track_is_held_once(tmp_path):
    one, other = TrackLocks(tmp_path), TrackLocks(tmp_path)
    with one.holding("a"):
        for locks in (one, other):
            with pytest.raises(TrackLockedError, match="key a") as caught, locks.holding("a"):
                pass
            assert caught.value.same_track
        with other.holding("b"):
            pass
    with other.holding("a"):
        pass


@pytest.mark.usefixtures("kind")
def test_tracks_that_share_a_lock_do_not_disturb_each_other_in_one_writer(tmp_path):
    locks = TrackLocks(tmp_path)
    twin = colliding("a")
    with locks.holding("a"):
        with locks.holding(twin), pytest.raises(TrackLockedError), locks.holding(twin):
            pass
        with locks.holding(twin):
            pass
    with TrackLocks(tmp_path).holding("a"):
        pass


def test_another_writer_learns_that_only_the_lock_is_shared(tmp_path, earlier):
    twin = colliding("a")
    with earlier.holding("a"):
        for other in (TrackLocks(tmp_path), earlier_of(tmp_path)):
            with pytest.raises(TrackLockedError) as caught, other.holding(twin):
                pass
            assert not caught.value.same_track
            with pytest.raises(TrackLockedError) as caught, other.holding("a"):
                pass
            assert caught.value.same_track


def test_writers_with_and_without_locks_of_bytes_never_hold_a_track_together(tmp_path, earlier):
    new, twin = TrackLocks(tmp_path), colliding("a")
    with new.holding("a"):
        for key in ("a", twin):
            with pytest.raises(TrackLockedError), earlier.holding(key):
                pass
    with earlier.holding("a"), pytest.raises(TrackLockedError), new.holding("a"):
        pass
    with new.holding("a"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no locks of single bytes")
def test_tracks_share_no_lock(tmp_path):
    keys = [str(number) for number in range(200)]
    with contextlib.ExitStack() as stack:
        for key in keys:  # a writer each
            stack.enter_context(TrackLocks(tmp_path).holding(key))
    assert len({stripe_of(key) for key in keys}) < len(keys)


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no locks of single bytes")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_where_bytes_cannot_be_locked_stripes_are(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(flock, "_set_byte", refuse)
    with TrackLocks(tmp_path).holding("a"):
        with pytest.raises(TrackLockedError) as caught, TrackLocks(tmp_path).holding(colliding("a")):
            pass
        assert not caught.value.same_track


def test_an_error_of_the_disk_is_none_of_the_lock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    locks = TrackLocks(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(locking, "lock_byte", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)), locks.holding("a"):
            pass
    with locks.holding("a"):
        pass


def test_lock_files_are_never_removed(tmp_path):
    with TrackLocks(tmp_path).holding("a"):
        held = os.stat(tmp_path / stripe_of("a")).st_ino
    with TrackLocks(tmp_path).holding("a"):
        assert os.stat(tmp_path / stripe_of("a")).st_ino == held


@pytest.mark.slow
def test_threads_of_one_writer_write_different_tracks(writer):
    errors = []

    def write(number):
        try:
            writer.put(str(number), features(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = FeatureStore(writer.path)
    assert len(store) == 24
    assert store.verify(deep=True).ok


def hold(path, track_id, entered, leave):
    with StoreWriter(path, spec=SPEC, durable=False) as writer, writer.track(track_id) as track:
        entered.set()
        leave.wait()
        track.append(raw=features(1)["raw"])


@pytest.fixture
def holder(path):
    """Another process that is at work on a track until it is told to end, and its pid."""
    StoreWriter(path, spec=SPEC).close()
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, "a", entered, leave))
    process.start()
    assert entered.wait(60)
    yield process, leave
    process.kill()
    process.join()


@pytest.mark.slow
def test_another_process_is_told_apart_from_a_shared_lock(path, holder):
    process, leave = holder
    twin = colliding("a")
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        begun = time.monotonic()
        with pytest.raises(TrackLockedError) as caught:
            writer.put("a", features(0))
        assert caught.value.same_track
        assert time.monotonic() - begun < 5
        if sys.platform != "linux":  # stripes
            with pytest.raises(TrackLockedError) as caught, writer.track(twin, wait=0.1):
                pass
            assert not caught.value.same_track
        threading.Timer(0.2, leave.set).start()
        with writer.track(twin, wait=60) as track:
            track.append(raw=features(2)["raw"])
    process.join()
    store = FeatureStore(path)
    assert (read_all(store, "a")["raw"] == features(1)["raw"]).all()
    assert (read_all(store, twin)["raw"] == features(2)["raw"]).all()


@pytest.mark.slow
def test_the_lock_of_a_process_that_died_is_free(path, holder):
    process, _ = holder
    process.kill()
    process.join()
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("a", features(0))
    assert [p.name for p in (path / ".featurestore" / "staging").iterdir()] == []


def test_an_exclusive_lock_waits_as_long_as_it_is_told(tmp_path):
    with exclusive(tmp_path / "x.lock", timeout=0) as first:
        assert first
        begun = time.monotonic()
        with exclusive(tmp_path / "x.lock", timeout=0.2) as second:
            assert not second
        assert 0.1 < time.monotonic() - begun < 5
    with exclusive(tmp_path / "x.lock", timeout=0) as third:
        assert third
