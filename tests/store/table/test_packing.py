"""The packed table: complete, in order, rows that never move, and only what changed is written."""

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from samples import SPEC, features, place_aggregated, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError
from featurestore.store import filesystem
from featurestore.store.commit.locks import exclusive
from featurestore.store.format.metadata import shard_name
from featurestore.store.table import index, packing
from featurestore.store.table.table import PackedTable, rows_per_shard
from featurestore.store.table.table import _document as read_document


def table(path):
    """The table as any reader of Zarr sees it: values and ids."""
    import zarr

    group = zarr.open_group(path / "packed", mode="r")
    assert group["layer"][:].tolist() == list(FeatureStore(path).spec.layers)
    return group["features"][:], group["track_id"][:].tolist()


def naming(path):
    """How the table's files are named."""
    return json.loads((path / "packed" / "features" / "zarr.json").read_text())["chunk_key_encoding"]["name"]


def shards(path):
    """Inode of each shard of the table, in order."""
    found = []
    while (file := path / "packed" / "features" / shard_name(3, len(found), naming(path))).exists():
        found.append(file.stat().st_ino)
    return found


def changed(before, after):
    """Numbers of the shards that are not those of before."""
    return [number for number, inode in enumerate(after) if before[number : number + 1] != [inode]]


def assert_complete(path, expected):
    """Table and queries hold exactly these aggregated features."""
    store = FeatureStore(path)
    values, ids = table(path)
    assert sorted(ids) == sorted(expected)
    assert ids == store.track_ids
    assert np.array_equal(values, np.reshape([expected[t] for t in ids], values.shape))
    assert np.array_equal(store.aggregated(), values)
    assert np.array_equal(store.aggregated(layer=2), values[:, 2])
    for some in (ids[::-1], ids[1::2], ids[1:-1], ids[:3] * 2):
        assert np.array_equal(
            store.aggregated(layer=1, tracks=some), [expected[t][1] for t in some] or values[:0, 1]
        )
    assert store.verify(deep=True).problems == ()


def aggregated(seed):
    return features(seed, kinds=["aggregated"])


@given(tracks=st.integers(0, 1_000_000))
def test_shards_are_at_least_half_full_while_there_is_one(tracks):
    rows = rows_per_shard(tracks)
    assert rows in {2**n for n in range(4, 13)}
    assert rows == 4096 or (tracks <= rows and (rows == 16 or tracks > rows // 2))


def test_rows_never_move_and_new_ones_are_sorted(writer, path):
    expected = {}
    order = []
    for batch in (["m", "b"], ["z", "a"], ["c", "0"], ["Z", "y" * 300]):
        for track_id in batch:
            writer.put(track_id, aggregated(len(expected)))
            expected[track_id] = aggregated(len(expected))["aggregated"]
        assert writer.pack()
        order += sorted(batch)
        assert FeatureStore(path).track_ids == order
        assert_complete(path, expected)


def test_replaced_tracks_keep_their_row_and_removed_ones_lose_it(writer, path):
    expected = {t: aggregated(i)["aggregated"] for i, t in enumerate("dcba")}
    for i, t in enumerate("dcba"):
        writer.put(t, aggregated(i))
    writer.pack()
    writer.put("b", aggregated(9), overwrite=True)
    writer.remove("c")
    expected["b"] = aggregated(9)["aggregated"]
    del expected["c"]
    store = FeatureStore(path)
    assert store.track_ids == ["a", "b", "d"]
    assert np.array_equal(store.aggregated(), [expected[t] for t in "abd"])
    writer.pack()
    assert store.track_ids == ["a", "b", "d"]
    assert_complete(path, expected)
    writer.put("c", aggregated(5))
    writer.pack()
    assert store.track_ids == ["a", "b", "d", "c"]
    assert list((path / ".featurestore" / "stale").iterdir()) == []


def test_the_table_is_empty_when_all_tracks_are_removed(writer, path):
    writer.put("a", aggregated(0))
    writer.pack()
    writer.remove("a")
    assert FeatureStore(path).track_ids == []
    writer.pack()
    assert_complete(path, {})
    writer.put("a", aggregated(1))
    writer.pack()
    assert_complete(path, aggregated(1) and {"a": aggregated(1)["aggregated"]})


@pytest.mark.parametrize(("limit", "chunk"), [(32, 8), (64, 64)])
def test_full_shards_are_shared_with_the_table_before(path, monkeypatch, limit, chunk):
    monkeypatch.setattr("featurestore.store.table.table.MAX_ROWS", limit)
    monkeypatch.setattr("featurestore.store.table.table.CHUNK_ROWS", chunk)
    monkeypatch.setattr(index, "_FEW", 1)
    expected = {}
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for number in range(3 * limit + 5):
            writer.put(f"{number:03}", aggregated(number))
            expected[f"{number:03}"] = aggregated(number)["aggregated"]
        writer.pack()
        before = shards(path)
        assert len(before) == 4
        held = os.open(path / "packed" / "features" / "c.0.0.0", os.O_RDONLY)
        writer.put("999", aggregated(999))
        expected["999"] = aggregated(999)["aggregated"]
        writer.pack()
        after = shards(path)
        os.close(held)
        assert changed(before, after) == [3]
        assert_complete(path, expected)
        writer.put("040", aggregated(1040), overwrite=True)
        expected["040"] = aggregated(1040)["aggregated"]
        writer.pack()
        again = shards(path)
        assert changed(after, again) == [40 // limit]
        assert_complete(path, expected)
        writer.remove(f"{2 * limit:03}")
        del expected[f"{2 * limit:03}"]
        writer.pack()
        last = shards(path)
        assert changed(again, last) == [2, 3]
        assert_complete(path, expected)


def test_readers_of_zarr_keep_the_table_that_they_opened(path, monkeypatch):
    """Metadata that was read stays true: for ever while rows are added, and through one other change."""
    monkeypatch.setattr("featurestore.store.table.table.MAX_ROWS", 32)

    def held():
        return xr.open_zarr(path / "packed")

    def same(dataset, expected):
        ids = dataset.track_id.values.tolist()
        assert ids == list(expected)
        assert np.array_equal(dataset.features, [expected[t] for t in ids])

    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        expected = {f"{n:02}": aggregated(n)["aggregated"] for n in range(20)}
        for n in range(20):
            writer.put(f"{n:02}", aggregated(n))
        writer.pack()
        first, names = (held(), dict(expected)), naming(path)
        for n in range(20, 50):
            writer.put(f"{n:02}", aggregated(n))
            expected[f"{n:02}"] = aggregated(n)["aggregated"]
            writer.pack()
            same(*first)
        assert naming(path) == names
        for change in ("replace", "remove"):
            second = held(), dict(expected)
            if change == "replace":
                writer.put("07", aggregated(77), overwrite=True)
                expected["07"] = aggregated(77)["aggregated"]
            else:
                writer.remove("03")
                del expected["03"]
            writer.pack()
            assert naming(path) != names
            names = naming(path)
            same(*second)
            writer.put(f"{change}d", aggregated(5))
            expected[f"{change}d"] = aggregated(5)["aggregated"]
            writer.pack()
            assert naming(path) == names
            same(*second)
            same(held(), expected)
            assert_complete(path, expected)


@pytest.mark.parametrize("tracks", [16, 32])
def test_readers_of_zarr_keep_their_table_when_its_shards_grow(path, tracks):
    expected = {f"{n:02}": aggregated(n)["aggregated"] for n in range(tracks)}
    write_store(path, {t: {"aggregated": values} for t, values in expected.items()}, pack=True)
    dataset = xr.open_zarr(path / "packed")
    write_store(path, {"z": aggregated(99)}, pack=True)
    assert dataset.track_id.values.tolist() == list(expected)
    assert np.array_equal(dataset.features, list(expected.values()))
    assert_complete(path, {**expected, "z": aggregated(99)["aggregated"]})


def test_packing_again_writes_no_features(writer, path):
    writer.put("a", aggregated(0))
    writer.pack()
    before = {p: p.stat().st_ino for p in (path / "packed").rglob("*")}
    writer.pack()
    after = {p: p.stat().st_ino for p in (path / "packed").rglob("*")}
    assert set(before) == set(after)
    # Which says that the table holds every track.
    assert {p.name for p in before if before[p] != after[p]} <= {"zarr.json"}


def test_a_query_of_packed_tracks_lists_no_folder(writer, path, monkeypatch):
    for number in range(5):
        writer.put(str(number), aggregated(number))
    writer.pack()

    def listing(places):
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(index, "list_keys", listing)
    store = FeatureStore(path)
    assert len(store) == 5
    monkeypatch.setattr(index, "_FEW", 1)
    assert np.array_equal(store.aggregated(layer=1), [aggregated(n)["aggregated"][1] for n in range(5)])


def test_thousands_of_tracks_in_several_shards(tmp_path):
    spec = FeatureSpec.for_arrays(layers=2, dim=4)
    values = np.arange(5_000 * 8, dtype=np.float32).reshape(5_000, 2, 4)
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=spec, durable=False) as writer:
        for first, end in [(0, 10), (10, 4_096), (4_096, 4_097), (4_097, 5_000)]:
            place_aggregated(path, {f"{n:05}": values[n] for n in range(first, end)}, spec)
            writer.pack()
    store = FeatureStore(path)
    assert len(shards(path)) == 2
    assert np.array_equal(store.aggregated(), values)
    assert np.array_equal(store.aggregated(layer=1), values[:, 1])
    some = [4_999, 0, 4_096, 4_095, 1, 1]
    assert np.array_equal(store.aggregated(tracks=[f"{n:05}" for n in some]), values[some])
    assert np.array_equal(store.aggregated(layer=0)[4_000:4_200], values[4_000:4_200, 0])
    assert np.array_equal(store.aggregated()[::-7], values[::-7])
    assert np.array_equal(table(path)[0], values)
    assert store.verify(deep=True).ok


def test_rows_are_the_same_when_they_wait_in_a_file(path, monkeypatch):
    monkeypatch.setattr(packing, "_SPOOL_BYTES", 100)
    write_store(path, {str(n): aggregated(n) for n in range(20)}, pack=True)
    assert_complete(path, {str(n): aggregated(n)["aggregated"] for n in range(20)})


def damage_ids(path):
    file = path / "packed" / "track_id" / "c.0"
    file.write_bytes(file.read_bytes()[:-1])


def damage_metadata(path):
    file = path / "packed" / "features" / "zarr.json"
    file.write_text(file.read_text().replace("float32", "float64"))


def change_group(**changes):
    def damage(path):
        file = path / "packed" / "zarr.json"
        document = json.loads(file.read_text())
        document["attributes"]["featurestore"].update(changes)
        file.write_text(json.dumps(document))

    return damage


def remove_file(name):
    return lambda path: (path / "packed" / name).unlink()


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        *((damage_ids, True), (change_group(fingerprint="x"), True), (change_group(generation=5), True)),
        *((change_group(stamp="x"), True), (change_group(stamp=[1]), True), (remove_file("zarr.json"), True)),
        (change_group(changed="x"), True),
        *((remove_file("track_id/c.0"), True), (remove_file("features/c.0.0.0"), True)),
        # Which only readers of Zarr need.
        *((damage_metadata, False), (remove_file("features/zarr.json"), False), (remove_file("layer/c.0"), False)),
    ],
)
def test_a_damaged_table_is_reported_and_built_anew(path, damage, noticed):
    write_store(path, {t: aggregated(i) for i, t in enumerate("abc")}, pack=True)
    damage(path)
    report = FeatureStore(path).verify()
    assert [p.what for p in report.problems] == ["packed"]
    if noticed:
        with pytest.raises(CorruptTrackError, match=r"packed.*pack"):
            np.asarray(FeatureStore(path).aggregated())
    else:
        assert np.array_equal(FeatureStore(path).aggregated(), [aggregated(i)["aggregated"] for i in range(3)])
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("d", aggregated(3))
        writer.pack()
    assert_complete(path, {t: aggregated(i)["aggregated"] for i, t in enumerate("abcd")})


def test_damaged_tracks_do_not_keep_others_from_being_packed(path):
    write_store(path, {t: aggregated(i) for i, t in enumerate("abcdef")})
    for track_id in "bd":
        (path / "aggregated" / track_id / "c.0.0").write_bytes(b"x")
    (path / "aggregated" / "e" / "c.0.0").unlink()
    (path / "aggregated" / "f" / "zarr.json").unlink()
    (path / "aggregated" / "empty").mkdir()
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        assert writer.pack()
    values, ids = table(path)
    assert ids == ["a", "c"]
    assert np.array_equal(values, [aggregated(i)["aggregated"] for i in (0, 2)])
    store = FeatureStore(path)
    assert store.track_ids == ["a", "c", "b", "d", "e", "empty", "f"]
    assert {p.key for p in store.verify().problems} == {"b", "d", "e", "empty", "f"}
    for track_id in ("b", "d", "e", "empty"):
        with pytest.raises(CorruptTrackError, match=track_id):
            np.asarray(store.aggregated(tracks=[track_id]))
    # Its numbers are sound and where they belong.
    assert np.array_equal(store.aggregated(tracks=["f"]), [aggregated(5)["aggregated"]])
    with pytest.raises(CorruptTrackError, match="f: no metadata"):
        store.provenance("f")


def test_a_damaged_track_with_a_hashed_key_leaves_the_others_alone(path):
    long = "x" * 500
    write_store(path, {long: aggregated(0), "a": aggregated(1)})
    (folder,) = (p for p in (path / "aggregated").iterdir() if p.name.startswith("=h"))
    content = (folder / "zarr.json").read_text()
    (folder / "zarr.json").write_text(content[:-1])
    store = FeatureStore(path)
    assert store.track_ids == ["a"]
    assert [p.key for p in store.verify().problems] == [folder.name]
    store.pack()
    assert table(path)[1] == ["a"]
    with pytest.raises(CorruptTrackError):
        store.provenance(long)
    (folder / "zarr.json").write_text(content)
    assert set(FeatureStore(path).track_ids) == {"a", long}


def test_one_writer_packs_at_a_time(path):
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("a", aggregated(0))
        with exclusive(path / ".featurestore" / "locks" / "pack.lock", timeout=0):
            assert not writer.pack()
            assert not writer.pack(wait=0.05)
        assert writer.pack()
    assert table(path)[1] == ["a"]


def test_a_table_without_marks_of_superseded_rows_is_not_trusted(path):
    """The folder of hidden files may be lost when a store is copied."""
    write_store(path, {"a": aggregated(0), "b": aggregated(1)}, pack=True)
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.put("a", aggregated(5), overwrite=True)
    shutil.rmtree(path / ".featurestore")
    expected = {"a": aggregated(5)["aggregated"], "b": aggregated(1)["aggregated"]}
    assert np.array_equal(FeatureStore(path).aggregated(), [expected["a"], expected["b"]])
    FeatureStore(path).pack()
    assert_complete(path, expected)


@pytest.mark.parametrize("kinds", [["aggregated", "segments"], ["aggregated"]])
@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_track_that_was_removed_by_hand_and_written_again_is_the_new_one(path, opened, kinds):
    tracks = {x: features(i, kinds=["segments", "aggregated"]) for i, x in enumerate("abc")}
    write_store(path, tracks, pack=True)
    new = features(7, kinds=["segments", "aggregated"])
    early = StoreWriter(path, spec=SPEC) if opened == "before" else None
    for kind in kinds:
        shutil.rmtree(path / kind / "b")
    with early or StoreWriter(path, spec=SPEC) as writer:
        writer.put("b", new)
        expected = {x: arrays["aggregated"] for x, arrays in {**tracks, "b": new}.items()}
        found = FeatureStore(path).aggregated(tracks=["a", "b", "c"])
        assert np.array_equal(found, [expected[x] for x in "abc"])
        writer.pack()
    assert_complete(path, expected)
    assert FeatureStore(path).verify(deep=True).ok


def test_new_tracks_leave_no_marks(path):
    """A mark costs an fsync, and a lock when the table is packed."""
    with StoreWriter(path, spec=SPEC) as writer:
        for number in range(3):
            writer.put(str(number), features(number))
            writer.pack()
    assert os.listdir(path / ".featurestore" / "stale") == []


def test_a_group_that_gets_another_stamp_while_it_is_checked_is_no_damage(tmp_path, monkeypatch):
    """Packing when nothing is new gives the group's document another time of change, in place."""
    store = write_store(tmp_path / "s.zarr", {"a": features()}, pack=True)
    root = filesystem.open_root(store.path)
    opened = PackedTable.open(root, SPEC)
    document, packing_now = read_document, []

    def read(fd, folder):
        found = document(fd, folder)
        if not folder and not packing_now:
            packing_now.append(True)
            with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
                writer.pack()
            packing_now.clear()
        return found

    monkeypatch.setattr("featurestore.store.table.table._document", read)
    opened.check(root, SPEC)
    os.close(root)
