"""Several devices: one process each, whose work is shared, counted once, and survives the death of any of them.

Here all devices are the CPU, which processes share: what is tested is everything but the card. Where only the
parent matters, its processes pretend.
"""

import os
import signal
import time
from pathlib import Path

import pretend
import pytest

from featurestore import FeatureStore, StoreWriter, build
from featurestore.audio import AudioFile
from featurestore.errors import DeviceError, ExtractionError, SettingError, StoreAccessError
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Job
from featurestore.pipeline.plan import TrackPlan
from featurestore.pipeline.processes import crew
from featurestore.pipeline.report import Tally

TWO = "cpu,cpu"


@pytest.fixture
def many(tmp_path, clip):
    """A dozen clips of several lengths, some shorter than a window."""
    for number in range(12):
        clip(tmp_path / "music" / f"{number:02}.wav", 1.0 + 0.7 * (number % 5), seed=number)
    return tmp_path / "music"


@pytest.fixture
def settings(model_folder):
    return {"model": model_folder, "segment_duration": 1.5, "workers": 1}


@pytest.fixture
def children():
    """Process ids of this process's children that extract; at the end none is left."""

    def look():
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                parent = int(status.rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"spawn_main" in command:
                    found.append(int(entry.name))
        return sorted(found)

    yield look
    assert look() == []


def test_two_processes_make_what_one_makes(many, tmp_path, settings, children, staged, assert_states_close):
    (many / "bad.wav").write_text("no audio")
    (many / "cut.flac").write_bytes(b"fLaC" + bytes(1_000))
    alone = build(many, tmp_path / "one.zarr", **settings)
    one = FeatureStore(tmp_path / "one.zarr")
    seen = []
    with StoreWriter(tmp_path / "two.zarr", spec=one.spec) as other:
        holder = other.track("03")  # another writer is at work on it
        holder.__enter__()
        report = build(many, tmp_path / "two.zarr", device=TWO, progress=seen.append, **settings)
        assert not holder.__exit__(RuntimeError, RuntimeError("died"), None)
    assert (report.processed, report.skipped, report.cached, report.device) == (11, 1, 0, TWO)
    for name in ("total_files", "failed", "to_do", "fingerprint", "errors"):
        assert getattr(report, name) == getattr(alone, name), name
    assert report.x_real_time > 0
    two = FeatureStore(tmp_path / "two.zarr")
    assert two.track_ids == [track_id for track_id in one if track_id != "03"]
    for track_id in two:
        assert_states_close(two.raw(track_id), one.raw(track_id))
        assert two.provenance(track_id)["device"] == "cpu"
    assert two.info()["packed"] == 11
    assert two.verify(deep=True).ok
    assert staged(tmp_path / "two.zarr") == []
    for name in ("done", "audio_seconds"):
        values = [getattr(now, name) for now in seen]
        assert values == sorted(values), name
    assert seen[-1].done == report.total_files


def test_a_process_that_is_killed_loses_its_tracks_to_the_other(many, tmp_path, settings, children, caplog):
    killed = []

    def kill(now):
        if now.processed == 2 and not killed:
            killed.append(children()[0])
            os.kill(killed[0], signal.SIGKILL)

    report = build(many, tmp_path / "s.zarr", device=TWO, progress=kill, **settings)
    assert len(killed) == 1
    # What the dead process has published without having said so is found there.
    assert (report.processed + report.cached, report.failed, report.exit_code) == (12, 0, 0)
    assert "the process of cpu ended with exit code -9" in caplog.text
    assert len(FeatureStore(tmp_path / "s.zarr")) == 12
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok


def test_an_interrupt_ends_all_processes(many, tmp_path, settings, children, staged):
    asked = []

    def interrupt(now):
        if now.processed >= 3 and not asked:
            asked.append(time.monotonic())
            for process in (*children(), os.getpid()):  # as from a terminal, where all hear of it
                os.kill(process, signal.SIGINT)

    report = build(many, tmp_path / "s.zarr", device=TWO, progress=interrupt, **settings)
    assert time.monotonic() - asked[0] < 15
    assert (report.interrupted, report.exit_code, report.failed) == (True, 130, 0)
    assert 3 <= report.processed < 12
    assert staged(tmp_path / "s.zarr") == []
    assert len(FeatureStore(tmp_path / "s.zarr")) == report.processed
    rest = build(many, tmp_path / "s.zarr", **settings)
    assert (rest.cached, rest.processed) == (report.processed, 12 - report.processed)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"device": "cpu,cuda:99"}, "cuda:99"),
        ({"device": "cpu,auto"}, "auto"),
        ({"device": "cpu,"}, "unknown"),
    ],
)
def test_impossible_settings_leave_no_store_and_no_process(many, tmp_path, settings, children, setting, message):
    with pytest.raises(SettingError, match=message):
        build(many, tmp_path / "s.zarr", **settings, **setting)
    assert not (tmp_path / "s.zarr").exists()


def test_a_loaded_model_stays_in_its_process(many, tmp_path, settings, extractor):
    with pytest.raises(SettingError, match="name or the folder"):
        build(many, tmp_path / "s.zarr", **{**settings, "model": extractor.model}, device=TWO)


def test_a_dry_run_begins_no_process(many, tmp_path, settings, monkeypatch):
    monkeypatch.setattr("featurestore.pipeline.building.crew", None)
    assert build(many, tmp_path / "s.zarr", device=TWO, dry_run=True, **settings).to_do == 12


@pytest.fixture
def run(tmp_path, children, monkeypatch):
    """Runs tracks through processes that pretend; returns the tally."""
    monkeypatch.setattr("featurestore.pipeline.processes.work", pretend.work)

    def run_tracks(track_ids, *devices, fail_fast=False, tally=None):
        tally = Tally() if tally is None else tally
        job = Job(
            store=tmp_path / "s.zarr",
            kinds=("aggregated",),
            workers=1,
            dtype="float32",
            codec="none",
            force=False,
            dry_run=False,
            fail_fast=fail_fast,
            dataset=None,
        )
        plans = [TrackPlan(track=AudioFile(name, Path(f"{name}.wav")), seconds=2.0) for name in track_ids]
        with Interrupts() as interrupts, crew(job, devices, {}, tally) as processes:
            processes.run(plans, writer=None, interrupts=interrupts, tally=tally)
        return tally

    return run_tracks


TRACKS = [f"{number:02}" for number in range(20)]


def test_counts_are_added_up(run, caplog):
    tally = run([*TRACKS, "bad"], "a", "b", "c")
    assert (tally.processed, tally.audio_seconds) == (20, 40.0)
    assert [failure.track_id for failure in tally.failures] == ["bad"]
    told = [record.getMessage() for record in caplog.records]
    assert told[:3] == ["a is ready", "b is ready", "c is ready"]
    assert sorted(message[3:] for message in told[3:]) == [*TRACKS, "bad"]


def test_the_others_do_what_the_dead_leave(run):
    tally = run(TRACKS, "b", "mortal", "c")
    assert (tally.processed, tally.failures) == (20, [])


def test_a_track_that_kills_is_given_up(run):
    tally = run(["deadly", *TRACKS], "a", "b", "c")
    assert tally.processed == 20
    (failure,) = tally.failures
    assert (failure.track_id, failure.error) == ("deadly", "ExtractionError")
    assert "2 processes ended while they had it at hand" in failure.message


def test_what_no_process_is_left_for_has_failed(run):
    tally = run(TRACKS, "mortal", "mortal")
    assert tally.processed == 0
    assert sorted(failure.track_id for failure in tally.failures) == TRACKS
    assert "no process is left" in tally.failures[-1].message


def test_after_a_failure_no_track_is_given_out_if_that_is_asked_for(run):
    tally = run(["bad", *TRACKS], "a", fail_fast=True)
    assert (tally.processed, len(tally.failures)) == (0, 1)


def test_a_store_that_cannot_be_written_stops_all(run):
    with pytest.raises(StoreAccessError, match="the disk is full"):
        run(TRACKS, "stuck", "b")


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (("a", "refusing"), DeviceError, "no such device"),
        (("a", "stillborn"), ExtractionError, r"of stillborn ended before it began \(exit code -9\); .*__main__"),
        (("a", "half"), SettingError, "a and half would differ .*`precision` is 'fp32' and 'fp16'"),
    ],
)
def test_a_crew_begins_together_or_not_at_all(run, devices, error, message):
    with pytest.raises(error, match=message):
        run(TRACKS, *devices)
