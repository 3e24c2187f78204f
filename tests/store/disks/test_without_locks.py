"""File systems without flock (Lustre without -o flock, some FUSE): one process at a time, and others are told."""

import errno
import fcntl
import json
import multiprocessing
import os
import threading
import time

import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackLockedError
from featurestore.store.commit import heartbeat

CODES = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def no_flock(monkeypatch):
    """In this process and its forks; time goes faster."""

    def refuse(code=errno.ENOSYS):
        def flock(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse()
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0)
    return refuse


@pytest.fixture
def alive(path):
    return path / ".featurestore" / "locks" / "heartbeat"


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_one_process_does_everything_with_one_warning(path, no_flock, alive, code, caplog):
    no_flock(code)
    with caplog.at_level("WARNING", "featurestore"), StoreWriter(path, spec=SPEC, overwrite=True) as writer:
        for seed, name in enumerate("aba"):
            writer.put(name, features(seed))
        assert alive.exists()
        FeatureStore(path).pack()  # by another writer of this process
        with writer.track("c") as track:
            track.append(raw=features(3)["raw"])
            with StoreWriter(path, spec=SPEC) as other, pytest.raises(TrackLockedError):
                other.put("c", features(0))
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "this file system has no locks, so one process at a time can write here; others that try are refused"
    ]
    assert not alive.exists()
    store = FeatureStore(path)
    assert_same(read_all(store, "a"), features(2))
    assert store.verify(deep=True).ok
    assert os.listdir(path / ".featurestore" / "staging") == []


def test_threads_exclude_each_other(path, no_flock):
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        threads = [threading.Thread(target=writer.put, args=(str(n), features(n))) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(FeatureStore(path)) == 16
    assert FeatureStore(path).verify(deep=True).ok


def hold(path, entered, leave):
    with StoreWriter(path, spec=SPEC) as writer, writer.track("held") as track:
        entered.set()
        leave.wait(60)
        track.append(raw=features(1)["raw"])


@pytest.fixture
def other(path, no_flock):
    """Another process that writes the store until it is told to end."""
    entered, leave = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(path, entered, leave))
    process.start()
    assert entered.wait(30)
    yield process, leave
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_second_process_is_refused_and_reads(path, other):
    process, leave = other
    for change in (lambda: StoreWriter(path, spec=SPEC), lambda: FeatureStore(path).pack()):
        with pytest.raises(
            StoreAccessError, match=rf"another process writes it \(process {process.pid} on .*only one"
        ):
            change()
    assert FeatureStore(path).track_ids == []
    leave.set()
    process.join()
    assert process.exitcode == 0
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("mine", features(2))
    assert FeatureStore(path).track_ids == ["held", "mine"]


@pytest.mark.slow
def test_also_one_that_has_locks_is_refused(path, other, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0)
    with pytest.raises(StoreAccessError, match="another process writes it"):
        StoreWriter(path, spec=SPEC)


@pytest.mark.slow
def test_a_process_that_died_is_followed_at_once(path, other, alive, monkeypatch):
    monkeypatch.setattr(heartbeat, "SILENCE", 60.0)
    process, _ = other
    process.kill()
    process.join()
    assert alive.exists()
    begun = time.monotonic()
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("held", features(3))
    assert time.monotonic() - begun < 30
    assert_same(read_all(FeatureStore(path), "held"), features(3))
    assert FeatureStore(path).verify(deep=True).left == 0


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{}", json.dumps({"machine": ["elsewhere"], "pid": 1, "token": "x"})])
def test_one_of_another_host_is_followed_after_some_silence(path, no_flock, alive, content):
    write_store(path, {})
    alive.write_text(content)
    begun = time.monotonic()
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("a", features(0))
    assert 0.9 < time.monotonic() - begun < 10
    assert os.listdir(alive.parent).count("heartbeat") == 0


def test_one_that_was_taken_for_dead_writes_no_more(path, no_flock, alive):
    with StoreWriter(path, spec=SPEC) as writer:
        alive.write_text(json.dumps({"machine": ["elsewhere"], "pid": 1, "token": "x"}))
        time.sleep(0.5)
        for change in (lambda: writer.put("a", features(0)), writer.pack):
            with pytest.raises(StoreAccessError, match="silent for so long"):
                change()
    assert alive.exists()
