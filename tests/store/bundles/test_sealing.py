"""Sealed tracks: nobody who reads or writes a store sees whether a track is in a folder or in a bundle."""

import json
import pickle
import shutil
import threading
from unittest import mock

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import (
    CorruptTrackError,
    SettingError,
    StoreVersionError,
    TrackExistsError,
    TrackLockedError,
    TrackNotFoundError,
)
from featurestore.store.bundles.rows import RowReader
from featurestore.store.format import root
from featurestore.store.format.keys import encode_key
from featurestore.store.sealing import seal

pytestmark = pytest.mark.slow

RAGGED = ("segments", "aggregated")
TRACKS = {
    "a/b": features(0),
    "é": features(1, segments=3, kinds=RAGGED),
    "x" * 300: features(2, segments=5, kinds=RAGGED),
    "only": features(3, kinds=("aggregated",)),
    "z": features(4, segments=1, kinds=RAGGED),
}
WITH_SEGMENTS = [track_id for track_id, arrays in TRACKS.items() if "segments" in arrays]


@pytest.fixture
def small(monkeypatch):
    """Bundles of two tracks, in shards of four rows and chunks of two."""
    monkeypatch.setattr("featurestore.store.bundles.layout.CHUNK_BYTES", 32)
    monkeypatch.setattr("featurestore.store.bundles.layout.SHARD_BYTES", 192)
    monkeypatch.setattr(seal, "MOST_TRACKS", 2)


def opened(path, **options):
    return StoreWriter(path, spec=SPEC, durable=False, **options)


def sealed(path, tracks=TRACKS):
    write_store(path, tracks)
    with opened(path) as writer:
        writer.pack(seal=True)
    return FeatureStore(path)


def bundle_of(path):
    (found,) = (p for p in (path / "bundles").iterdir() if len(p.name) == 32)
    return found


def check(store, tracks, *, unfinished=0):
    assert sorted(store.track_ids) == sorted(tracks)
    assert len(store) == len(tracks)
    for track_id, arrays in tracks.items():
        assert track_id in store
        assert store.has(track_id, tuple(arrays))
        assert_same(read_all(store, track_id), arrays)
    order = store.track_ids
    assert np.array_equal(store.aggregated(), [tracks[x]["aggregated"] for x in order])
    ragged = [x for x in order if "segments" in tracks[x]]
    rows = np.concatenate([tracks[x]["segments"] for x in ragged])
    assert np.array_equal(store.segments(tracks=ragged), rows)
    view = store.segments(layer=[2, 0], tracks=ragged)
    assert view.shape[0] == len(rows)
    some = np.random.default_rng(0).integers(0, len(rows), 20)
    assert np.array_equal(view[some], rows[some][:, [2, 0]])
    assert np.array_equal(view[1:4, 1], rows[1:4, 0])
    report = store.verify(deep=True)
    assert report.problems == ()
    assert report.unfinished == unfinished


@pytest.mark.parametrize("size", ["small", "large"])
def test_sealed_tracks_are_what_they_were_and_come_back_so(path, size, request):
    if size == "small":
        request.getfixturevalue("small")
    write_store(path, TRACKS)
    with opened(path, overwrite=True) as writer:
        writer.put("é", TRACKS["é"], starts=[0.0, 0.1, 2.5], attributes={"audio": {"path": "é.wav"}})
        writer.pack()
    held, files = FeatureStore(path), {}
    known = {track_id: held.provenance(track_id) for track_id in TRACKS}
    starts = held.segments(tracks=WITH_SEGMENTS).row_starts
    for kind in RAGGED:
        files |= {p.relative_to(path): p.read_bytes() for p in (path / kind).rglob("c*")}
    order = held.track_ids
    with opened(path) as writer:
        assert writer.pack(seal=True)
    for store in (held, FeatureStore(path), pickle.loads(pickle.dumps(held))):
        check(store, TRACKS)
        assert store.track_ids == order
        assert {track_id: store.provenance(track_id) for track_id in TRACKS} == known
        assert np.array_equal(store.segments(tracks=WITH_SEGMENTS).row_starts, starts, equal_nan=True)
        assert store.segments("é").starts.tolist() == [0.0, 0.1, 2.5]
    assert [p.name for p in (path / "segments").iterdir()] == ["zarr.json"]
    assert [p.name for p in (path / "aggregated").iterdir()] == ["zarr.json"]
    with opened(path) as writer:
        assert writer.pack(seal=False)
    check(held, TRACKS)
    assert {track_id: FeatureStore(path).provenance(track_id) for track_id in TRACKS} == known
    assert files == {name: (path / name).read_bytes() for name in files}
    assert sorted(p.name for p in (path / "bundles").iterdir()) == ["removed", "zarr.json"]


@pytest.mark.parametrize(("chunk", "shard"), [(16, 48), (64, 192), (2**15, 2**29)])
def test_bundles_of_other_chunks_and_shards_are_read_and_come_back(path, chunk, shard):
    """As other releases write them: how many rows they have is in the bundle."""
    sizes = {"CHUNK_BYTES": chunk, "SHARD_BYTES": shard, "ATTRIBUTE_ROWS": 3}
    with mock.patch.multiple("featurestore.store.bundles.layout", **sizes):
        store = sealed(path)
    documents = [json.loads((bundle_of(path) / kind / "zarr.json").read_text()) for kind in RAGGED]
    rows = min(chunk // 16, 1024)
    assert [x["codecs"][0]["configuration"]["chunk_shape"][0] for x in documents] == [rows] * 2
    check(store, TRACKS)
    with opened(path) as writer:
        writer.pack(seal=False)
    check(store, TRACKS)


def test_without_the_packed_table_bundles_are_read(path, small):
    store = sealed(path)
    (path / "packed" / "zarr.json").unlink()
    check_rows = [TRACKS[x]["aggregated"] for x in sorted(TRACKS)]
    found = FeatureStore(path)
    assert found.track_ids == sorted(TRACKS)
    assert np.array_equal(found.aggregated(), check_rows)
    with opened(path) as writer:
        writer.pack()
    check(store, TRACKS)


def test_overwritten_removed_and_new_tracks(path, small):
    store, tracks = sealed(path), dict(TRACKS)
    with opened(path) as writer:
        for _ in range(2):
            with pytest.raises(TrackExistsError):
                writer.put("z", features(9))
            for seed, track_id in enumerate(["z", "a/b"]):
                tracks[track_id] = features(10 + seed, segments=4)
                writer.put(track_id, tracks[track_id], overwrite=True)
                check(store, tracks)
            for track_id in ("é", "a/b", "only"):
                writer.remove(track_id)
                del tracks[track_id]
                assert track_id not in store
                assert writer.existing(track_id) is None
                with pytest.raises(TrackNotFoundError):
                    writer.remove(track_id)
                with pytest.raises(TrackNotFoundError):
                    store.segments(track_id)
                check(FeatureStore(path), tracks)
                check(store, tracks)
            for seed, track_id in enumerate(["é", "a/b", "new", "only"]):
                tracks[track_id] = features(20 + seed, segments=2, kinds=RAGGED)
                writer.put(track_id, tracks[track_id], overwrite=track_id == "new")
                check(store, tracks)
            writer.pack()
            check(store, tracks)
            writer.pack(seal=True)
            check(store, tracks)
            check(FeatureStore(path), tracks)
        writer.pack(seal=False)
        check(store, tracks)
    assert [p.name for p in (path / "bundles" / "removed").iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("kind", ["segments", "aggregated"])
def test_a_bundle_that_is_not_what_the_folders_are_replaces_nothing(path, small, kind, monkeypatch):
    write_store(path, TRACKS)
    append = seal.write_bundle.__globals__["RowWriter"].append

    def wrong(self, rows):
        append(self, rows + (self._folder.name == kind))

    monkeypatch.setattr("featurestore.store.bundles.rows.RowWriter.append", wrong)
    with opened(path) as writer, pytest.raises(CorruptTrackError, match=f"{kind}.*not those that were written"):
        writer.pack(seal=True)
    assert not (path / "bundles").exists()
    check(FeatureStore(path), TRACKS)


def test_sealing_again_does_nothing(path, small):
    sealed(path)
    before = sorted((path / "bundles").rglob("*"))
    with opened(path) as writer:
        writer.pack(seal=True)
    assert sorted((path / "bundles").rglob("*")) == before


def test_releases_that_know_no_bundles_refuse_the_store(path, monkeypatch):
    sealed(path)
    monkeypatch.setattr(root, "SEALED_VERSION", 2)
    with pytest.raises(StoreVersionError, match="has the store format 3"):
        FeatureStore(path)


def test_compressed_tracks_are_not_sealed(path):
    spec = FeatureSpec.for_arrays(layers=3, dim=4, codec="zstd")
    with StoreWriter(path, spec=spec, durable=False) as writer:
        writer.put("a", features(0))
        with pytest.raises(SettingError, match="compressed"):
            writer.pack(seal=True)


def test_half_precision_is_sealed(path, small):
    spec = FeatureSpec.for_arrays(layers=3, dim=4, dtype="float16")
    with StoreWriter(path, spec=spec, durable=False) as writer:
        tracks = {track_id: features(seed, segments=3, spec=spec) for seed, track_id in enumerate("abc")}
        for track_id, arrays in tracks.items():
            writer.put(track_id, arrays)
        writer.pack(seal=True)
    check(FeatureStore(path), tracks)


def test_a_track_that_another_writer_has_stays_in_its_folder_until_later(path, small):
    write_store(path, TRACKS)
    with opened(path) as writer, opened(path) as other:
        with other.session.lock("z"):
            writer.pack(seal=True)
            assert [p.name for p in (path / "aggregated").iterdir() if p.is_dir()] == ["z"]
            check(FeatureStore(path), TRACKS, unfinished=1)
        writer.pack(seal=True)
        assert not any(p.is_dir() for p in (path / "aggregated").iterdir())
        check(FeatureStore(path), TRACKS)
        with other.session.lock("z"):
            with pytest.raises(TrackLockedError, match="'z'"):
                writer.pack(seal=False)
            check(FeatureStore(path), TRACKS)
        writer.pack(seal=False)
    check(FeatureStore(path), TRACKS)


@pytest.mark.parametrize("change", ["remove", "overwrite"])
def test_what_is_changed_while_a_bundle_is_written_is_not_brought_back(path, change):
    """After the bundle is written, and before it is put in its place."""
    tracks = dict(TRACKS)
    write_store(path, TRACKS)
    place = seal.Sealing._place

    def change_first(self, *args):
        with opened(path) as other:
            other.remove("z")
            del tracks["z"]
            if change == "overwrite":
                tracks["z"] = features(5)
                other.put("z", tracks["z"])
        return place(self, *args)

    with opened(path) as writer, mock.patch.object(seal.Sealing, "_place", change_first):
        writer.pack(seal=True)
    check(FeatureStore(path), tracks)
    with opened(path) as writer:
        writer.pack(seal=True)
    check(FeatureStore(path), tracks)


def test_a_track_that_is_replaced_while_it_is_copied_is_left_out(path):
    tracks = dict(TRACKS)
    write_store(path, TRACKS)
    write = seal.write_bundle

    def change_first(reader, found, folder):
        if "z" in [track.track_id for track in found] and len(tracks["z"]["segments"]) == 1:
            with opened(path, overwrite=True) as other:
                tracks["z"] = features(5, segments=4)
                other.put("z", tracks["z"])
        write(reader, found, folder)

    with opened(path) as writer, mock.patch.object(seal, "write_bundle", change_first):
        writer.pack(seal=True)
    check(FeatureStore(path), tracks)
    assert [p.name for p in (path / "aggregated").iterdir() if p.is_dir()] == ["z"]


def test_threads_read_while_tracks_are_sealed_and_brought_back(path, small):
    write_store(path, TRACKS)
    stop, errors = threading.Event(), []

    def read():
        store = FeatureStore(path)
        while not stop.is_set():
            try:
                check_quickly(store)
            except BaseException as error:
                errors.append(error)
                return

    def check_quickly(store):
        assert len(store.track_ids) == len(TRACKS)
        for track_id, arrays in TRACKS.items():
            assert_same(read_all(store, track_id), arrays)
        rows = np.concatenate([TRACKS[x]["segments"] for x in WITH_SEGMENTS])
        assert np.array_equal(store.segments(tracks=WITH_SEGMENTS), rows)
        view = store.segments(tracks=WITH_SEGMENTS)
        assert view.shape[0] == len(rows)
        assert np.array_equal(view[::3], rows[::3])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with opened(path) as writer:
            for number in range(6):
                writer.pack(seal=number % 2 == 0)
    finally:
        stop.set()
        reader.join()
    assert errors == []


class TestDamage:
    @staticmethod
    def flip(path, at=0):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    @pytest.mark.parametrize("kind", RAGGED)
    def test_a_damaged_track_is_named_and_marked(self, path, small, kind):
        store = sealed(path)
        self.flip(min((path / "bundles").glob(f"*/{kind}/c*")))
        report = store.verify(deep=True)
        assert {problem.what for problem in report.problems} == {"track"}
        keys = {problem.key for problem in report.problems}
        damaged = {track_id for track_id in TRACKS if encode_key(track_id) in keys}
        with opened(path) as writer:
            found, moved = writer.repair()
        assert found.problems == report.problems
        assert len(moved) == len(damaged)
        check(FeatureStore(path), {x: arrays for x, arrays in TRACKS.items() if x not in damaged})
        with opened(path) as writer:
            for track_id in damaged:
                writer.put(track_id, TRACKS[track_id])
        check(store, TRACKS)

    @pytest.mark.parametrize("name", ["zarr.json", "track_id/c.0", "row_splits/c.0", "revision/c.0.0"])
    def test_a_bundle_that_cannot_be_opened_is_loud_and_put_aside(self, path, small, name):
        place = sealed(path)._source.reader.sealed.find("z")
        bundle = path / "bundles" / place.bundle.name
        self.flip(bundle / name, 2)
        store = FeatureStore(path)
        assert store.track_ids == sorted(TRACKS)  # as the table says
        with pytest.raises(CorruptTrackError, match=f"bundles/{bundle.name}.*--repair"):
            store.segments("z")
        report = store.verify()
        assert "bundle" in {problem.what for problem in report.problems}
        with opened(path) as writer:
            _, moved = writer.repair()
            assert FeatureStore(path).verify(deep=True).problems == ()
            assert any(folder.name.startswith(bundle.name) for folder in moved)
            for track_id, arrays in TRACKS.items():
                if track_id not in FeatureStore(path):
                    writer.put(track_id, arrays)
        check(store, TRACKS)

    def test_a_track_that_was_copied_in_with_a_bundle_is_named(self, path):
        store = sealed(path, {"a": TRACKS["a/b"]})
        bundle = bundle_of(path)
        shutil.copytree(bundle, bundle.with_name("0" * 32))
        assert store.track_ids == ["a"]
        (problem,) = store.verify(deep=True).problems
        assert "two bundles have the track with key a" in problem.message
        with opened(path) as writer:
            writer.put("a", TRACKS["z"], overwrite=True)
            writer.pack()
        check(store, {"a": TRACKS["z"]})

    @pytest.mark.parametrize("name", ["segments", "segments/c.0.0.0", "attributes", "attributes/c.0"])
    def test_files_of_a_bundle_that_are_missing_are_no_missing_tracks(self, path, name):
        store = sealed(path)
        bundle = bundle_of(path)
        if (bundle / name).is_dir():
            shutil.rmtree(bundle / name)
        else:
            (bundle / name).unlink()
        array = name.partition("/")[0]
        with pytest.raises(CorruptTrackError, match=f"bundles/{bundle.name}/{array}: .* is missing"):
            store.segments("z").to_numpy()
        assert "z" in {problem.track_id for problem in store.verify().problems}

    def test_a_missing_file_is_looked_for_once(self, path):
        store = sealed(path)
        (bundle_of(path) / "segments" / "c.0.0.0").unlink()
        with (
            mock.patch.object(RowReader, "open", autospec=True, side_effect=RowReader.open) as opened,
            pytest.raises(CorruptTrackError, match=r"c\.0\.0\.0 is missing.*--repair"),
        ):
            store.segments(tracks=WITH_SEGMENTS).to_numpy()
        assert opened.call_count == 1

    @pytest.mark.parametrize("name", ["segments/zarr.json", "zarr.json", "removed/zarr.json"])
    def test_metadata_for_others_is_written_anew(self, path, name):
        sealed(path)
        bundle = bundle_of(path)
        file = (bundle if name.startswith("segments") else path / "bundles") / name
        content = file.read_bytes()
        file.write_bytes(b"{}")
        assert {problem.what for problem in FeatureStore(path).verify().problems} == {"structure"}
        with opened(path) as writer:
            writer.repair()
        assert file.read_bytes() == content
        check(FeatureStore(path), TRACKS)

    def test_raw_of_a_sealed_track_that_is_damaged_goes_with_it(self, path):
        sealed(path)
        self.flip(path / "raw" / encode_key("a/b") / "c.0.0.0.0")
        with opened(path) as writer:
            report, moved = writer.repair()
        assert {problem.track_id for problem in report.problems} == {"a/b"}
        assert any((folder / "raw").exists() for folder in moved)
        check(FeatureStore(path), {x: arrays for x, arrays in TRACKS.items() if x != "a/b"})
