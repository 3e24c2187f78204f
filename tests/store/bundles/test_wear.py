"""Bundles of which little is there give their room back, and many small ones become one."""

from unittest import mock

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError
from featurestore.store import reading
from featurestore.store.commit.locks import exclusive
from featurestore.store.sealing import seal, wear
from featurestore.store.sealing.unseal import Unsealing

pytestmark = pytest.mark.slow

RAGGED = ("segments", "aggregated")
TRACKS = {name: features(seed, segments=2, kinds=RAGGED) for seed, name in enumerate("abcdefgh")}
NEW = features(20, segments=3, kinds=RAGGED)


@pytest.fixture
def store(path, monkeypatch):
    """Of two bundles of four tracks, neither of which is small."""
    monkeypatch.setattr(seal, "MOST_TRACKS", 4)
    monkeypatch.setattr(wear, "LEAST_TRACKS", 3)
    write_store(path, TRACKS)
    with opened(path) as writer:
        writer.pack(seal=True)
    return FeatureStore(path)


def opened(path, **options):
    return StoreWriter(path, spec=SPEC, durable=False, overwrite=True, **options)


def bundles(path):
    """The tracks of each bundle, hidden or not."""
    found = FeatureStore(path)._source.reader.sealed.bundles()
    return sorted("".join(bundle.ids) for bundle in found)


def marks(path):
    return [p.name for p in (path / "bundles" / "removed").iterdir() if p.name != "zarr.json"]


def check(path, tracks, *, unfinished=0):
    found = FeatureStore(path)
    assert sorted(found.track_ids) == sorted(tracks)
    for track_id, arrays in tracks.items():
        assert_same(read_all(found, track_id), arrays)
    assert np.array_equal(found.aggregated(), [tracks[x]["aggregated"] for x in found.track_ids])
    report = found.verify(deep=True)
    assert (report.problems, report.unfinished) == ((), unfinished)


def without(*names):
    return {name: arrays for name, arrays in TRACKS.items() if name not in names}


class TestDead:
    @pytest.mark.parametrize("how", [{}, {"seal": True}, {"thorough": False}])
    def test_a_bundle_of_which_nothing_is_there_goes_with_its_marks_when_the_store_is_packed(
        self, path, store, how
    ):
        with opened(path) as writer:
            for name in "abcd":
                writer.put(name, NEW) if name == "a" and not how else writer.remove(name)
            assert bundles(path) == ["abcd", "efgh"]
            assert len(marks(path)) == 4
            assert writer.pack(**how)
        assert bundles(path) == ["efgh"]
        assert marks(path) == []
        check(path, {**without(*"abcd"), **({} if how else {"a": NEW})})
        assert store.info()["packed"] == len(store)

    def test_while_another_writer_packs_it_stays(self, path, store):
        with opened(path) as writer, opened(path) as other:
            for name in "abcd":
                writer.remove(name)
            with exclusive(path / ".featurestore/locks/pack.lock", timeout=0):
                assert not other.pack()
            assert bundles(path) == ["abcd", "efgh"]
            assert other.pack()
        assert bundles(path) == ["efgh"]

    def test_marks_of_a_bundle_that_is_gone_go_too(self, path, store):
        (path / "bundles" / "removed" / f"{'0' * 32}.7").touch()
        with opened(path) as writer:
            writer.pack()
        assert marks(path) == []

    def test_so_it_does_where_another_bundle_is_damaged(self, path, store):
        sealed = store._source.reader.sealed
        kept, gone = sealed.find("a").bundle.name, sealed.find("e").bundle.name
        with opened(path) as writer:
            for name in "efgh":
                writer.remove(name)
        (path / "bundles" / kept / "zarr.json").write_text("{")
        with opened(path) as writer:
            writer.pack()
        assert not (path / "bundles" / gone).exists()
        assert (path / "bundles" / kept).exists()


class TestWorn:
    def test_a_bundle_of_which_most_is_hidden_is_written_anew(self, path, store):
        with opened(path) as writer:
            writer.remove("a")
            writer.put("b", NEW)
            writer.pack(seal=True)
            assert bundles(path) == ["abcd", "b", "efgh"]  # half of it is there
            writer.remove("c")
            writer.pack()
            assert bundles(path) == ["abcd", "b", "efgh"]  # only a seal writes anew
            writer.pack(seal=True)
        assert bundles(path) == ["db", "efgh"]
        assert marks(path) == []
        assert list((path / "aggregated").iterdir()) == [path / "aggregated" / "zarr.json"]
        check(path, {**without("a", "c"), "b": NEW})

    @pytest.fixture
    def heavy(self, path, monkeypatch):
        """Of three tracks in one bundle, of which the heaviest is removed."""
        monkeypatch.setattr(wear, "LEAST_TRACKS", 1)
        tracks = {"a": features(0, segments=9, kinds=RAGGED), "b": TRACKS["b"], "c": TRACKS["c"]}
        write_store(path, tracks)
        with opened(path) as writer:
            writer.pack(seal=True)
            writer.remove("a")
        return {"b": tracks["b"], "c": tracks["c"]}

    def test_it_is_bytes_that_count(self, path, heavy):
        with opened(path) as writer:
            writer.pack(seal=True)
        assert bundles(path) == ["bc"]
        check(path, heavy)

    def test_a_track_that_another_writer_has_stays_and_all_others_are_written_anew(self, path, heavy):
        with opened(path) as writer, opened(path) as other:
            with other.session.lock("b"):
                assert writer.pack(seal=True)
                assert bundles(path) == ["abc", "c"]
                assert len(marks(path)) == 2
                check(path, heavy)
            writer.pack(seal=True)
        assert bundles(path) == ["b", "c"]
        assert marks(path) == []
        check(path, heavy)

    def test_so_does_a_damaged_one(self, path, heavy):
        file = next((path / "bundles").glob("*/aggregated/c*"))
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
        with opened(path) as writer:
            for _ in range(2):
                writer.pack(seal=True)
                assert bundles(path) == ["abc"]
            writer.repair()
            writer.pack()
        assert not FeatureStore(path).track_ids
        assert bundles(path) == []

    def test_one_after_the_other_so_that_few_are_in_folders(self, path, store):
        most, unseal = [], Unsealing.unseal

        def watch(self, bundle):
            left = unseal(self, bundle)
            most.append(sum(p.is_dir() for p in (path / "aggregated").iterdir()))
            return left

        with opened(path) as writer, mock.patch.object(Unsealing, "unseal", watch):
            for name in "abcefg":
                writer.remove(name)
            for seed, name in enumerate("ijk"):
                writer.put(name, features(30 + seed, kinds=RAGGED))
            writer.pack(seal=True)
        assert most == [4, 1]
        assert bundles(path) in (["d", "ijkh"], ["h", "ijkd"])  # their names are random, and so is their order

    def test_where_there_is_no_room_for_that_what_waits_is_sealed(self, path, store, monkeypatch):
        free = reading.free_bytes
        with opened(path) as writer:
            for name in "abc":
                writer.remove(name)
            writer.put("i", NEW)
            rooms = iter([0, 4 * 3 * 4 * 4])  # rows, layers, features, bytes: of the new track
            monkeypatch.setattr(reading, "free_bytes", lambda _: next(rooms))
            with pytest.raises(StoreAccessError, match="free some space"):
                writer.pack(seal=True)
            assert bundles(path) == ["abcd", "efgh", "i"]
            monkeypatch.setattr(reading, "free_bytes", free)
            writer.pack(seal=True)
        assert bundles(path) == ["di", "efgh"]
        check(path, {**without(*"abc"), "i": NEW})


class TestSmall:
    @pytest.fixture
    def large(self, monkeypatch):
        monkeypatch.setattr(seal, "MOST_TRACKS", 64)
        monkeypatch.setattr(wear, "LEAST_TRACKS", 64)

    def test_many_small_seals_make_few_bundles_and_write_a_track_a_few_times(self, path, large):
        written, write = [], seal.write_bundle
        names = [f"{number:02}" for number in range(20)]
        with opened(path) as writer, mock.patch.object(seal, "write_bundle", spec=write) as watched:
            watched.side_effect = lambda reader, tracks, folder: (
                written.extend(tracks),
                write(reader, tracks, folder),
            )
            for number, name in enumerate(names):
                writer.put(name, features(number, kinds=RAGGED))
                writer.pack(seal=True)
                assert len(bundles(path)) == (number + 1).bit_count()
        assert len(written) == 56
        check(path, {name: features(number, kinds=RAGGED) for number, name in enumerate(names)})

    def test_not_where_nothing_is_new(self, path, large):
        write_store(path, {"a": NEW})
        with opened(path) as writer:
            writer.pack(seal=True)
            writer.put("b", NEW)
            (path / "aggregated" / "b" / "c.0.0").unlink()  # damaged: it cannot be sealed
            before = sorted((path / "bundles").rglob("*"))
            writer.pack(seal=True)
        assert sorted((path / "bundles").rglob("*")) == before

    def test_a_seal_by_itself_leaves_them_if_all_would_not_be_enough_for_a_bundle(self, path, large):
        write_store(path, {"a": NEW})
        with opened(path) as writer:
            writer.pack(seal=True)
            for name in "bc":
                writer.put(name, NEW)
            with mock.patch("featurestore.store.sealing.packing.LEAST_TRACKS", 4):
                writer.pack(seal=True, above=1)
                assert bundles(path) == ["a"]
                writer.put("d", NEW)
                writer.pack(seal=True, above=1)
        assert bundles(path) == ["bcda"]
