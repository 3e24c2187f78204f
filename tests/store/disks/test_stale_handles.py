"""NFS: what another host removes, this one's open files and folders answer with ESTALE. Readers look again."""

import errno
import itertools
import multiprocessing
import os
import random
import threading

import numpy as np
import pytest
from samples import features, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter

SPEC = FeatureSpec.for_arrays(layers=2, dim=8)
TRACKS, LOOKS = 4, 60
FORK = multiprocessing.get_context("fork")


def track(number):
    return {"segments": np.full((6, 2, 8), number, np.float32)}


def replace(path, asked):
    with StoreWriter(path, spec=SPEC, overwrite=True, durable=False) as writer:
        for number in itertools.count():
            writer.put(f"t{number % TRACKS}", track(number))
            if number % 5 == 4:
                writer.pack()
            if number > 2 * TRACKS:
                asked.send(number)
                if not asked.recv():
                    break


@pytest.fixture
def other(path):
    """The other host: asked for it, it replaces a track, or the table as well, before it answers."""
    ours, its = FORK.Pipe()
    writer = FORK.Process(target=replace, args=(path, its))
    writer.start()
    yield ours
    ours.send(False)
    writer.join()


class Operations(list):
    """Names of the operations that found what they have open removed; `before` comes before each operation."""

    def before(self):
        pass


@pytest.fixture
def stale(monkeypatch):
    """The operations that found what they have open removed."""
    seen = Operations()

    def guard(name, which):
        original = getattr(os, name)

        def guarded(*args, **options):
            fd = options.get("dir_fd") if which is None else args[which]
            if isinstance(fd, int):
                seen.before()
            if isinstance(fd, int) and os.fstat(fd).st_nlink == 0:
                seen.append(name)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return original(*args, **options)

        monkeypatch.setattr(os, name, guarded)
        for able in (os.supports_dir_fd, os.supports_fd):
            if original in able:
                monkeypatch.setattr(os, "supports_dir_fd", os.supports_dir_fd | {guarded})

    for name, which in (("open", None), ("stat", None), ("pread", 0), ("preadv", 0)):
        guard(name, which)
    return seen


@pytest.mark.slow
def test_a_reader_sees_whole_tracks_while_another_host_replaces_them(path, stale, other, monkeypatch):
    chance, turn = random.Random(0), threading.Lock()
    left = 1

    def replace_now_and_then():
        nonlocal left
        with turn:
            left -= 1
            if not left:
                left = chance.randrange(1, 30)
                other.send(True)
                other.recv()

    other.recv()
    store = FeatureStore(path)
    monkeypatch.setattr(stale, "before", replace_now_and_then)
    for look in range(LOOKS):
        assert len(np.unique(store.segments(f"t{look % TRACKS}", layer=1).to_numpy())) == 1
        rows = store.aggregated(layer=1).to_numpy()
        assert (rows == rows[:, :1]).all()
        assert len(store.track_ids) == TRACKS
    monkeypatch.undo()
    assert len(stale) >= LOOKS / 6


def test_a_file_that_is_stale_for_good_is_an_error(path, monkeypatch):
    from featurestore.errors import FeatureStoreError

    store = write_store(path, {"a": features(0)})

    def preadv(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(FeatureStoreError):
        store.raw("a").to_numpy()
