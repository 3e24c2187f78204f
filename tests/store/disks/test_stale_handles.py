"""NFS: what another host removes, this one's open files and folders answer with ESTALE. Readers look again."""

import errno
import multiprocessing
import os
import time

import numpy as np
import pytest
from samples import features, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter

SPEC = FeatureSpec.for_arrays(layers=2, dim=8)
TRACKS = 4
FORK = multiprocessing.get_context("fork")


def track(number):
    return {"segments": np.full((6, 2, 8), number, np.float32)}


def replace(path, ready, enough):
    with StoreWriter(path, spec=SPEC, overwrite=True, durable=False) as writer:
        number = 0
        while not enough.is_set():
            writer.put(f"t{number % TRACKS}", track(number))
            number += 1
            if number % 5 == 0:
                writer.pack()
            if number == 2 * TRACKS:
                ready.set()


@pytest.fixture
def stale(monkeypatch):
    """How often an operation found what it has open removed."""
    seen = []

    def guard(name, which):
        original = getattr(os, name)

        def guarded(*args, **options):
            fd = options.get("dir_fd") if which is None else args[which]
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
def test_a_reader_sees_whole_tracks_while_another_host_replaces_them(path, stale):
    ready, enough = FORK.Event(), FORK.Event()
    writer = FORK.Process(target=replace, args=(path, ready, enough))
    writer.start()
    try:
        assert ready.wait(60)
        store, end, looks = FeatureStore(path), time.monotonic() + 60, 0
        while time.monotonic() < end and (len(stale) < 30 or looks < 200):
            looks += 1
            assert len(np.unique(store.segments(f"t{looks % TRACKS}", layer=1).to_numpy())) == 1
            rows = store.aggregated(layer=1).to_numpy()
            assert (rows == rows[:, :1]).all()
            assert len(store.track_ids) == TRACKS
    finally:
        enough.set()
        writer.join()
    assert len(stale) >= 30


def test_a_file_that_is_stale_for_good_is_an_error(path, monkeypatch):
    from featurestore.errors import FeatureStoreError

    store = write_store(path, {"a": features(0)})

    def preadv(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(FeatureStoreError):
        store.raw("a").to_numpy()
