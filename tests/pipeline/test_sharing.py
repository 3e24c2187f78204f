"""Several builds on one store share the work: nothing is done twice, nothing is lost, and no count lies."""

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import featurestore.pipeline.extraction as extraction
from featurestore import FeatureExtractor, FeatureStore, StoreWriter, build
from featurestore.errors import TrackExistsError, TrackLockedError
from featurestore.pipeline import decoder
from featurestore.pipeline.decoder import DecoderProcess
from featurestore.store import filesystem
from featurestore.store.commit import flock, silence, transaction
from featurestore.store.commit.locks import stripe_of
from featurestore.store.format.keys import encode_key


@pytest.fixture
def store(tmp_path):
    return tmp_path / "s.zarr"


@pytest.fixture
def other(store, extractor):
    """Another writer of the store."""
    with StoreWriter(store, spec=extractor.spec()) as writer:
        yield writer


class Holder:
    """Another writer at work on a track, until told to die or to publish it."""

    def __init__(self, writer, track_id):
        self._track = writer.track(track_id)
        self._writing = self._track.__enter__()

    def die(self):
        error = RuntimeError("died")
        assert not self._track.__exit__(type(error), error, None)

    def publish(self, features, attributes):
        self._writing.append(raw=features["raw"])
        self._writing.attributes.update(attributes)
        self._track.__exit__(None, None, None)


@pytest.mark.slow
def test_a_track_that_another_writer_has_is_left_undone_and_named(music, store, extractor, other):
    holder = Holder(other, "a/two")
    report = build(music, store, extractor=extractor, feature_level="all", wait_for_others=0)
    assert (report.processed, report.skipped, report.failed, report.exit_code) == (3, 1, 0, 3)
    assert report.skipped_tracks == ("a/two",)
    assert "a/two" not in FeatureStore(store)
    holder.die()
    report = build(music, store, extractor=extractor, feature_level="all")
    assert (report.processed, report.cached) == (1, 3)


@pytest.mark.slow
def test_what_another_writer_has_is_not_decoded(music, store, extractor, other, monkeypatch):
    decoded, decode = [], DecoderProcess.decode
    monkeypatch.setattr(
        DecoderProcess, "decode", lambda self, path, *a: decoded.append(path.stem) or decode(self, path, *a)
    )
    holder = Holder(other, "a/two")
    build(music, store, extractor=extractor, feature_level="all", workers=3, wait_for_others=0)
    assert sorted(decoded) == ["one", "one", "three"]
    holder.die()


@pytest.mark.slow
def test_a_track_is_locked_while_it_is_decoded(music, store, extractor, other, monkeypatch):
    refused, decode = [], decoder.decode

    def locked(path, *arguments, **options):
        with pytest.raises(TrackLockedError), other.track(path.relative_to(music).with_suffix("").as_posix()):
            pytest.fail("the track was free")
        refused.append(path)
        return decode(path, *arguments, **options)

    monkeypatch.setattr(decoder, "decode", locked)
    assert build(music, store, extractor=extractor, feature_level="all").processed == len(refused) == 4


@pytest.mark.slow
def test_a_track_whose_writer_died_meanwhile_is_extracted_after_all(music, store, extractor, other):
    holder = Holder(other, "a/two")
    alive = [holder]

    def die_later(now):
        if now.processed == 3 and alive:
            alive.pop().die()

    report = build(music, store, extractor=extractor, feature_level="all", progress=die_later)
    assert (report.processed, report.skipped) == (4, 0)


@pytest.mark.slow
def test_a_track_of_a_writer_that_has_fallen_silent_is_extracted(music, store, extractor, other, monkeypatch):
    """As that of a host whose locks stay; should it live, it loses this track and nothing else."""
    monkeypatch.setattr(silence, "SILENCE", 1.0)
    holder = Holder(other, "a/two")
    report = build(music, store, extractor=extractor, feature_level="all")
    assert (report.processed, report.skipped, report.exit_code) == (4, 0, 0)
    with pytest.raises(TrackLockedError, match="silent"):
        holder.publish({"raw": FeatureStore(store).raw("b/one").to_numpy()}, {})
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_a_build_that_was_taken_for_dead_goes_on(music, store, tmp_path, extractor, other, monkeypatch):
    build(music, tmp_path / "elsewhere.zarr", extractor=extractor, feature_level="all")
    elsewhere = FeatureStore(tmp_path / "elsewhere.zarr")
    taken = []

    def take(now):
        staging = store / ".featurestore" / "staging"
        at_hand = [x for x in elsewhere.track_ids if any(staging.glob(f"*/{encode_key(x)}"))]
        for track_id in () if taken else at_hand:
            features = {
                "raw": elsewhere.raw(track_id).to_numpy(),
                "segments": elsewhere.segments(track_id).to_numpy(),
            }
            with monkeypatch.context() as patch, contextlib.suppress(TrackLockedError, TrackExistsError):
                patch.setattr(silence, "SILENCE", 0.0)
                other.put(track_id, features, attributes={"audio": elsewhere.provenance(track_id)["audio"]})
                taken.append(track_id)

    report = build(music, store, extractor=extractor, feature_level="all", progress=take)
    assert taken
    assert (report.processed, report.cached, report.failed) == (4 - len(taken), len(taken), 0)
    assert sorted(FeatureStore(store).track_ids) == sorted(elsewhere.track_ids)
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_a_track_that_another_writer_has_finished_meanwhile_is_there(music, store, tmp_path, extractor, other):
    build(music, tmp_path / "elsewhere.zarr", extractor=extractor, feature_level="all")
    elsewhere = FeatureStore(tmp_path / "elsewhere.zarr")
    features = {"raw": elsewhere.raw("a/two").to_numpy()}
    busy = [Holder(other, "a/two")]

    def publish_later(now):
        if now.processed == 3 and busy:
            busy.pop().publish(features, {"audio": elsewhere.provenance("a/two")["audio"]})

    report = build(music, store, extractor=extractor, feature_level="all", progress=publish_later)
    assert (report.processed, report.cached, report.skipped, report.failed) == (3, 1, 0, 0)
    assert len(FeatureStore(store)) == 4


@pytest.mark.slow
def test_a_track_that_appears_between_plan_and_work_counts_as_cached(music, store, tmp_path, extractor, other):
    build(music, tmp_path / "elsewhere.zarr", extractor=extractor, feature_level="all")
    elsewhere = FeatureStore(tmp_path / "elsewhere.zarr")
    done = []

    def appear(now):
        if now.stage == "extracting" and not done:
            done.append(True)
            features = {
                "raw": elsewhere.raw("b/one").to_numpy(),
                "segments": elsewhere.segments("b/one").to_numpy(),
            }
            other.put("b/one", features, attributes={"audio": elsewhere.provenance("b/one")["audio"]})

    report = build(music, store, extractor=extractor, feature_level="all", progress=appear)
    assert (report.processed, report.cached, report.skipped) == (3, 1, 0)


def same_stripe(track_id, writer):
    """Another id that shares the lock, where there are no locks of bytes."""
    writer.session.locks._has_bytes = False
    stripe = stripe_of(encode_key(track_id))
    return next(f"x{n}" for n in itertools.count() if stripe_of(encode_key(f"x{n}")) == stripe)


@pytest.mark.slow
def test_a_lock_held_for_another_track_is_waited_for(music, store, extractor, other):
    holder = Holder(other, same_stripe("a/two", other))
    threading.Timer(1.0, holder.die).start()
    began = time.monotonic()
    report = build(music, store, extractor=extractor, feature_level="all")
    assert (report.processed, report.skipped, report.failed) == (4, 0, 0)
    assert time.monotonic() - began > 1


@pytest.mark.slow
@pytest.mark.parametrize("held", ["a/two", "the same lock"])
def test_waiting_for_others_ends(music, store, extractor, other, held):
    holder = Holder(other, held if held == "a/two" else same_stripe("a/two", other))
    began = time.monotonic()
    report = build(music, store, extractor=extractor, feature_level="all", wait_for_others=1.5)
    assert (report.processed, report.skipped, report.failed) == (3, 1, 0)
    assert report.skipped_tracks == ("a/two",)
    assert 1.5 < time.monotonic() - began < 30
    holder.die()


@pytest.mark.slow
def test_a_track_is_waited_for_until_its_writer_dies(music, store, extractor, other):
    holder = Holder(other, "a/two")
    threading.Timer(1.0, holder.die).start()
    report = build(music, store, extractor=extractor, feature_level="all", wait_for_others=60)
    assert (report.processed, report.skipped, report.exit_code) == (4, 0, 0)


@pytest.mark.slow
def test_a_race_that_is_lost_to_another_host_is_no_failure(music, store, tmp_path, extractor, other, monkeypatch):
    build(music, tmp_path / "elsewhere.zarr", extractor=extractor, feature_level="all")
    elsewhere = FeatureStore(tmp_path / "elsewhere.zarr")
    features = {kind: getattr(elsewhere, kind)("b/one").to_numpy() for kind in ("raw", "segments")}
    add, lost = transaction.add, []

    def add_second(paths, folder, key, *arguments, **options):
        if key == encode_key("b/one") and not lost:
            lost.append(True)
            with monkeypatch.context() as patch:  # locks do not show across hosts
                patch.setattr(filesystem, "try_flock", lambda *_, **__: True)
                patch.setattr(flock, "_set_byte", lambda *_: True)
                other.put("b/one", features, attributes={"audio": elsewhere.provenance("b/one")["audio"]})
        add(paths, folder, key, *arguments, **options)

    monkeypatch.setattr(transaction, "add", add_second)
    report = build(music, store, extractor=extractor, feature_level="all")
    assert (report.processed, report.cached, report.failed, report.exit_code) == (3, 1, 0, 0)
    assert lost
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_builds_in_threads_share_the_work(tmp_path, store, clip, extractor):
    for number in range(8):
        clip(tmp_path / "music" / f"{number}.wav", seed=number)
    second = FeatureExtractor(model=extractor.model, segment_duration=1.0)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(build, tmp_path / "music", store, extractor=one) for one in (extractor, second)]
        reports = [build.result() for build in running]
    assert sum(report.processed for report in reports) == 8
    assert all(report.total_files == report.processed + report.cached + report.skipped for report in reports)
    assert len(FeatureStore(store)) == 8
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_long_builds_pack_on_the_way(tmp_path, store, clip, extractor, monkeypatch):
    monkeypatch.setattr(extraction, "PACK_EVERY", 2)
    for number in range(9):
        clip(tmp_path / "music" / f"{number}.wav", seed=number)
    packed = []
    build(
        tmp_path / "music",
        store,
        extractor=extractor,
        progress=lambda now: packed.append(FeatureStore(store).info()["packed"]) if now.processed == 9 else None,
    )
    assert 2 <= packed[0] < 9  # tracks are published behind the windows that are drawn
    assert packed[-1] == 9
    np.testing.assert_array_equal(FeatureStore(store).track_ids, list("012345678"))
