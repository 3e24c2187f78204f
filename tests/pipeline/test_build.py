"""build: every usable track of the source is in the store, once, of the settings and the audio that it names."""

import os
import shutil
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import featurestore
from featurestore import FeatureExtractor, FeatureStore, StoreWriter, build
from featurestore.encode.forward import Forward
from featurestore.errors import ExtractionError, SettingError, SourceError, SpecMismatchError
from featurestore.pipeline import prefetch
from featurestore.pipeline.claim import TrackClaim
from featurestore.pipeline.executors import default_workers
from featurestore.pipeline.prefetch import TrackAudio, threads
from featurestore.store.track_writer import TrackWriter

IDS = ["a/one", "a/two", "b/one", "b/three"]


def snapshot(folder):
    """Every path below a folder, with what would tell of a change."""
    paths = [Path(folder), *Path(folder).rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_size) for path in paths}


def revisions(path):
    store = FeatureStore(path)
    return {track_id: store.provenance(track_id)["revision"] for track_id in store}


def counts(report):
    return report.processed, report.cached, report.skipped, report.failed


@pytest.mark.slow
def test_features_are_those_of_the_extractor(music, tmp_path, extractor, assert_states_close):
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", workers=2)
    assert counts(report) == (4, 0, 0, 0)
    assert (report.total_files, report.exit_code, report.errors) == (4, 0, ())
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.track_ids == IDS
    for track_id, path in zip(IDS, sorted(music.rglob("*.*")), strict=True):
        alone = extractor.extract_track_features(path)
        assert_states_close(store.raw(track_id), alone["raw"])
        assert_states_close(store.segments(track_id), alone["segments"])
        assert_states_close(store.aggregated(tracks=[track_id]), alone["aggregated"][None])
    assert store.info()["packed"] == 4
    assert store.verify(deep=True).ok


@pytest.mark.slow
def test_frames_are_written_by_a_thread_whose_errors_are_those_of_a_track(
    music, tmp_path, extractor, staged, monkeypatch
):
    threads_of_frames, append = set(), TrackWriter.append

    def watched(self, **features):
        threads_of_frames.add(threading.current_thread().name.rsplit("_")[0])
        if self._id == "a/two":
            raise ExtractionError("too large")
        append(self, **features)

    monkeypatch.setattr(TrackWriter, "append", watched)
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert threads_of_frames == {"featurestore-writer"}
    assert [(failure.track_id, failure.message) for failure in report.errors] == [("a/two", "too large")]
    assert FeatureStore(tmp_path / "s.zarr").track_ids == ["a/one", "b/one", "b/three"]
    assert staged(tmp_path / "s.zarr") == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featurestore")]


@pytest.mark.slow
def test_tracks_are_published_while_other_windows_are_encoded(music, tmp_path, extractor, monkeypatch):
    publishing, encoded, real, attempt = threading.Event(), threading.Event(), TrackWriter.finish, Forward.attempt

    def finish(self):
        publishing.set()
        assert threading.current_thread() is not threading.main_thread()
        assert encoded.wait(10), "nothing was encoded meanwhile"
        return real(self)

    def noticed(self, *windows, **options):
        if publishing.is_set():
            encoded.set()
        return attempt(self, *windows, **options)

    monkeypatch.setattr(TrackWriter, "finish", finish)
    monkeypatch.setattr(Forward, "attempt", noticed)
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="segments")
    assert (report.processed, report.failed) == (4, 0)


@pytest.mark.parametrize(
    ("device", "processes", "cores", "workers"),
    [("cpu", 1, 16, 1), ("mps", 1, 8, 1), ("cuda:0", 1, 16, 8), ("cuda:1", 2, 8, 4), ("cuda:0", 8, 4, 1)],
)
def test_a_card_gets_as_many_workers_as_there_are_cores(monkeypatch, device, processes, cores, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert default_workers(device, processes) == workers


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "name"), [(TrackAudio, "_put"), (TrackClaim, "append")])
def test_the_report_says_what_the_model_waited_for(music, tmp_path, extractor, monkeypatch, slow, name):
    real = getattr(slow, name)
    monkeypatch.setattr(slow, name, lambda *x: (time.sleep(0.5), real(*x))[1])
    report = build(music, tmp_path / "s.zarr", extractor=extractor)
    waits = report.waited_for_audio, report.waited_for_store
    assert 0.5 < waits[slow is TrackClaim] < report.elapsed_time
    assert waits[slow is TrackAudio] < waits[slow is TrackClaim]


@pytest.mark.slow
def test_a_track_says_where_it_comes_from(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", dataset="demo")
    found = FeatureStore(tmp_path / "s.zarr").provenance("demo/a/two")
    path = music / "a" / "two.flac"
    assert found["audio"] == {
        "path": str(path),
        "size": path.stat().st_size,
        "mtime_ns": path.stat().st_mtime_ns,
        "sha256": featurestore.audio.file_sha256(path),
        "duration": 1.6,
        "samples": 70_560,
        "sample_rate": 44_100,
        "channels": 2,
        "format": "flac flac",
    }
    assert found["decoder"].startswith("PyAV")
    assert 0 < found["levels"]["rms"] < found["levels"]["peak"] <= 1
    assert found["levels"]["clipped"] == 0
    assert found["warnings"] == []
    assert found["dataset"] == "demo"
    assert found["device"] == "cpu"
    assert found["featurestore_version"] == featurestore.__version__
    assert found["starts"] == [0.0, 0.5, 0.6]


@pytest.mark.slow
def test_a_second_run_does_nothing(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    before = revisions(tmp_path / "s.zarr")
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert counts(report) == (0, 4, 0, 0)
    assert (report.to_do, report.avg_time_per_file, report.x_real_time) == (0, None, None)
    assert revisions(tmp_path / "s.zarr") == before


@pytest.mark.slow
def test_what_has_changed_is_extracted_again(music, tmp_path, extractor, clip, assert_states_close):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    before = revisions(tmp_path / "s.zarr")
    clip(music / "a" / "one.wav", seed=99)  # other audio of the same size
    os.utime(music / "a" / "two.flac", ns=(1, 1))  # the same audio, touched
    shutil.copy(music / "b" / "three.wav", tmp_path / "moved.wav")
    (music / "b" / "three.wav").unlink()
    shutil.copy(tmp_path / "moved.wav", music / "b" / "three.wav")  # the same audio, another file
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert counts(report) == (1, 3, 0, 0)
    after = revisions(tmp_path / "s.zarr")
    assert {track_id for track_id in IDS if before[track_id] != after[track_id]} == {"a/one"}
    alone = extractor.extract_track_features(music / "a" / "one.wav")
    stored = FeatureStore(tmp_path / "s.zarr").aggregated(tracks=["a/one"])
    assert_states_close(stored, alone["aggregated"][None])


@pytest.mark.slow
def test_missing_kinds_are_extracted_and_more_kinds_than_asked_for_are_fine(music, tmp_path, extractor):
    store = tmp_path / "s.zarr"
    assert build(music, store, extractor=extractor, feature_level="aggregated").processed == 4
    assert not FeatureStore(store).has("a/one", kinds=("segments",))
    assert build(music, store, extractor=extractor, feature_level="all", upgrade=True).processed == 4
    assert FeatureStore(store).has("a/one", kinds=("raw", "segments", "aggregated"))
    assert build(music, store, extractor=extractor, feature_level="segments").cached == 4
    assert FeatureStore(store).has("a/one", kinds=("raw",))


@pytest.mark.slow
def test_damaged_tracks_are_extracted_again(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    metadata = next((tmp_path / "s.zarr" / "aggregated").glob("*one*/zarr.json"))
    metadata.write_bytes(metadata.read_bytes()[:100])
    assert counts(build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")) == (1, 3, 0, 0)
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok


@pytest.mark.slow
def test_force_extracts_everything_again(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    before = revisions(tmp_path / "s.zarr")
    assert build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", force=True).processed == 4
    after = revisions(tmp_path / "s.zarr")
    assert all(before[track_id] != after[track_id] for track_id in IDS)


@pytest.mark.slow
def test_other_settings_are_refused_by_name(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    before = snapshot(tmp_path / "s.zarr")
    other = FeatureExtractor(model=extractor.model, segment_duration=1.0, overlap=0.25, layers=[2])
    with pytest.raises(SpecMismatchError, match=r"`overlap` is 0.5, not 0.25.*another store") as caught:
        build(music, tmp_path / "s.zarr", extractor=other)
    assert caught.value.differences == {"layers": ([0, 1, 2, 3], [2]), "overlap": (0.5, 0.25)}
    assert snapshot(tmp_path / "s.zarr") == before


@pytest.mark.slow
def test_limit_and_ids(music, tmp_path, extractor):
    report = build(
        music,
        tmp_path / "s.zarr",
        extractor=extractor,
        feature_level="all",
        limit=1,
        dataset="x",
        file_pattern="*.flac",
    )
    assert report.total_files == 1
    assert FeatureStore(tmp_path / "s.zarr").track_ids == ["x/a/two"]
    with pytest.raises(SourceError, match=r"a/one\.wav.*b/one\.ogg"):
        build(music, tmp_path / "t.zarr", extractor=extractor, feature_level="all", id_from="stem")
    assert not (tmp_path / "t.zarr").exists()


@pytest.mark.slow
def test_a_dry_run_writes_nothing_at_all(music, tmp_path, extractor):
    report = build(music, tmp_path / "new" / "s.zarr", extractor=extractor, feature_level="all", dry_run=True)
    assert (report.to_do, report.processed, report.dry_run) == (4, 0, True)
    assert report.audio_hours_to_do == pytest.approx((3 * 1.6 + 2.3) / 3600, rel=1e-3)
    assert not (tmp_path / "new").exists()
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", limit=3)
    before = snapshot(tmp_path)
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", dry_run=True)
    assert (report.to_do, report.cached) == (1, 3)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": float("nan")}, "overlap"),
        ({"segment_duration": 0.0}, "segment_duration"),
        ({"segment_duration": 0.01}, "segment_duration"),
        ({"layers": [99]}, "layers 0 to 3"),
        ({"layers": []}, "layers"),
        ({"device": "abacus"}, "cpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int8"}, "float16"),
        ({"feature_level": "most"}, "aggregated"),
        ({"workers": 0}, "workers"),
        ({"workers": 2.0}, "workers"),
        ({"processes": 0}, "processes"),
        ({"batch_size": "4"}, "batch_size"),
        ({"source": ["a.wav", "b.wav"]}, "source must be one path"),
        ({"device": None}, "None"),
        ({"limit": 0}, "limit"),
        ({"id_from": "thin air"}, "id_from"),
    ],
)
def test_impossible_settings_leave_no_store(music, tmp_path, model_folder, setting, message):
    with pytest.raises(SettingError, match=message):
        build(**{"source": music, "store": tmp_path / "s.zarr", "model": model_folder, **setting})
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_there_are_no_more_workers_than_tracks(music, tmp_path, extractor, monkeypatch):
    asked = []
    monkeypatch.setattr(
        prefetch, "threads", lambda count, name: asked.append((name, count)) or threads(count, name=name)
    )
    assert (
        build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", workers=40_000).processed == 4
    )
    assert ("featurestore-decode", 4) in asked
    assert all(count <= 4 for _, count in asked)


def test_threads_that_do_not_start_are_named(monkeypatch):
    started, start = [], threading.Thread.start

    def limited(thread):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with (
        pytest.raises(SettingError, match="does not start 10 threads, only 3: ask for fewer `workers`"),
        threads(10, name="test"),
    ):
        pass
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("source", ["absent", "empty"])
def test_a_source_without_audio_leaves_no_store(tmp_path, model_folder, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=source):
        build(tmp_path / source, tmp_path / "s.zarr", model=model_folder)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_it_is_the_old_words_for_a_collection(music, tmp_path, extractor):
    report = extractor.extract_dataset_features(music, tmp_path / "s.zarr", include_raw=False)
    assert (report["total_files"], report["processed"], report["failed"]) == (4, 4, 0)
    assert not FeatureStore(tmp_path / "s.zarr").has("a/one", kinds=("raw",))


@pytest.mark.slow
def test_a_track_that_was_written_by_hand_and_has_no_audio_is_replaced(music, tmp_path, extractor):
    spec = extractor.spec()
    with StoreWriter(tmp_path / "s.zarr", spec=spec) as writer:
        writer.put("a/one", {"raw": np.ones((1, 4, 74, 64)), "segments": np.ones((1, 4, 64))})
    assert counts(build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")) == (4, 0, 0, 0)


@pytest.mark.slow
def test_progress_goes_forward_through_the_stages(music, tmp_path, extractor):
    seen = []
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", progress=seen.append)
    stages = list(dict.fromkeys(now.stage for now in seen))
    assert stages == ["looking for audio", "opening the model", "checking", "extracting", "packing", "done"]
    for name in ("done", "checked", "audio_seconds", "elapsed"):
        values = [getattr(now, name) for now in seen]
        assert values == sorted(values), name
    last = seen[-1]
    assert (last.total, last.done, last.checked) == (4, 4, 4)
    assert last.eta == pytest.approx(0, abs=0.01)
    assert last.audio_seconds == pytest.approx(last.audio_seconds_total, rel=1e-3)
    assert last.x_real_time > 0


@pytest.mark.slow
def test_the_report_is_plain_json_with_the_old_names(music, tmp_path, extractor):
    (music / "bad.wav").write_text("no audio")
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    found = report.to_dict()
    for name in ("total_files", "processed", "cached", "skipped", "failed", "errors", "elapsed_time"):
        assert name in found
    assert found["avg_time_per_file"] > 0
    assert found["errors"][0]["track_id"] == "bad"
    assert found["errors"][0]["error"] == "AudioFormatError"
    assert report.exit_code == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": [2]},
        {"device": "cuda:7"},
        {"precision": "fp32"},
        {"processes": 2},
        {"segment_duration": 2.0, "batch_size": 64},
    ],
)
def test_settings_of_an_extractor_are_not_given_twice(music, tmp_path, extractor, settings):
    with pytest.raises(SettingError, match=f"an extractor has its own .*{next(iter(settings))}"):
        build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", **settings)
    with pytest.raises(SettingError, match="an extractor has its own"):
        extractor.extract_dataset_features(music, tmp_path / "s.zarr", **settings)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
@pytest.mark.parametrize("feature_level", ["all", "segments", "aggregated"])
def test_memory_does_not_grow_with_the_length_of_a_track(tmp_path, clip, extractor, feature_level):
    """What numpy holds: samples, windows, frames. Torch has a batch of them, whatever the track."""

    peaks = []
    for seconds in (20, 200):
        source = clip(tmp_path / f"{seconds}.wav", seconds, rate=16_000)
        tracemalloc.start()
        build(source, tmp_path / f"{seconds}.zarr", extractor=extractor, feature_level=feature_level, ahead_mb=2)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    samples = 200 * extractor.model.sample_rate * 4 / 2**20
    assert peaks[1] < peaks[0] + samples / 4, peaks


@pytest.mark.slow
def test_a_model_that_is_loaded_takes_one_device(music, tmp_path, extractor, monkeypatch):
    monkeypatch.setattr("featurestore.encode.device.resolve_devices", lambda names: ["cpu", "cpu"])
    settings = {"model": extractor.model, "segment_duration": 1.0, "feature_level": "aggregated"}
    assert build(music, tmp_path / "s.zarr", device="auto", **settings).processed == 4
    with pytest.raises(
        SettingError, match=r"several processes .*`device`, `processes`.* need the name or the folder"
    ):
        build(music, tmp_path / "t.zarr", device="cpu,cpu", **settings)
