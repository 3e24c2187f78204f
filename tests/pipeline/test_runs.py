"""A store knows its runs: what each build did, what failed, and how to try that again."""

import json
from collections import deque

import numpy as np
import pytest

from featurestore import FeatureStore, build
from featurestore.errors import SettingError, SourceError, SpecMismatchError
from featurestore.store.runs import failures_of


@pytest.fixture
def made(music, tmp_path):
    """Builds a store of spectra: the cheapest features."""

    def make(**options):
        return build(music, tmp_path / "s.zarr", model="logmel", segment_duration=1.0, layers=[0], **options)

    return make


@pytest.fixture
def store(tmp_path):
    return tmp_path / "s.zarr"


@pytest.mark.slow
def test_each_run_says_what_it_did_and_with_what(music, made, store):
    (music / "broken.wav").write_bytes(b"RIFF")
    report = made()
    made(limit=2)
    first, second = FeatureStore(store).runs()
    assert (first["processed"], first["failed"], first["source"]) == (4, 1, str(music))
    assert first["options"]["layers"] == [0]
    assert first["errors"][0]["message"] == report.errors[0].message
    assert first["versions"]["featurestore"]
    assert {"checking", "extracting", "packing"} <= first["stages"].keys()
    assert sum(first["stages"].values()) == pytest.approx(first["elapsed_time"], abs=0.5)
    assert (second["cached"], second["whole"], first["whole"]) == (2, False, True)
    assert (first["left_out"], second["left_out"]["not_chosen"]) == ({"excluded": [], "not_chosen": 0}, 3)
    made(exclude={"a/*"})
    assert FeatureStore(store).runs()[-1]["options"]["exclude"] == ["a/*"]
    assert FeatureStore(store).runs()[-1]["left_out"] == {"excluded": ["a/one.wav", "a/two.flac"], "not_chosen": 0}
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_what_does_nothing_is_no_run(made, store):
    made(dry_run=True)
    assert not store.exists()
    made()
    with pytest.raises(SpecMismatchError):
        made(overlap=0.25)
    made(dry_run=True)
    assert len(FeatureStore(store).runs()) == 1


@pytest.mark.slow
def test_options_of_any_sequence_are_written_down(music, store):
    layers, exclude = np.array([0, 2]), deque(["a/*"])
    build(music, store, model="logmel", segment_duration=1.0, layers=layers, exclude=exclude)
    (run,) = FeatureStore(store).runs()
    assert (run["options"]["layers"], run["options"]["exclude"]) == ([0, 2], ["a/*"])


@pytest.mark.slow
def test_failed_tracks_are_tried_again_alone(music, made, store, clip):
    (music / "broken.wav").write_bytes(b"RIFF")
    (music / "worse.wav").write_bytes(b"RIFF")
    made()
    assert [x["track_id"] for x in FeatureStore(store).failures()] == ["broken", "worse"]
    clip(music / "broken.wav", seed=9)
    clip(music / "new.wav", seed=10)
    report = made(retry_failed=True)
    assert (report.total_files, report.processed, report.failed) == (2, 1, 1)
    assert [x["track_id"] for x in FeatureStore(store).failures()] == ["worse"]
    (music / "worse.wav").unlink()
    made()
    assert FeatureStore(store).failures() == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"retry_failed": True}, {"shard": "1/1"}])
def test_what_a_run_did_not_come_to_has_failed_still(music, made, store, options):
    for name in ("broken", "worse"):
        (music / f"{name}.wav").write_bytes(b"RIFF")
    made()
    assert made(fail_fast=True, **options).failed == 1
    assert {x["track_id"] for x in FeatureStore(store).failures()} == {"broken", "worse"}


def test_what_a_run_has_left_to_another_has_failed_still():
    failure = {"track_id": "x", "path": "x.wav", "error": "AudioError", "message": "no audio"}
    began = {"began": "2026-01-01T00:00:00+00:00", "source": "/music", "whole": True}
    runs = [{**began, "errors": [failure]}, {**began, "errors": [], "skipped_tracks": ["x"]}]
    assert [found["track_id"] for found in failures_of(runs)] == ["x"]
    assert failures_of([*runs, {**began, "errors": []}]) == []


@pytest.mark.slow
def test_trying_a_part_again_leaves_the_failures_of_others(music, made, store):
    for name in ("broken", "worse", "worst"):
        (music / f"{name}.wav").write_bytes(b"RIFF")
    made(exclude=[])
    assert FeatureStore(store).runs()[-1]["whole"]
    assert [made(retry_failed=True, shard=f"{part}/2").failed for part in (1, 2)] in ([1, 2], [2, 1])
    assert {x["track_id"] for x in FeatureStore(store).failures()} == {"broken", "worse", "worst"}


@pytest.mark.slow
def test_the_ids_of_a_source_are_remembered(music, made, store, tmp_path, clip):
    made(dataset="mine", limit=1)
    made()
    clip(tmp_path / "other" / "x.wav")
    build(tmp_path / "other", store)
    assert sorted(FeatureStore(store)) == ["mine/a/one", "mine/a/two", "mine/b/one", "mine/b/three", "x"]


@pytest.mark.slow
def test_files_are_excluded_by_name_or_path(made, store):
    assert made(exclude=["B/*", "*.FLAC"]).total_files == 1
    assert FeatureStore(store).track_ids == ["a/one"]
    with pytest.raises(SourceError, match="`exclude`"):
        made(exclude=["*"])
    for exclude in ("*.flac", (pattern for pattern in ["*.flac"])):
        with pytest.raises(SettingError, match="sequence of patterns"):
            made(exclude=exclude)


@pytest.mark.slow
def test_damaged_records_are_left_out(made, store):
    made()
    folder = store / ".featurestore" / "runs"
    (folder / "0.json").write_text("{")
    began, failure = "2026-01-01T00:00:00+00:00", {"track_id": "x", "path": "x.wav", "error": "E", "message": "m"}
    damages = [{"began": 5}, {"options": 7}, {"retried": 7}, {"skipped_tracks": [[]]}, {"errors": 7}]
    failures = [7], [{}], [{**failure, "track_id": []}], [{**failure, "message": None}]
    damages += [{"errors": errors} for errors in failures]
    for number, damage in enumerate(damages, 1):
        (folder / f"{number}.json").write_text(json.dumps({"began": began, "errors": [failure], **damage}))
    assert len(FeatureStore(store).runs()) == 1
    assert FeatureStore(store).failures() == []
    made(retry_failed=True)
