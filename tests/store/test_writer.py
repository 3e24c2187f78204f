"""StoreWriter: a track is published as a whole or not at all, and only if it fits the store."""

import contextlib
import math

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import (
    ExtractionError,
    NotAStoreError,
    SettingError,
    SpecMismatchError,
    StoreAccessError,
    StoreError,
    TrackExistsError,
    TrackLockedError,
    TrackNotFoundError,
)
from featurestore.store import track_writer
from featurestore.store.format import shards
from featurestore.store.format.metadata import MAX_METADATA_BYTES


def published(path):
    """Everything of tracks that is on disk."""
    found = [p for kind in ("raw", "segments", "aggregated") for p in (path / kind).iterdir() if p.is_dir()]
    staging = path / ".featurestore" / "staging"
    return found + [p for folder in staging.iterdir() for p in folder.iterdir() if p.is_dir()]


def stream(writer, *batches, error=None):
    with writer.track("a") as track:
        for batch in batches:
            track.append(raw=batch)
        if error:
            raise error


def test_raw_may_come_state_by_state(writer):
    arrays = features(1)
    with writer.track("a") as track:
        for raw, pooled in zip(arrays["raw"], arrays["segments"], strict=True):
            for state in raw:
                track.append_state(state)
            track.append(segments=pooled[None])
    read = read_all(writer_store(writer), "a")
    assert np.array_equal(read["raw"], arrays["raw"])
    assert np.array_equal(read["segments"], arrays["segments"])


@pytest.mark.parametrize(
    ("states", "shape", "message"),
    [
        (0, (5, 3), "a state of 'a' is"),
        (0, (5,), "a state of 'a' is"),
        (1, None, "has 1 of"),
        (len(SPEC.layers), (5, SPEC.dim), "does not take another state"),
    ],
)
def test_states_that_do_not_fit_are_refused(writer, states, shape, message):
    def write():
        with writer.track("a") as track:
            for _ in range(states):
                track.append_state(np.ones((5, SPEC.dim)))
            if shape is None:
                track.append(segments=np.ones((1, len(SPEC.layers), SPEC.dim)))
            else:
                track.append_state(np.ones(shape))

    with pytest.raises(SettingError, match=message):
        write()
    assert not published(writer_store(writer).path)


def test_states_without_their_segment_are_refused(writer):
    def write():
        with writer.track("a") as track:
            track.append(raw=np.ones((1, len(SPEC.layers), 5, SPEC.dim)))
            track.append_state(np.ones((5, SPEC.dim)))

    with pytest.raises(SettingError, match="was not appended"):
        write()


@pytest.mark.parametrize(
    "kinds", [("raw",), ("segments",), ("raw", "segments"), ("raw", "segments", "aggregated")]
)
def test_put_stores_what_is_given_and_derives_aggregated(writer, kinds):
    arrays = features(1)
    writer.put("a/b", {kind: arrays[kind] for kind in kinds})
    assert_same(read_all(writer_store(writer), "a/b"), {k: arrays[k] for k in {*kinds, "aggregated"}})


def test_aggregated_that_is_given_is_stored_as_it_is(writer):
    arrays = features(1)
    writer.put("a", {"segments": arrays["segments"], "aggregated": arrays["aggregated"] + 1})
    assert np.array_equal(writer_store(writer).aggregated(tracks=["a"])[0], arrays["aggregated"] + 1)


def writer_store(writer):
    return FeatureStore(writer.path)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_batches_give_the_track_that_whole_arrays_give(writer, batches):
    arrays = features(2, segments=5)
    writer.put("whole", arrays)
    with writer.track("streamed") as track:
        for block in np.array_split(arrays["raw"], batches):
            track.append(raw=block)
    store = writer_store(writer)
    assert_same(read_all(store, "streamed"), arrays)
    assert_same(read_all(store, "whole"), arrays)


def test_starts_and_attributes_are_stored_with_the_track(writer):
    with writer.track("a", kinds=["segments"], attributes={"audio": {"path": "x.wav"}}) as track:
        track.append(segments=features(0)["segments"], starts=[0.0, 2.5])
        track.append(segments=features(1)["segments"], starts=np.array([5.0, 7.5]))
        track.attributes["decoder"] = "none"
    known = writer_store(writer).provenance("a")
    assert known["starts"] == [0.0, 2.5, 5.0, 7.5]
    assert (known["audio"], known["decoder"]) == ({"path": "x.wav"}, "none")
    assert (known["track_id"], known["kinds"]) == ("a", ["segments", "aggregated"])
    assert known["fingerprint"] == SPEC.fingerprint
    assert known == writer.existing("a")


@pytest.mark.parametrize(
    "attributes", [{"x": math.nan}, {"x": object()}, {"x": {1.5: np.float32(1)}}, {"x": b"y"}]
)
def test_attributes_that_are_not_json_are_refused(writer, attributes):
    with pytest.raises(SettingError, match="attributes"):
        writer.put("a", features(), attributes=attributes)
    assert not published(writer.path)


@pytest.mark.parametrize("starts", [[math.nan, 0], [0.0], [0, 1, 2], [0, math.inf]])
def test_impossible_starts_are_refused(writer, starts):
    with pytest.raises(SettingError, match="starts"), writer.track("a", kinds=["segments"]) as track:
        track.append(segments=features()["segments"], starts=starts)
    assert not published(writer.path)


def test_numbers_as_keys_of_attributes_become_text(writer):
    writer.put("a", features(), attributes={"x": {10: 1, 9: (2, 3)}})
    assert writer_store(writer).provenance("a")["x"] == {"10": 1, "9": [2, 3]}
    assert writer_store(writer).verify(deep=True).ok


def shaped(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"other": shaped(2, 3, 4)},
        {"raw": shaped(2, 3, 4)},
        {"raw": shaped(2, 4, 5, 4)},
        {"raw": shaped(2, 3, 5, 5)},
        {"raw": shaped(0, 3, 5, 4)},
        {"raw": shaped(2, 3, 0, 4)},
        {"segments": shaped(2, 3)},
        {"segments": shaped(2, 4, 4)},
        {"segments": shaped(2, 3, 5)},
        {"segments": shaped(0, 3, 4)},
        {"aggregated": shaped(4, 4)},
        {"aggregated": shaped(3)},
        {"raw": shaped(2, 3, 5, 4), "segments": shaped(3, 3, 4)},
        {"raw": shaped(1, 3, 5, 4), "segments": shaped(1, 3, 4), "aggregated": shaped(1, 4)},
        {"segments": [["a", "b"]]},
        {"segments": np.full((2, 3, 4), "x")},
        {"segments": shaped(2, 3, 4).astype(complex)},
        {"segments": [[1.0], [1.0, 2.0]]},
        {"aggregated": np.full((3, 4), None)},
    ],
    ids=lambda arrays: ",".join(f"{k}{np.shape(v) if not isinstance(v, list) else v}" for k, v in arrays.items()),
)
def test_arrays_that_do_not_fit_are_refused_and_leave_nothing(writer, arrays):
    with pytest.raises(SettingError):
        writer.put("a", arrays)
    assert not published(writer.path)


@pytest.mark.parametrize("kind", ["segments", "aggregated"])
def test_masked_values_are_refused_and_leave_nothing(writer, kind):
    arrays = features(0, kinds=["segments", "aggregated"])
    whole = np.ma.masked_array(arrays[kind], mask=np.zeros(arrays[kind].shape, bool))
    writer.put("whole", {**arrays, kind: whole})
    whole[..., 0] = np.ma.masked
    with pytest.raises(SettingError, match=f"{kind} of track 'a' has masked values"):
        writer.put("a", {**arrays, kind: whole})
    assert writer_store(writer).track_ids == ["whole"]


@pytest.mark.parametrize("kind", ["raw", "segments", "aggregated"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_leave_nothing(writer, kind, value):
    arrays = {k: v.copy() for k, v in features().items()}
    arrays[kind].flat[-1] = value
    with pytest.raises(ExtractionError, match="'a'"):
        writer.put("a", arrays)
    assert not published(writer.path)


def test_numbers_too_large_for_float16_are_refused(path):
    spec = FeatureSpec.for_arrays(layers=3, dim=4, dtype="float16")
    with StoreWriter(path, spec=spec, durable=False) as writer:
        with pytest.raises(ExtractionError, match="float16"):
            writer.put("a", {"segments": np.full((1, 3, 4), 70_000.0)})
        writer.put("b", {"segments": np.full((1, 3, 4), 65_504.0)})
    assert (FeatureStore(path).segments("b")[:] == 65_504).all()
    assert not FeatureStore(path).has("a")


def test_other_numbers_become_those_of_the_store(writer):
    writer.put("a", {"segments": np.arange(24).reshape(2, 3, 4)})
    found = np.asarray(writer_store(writer).segments("a"))
    assert found.dtype == np.float32
    assert (found == np.arange(24).reshape(2, 3, 4)).all()


def test_frames_may_not_change_within_a_track(writer):
    with pytest.raises(SettingError, match="must be"):
        stream(writer, shaped(1, 3, 5, 4), shaped(1, 3, 6, 4))
    assert not published(writer.path)


@pytest.mark.parametrize("kinds", [("raw", "aggregated"), ("segments",)])
def test_a_track_without_segments_is_refused(writer, kinds):
    with pytest.raises(SettingError, match="'a'"), writer.track("a", kinds=kinds):
        pass
    with pytest.raises(SettingError, match="raw"), writer.track("a", kinds=["raw"]) as track:
        track.append(segments=shaped(1, 3, 4))
    assert not published(writer.path)


def test_unknown_kinds_are_refused(writer):
    with pytest.raises(SettingError, match="frames"), writer.track("a", kinds=["frames"]):
        pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_inside_the_block_leaves_nothing(writer, error):
    with pytest.raises(error):
        stream(writer, features()["raw"], error=error)
    assert not published(writer.path)
    writer.put("a", features())


def test_a_refused_batch_is_not_half_in_the_track(writer):
    good = features(3)
    bad = good["segments"].copy()
    bad[0, 0, 0] = math.nan
    with writer.track("a") as track:
        track.append(raw=good["raw"], segments=good["segments"])
        with pytest.raises((ExtractionError, SettingError)):
            track.append(raw=good["raw"], segments=bad[:, :2])
    assert_same(read_all(writer_store(writer), "a"), good)


def test_a_batch_whose_writing_failed_cannot_be_published(writer):
    good = features(3)
    bad = good["raw"].copy()
    bad[1, 2, 3, 0] = math.nan
    with contextlib.suppress(StoreError), writer.track("a") as track:
        track.append(raw=good["raw"])
        with pytest.raises(ExtractionError):
            track.append(raw=bad)
        with pytest.raises(StoreError, match="begin the track again"):
            track.append(raw=good["raw"])
    with pytest.raises(StoreError, match="begin the track again"):
        track.finish()
    assert not published(writer.path)


def test_segments_beyond_memory_are_the_same(writer, monkeypatch):
    arrays = features(4, segments=9)
    monkeypatch.setattr(track_writer, "SPOOL_BYTES", 100)
    with writer.track("a") as track:
        for block in np.array_split(arrays["raw"], 4):
            track.append(raw=block)
    assert_same(read_all(writer_store(writer), "a"), arrays)
    folder = writer.path / "segments" / "a"
    assert sorted(p.name for p in folder.iterdir()) == ["c.0.0.0", "zarr.json"]


def test_a_track_has_two_files_of_each_kind(writer):
    writer.put("a", features())
    for kind, shard in [("raw", "c.0.0.0.0"), ("segments", "c.0.0.0"), ("aggregated", "c.0.0")]:
        assert sorted(p.name for p in (writer.path / kind / "a").iterdir()) == [shard, "zarr.json"]


def test_a_track_is_replaced_only_on_request(writer):
    writer.put("a", features(0))
    with pytest.raises(TrackExistsError, match="overwrite"):
        writer.put("a", features(1))
    assert_same(read_all(writer_store(writer), "a"), features(0))
    writer.put("a", features(1), overwrite=True)
    assert_same(read_all(writer_store(writer), "a"), features(1))


def test_a_writer_may_replace_by_default(path):
    with StoreWriter(path, spec=SPEC, overwrite=True, durable=False) as writer:
        writer.put("a", features(0))
        writer.put("a", features(1))
        with pytest.raises(TrackExistsError):
            writer.put("a", features(2), overwrite=False)
    assert_same(read_all(FeatureStore(path), "a"), features(1))


@pytest.mark.parametrize("kinds", [["aggregated"], ["raw"], ["segments", "raw"]])
def test_a_replaced_track_keeps_no_kind_of_the_old_one(writer, kinds):
    writer.put("a", features(0, segments=3))
    new = features(1, kinds=[*kinds])
    writer.put("a", new, overwrite=True)
    assert_same(read_all(writer_store(writer), "a"), features(1, kinds={*kinds, "aggregated"}))
    assert writer_store(writer).verify(deep=True).ok


def test_a_removed_track_is_gone(writer):
    writer.put("a", features(0))
    writer.remove("a")
    assert not published(writer.path)
    assert writer.existing("a") is None
    with pytest.raises(TrackNotFoundError, match="'a'"):
        writer.remove("a")
    writer.put("a", features(1))
    assert_same(read_all(writer_store(writer), "a"), features(1))


def test_a_track_in_progress_is_locked_for_everyone_else(writer, path):
    with StoreWriter(path, spec=SPEC) as other, writer.track("a") as track:
        for second in (writer, other):
            with pytest.raises(TrackLockedError) as caught:
                second.put("a", features(1))
            assert caught.value.same_track
            with pytest.raises(TrackLockedError):
                second.remove("a")
        other.put("b", features(2))
        track.append(raw=features(0)["raw"])
    assert_same(read_all(FeatureStore(path), "a"), features(0))
    assert_same(read_all(FeatureStore(path), "b"), features(2))


def test_a_writer_of_other_settings_is_refused(writer, path):
    other = FeatureSpec.for_arrays(layers=3, dim=5)
    with pytest.raises(SpecMismatchError, match="`dim` is 4, not 5") as caught:
        StoreWriter(path, spec=other)
    assert caught.value.differences == {"dim": (4, 5)}


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: (p.mkdir(), (p / "x").touch())])
def test_nothing_is_written_into_something_else(path, make):
    make(path)
    before = sorted(path.iterdir()) if path.is_dir() else path.read_text()
    with pytest.raises(NotAStoreError):
        StoreWriter(path, spec=SPEC)
    assert before == (sorted(path.iterdir()) if path.is_dir() else path.read_text())


def test_an_empty_folder_becomes_a_store(path):
    path.mkdir()
    StoreWriter(path, spec=SPEC).close()
    assert FeatureStore(path).track_ids == []


def test_no_staging_is_left_after_closing(path):
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("a", features())
    for name in ("staging", "journal", "trash", "stale"):
        assert list((path / ".featurestore" / name).iterdir()) == []


def test_a_track_of_many_awkward_ids_each(writer):
    ids = ["..", "zarr.json", "a/b", "A/b", "a\0b", "🎵", "é", "e\u0301", "x" * 5000, "y" * 5000, "con", " "]
    for seed, track_id in enumerate(ids):
        writer.put(track_id, features(seed, kinds=["segments"]))
    store = writer_store(writer)
    assert set(store.track_ids) == set(ids)
    for seed, track_id in enumerate(ids):
        assert track_id in store
        assert_same(read_all(store, track_id), features(seed, kinds=["segments", "aggregated"]))
    assert {p.name for p in writer.path.parent.iterdir()} == {"store.zarr"}


@pytest.mark.slow
def test_what_no_reader_would_take_is_refused(writer, monkeypatch):
    with pytest.raises(SettingError, match="split the track"):
        writer.put("a", features(), attributes={"notes": "x" * MAX_METADATA_BYTES})
    monkeypatch.setattr(shards, "MAX_CHUNK_BYTES", 60)
    with pytest.raises(SettingError, match="split the track"):
        writer.put("a", features())
    monkeypatch.setattr(shards, "MAX_CHUNK_BYTES", 10**6)
    monkeypatch.setattr(shards, "MAX_CHUNKS", 5)
    with pytest.raises(SettingError, match="split the track"):
        writer.put("a", features())
    assert not published(writer.path)


def test_a_closed_writer_says_that_it_is_closed(path):
    writer = StoreWriter(path, spec=SPEC)
    writer.close()
    writer.close()
    for change in (lambda: writer.put("a", features()), writer.pack):
        with pytest.raises(StoreError, match="closed"):
            change()


def test_a_full_disk_in_a_batch_names_the_store(writer):
    """A limit on the size of files stands for the disk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
        with pytest.raises(StoreAccessError, match=r"store\.zarr"):
            stream(writer, np.zeros((50, 3, 4, 4), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not published(writer.path)
    writer.put("a", features())
