"""Which tracks are new and which are gone: what writers logged, if that is all that has changed."""

import shutil

import pytest
from samples import SPEC, features, write_store

from featurestore import StoreWriter
from featurestore.errors import CorruptTrackError
from featurestore.store.paths import StorePaths
from featurestore.store.table.index import TrackIndex
from featurestore.store.table.listing import compare_keys
from featurestore.store.track_reader import TrackReader

TRACKS = {name: features(seed) for seed, name in enumerate(["a", "b", "x" * 220, "d"])}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store.zarr"
    write_store(path, TRACKS, pack=True)
    return path


@pytest.fixture
def writer(path):
    with StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as writer:
        yield writer


@pytest.fixture
def compared(path):
    """Compares, and says whether the keys of all tracks were looked up for that."""

    def compare():
        reader = TrackReader(StorePaths.of(path), SPEC)
        table = TrackIndex(reader).open_table()
        return *compare_keys(reader, table), "key_set" in table.__dict__

    return compare


def test_what_writers_logged_is_looked_up_and_nothing_else(writer, compared):
    writer.put("e", features(5))
    writer.put("gone", features(6))
    writer.put("b", features(7))
    writer.remove("gone")
    writer.remove("a")
    assert compared() == ({"e"}, {"a"}, False)


@pytest.mark.parametrize("logged", [True, False])
def test_what_nobody_logged_is_found(path, writer, compared, logged):
    """As many come as go, so that their number tells nothing."""
    if logged:
        writer.put("e", features(5))
    (path / "aggregated" / "d").rename(path / "aggregated" / "by-hand")
    assert compared() == ({"e", "by-hand"} if logged else {"by-hand"}, {"d"}, True)


def test_a_log_that_lies_changes_nothing(path, writer, compared):
    writer.put("e", features(5))
    (path / ".featurestore" / "changes").write_text("\nd\n\nnothing\n\ne\n")
    assert compared() == ({"e"}, set(), False)
    shutil.rmtree(path / "aggregated" / "d")
    assert compared() == ({"e"}, {"d"}, False)


def test_a_table_that_has_a_track_twice_is_damaged(path, compared, monkeypatch):
    real = TrackIndex.open_table

    def twice(self):
        table = real(self)
        table.__dict__["keys"] = [*table.keys[:-1], "a"]
        return table

    monkeypatch.setattr(TrackIndex, "open_table", twice)
    with pytest.raises(CorruptTrackError, match="twice"):
        compared()
