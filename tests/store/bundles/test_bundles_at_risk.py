"""Bundles that are damaged, or changed by hand: what is sound stays in use, and nothing comes back."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError, StoreAccessError, TrackLockedError
from featurestore.store import filesystem
from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.marks import Marks
from featurestore.store.bundles.places import SealedPlaces
from featurestore.store.commit import transaction
from featurestore.store.paths import StorePaths
from featurestore.store.sealing.unseal import Unsealing
from featurestore.store.table.listing import list_keys
from featurestore.store.track_reader import TrackReader

pytestmark = pytest.mark.slow

RAGGED = ("segments", "aggregated")
TRACKS = {name: features(seed, kinds=RAGGED) for seed, name in enumerate("abcd")}


def opened(path, **options):
    return StoreWriter(path, spec=SPEC, durable=False, **options)


@pytest.fixture
def store(path, monkeypatch):
    """Of "a" and "b" in one bundle, and "c" and "d" in another, none of which is small."""
    monkeypatch.setattr("featurestore.store.sealing.seal.MOST_TRACKS", 2)
    monkeypatch.setattr("featurestore.store.sealing.wear.LEAST_TRACKS", 1)
    write_store(path, TRACKS)
    with opened(path) as writer:
        writer.pack(seal=True)
    return FeatureStore(path)


def bundle_of(path, track_id):
    """The folder of the bundle of a track."""
    ids = (path / "bundles").glob("*/track_id/c.0")
    return next(file for file in ids if track_id.encode() in file.read_bytes()).parents[1]


def marks(path):
    return {mark.name for mark in (path / "bundles" / "removed").iterdir()} - {"zarr.json"}


def check(path, tracks):
    store = FeatureStore(path)
    assert sorted(store.track_ids) == sorted(tracks)
    for track_id, arrays in tracks.items():
        assert_same(read_all(store, track_id), arrays)
    assert np.array_equal(store.aggregated(), [tracks[x]["aggregated"] for x in store.track_ids])
    assert store.verify(deep=True).problems == ()


class TestDamagedBundle:
    @pytest.fixture
    def damaged(self, path, store):
        """The metadata of the bundle of "a" and "b", which was damaged."""
        file = bundle_of(path, "a") / "zarr.json"
        content = file.read_bytes()
        file.write_text("{}")
        return file, content

    def test_other_tracks_are_read_and_written(self, path, damaged):
        store = FeatureStore(path)
        assert store.track_ids == list("abcd")
        assert_same(read_all(store, "c"), TRACKS["c"])
        with opened(path) as writer:
            writer.put("new", TRACKS["a"])
            writer.put("c", TRACKS["b"], overwrite=True)
            assert writer.pack()
        changed = {**TRACKS, "c": TRACKS["b"], "new": TRACKS["a"]}
        for found in (store, FeatureStore(path)):
            assert sorted(found.track_ids) == sorted(changed)
            assert_same(read_all(found, "new"), TRACKS["a"])
            for track_id in "a", "other":
                with pytest.raises(CorruptTrackError, match="run verify --deep --repair"):
                    found.segments(track_id)
        damaged[0].write_bytes(damaged[1])
        check(path, changed)
        with opened(path) as writer:
            writer.pack(seal=True)
        check(path, changed)

    def test_a_writer_that_is_open_sees_that_the_bundle_is_mended(self, path, damaged):
        with opened(path) as writer:
            with pytest.raises(CorruptTrackError):
                writer.existing("a")
            damaged[0].write_bytes(damaged[1])
            assert writer.existing("a") is not None
            writer.remove("a")
        check(path, {name: TRACKS[name] for name in "bcd"})

    def test_its_tracks_are_replaced_and_not_removed(self, path, damaged):
        with opened(path) as writer:
            writer.put("a", TRACKS["d"])
            for track_id in "abc":
                with pytest.raises(CorruptTrackError, match="run verify --deep --repair"):
                    writer.remove(track_id)
        assert_same(read_all(FeatureStore(path), "a"), TRACKS["d"])
        damaged[0].write_bytes(damaged[1])
        check(path, {**TRACKS, "a": TRACKS["d"]})
        with opened(path) as writer:
            writer.remove("a")
        check(path, {name: TRACKS[name] for name in "bcd"})

    @pytest.mark.parametrize("mended", [False, True])
    def test_a_removal_that_was_decided_waits_for_it(self, path, damaged, mended):
        entry = StorePaths(path).journal / "c"
        entry.mkdir()
        StorePaths(path).stale.joinpath("c").touch()
        (entry / "intent.json").write_text(json.dumps({"kinds": [], "revision": "0" * 32}))
        with opened(path) as writer:
            writer.put("new", TRACKS["a"])
            assert entry.exists()
            if mended:
                damaged[0].write_bytes(damaged[1])
            else:
                writer.repair()
        check(path, {**{name: TRACKS[name] for name in ("abd" if mended else "d")}, "new": TRACKS["a"]})

    def test_it_is_put_aside_with_its_marks(self, path, damaged):
        file, content = damaged
        file.write_bytes(content)
        with opened(path) as writer:
            writer.remove("a")
            kept = marks(path)
            file.write_text("{}")
            _, moved = writer.repair()
        check(path, {name: TRACKS[name] for name in "cd"})
        assert not marks(path)
        (aside,) = moved
        for mark in aside.with_name(f"{aside.name}.removed").iterdir():
            shutil.copy(mark, path / "bundles" / "removed")
        (aside / "zarr.json").write_bytes(content)
        aside.rename(file.parent)
        assert marks(path) == kept
        assert "a" not in FeatureStore(path)
        assert_same(read_all(FeatureStore(path), "b"), TRACKS["b"])

    def test_one_that_cannot_be_read_is_left_where_it_is(self, path, store):
        with opened(path, overwrite=True) as writer:
            writer.put("c", TRACKS["d"])
        name, kept = bundle_of(path, "a").name, marks(path)
        open_bundle = Bundle.open.__func__

        def failing(cls, files, opened, *args):
            if opened == name:
                raise OSError(errno.EIO, "Input/output error", "zarr.json")
            return open_bundle(cls, files, opened, *args)

        with mock.patch.object(Bundle, "open", classmethod(failing)):
            with pytest.raises(StoreAccessError, match=f"bundles/{name}"):
                FeatureStore(path).segments("a")
            with opened(path) as writer:
                report, moved = writer.repair()
        assert {problem.what for problem in report.problems} == {"unreadable"}
        assert [problem.message for problem in report.problems] == [
            f"bundles/{name} cannot be read: Input/output error"
        ]
        assert moved == []
        assert marks(path) == kept
        check(path, {**TRACKS, "c": TRACKS["d"]})


@contextlib.contextmanager
def recorded():
    """What is synced, moved and deleted, in this order: names of calls, and of folders below the store."""
    steps = []
    with contextlib.ExitStack() as stack:
        for name in ("sync_dir", "sync_tree", "rename", "unlink"):
            real = getattr(filesystem, name)

            def step(file, *args, name=name, real=real):
                steps.append((name, Path(file).name))
                return real(file, *args)

            stack.enter_context(mock.patch.object(filesystem, name, step))
        yield steps


class TestPower:
    def test_what_was_durable_is_so_after_any_writer_has_sealed_it(self, path):
        write_store(path, TRACKS)
        with opened(path) as writer:
            writer.pack()
            with recorded() as steps:
                writer.pack(seal=True)
            (name,) = FeatureStore(path)._source.reader.sealed.names()
            moved = steps.index(("rename", name))
            assert ("sync_tree", name) in steps[:moved]
            assert [name for step, name in steps[moved:] if step == "sync_dir"][:3] == [
                "bundles",
                "aggregated",
                "segments",
            ]
            with recorded() as steps:
                writer.pack(seal=False)
            synced = [name for step, name in steps[: steps.index(("rename", name))] if step == "sync_dir"]
            assert min(synced.count(kind) for kind in RAGGED) >= len(TRACKS)

    def test_a_mark_of_a_writer_that_died_is_made_sure_of(self, path, store):
        name = bundle_of(path, "a").name
        entry = StorePaths(path).journal / "a"
        entry.mkdir()
        (entry / "intent.json").write_text(json.dumps({"kinds": [], "revision": "0" * 32}))
        (StorePaths(path).stale / "a").touch()
        row = store._source.reader.sealed.find("a").row
        (path / "bundles" / "removed" / f"{name}.{row}").touch()
        with recorded() as steps:
            opened(path).close()
        assert not entry.exists()
        assert steps.index(("sync_dir", "removed")) < steps.index(("unlink", "intent.json"))

    def test_so_is_one_of_an_older_bundle(self, path, store):
        with opened(path, overwrite=True) as writer:
            writer.put("a", TRACKS["b"])
            assert marks(path)
            writer.pack()
            with recorded() as steps:
                writer.pack(seal=True)
        assert steps.index(("sync_dir", "removed")) < steps.index(("rename", "a"))


class TestVersion:
    @staticmethod
    def version(path):
        return json.loads((path / "zarr.json").read_text())["attributes"]["featurestore"]["format"]

    def test_a_root_that_is_written_anew_says_that_there_are_bundles(self, path, store):
        root = json.loads((path / "zarr.json").read_text())
        (path / "zarr.json").write_text(json.dumps({**root, "consolidated_metadata": None}))
        assert [problem.what for problem in store.verify().problems] == ["structure"]
        with opened(path) as writer:
            writer.repair()
        assert self.version(path) == 3
        check(path, TRACKS)

    def test_the_root_of_another_store_is_raised_by_the_next_writer(self, path, store, tmp_path):
        own = (path / "zarr.json").read_bytes()
        write_store(tmp_path / "another.zarr", {})
        shutil.copy(tmp_path / "another.zarr" / "zarr.json", path)
        assert self.version(path) == 2
        assert [problem.what for problem in FeatureStore(path).verify().problems] == ["structure"]
        opened(path).close()
        assert (path / "zarr.json").read_bytes() == own
        check(path, TRACKS)

    def test_it_is_what_the_root_says_also_when_all_is_unsealed(self, path, store):
        assert store.info()["format"] == 3
        with opened(path) as writer:
            writer.pack(seal=False)
        assert store.info()["format"] == self.version(path) == 3
        assert store.info()["sealed"] == 0

    def test_what_the_root_says_else_stays(self, path):
        spec = dataclasses.replace(SPEC, precision_cosines=(0.5, 0.25, 1.0))
        write_store(path, TRACKS, spec=spec)
        with opened(path) as writer:
            writer.pack(seal=True)
        assert self.version(path) == 3
        assert FeatureStore(path).spec == spec


class TestMarks:
    def test_without_their_folder_nothing_comes_back_in_silence(self, path, store):
        with opened(path, overwrite=True) as writer:
            writer.remove("a")
            writer.put("c", TRACKS["d"])
            assert marks(path)
            shutil.rmtree(path / "bundles" / "removed")
            for found in (store, FeatureStore(path)):
                for look in (lambda x: x.segments("a"), lambda x: x.segments("b"), lambda x: "a" in x):
                    with pytest.raises(CorruptTrackError, match="bundles/removed is missing"):
                        look(found)
            for change in (writer.put, writer.remove):
                with pytest.raises(CorruptTrackError, match="bundles/removed is missing"):
                    change("d", *([] if change == writer.remove else [TRACKS["a"]]))
            assert np.array_equal(store.segments("c"), TRACKS["d"]["segments"])
            report = FeatureStore(path).verify()
        assert "structure" in {problem.what for problem in report.problems}
        with opened(path) as writer:
            writer.repair()
        check(path, {**TRACKS, "c": TRACKS["d"]})

    def test_their_folder_is_made_where_no_bundles_are(self, path):
        write_store(path, {})
        with opened(path) as writer:
            writer.put("a", TRACKS["a"])
            writer.pack(seal=True)
            writer.pack(seal=False)
            shutil.rmtree(path / "bundles" / "removed")
            writer.pack(seal=True)
        check(path, {"a": TRACKS["a"]})

    @pytest.mark.parametrize("where", ["bundles/removed/", "aggregated/a"])
    def test_what_cannot_be_looked_at_is_an_error(self, path, store, where, monkeypatch):
        with opened(path, overwrite=True) as writer:
            writer.put("a", TRACKS["d"])
        for mark in marks(path):  # as if its writer had just put the folder in its place
            (path / "bundles" / "removed" / mark).unlink()
        stat, broken = os.stat, f"{path.resolve()}/{where}"

        def failing(file, *args, **options):
            if broken in str(file):
                raise OSError(errno.EIO, "Input/output error", str(file))
            return stat(file, *args, **options)

        monkeypatch.setattr(os, "stat", failing)
        with pytest.raises(StoreAccessError):
            store.segments("b") if "removed" in where else store.segments(tracks=["a", "b"]).to_numpy()


class TestUnsealing:
    def test_what_is_damaged_or_in_the_way_stays_and_all_else_is_brought_back(self, path, store):
        file = next(bundle_of(path, "a").glob("aggregated/c*"))
        content = bytearray(file.read_bytes())
        content[0] ^= 1  # of the chunk of "a" and "b"
        file.write_bytes(content)
        write_store(path.with_name("another.zarr"), {"c": TRACKS["a"]})
        shutil.copytree(path.with_name("another.zarr") / "segments" / "c", path / "segments" / "c")
        with opened(path) as writer:
            with pytest.raises(TrackLockedError, match="3 tracks of"):
                writer.pack(seal=False)
            assert list((path / ".featurestore" / "staging").glob("*/*/*")) == []
            assert FeatureStore(path).info()["sealed"] == 3
            assert_same(read_all(FeatureStore(path), "c"), TRACKS["c"])
            shutil.rmtree(path / "segments" / "c")
            writer.repair()
            writer.pack(seal=False)
        check(path, {name: TRACKS[name] for name in "cd"})

    def test_a_folder_that_is_no_track_is_replaced(self, path, store):
        (path / "aggregated" / "a").mkdir()
        (path / "aggregated" / "a" / "c.0.0").write_text(
            "what a writer left that died while it removed the folder"
        )
        with opened(path) as writer:
            writer.pack(seal=False)
        check(path, TRACKS)

    def test_a_track_that_is_out_of_its_place_for_an_instant_keeps_its_bundle(self, path, store):
        bring_back = Unsealing._bring_back

        def move_away(self, place, key):
            done = bring_back(self, place, key)
            if key == "b":
                (path / "aggregated" / "b").rename(path.with_name("b"))
            return done

        with opened(path) as writer:
            with mock.patch.object(Unsealing, "_bring_back", move_away):
                with pytest.raises(TrackLockedError, match="1 tracks of"):
                    writer.pack(seal=False)
                path.with_name("b").rename(path / "aggregated" / "b")
            writer.pack(seal=False)
        check(path, TRACKS)


class TestOverwriting:
    def test_a_row_that_a_track_gets_meanwhile_is_not_used(self, path, store):
        """It was sealed without a row in the table, which is packed while it is replaced."""
        shutil.rmtree(path / "packed")
        add, replaced = transaction.add, features(9, kinds=RAGGED)

        def pack_first(*args, **options):
            with mock.patch.object(transaction, "add", add), opened(path) as other:
                other.pack()
            add(*args, **options)

        with mock.patch.object(transaction, "add", pack_first), opened(path, overwrite=True) as writer:
            writer.put("b", replaced)
        check(path, {**TRACKS, "b": replaced})

    @pytest.mark.parametrize("metadata", [None, "{}"])
    def test_a_folder_that_is_no_track_supersedes_nothing(self, path, store, metadata):
        """As one is that could only be emptied when its track was sealed."""
        folder = path / "aggregated" / "a"
        folder.mkdir()
        if metadata is None:
            assert_same(read_all(store, "a"), TRACKS["a"])
        else:
            (folder / "zarr.json").write_text(metadata)
        refused = mock.patch.object(transaction, "_check", side_effect=KeyboardInterrupt)
        with refused, pytest.raises(KeyboardInterrupt), opened(path, overwrite=True) as writer:
            writer.put("a", TRACKS["b"])
        shutil.rmtree(folder)
        check(path, TRACKS)


@pytest.mark.parametrize("look", ["track_ids", "describe"])
def test_what_was_removed_is_not_seen_while_its_bundle_goes(path, store, look):
    with opened(path) as writer:
        writer.remove("a")
    store = FeatureStore(path)
    sealed, names = store._source.reader.sealed, Marks.names

    def unseal_first(self):
        if self is sealed._marks:
            patch.stop()
            with opened(path) as writer:
                writer.pack(seal=False)
        return names(self)

    assert len(sealed.keys()) == 3
    patch = mock.patch.object(Marks, "names", unseal_first)
    patch.start()
    if look == "track_ids":
        assert sorted(list_keys(store._source.reader)) == list("bcd")
    else:
        assert sealed.find_all(["a"]).numbers.tolist() == [-1]


@pytest.mark.parametrize("sound", [True, False])
def test_a_damaged_folder_does_not_take_a_sound_copy_in_a_bundle_with_it(path, sound):
    """As they are both there when a writer dies that seals, or brings back."""
    write_store(path, TRACKS)
    shutil.copytree(path, path.with_name("before"))
    with opened(path) as writer:
        writer.pack(seal=True)
    for kind in RAGGED:
        shutil.copytree(path.with_name("before") / kind / "a", path / kind / "a")
    files = [path / "aggregated" / "a" / "c.0.0", *([] if sound else bundle_of(path, "a").glob("aggregated/c*"))]
    for file in files:
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    with opened(path) as writer:
        writer.repair()
        writer.repair()
    assert ("a" in FeatureStore(path)) == sound
    if sound:
        check(path, TRACKS)


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("damage", ["a byte", "segments"])
def test_a_sound_bundle_stays_where_a_folder_of_a_dead_writer_is_damaged(path, store, seal, damage):
    """It had brought the track back, and had not come to the end of the bundle."""
    with opened(path) as writer:
        bundle = bundle_of(path, "a")
        shutil.copytree(bundle, path.with_name("kept"))
        writer.pack(seal=False)
        shutil.copytree(path.with_name("kept"), bundle)
        if damage == "segments":
            shutil.rmtree(path / "segments" / "a")
        else:
            content = bytearray((path / "segments" / "a" / "c.0.0.0").read_bytes())
            content[0] ^= 1
            (path / "segments" / "a" / "c.0.0.0").write_bytes(content)
        bundle.parent.joinpath("removed", f"{bundle.name}.1").touch()  # of "b": so it is worn
        with mock.patch("featurestore.store.sealing.seal.worn_bundles", lambda sealed: sealed.bundles()):
            if seal:
                writer.pack(seal=True)
            else:
                with pytest.raises(TrackLockedError, match=r"1 tracks of .* \('a'"):
                    writer.pack(seal=False)
        assert bundle.exists() == (not seal or damage == "a byte")  # else they were read from there
        writer.repair()
        writer.pack(seal=True)
        writer.pack(seal=False)
    check(path, TRACKS)


def test_segments_that_a_track_gets_while_many_are_read_are_its_own(path, monkeypatch):
    """Of a track without segments in a bundle, those of its neighbour would be in the same place."""
    write_store(path, {"a": features(0, kinds=("aggregated",)), "b": TRACKS["b"]})
    with opened(path) as writer:
        writer.pack(seal=True)
    view, new, places = FeatureStore(path).segments(layer=1), features(9), TrackReader.sealed_places

    def then_put(self, track_ids):
        found = places(self, track_ids)
        with opened(path, overwrite=True) as writer:
            writer.put("a", new)
        return found

    monkeypatch.setattr(TrackReader, "sealed_places", then_put)
    assert view.track_ids == ["a", "b"]
    wanted = np.concatenate([new["segments"][:, 1], TRACKS["b"]["segments"][:, 1]])
    assert np.array_equal(view.to_numpy(), wanted)


def test_tracks_that_were_replaced_by_hand_cost_no_read_more(path):
    """Of each the packed table tells another number of segments: not all is read anew for it."""
    write_store(path, {"a": TRACKS["a"]})
    with opened(path) as writer:
        writer.pack(seal=True)
    names = list("bcdefg")
    write_store(path, {name: features(7, kinds=RAGGED) for name in names}, pack=True)
    new = {name: features(seed, segments=3, kinds=RAGGED) for seed, name in enumerate(names)}
    other = write_store(path.with_name("other.zarr"), new).path
    for name in names:
        for kind in RAGGED:
            shutil.rmtree(path / kind / name)
            shutil.copytree(other / kind / name, path / kind / name)
    store = FeatureStore(path)
    wanted, read = {**new, "a": TRACKS["a"]}, SealedPlaces.read_segments
    with mock.patch.object(SealedPlaces, "read_segments", autospec=True, side_effect=read) as reads:
        found = store.segments(layer=1).to_numpy()
    assert np.array_equal(found, np.concatenate([wanted[x]["segments"][:, 1] for x in store.track_ids]))
    assert reads.call_count == 1


def test_where_segments_start_is_told_of_the_revisions_that_were_read(path):
    """In a bundle, and in a folder beside it."""
    for name in "ab":
        with opened(path) as writer:
            writer.put(name, TRACKS[name], starts=[0.0, 2.5])
            writer.pack(seal=True if name == "a" else None)
    view = FeatureStore(path).segments(layer=1)
    view.to_numpy()
    with opened(path, overwrite=True) as writer:
        for name in "ab":
            writer.put(name, TRACKS[name], starts=[7.0, 8.0])
    assert view.row_starts.tolist() == [0.0, 2.5, 0.0, 2.5]
