"""FeatureStore: what its public names promise."""

import difflib
import os
import pickle
import re
import shutil
import socket
import time

import numpy as np
import pytest
from samples import SPEC, assert_same, features, place_aggregated, read_all, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import NotAStoreError, SettingError, StoreError, TrackLockedError, TrackNotFoundError
from featurestore.spec import KINDS
from featurestore.store.commit.locks import exclusive

TRACKS = {"b": features(0), "a/x": features(1, segments=3), "é": features(2, kinds=["segments", "aggregated"])}


@pytest.fixture
def store(path):
    return write_store(path, TRACKS)


def test_an_empty_store_has_no_tracks(path):
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        store = FeatureStore(path)
        for _ in range(2):
            assert (store.track_ids, len(store), list(store)) == ([], 0, [])
            assert "a" not in store
            assert np.asarray(store.aggregated(layer=1)).shape == (0, 4)
            assert np.asarray(store.segments(layer=1)).shape == (0, 4)
            assert store.verify(deep=True).ok
            writer.pack()


def test_tracks_are_listed_by_id_until_they_are_packed(store):
    assert store.track_ids == ["a/x", "b", "é"]
    store.pack()
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("c", features(3))
        writer.put("A", features(4))
        assert store.track_ids == ["a/x", "b", "é", "A", "c"]
        writer.pack()
        assert store.track_ids == ["a/x", "b", "é", "A", "c"]
        writer.put("B", features(5))
        writer.remove("b")
        assert store.track_ids == ["a/x", "é", "A", "c", "B"]
        writer.pack()
        assert store.track_ids == ["a/x", "é", "A", "c", "B"]
    assert list(store) == store.track_ids
    assert len(store) == 5


def test_ids_are_found_whatever_is_asked_for(store):
    assert "b" in store
    assert "B" not in store
    assert "" not in store
    assert "\ud800" not in store
    assert 5 not in store
    assert None not in store
    assert "zarr.json" not in store
    assert ".." not in store


def test_a_list_of_ids_belongs_to_the_caller(store):
    store.track_ids.clear()
    assert len(store.track_ids) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_tracks_come_in_the_order_that_is_asked_for(store, packed):
    if packed:
        store.pack()
    found = np.asarray(store.aggregated(layer=2, tracks=["é", "b", "é"]))
    assert np.array_equal(found, [TRACKS[t]["aggregated"][2] for t in ("é", "b", "é")])
    found = np.asarray(store.aggregated(tracks=("b",) * 200))
    assert np.array_equal(found, [TRACKS["b"]["aggregated"]] * 200)


def test_an_unknown_id_names_those_that_look_alike(store):
    for ask in (
        lambda: store.aggregated(tracks=["a/y"]),
        lambda: store.aggregated(tracks=["b"] * 150 + ["a/y"]),
        lambda: store.segments("a/y"),
        lambda: store.segments(tracks=["b", "a/y"]),
        lambda: store.raw("a/y"),
        lambda: store.provenance("a/y"),
        lambda: store.remove("a/y"),
    ):
        with pytest.raises(TrackNotFoundError, match=r"'a/y'.*did you mean 'a/x'") as caught:
            ask()
        assert caught.value.close_matches == ("a/x",)
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("the store")


@pytest.mark.parametrize("track_id", ["", "\ud800", 5, None, b"b", "x" * 70_000, ("b",)])
def test_what_cannot_be_an_id_is_no_track(store, track_id):
    for ask in (
        lambda: store.aggregated(tracks=[track_id]),
        lambda: store.segments(tracks=[track_id]),
        lambda: store.raw(track_id),
        lambda: store.provenance(track_id),
        lambda: store.remove(track_id),
    ):
        with pytest.raises(TrackNotFoundError):
            ask()
    assert not store.has(track_id)


def test_one_id_is_no_list_of_ids(store):
    with pytest.raises(SettingError, match="sequence"):
        store.aggregated(tracks="b")
    with pytest.raises(SettingError, match="sequence"):
        store.segments(tracks="b")


@pytest.mark.parametrize("tracks", [5, 1.5, object()])
def test_what_is_no_list_of_ids_is_refused(store, tracks):
    for ask in (store.aggregated, store.segments):
        with pytest.raises(SettingError, match="sequence of track ids"):
            ask(tracks=tracks)


def test_ids_may_come_in_any_iterable(store):
    for tracks in (("b", "é"), iter(["b", "é"]), np.array(["b", "é"]), dict.fromkeys(["b", "é"])):
        assert store.aggregated(tracks=tracks).shape == (2, 3, 4)


def test_looking_for_what_looks_alike_takes_no_time_to_speak_of(tmp_path):
    store = write_store(
        tmp_path / "s", {"x" * 5_000 + str(i): features(i, kinds=["aggregated"]) for i in range(30)}
    )
    begun = time.perf_counter()
    with pytest.raises(TrackNotFoundError) as caught:
        store.raw("x" * 5_000 + "y")
    assert time.perf_counter() - begun < 5
    assert len(str(caught.value)) < 2_000


@pytest.mark.slow
def test_few_of_many_ids_are_compared_with_an_unknown_one(path, monkeypatch):
    ids = [f"album {i // 20:03d}/{i % 20:02d} A song of some length" for i in range(3_000)]
    StoreWriter(path, spec=SPEC).close()
    place_aggregated(path, {x: np.zeros((3, 4), np.float32) for x in ids}, SPEC)
    compared = []
    closest = difflib.get_close_matches

    def spy(word, possibilities, **options):
        compared.extend(possibilities)
        return closest(word, possibilities, **options)

    monkeypatch.setattr("difflib.get_close_matches", spy)
    with pytest.raises(TrackNotFoundError, match="did you mean 'album 077/13 A song of some length'"):
        FeatureStore(path).raw("album 077/13 A snog of some length")
    assert 0 < len(compared) <= 200


def test_kinds_that_a_track_has(store):
    assert store.has("b")
    assert store.has("b", kinds=KINDS)
    assert store.has("é", kinds=("segments", "aggregated"))
    assert not store.has("é", kinds=("raw",))
    assert not store.has("nothing", kinds=())
    with pytest.raises(SettingError, match="frames"):
        store.has("b", kinds=("frames",))
    with pytest.raises(TrackNotFoundError, match="no raw of 'é', only segments, aggregated"):
        store.raw("é")
    with pytest.raises(TrackNotFoundError, match="no segments"):
        write_store(store.path, {"only": features(3, kinds=["aggregated"])}).segments("only")


def test_starts_are_coordinates(path):
    with StoreWriter(path, spec=SPEC, durable=False) as writer, writer.track("a") as track:
        track.append(raw=features()["raw"], starts=[0.0, 2.5])
    store = FeatureStore(path)
    assert store.raw("a", layer=1).starts.tolist() == [0.0, 2.5]
    assert store.segments("a").coords["segment"].tolist() == [0.0, 2.5]
    assert store.segments().row_starts.tolist() == [0.0, 2.5]


def test_what_is_known_of_a_track(store):
    known = store.provenance("é")
    assert {"track_id", "revision", "fingerprint", "kinds", "layers", "starts", "checksums"} <= set(known)
    known.clear()
    assert store.provenance("é")["track_id"] == "é"


def test_info_counts(store):
    assert store.info() == {
        "path": str(store.path),
        "format": 2,
        "tracks": 3,
        "packed": 0,
        "sealed": 0,
        "fingerprint": SPEC.fingerprint,
        "spec": SPEC.to_dict(),
    }
    store.pack()
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("new", features(7))
        writer.put("b", features(8), overwrite=True)
    assert (store.info()["tracks"], store.info()["packed"]) == (4, 2)
    assert store.spec == SPEC
    assert "store.zarr" in repr(store)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_store_that_is_open_sees_every_change(store, packed):
    def pack():
        if packed:
            writer.pack()

    with StoreWriter(store.path, spec=SPEC, overwrite=True, durable=False) as writer:
        for number in range(6):
            writer.put("b", features(10 + number, segments=2))
            pack()
            assert_same(read_all(store, "b"), features(10 + number))
            assert np.array_equal(
                store.aggregated(layer=0)[store.track_ids.index("b")], features(10 + number)["aggregated"][0]
            )
            writer.put(f"new {number}", features(number))
            pack()
            assert f"new {number}" in store
            assert f"new {number}" in store.track_ids
            writer.remove(f"new {number}")
            pack()
            assert f"new {number}" not in store
            assert f"new {number}" not in store.track_ids


def test_a_store_that_is_open_sees_two_changes_of_one_moment_after_the_clock_jumped(store):
    """The folder of stale markers was last changed when the clock was a day ahead."""
    later = time.time_ns() + 86_400 * 10**9
    os.utime(store.path / ".featurestore" / "stale", ns=(later, later))
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("y", features(4))
        moment = (store.path / "aggregated").stat().st_mtime_ns
        assert "y" in store.track_ids
        writer.put("z", features(5))
    os.utime(store.path / "aggregated", ns=(moment, moment))  # within a tick of the clock
    assert "z" in store.track_ids


def test_a_view_answers_after_the_table_was_packed_anew(store):
    store.pack()
    view = store.aggregated(layer=1, tracks=["é", "b"])
    everything = store.aggregated(layer=1)
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("0", features(5))
        writer.pack()
    assert np.array_equal(view, [TRACKS[t]["aggregated"][1] for t in ("é", "b")])
    assert np.array_equal(everything, [TRACKS[t]["aggregated"][1] for t in ("a/x", "b", "é")])


def test_a_view_that_told_its_shape_keeps_to_it(store):
    told = [store.segments("b"), store.segments(layer=1), store.raw("b", layer=0)]
    assert [view.shape for view in told] == [(2, 3, 4), (7, 4), (2, 4, 4)]
    silent = [store.segments("b"), store.segments("b", layer=[0]), store.segments(layer=1), store.raw("b")]
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("b", features(9, segments=4), overwrite=True)
    for view in told:
        for read in (np.asarray, lambda view: view[len(view) // 2]):
            with pytest.raises(StoreError, match="'b' was replaced by another of the shape"):
                read(view)
    new = features(9, segments=4)
    assert np.array_equal(silent[0], new["segments"])
    assert np.array_equal(silent[1][-1], new["segments"][-1, [0]])
    assert np.asarray(silent[2]).shape == silent[2].shape == (9, 4)
    assert silent[2].row_tracks.tolist() == ["a/x"] * 3 + ["b"] * 4 + ["é"] * 2
    assert np.array_equal(silent[3], new["raw"])


def test_removing_and_packing_through_the_store(store):
    store.pack()
    store.remove("b")
    assert store.track_ids == ["a/x", "é"]
    with StoreWriter(store.path, spec=SPEC) as writer, writer.track("é", overwrite=True) as track:
        with pytest.raises(TrackLockedError):
            store.remove("é")
        track.append(raw=features(2)["raw"])
    assert "é" in store


def test_a_store_is_pickled_by_its_path(store):
    store.track_ids  # noqa: B018
    copy = pickle.loads(pickle.dumps(store))
    assert copy.track_ids == store.track_ids
    assert copy.spec == store.spec
    assert len(pickle.dumps(store)) < 2_000
    assert np.array_equal(copy.aggregated(), store.aggregated())


def test_a_store_holds_no_file_open(store):
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    store.pack()
    read_all(store, "b")
    np.asarray(store.segments())
    store.verify(deep=True)
    assert len(os.listdir("/proc/self/fd") if before else []) == len(before)


def test_a_relative_path_stays_where_it_was(store, monkeypatch, tmp_path):
    monkeypatch.chdir(store.path.parent)
    relative = FeatureStore("store.zarr")
    monkeypatch.chdir("/")
    assert len(relative) == 3
    assert np.asarray(relative.aggregated()).shape == (3, 3, 4)


def test_changes_through_a_relative_path_are_made_where_it_was(store, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(store.path.parent)
    relative = FeatureStore("store.zarr")
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative.pack()
    relative.remove("b")
    assert (store.info()["packed"], store.track_ids) == (2, ["a/x", "é"])
    assert os.listdir() == []


def test_packing_a_store_that_is_gone_makes_none(store):
    shutil.rmtree(store.path)
    with pytest.raises(NotAStoreError):
        store.pack()
    assert not store.path.exists()


def test_packing_says_when_another_writer_does_it_all_the_time(store, monkeypatch):
    monkeypatch.setattr("featurestore.store.store._PATIENCE", 0.1)
    with (
        exclusive(store.path / ".featurestore" / "locks" / "pack.lock", timeout=0),
        pytest.raises(StoreError, match=rf"another writer .*\(process {os.getpid()} on {socket.gethostname()}\)"),
    ):
        store.pack()
    assert store.info()["packed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pack", "remove"])
def test_locks_of_a_host_that_has_died_say_which_file_to_remove(store, monkeypatch, what):
    """As the server of NFSv3 keeps them."""
    monkeypatch.setattr("featurestore.store.store._PATIENCE", 0.1)
    monkeypatch.setattr("featurestore.store.commit.sealing_lock.PATIENCE", 0.1)
    lock = store.path / ".featurestore" / "locks" / {"pack": "pack.lock", "remove": "seal.lock"}[what]
    act = {"pack": lambda: store.pack(seal=True), "remove": lambda: store.remove("b")}[what]
    with exclusive(lock, timeout=0):
        lock.write_text("node3 1234\n")
        with pytest.raises(StoreError, match=rf"process 1234 on node3.*remove {lock}: the next writer") as caught:
            act()
        os.unlink(re.search(r"remove (\S*):", str(caught.value)).group(1))
        act() if what == "pack" else store.pack()  # what was decided is done by the next
    assert store.info()["packed"] == len(store) == (3 if what == "pack" else 2)
    assert store.verify(deep=True).ok


def test_a_store_may_be_a_link_or_below_one(store, tmp_path):
    (tmp_path / "link").symlink_to(store.path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "below").symlink_to(tmp_path / "folder")
    StoreWriter(tmp_path / "below" / "new.zarr", spec=SPEC).close()
    assert FeatureStore(tmp_path / "folder" / "new.zarr").track_ids == []
    linked = FeatureStore(tmp_path / "link")
    assert linked.track_ids == store.track_ids
    linked.pack()
    assert store.info()["packed"] == 3


def test_a_store_of_one_layer_and_one_number(tmp_path):
    spec = FeatureSpec.for_arrays(layers=1, dim=1)
    arrays = features(0, spec=spec, segments=1, frames=1)
    store = write_store(tmp_path / "s", {"a": arrays}, spec=spec, pack=True)
    assert_same(read_all(store, "a"), arrays)
    assert np.asarray(store.aggregated(layer=0)).shape == (1, 1)
