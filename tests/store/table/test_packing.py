"""The packed table: complete, in order, rows that never move, and only what changed is written."""

import contextlib
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
from featurestore.store.commit.locks import exclusive
from featurestore.store.format.small_chunks import checked_texts, decode_texts, encode_texts
from featurestore.store.paths import StorePaths
from featurestore.store.table import index, layout
from featurestore.store.table.layout import TOMBSTONE, chunk_name, chunk_rows, encoding_of
from featurestore.store.table.table import PackedTable
from featurestore.store.table.table import _document as read_document


def table(path):
    """The table as any reader of Zarr sees it: values and ids."""
    import zarr

    group = zarr.open_group(path / "packed", mode="r")
    assert group["layer"][:].tolist() == list(FeatureStore(path).spec.layers)
    return group["features"][:], group["track_id"][:].tolist()


def encoding(path):
    """How the table's files are named."""
    return json.loads((path / "packed" / "features" / "zarr.json").read_text())["chunk_key_encoding"]["name"]


def chunks(path):
    """Inode of each chunk of the first layer, in order."""
    found = []
    while (file := path / "packed" / "features" / chunk_name(encoding(path), len(found), 0, 0)).exists():
        if file.read_bytes() == TOMBSTONE:
            break
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


sizes = st.sampled_from([layout.SMALL_ROWS, layout.LARGE_ROWS, layout.HUGE_ROWS])
versions = st.tuples(st.integers(0, 1700), sizes)


@given(first=versions, second=versions)
def test_no_two_layouts_have_chunks_of_the_same_names_and_rows(first, second):
    same = encoding_of(first[0]) == encoding_of(second[0]) and chunk_rows(*first) == chunk_rows(*second)
    assert same == (first == second)
    assert [layout.size_of(chunk_rows(*version)) for version in (first, second)] == [first[1], second[1]]


@pytest.mark.parametrize(
    ("tracks", "size"),
    [(1, 128), (4096, 128), (4097, 1024), (65_536, 1024), (65_537, 4096), (32_769, 1024), (10**6, 4096)],
)
def test_larger_tables_have_larger_chunks_until_they_shrink_by_half(tracks, size):
    assert layout.chunk_size(tracks, 0) == size
    assert layout.chunk_size(tracks // 2 + 1, size) == size
    assert layout.chunk_size(1, size) == layout.SMALL_ROWS
    assert [layout.size_of(rows) for rows in (0, 127, 1920, 4992)] == [0] * 4


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 32 rows, or of a few more in later layouts, in a table of any size."""
    monkeypatch.setattr(layout, "SMALL_ROWS", 32)
    monkeypatch.setattr(layout, "first_layout", lambda: 0)


@pytest.mark.slow
def test_full_chunks_are_shared_with_the_table_before(path, small_chunks):
    expected = {}
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for number in range(101):
            writer.put(f"{number:03}", aggregated(number))
            expected[f"{number:03}"] = aggregated(number)["aggregated"]
        writer.pack()
        before = chunks(path)
        assert len(before) == 4
        held = os.open(path / "packed" / "features" / "c.0.0.0", os.O_RDONLY)
        writer.put("999", aggregated(999))
        expected["999"] = aggregated(999)["aggregated"]
        writer.pack()
        after = chunks(path)
        os.close(held)
        assert changed(before, after) == [3]
        assert_complete(path, expected)
        writer.put("040", aggregated(1040), overwrite=True)
        expected["040"] = aggregated(1040)["aggregated"]
        writer.pack()
        again = chunks(path)
        assert changed(after, again) == [1]
        assert_complete(path, expected)
        writer.remove("064")
        del expected["064"]
        writer.pack()
        assert changed(again, chunks(path)) == [0, 1, 2, 3]  # names come back: other numbers of rows
        assert_complete(path, expected)


def held(path, expected):
    """A dataset that was opened now, with no row read, and what it must hold for as long as it answers."""
    return xr.open_zarr(path / "packed"), dict(expected)


def answer(dataset, expected):
    """Whether a dataset answers as when it was opened (True), or fails (False); any other answer is wrong."""
    answers = []
    for array, wanted in (
        (dataset.track_id, list(expected)),
        (dataset.features, list(expected.values())),
        (dataset.features[3:5, 1], [values[1] for values in list(expected.values())[3:5]]),
    ):
        try:
            found = array.values
        except ValueError:
            answers.append(False)
        else:
            assert np.array_equal(found, wanted)
            answers.append(True)
    assert answers in ([True] * 3, [False] * 3)
    return answers[0]


@pytest.mark.slow
def test_a_dataset_that_is_held_answers_right_or_fails(path, small_chunks):
    """For ever while tracks are added, through one other change, and never with rows of other tracks."""
    datasets = []
    expected = {f"{n:03}": aggregated(n)["aggregated"] for n in range(100)}
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for n in range(100):
            writer.put(f"{n:03}", aggregated(n))
        writer.pack()
        for number, change in enumerate(["replace", "remove", "twice", "remove", "replace", "twice"]):
            datasets.append(held(path, expected))
            if change == "replace":
                name = list(expected)[10]
                writer.put(name, aggregated(1000 + number), overwrite=True)
                expected[name] = aggregated(1000 + number)["aggregated"]
            elif change == "remove":  # so many that there are fewer chunks
                for name in list(expected)[20:55]:
                    writer.remove(name)
                    del expected[name]
            else:
                writer.remove(name := next(iter(expected)))
                del expected[name]
                writer.pack()
                writer.put(name, aggregated(2000 + number))
                expected[name] = aggregated(2000 + number)["aggregated"]
                writer.pack()
                writer.put(name, aggregated(3000 + number), overwrite=True)
                expected[name] = aggregated(3000 + number)["aggregated"]
            for n in range(2):  # adding changes nothing
                writer.put(f"{number}+{n}", aggregated(n))
                writer.pack()
                expected[f"{number}+{n}"] = aggregated(n)["aggregated"]
                *earlier, last = [answer(*dataset) for dataset in datasets]
                assert last == (change != "twice")
                assert not any(earlier)
            assert_complete(path, expected)


@pytest.mark.slow
@pytest.mark.parametrize("tracks", [1, 20, 32])
def test_a_dataset_that_is_held_while_tracks_are_added_keeps_answering(path, small_chunks, monkeypatch, tracks):
    monkeypatch.setattr(layout, "SMALL_TRACKS", 150)
    expected = {f"{n:03}": aggregated(n)["aggregated"] for n in range(tracks)}
    write_store(path, {t: {"aggregated": values} for t, values in expected.items()}, pack=True)
    dataset, wanted = held(path, expected)
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for end in (21, 33, 64, 65, 100, 200, 201):
            for n in range(len(expected), end):
                writer.put(f"{n:03}", aggregated(n))
                expected[f"{n:03}"] = aggregated(n)["aggregated"]
            writer.pack()
            assert dataset.track_id.values.tolist() == list(wanted)
            assert np.array_equal(dataset.features, list(wanted.values()))
            assert_complete(path, expected)


@pytest.mark.parametrize("lost", ["zarr.json", "track_id/c.0", None])
@pytest.mark.slow
def test_a_dataset_that_is_held_while_the_table_is_repaired_never_answers_wrong(path, lost, monkeypatch):
    """The order of tracks is another one then. For a table that is gone, a layout is drawn: here, another."""
    monkeypatch.setattr(layout, "first_layout", iter([6, 10]).__next__)
    expected = {}
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for n in range(20, 0, -1):
            writer.put(f"{n:02}", aggregated(n))
            expected[f"{n:02}"] = aggregated(n)["aggregated"]
            writer.pack()
        dataset = xr.open_zarr(path / "packed")
        if lost:
            (path / "packed" / lost).write_bytes(b"{}")
        else:
            shutil.rmtree(path / "packed")
        writer.pack()
    assert FeatureStore(path).track_ids == sorted(expected)
    with contextlib.suppress(ValueError):
        found = dataset.features.values  # or an error
        assert np.array_equal(found, list(expected.values()))


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

    def listing(paths):
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(index, "compare_keys", listing)
    store = FeatureStore(path)
    assert len(store) == 5
    assert np.array_equal(store.aggregated(layer=1), [aggregated(n)["aggregated"][1] for n in range(5)])


@pytest.mark.slow
def test_hundreds_of_tracks_in_several_shards(tmp_path, monkeypatch):
    for name, value in {"SMALL_ROWS": 16, "LARGE_ROWS": 128, "_SIZES": 112, "SMALL_TRACKS": 512}.items():
        monkeypatch.setattr(layout, name, value)
    monkeypatch.setattr(layout, "first_layout", lambda: 0)
    spec = FeatureSpec.for_arrays(layers=2, dim=4)
    values = np.arange(625 * 8, dtype=np.float32).reshape(625, 2, 4)
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=spec, durable=False) as writer:
        for first, end in [(0, 10), (10, 512), (512, 513), (513, 625)]:
            place_aggregated(path, {f"{n:05}": values[n] for n in range(first, end)}, spec)
            writer.pack()
    store = FeatureStore(path)
    assert 4 <= len(chunks(path)) <= 5  # of 128 rows or some more
    assert np.array_equal(store.aggregated(), values)
    assert np.array_equal(store.aggregated(layer=1), values[:, 1])
    some = [624, 0, 512, 511, 1, 1]
    assert np.array_equal(store.aggregated(tracks=[f"{n:05}" for n in some]), values[some])
    assert np.array_equal(store.aggregated(layer=0)[500:525], values[500:525, 0])
    assert np.array_equal(store.aggregated()[::-7], values[::-7])
    assert np.array_equal(table(path)[0], values)
    assert store.verify(deep=True).ok


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
        document["attributes"].update(changes)
        file.write_text(json.dumps(document))

    return damage


def remove_file(name):
    return lambda path: (path / "packed" / name).unlink()


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        *((damage_ids, True), (change_group(fingerprint="x"), True), (change_group(generation=5), True)),
        *((change_group(aggregated_mtime="x"), True), (change_group(aggregated_ctime=[1]), True)),
        (change_group(layout=7), True),
        *((remove_file("track_id/rows"), True), (remove_file("track_id/c.0"), True)),
        (remove_file("features/c.0.0.0"), True),
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


def test_a_table_without_its_document_is_none_and_is_built_by_the_next_pack(path):
    """Where folders cannot be renamed, only removed, it goes first and comes last."""
    expected = {t: aggregated(i)["aggregated"] for i, t in enumerate("abc")}
    store = write_store(path, {t: {"aggregated": values} for t, values in expected.items()}, pack=True)
    (path / "packed" / "zarr.json").unlink()
    assert store.info()["packed"] == 0
    assert np.array_equal(store.aggregated(), list(expected.values()))
    assert store.verify().ok
    store.pack()
    assert store.info()["packed"] == 3
    assert_complete(path, expected)


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


def test_new_tracks_leave_no_stale_markers(path):
    """A mark costs an fsync, and a lock when the table is packed."""
    with StoreWriter(path, spec=SPEC) as writer:
        for number in range(3):
            writer.put(str(number), features(number))
            writer.pack()
    assert os.listdir(path / ".featurestore" / "stale") == []


def test_a_group_that_gets_another_mtime_token_while_it_is_checked_is_no_damage(tmp_path, monkeypatch):
    """Packing when nothing is new gives the group's document another time of change, in place."""
    store = write_store(tmp_path / "s.zarr", {"a": features()}, pack=True)
    root = StorePaths(store.path).open()
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
    opened.check(root)
    root.close()


def test_a_pack_that_only_adds_leaves_what_was_put_back_by_hand_to_the_next_thorough_one(writer, path, tmp_path):
    expected = {t: aggregated(i)["aggregated"] for i, t in enumerate("ab/")}
    for i, t in enumerate("ab/"):
        writer.put(t, aggregated(i))
    other = write_store(tmp_path / "other.zarr", {"a": aggregated(7)})
    writer.pack()
    shutil.rmtree(path / "aggregated" / "a")
    shutil.copytree(other.path / "aggregated" / "a", path / "aggregated" / "a")
    writer.put("c", aggregated(3))
    writer.put("b", aggregated(4), overwrite=True)
    writer.remove("/")
    expected |= {"c": aggregated(3)["aggregated"], "b": aggregated(4)["aggregated"]}
    del expected["/"]
    assert writer.pack(thorough=False)
    values, ids = table(path)
    assert ids == ["a", "b", "c"]
    assert np.array_equal(values, [expected[track_id] for track_id in ids])
    assert {problem.track_id for problem in FeatureStore(path).verify().problems} == {"a"}
    assert writer.pack()
    assert_complete(path, expected | {"a": aggregated(7)["aggregated"]})


@given(rows=st.lists(st.text("abc/éC=", min_size=1), max_size=12, unique=True))
def test_ids_are_written_as_zarr_writes_them(rows):
    content = encode_texts(rows, 12)
    assert decode_texts(checked_texts(content, 12)) == rows + [""] * (12 - len(rows))


def test_a_writer_tells_the_rows_of_the_table(path):
    with StoreWriter(path, spec=SPEC) as writer:
        assert writer.packed == 0
        for number in range(3):
            writer.put(str(number), features(number))
        writer.pack(thorough=False)
        assert writer.packed == 3
        (path / "packed" / "zarr.json").unlink()
        (path / "packed" / "zarr.json").write_text("{}")
        assert writer.packed == 0  # cannot be read
