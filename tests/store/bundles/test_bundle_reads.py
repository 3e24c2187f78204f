"""How much is read, opened and listed to read tracks of bundles."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from samples import SPEC, features, place_aggregated, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store import reading
from featurestore.store.bundles import bundle, marks
from featurestore.store.byte_source import LocalFile, LocalFolder
from featurestore.store.sealing import seal

TRACKS = {
    f"{number:02}": features(number, segments=1 + number % 3, kinds=("segments", "aggregated"))
    for number in range(24)
}


@pytest.fixture
def store(path, monkeypatch):
    """Of all tracks, eight in each bundle, without anything that was read before."""
    monkeypatch.setattr(seal, "MOST_TRACKS", 8)
    monkeypatch.setattr(bundle, "_KEPT_BYTES", 0)
    write_store(path, TRACKS)
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.pack(seal=True)
    return FeatureStore(path)


@pytest.fixture
def read():
    """Names of the files that are read as a whole."""
    names = []

    def watch(self, name, limit, real=LocalFolder.read):
        names.append(name)
        return real(self, name, limit)

    with mock.patch.object(LocalFolder, "read", watch):
        yield names


@pytest.mark.parametrize("pooling", [None, "mean+std"])
def test_batches_of_tracks_read_nothing_but_their_features(store, read, pooling):
    view = store.segments(layer=1)
    assert view.of_tracks([0])[0].shape == (1, 4)  # by now all bundles are open
    read.clear()
    if pooling:
        found = store.aggregated(tracks=["20", "03"], layer=1, pooling=pooling).to_numpy()
        assert np.array_equal(found[:, :4], [TRACKS[x]["segments"][:, 1].mean(axis=0) for x in ("20", "03")])
    else:
        for track_id, block in zip(("20", "03"), view.of_tracks([20, 3]), strict=True):
            assert np.array_equal(block, TRACKS[track_id]["segments"][:, 1])
    assert [name for name in read if name.startswith("c.")] == []


def test_all_segments_know_where_they_start(path, store, read):
    view = store.segments(layer=1)
    assert np.isnan(view.row_starts).all()
    with StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as writer:
        writer.put("03", TRACKS["03"], starts=[2.5])
        writer.pack(seal=True)
    view = FeatureStore(path).segments(layer=1)
    view.to_numpy()
    read.clear()
    assert view.row_starts[~np.isnan(view.row_starts)].tolist() == [2.5]
    assert read == []


@pytest.fixture
def listed():
    """Names of the folders that are listed."""
    names = []

    def watch(folder=".", real=os.listdir):
        names.append(Path(os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) else folder).name)
        return real(folder)

    with mock.patch.object(os, "listdir", watch):
        yield names


class TestMarks:
    @pytest.mark.parametrize("settled", [True, False])
    def test_they_are_listed_where_they_may_have_changed(self, path, store, listed, monkeypatch, settled):
        monkeypatch.setattr(marks, "_SETTLED_NS", 0 if settled else 10**18)
        reader = FeatureStore(path)._source.reader
        for track_id in ("03", "04"):
            listed.clear()
            for _ in range(3):
                assert (reader.sealed_places(list(TRACKS)).numbers >= 0).sum() == len(reader.sealed.keys())
            assert listed.count("removed") == (1 if settled else 6)
            with StoreWriter(path, spec=SPEC, durable=False) as writer:
                writer.remove(track_id)
        assert len(reader.sealed.keys()) == 22

    def test_a_few_tracks_are_looked_at_one_by_one_where_there_are_many(self, path, store, listed, monkeypatch):
        monkeypatch.setattr(marks, "_SETTLED_NS", 10**18)
        for number in range(100, 150):
            (path / "bundles" / "removed" / f"{'0' * 32}.{number}").touch()
        reader = FeatureStore(path)._source.reader
        assert len(reader.sealed.keys()) == 24
        listed.clear()
        assert (reader.sealed_places(["03", "04"]).numbers >= 0).all()
        with StoreWriter(path, spec=SPEC, durable=False) as writer:
            writer.remove("03")
            listed.clear()
            assert (reader.sealed_places(["03", "04"]).numbers >= 0).tolist() == [False, True]
            assert reader.sealed_places(["03"]) is None
        assert "removed" not in listed


def test_a_batch_looks_once_at_each_track(path, store, listed, monkeypatch):
    looked = []

    def watch(name, real=reading.exists):
        looked.append(Path(name).parent.name)
        return real(name)

    reader = store._source.reader
    monkeypatch.setattr(reading, "exists", watch)
    assert (reader.sealed_places(["03", "04", "05"]).numbers >= 0).all()
    assert looked == ["aggregated"] * 3
    assert sorted(listed) == ["bundles", "bundles", "journal", "removed"]  # those are the same afterwards


def test_bundles_that_come_are_added_to_what_is_known(path, store):
    walked = []

    class Keys(list):
        def __iter__(self):
            walked.append(len(self))
            return super().__iter__()

    sealed = store._source.reader.sealed
    for opened in sealed.bundles():
        opened.__dict__["keys"] = Keys(opened.keys)
    with StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as writer:
        writer.put("new", TRACKS["00"])
        writer.put("03", TRACKS["04"])
        writer.pack(seal=True)
    assert sealed.find("new").bundle.ids == ["03", "new"]
    assert sealed.find("03").bundle is sealed.find("new").bundle
    assert sealed.find("04") != sealed.find("03")
    assert len(sealed.bundles()) == 4
    assert walked == []


@pytest.fixture
def read_bytes():
    """Numbers of bytes that are read into arrays."""
    sizes = []

    def watch(self, parts, offset, real=LocalFile.read_into):
        sizes.append(real(self, parts, offset))
        return sizes[-1]

    with mock.patch.object(LocalFile, "read_into", watch):
        yield sizes


@pytest.mark.parametrize("block", [2**26, 200])
def test_all_is_checked_by_reading_many_together(path, store, read_bytes, monkeypatch, block):
    """But for tracks that are larger than what is read at once."""
    monkeypatch.setattr("featurestore.store.bundles.checking._BLOCK_BYTES", block)
    report = store.verify(deep=True)
    assert report.ok
    assert report.arrays == 2 * len(TRACKS)
    files = [file for kind in ("segments", "aggregated") for file in path.glob(f"bundles/*/{kind}/c*")]
    # The table is compared with the rows of all tracks, too.
    assert (sum(read_bytes) <= 2 * sum(file.stat().st_size for file in files)) == (block == 2**26)


def test_a_value_that_is_not_finite_is_found_among_others(path):
    """Where all checksums are right."""
    write_store(path, {"00": TRACKS["00"], "02": TRACKS["02"]})
    place_aggregated(path, {"01": np.full((3, 4), np.inf, np.float32)}, SPEC)
    with StoreWriter(path, spec=SPEC) as writer:
        writer.pack(seal=True)
    problems = [problem for problem in FeatureStore(path).verify(deep=True).problems if problem.what == "track"]
    assert [problem.track_id for problem in problems] == ["01"]
    assert "not finite" in problems[0].message
