"""Stores and views go to other processes: pickled, forked and in the workers of a DataLoader."""

import gc
import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import TrackLockedError

TRACKS = {f"{number:02}": features(number, segments=2) for number in range(12)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("processes") / "store.zarr", TRACKS, pack=True)
    np.asarray(store.aggregated())  # whatever is kept from now on is inherited
    return store


class RowsOf(torch.utils.data.Dataset):
    """Segments of each track and its row of the table, as a user would write it."""

    def __init__(self, store):
        self.store = store
        self.ids = store.track_ids
        self.view = store.aggregated(layer=1)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        segments = self.store.segments(self.ids[index], layer=2)
        return index, torch.from_numpy(np.asarray(segments)), torch.from_numpy(self.view[index])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_a_store(store, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        loader = torch.utils.data.DataLoader(
            RowsOf(store), batch_size=4, num_workers=2, multiprocessing_context=method
        )
        seen = []
        for indices, segments, rows in loader:
            for index, block, row in zip(indices.tolist(), segments.numpy(), rows.numpy(), strict=True):
                seen.append(index)
                expected = TRACKS[f"{index:02}"]
                assert np.array_equal(block, expected["segments"][:, 2])
                assert np.array_equal(row, expected["aggregated"][1])
    assert sorted(seen) == list(range(12))


def read(store, view, results):
    results.put((store.track_ids, np.asarray(view), np.asarray(store.raw("03", layer=0))))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_what_they_are_given(store, method):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=read, args=(store, store.aggregated(layer=1), results))
        process.start()
    ids, rows, raw = results.get(timeout=60)
    process.join()
    assert ids == store.track_ids
    assert np.array_equal(rows, store.aggregated(layer=1))
    assert np.array_equal(raw, TRACKS["03"]["raw"][:, 0])


@pytest.mark.slow
def test_parent_and_children_read_at_the_same_time(store):
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            wrong = 1
            try:
                for _ in range(30):
                    for track_id in store.track_ids[child::4]:
                        assert np.array_equal(store.raw(track_id), TRACKS[track_id]["raw"])
                    assert len(store.aggregated(layer=0)[:]) == 12
                wrong = 0
            finally:
                os._exit(wrong)
        children.append(pid)
    for _ in range(30):
        assert np.array_equal(store.aggregated()[5], TRACKS["05"]["aggregated"])
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4


@pytest.mark.slow
def test_a_writer_that_was_forked_is_still_the_writer(tmp_path):
    """A child that leaves takes neither the parent's locks nor its staged work with it."""
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=SPEC, durable=False) as writer, writer.track("a") as track:
        track.append(raw=features(0)["raw"])
        pid = os.fork()
        if not pid:
            writer.session.locks._held.clear()
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        with StoreWriter(path, spec=SPEC) as other, pytest.raises(TrackLockedError):
            other.put("a", features(1))
        track.append(raw=features(0)["raw"])
    assert FeatureStore(path).segments("a").shape == (4, 3, 4)
