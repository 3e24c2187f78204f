"""A writer that has fallen silent: others do its tracks though they are locked; it does no harm if it lives."""

import contextlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import TrackLockedError
from featurestore.store.commit import silence, staging
from featurestore.store.commit.flock import lock_file
from featurestore.store.commit.silence import SilentWriters
from featurestore.store.paths import StorePaths

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Whoever is silent for a second is dead."""
    monkeypatch.setattr(staging, "BEAT", 0.05)
    monkeypatch.setattr(silence, "BEAT", 0.05)
    monkeypatch.setattr(silence, "SILENCE", 1.0)
    monkeypatch.setattr(silence, "_LOOK", 0.01)


def hold(path, at_work, go_on):
    """Write "a", wait with half of it, and then write "b"."""
    with StoreWriter(path, spec=SPEC) as writer:
        with contextlib.suppress(TrackLockedError), writer.track("a") as track:
            track.append(raw=features(1)["raw"])
            at_work.set()
            go_on.wait()
        writer.put("b", features(2))


@pytest.fixture
def holder(path):
    """A process that holds "a"."""
    at_work, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(path, at_work, go_on))
    process.start()
    assert at_work.wait(60)
    process.go_on = go_on
    yield process
    process.kill()
    process.join()


def put_when_free(writer, track_id, arrays, seconds=60.0):
    """Try again until the track is free."""
    end = time.monotonic() + seconds
    while True:
        try:
            return writer.put(track_id, arrays)
        except TrackLockedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def dead(path):
    return list((path / ".featurestore" / "dead").glob("*"))


def test_a_writer_that_beats_keeps_its_track(path, holder, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE", 2.0)  # also on a busy machine
    with StoreWriter(path, spec=SPEC) as other:
        with pytest.raises(TrackLockedError):
            put_when_free(other, "a", features(3), seconds=5.0)
        holder.go_on.set()
        holder.join()
    assert_same(read_all(FeatureStore(path), "a"), features(1))


def test_the_track_of_a_writer_that_is_stopped_is_done_by_another_and_it_goes_on_with_the_next(path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    with StoreWriter(path, spec=SPEC) as other:
        with pytest.raises(TrackLockedError):
            other.put("a", features(3))
        put_when_free(other, "a", features(3))
    os.kill(holder.pid, signal.SIGCONT)  # first, as an event waits for all who wait for it
    holder.go_on.set()
    holder.join()
    assert holder.exitcode == 0
    store = FeatureStore(path)
    assert_same(read_all(store, "a"), features(3))
    assert_same(read_all(store, "b"), features(2))
    assert dead(path)
    StoreWriter(path, spec=SPEC).close()
    assert store.verify(deep=True).ok
    assert [*dead(path), *(path / ".featurestore" / "staging").iterdir()] == []


@pytest.fixture
def locks_of_the_dead(path):
    """The locks of a writer that was killed at work on "a" are held still, as those of a dead client of NFSv3."""
    reading, writing = os.pipe()
    ready, told = os.pipe()
    if not (pid := os.fork()):
        try:
            with StoreWriter(path, spec=SPEC) as writer, writer.track("a") as track:
                track.append(raw=features(1)["raw"])
                if not os.fork():  # the server, which knows the locks
                    os.close(writing)
                    os.write(told, b"x")
                    os.read(reading, 1)
                    os._exit(0)
                signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, writing)
        yield stack.close  # ends them


@pytest.mark.usefixtures("locks_of_the_dead")
def test_a_track_that_the_dead_keep_locked_can_be_written_and_replaced_and_removed(path):
    with StoreWriter(path, spec=SPEC, overwrite=True) as writer, StoreWriter(path, spec=SPEC) as other:
        put_when_free(writer, "a", features(3))
        with writer.track("a") as track:
            with pytest.raises(TrackLockedError):
                other.put("a", features(4))
            track.append(raw=features(5)["raw"])
        assert_same(read_all(FeatureStore(path), "a"), features(5))
        other.remove("a")
        other.put("a", features(6))
        assert writer.pack()
    store = FeatureStore(path)
    assert_same(read_all(store, "a"), features(6))
    assert (np.asarray(store.aggregated()) == features(6)["aggregated"]).all()
    assert store.verify(deep=True).ok


def take_over_and_wait(path, at_work):
    with StoreWriter(path, spec=SPEC) as writer:
        while True:
            with contextlib.suppress(TrackLockedError), writer.track("a") as track:
                track.append(raw=features(3)["raw"])
                at_work.set()
                signal.pause()


@pytest.mark.usefixtures("locks_of_the_dead")
def test_who_takes_over_may_be_killed_too(path):
    at_work = FORK.Event()
    heir = FORK.Process(target=take_over_and_wait, args=(path, at_work))
    heir.start()
    assert at_work.wait(60)
    with StoreWriter(path, spec=SPEC) as writer:
        with pytest.raises(TrackLockedError):
            put_when_free(writer, "a", features(4), seconds=2.0)
        heir.kill()
        heir.join()
        put_when_free(writer, "a", features(4))
    assert_same(read_all(FeatureStore(path), "a"), features(4))


def test_what_the_dead_had_is_swept_when_their_locks_end(path, locks_of_the_dead):
    with StoreWriter(path, spec=SPEC) as writer:
        put_when_free(writer, "a", features(3))
    StoreWriter(path, spec=SPEC).close()
    assert dead(path)
    locks_of_the_dead()
    end = time.monotonic() + 60
    while dead(path) and time.monotonic() < end:
        StoreWriter(path, spec=SPEC).close()
    assert dead(path) == []
    assert_same(read_all(FeatureStore(path), "a"), features(3))


def test_a_process_that_stood_still_has_not_heard_nobody(path, monkeypatch):
    """A minute of its own in which it did not listen is none of theirs."""
    with StoreWriter(path, spec=SPEC) as one, one.track("a") as track, StoreWriter(path, spec=SPEC) as other:
        track.append(raw=features(1)["raw"])
        silent = SilentWriters(StorePaths.of(path), other.session.staging.path)
        now = time.monotonic()
        monkeypatch.setattr(silence.time, "monotonic", lambda: now)
        one.session.staging._closed.set()  # no beat any more
        assert silent._silent() == []
        now += 3600
        assert silent._silent() == []
        for _ in range(30):
            now += 0.05
            found = silent._silent()
        assert found == [one.session.staging.path.name]


def test_those_who_take_over_lock_in_one_order(path, monkeypatch):
    """Else each of two has a lock that the other wants, and neither does the track."""
    StoreWriter(path, spec=SPEC).close()
    paths = StorePaths.of(path)
    names, locked = ["host.1", "host.2", "host.3"], []
    for name in names:
        (paths.dead / name / "a").mkdir(parents=True)
    monkeypatch.setattr(silence, "lock_file", lambda lock: locked.append(lock.parent.name) or lock_file(lock))
    for listed in (names, names[::-1]):
        monkeypatch.setattr(silence.reading, "list_names", lambda _, listed=listed: list(listed))
        with contextlib.ExitStack() as stack:
            assert SilentWriters(paths, paths.staging / "own").lock("a", stack, held=False)
    assert locked == names * 2
