"""Several processes: their work is shared by locks, counted once, and survives the death of any of them.

Here all of them are on the CPU: what is tested is everything but the card. Where features do not matter, the
processes pretend to have a model.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pretend
import pytest
import soundfile
from processes_of import children_of

from featurestore import FeatureStore, StoreWriter, build
from featurestore.audio import AudioFile
from featurestore.errors import BuildStoppedError, DeviceError, ExtractionError, SettingError
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import run_job
from featurestore.pipeline.plan import Job
from featurestore.pipeline.processes import WorkerPool
from featurestore.pipeline.tally import Tally

TWO = "cpu,cpu"


@pytest.fixture
def many(tmp_path, clip):
    """A dozen clips of several lengths, some shorter than a window."""
    for number in range(12):
        clip(tmp_path / "music" / f"{number:02}.wav", 1.0 + 0.7 * (number % 5), seed=number)
    return tmp_path / "music"


@pytest.fixture
def settings(model_folder):
    return {"model": model_folder, "segment_duration": 1.5, "workers": 1, "feature_level": "all"}


@pytest.fixture
def children():
    """Process ids of the children of this process that extract; at the end none is left."""
    before = set(children_of(os.getpid()))  # those of fixtures of other tests

    def begun():
        return [process for process in children_of(os.getpid()) if process not in before]

    yield begun
    assert begun() == []


@pytest.mark.slow
def test_two_processes_make_what_one_makes(many, tmp_path, settings, children, staged, assert_states_close):
    (many / "bad.wav").write_text("no audio")
    (many / "cut.flac").write_bytes(b"fLaC" + bytes(1_000))
    alone = build(many, tmp_path / "one.zarr", **settings)
    one = FeatureStore(tmp_path / "one.zarr")
    seen = []
    with StoreWriter(tmp_path / "two.zarr", spec=one.spec) as other:
        holder = other.track("03")  # another writer is at work on it
        holder.__enter__()
        report = build(
            many, tmp_path / "two.zarr", device=TWO, wait_for_others=0, progress=seen.append, **settings
        )
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


@pytest.mark.slow
def test_a_process_that_is_killed_loses_its_tracks_to_the_other(
    many, tmp_path, settings, children, caplog, staged
):
    killed = []

    def kill(now):
        if now.processed == 2 and not killed:
            killed.append(children()[0])
            assert int(Path(f"/proc/{killed[0]}/oom_score_adj").read_text()) >= 500  # before the supervisor
            assert int(Path("/proc/self/oom_score_adj").read_text()) < 500
            os.kill(killed[0], signal.SIGKILL)

    report = build(many, tmp_path / "s.zarr", processes=2, progress=kill, **settings)
    assert len(killed) == 1
    # What the dead process has published without having said so is found there.
    assert (report.processed + report.cached, report.failed, report.exit_code) == (12, 0, 0)
    assert "the process of cpu was killed by somebody (SIGKILL; memory was not full)" in caplog.text
    assert staged(tmp_path / "s.zarr") == []
    assert len(FeatureStore(tmp_path / "s.zarr")) == 12
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok


@pytest.mark.slow
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
    monkeypatch.setattr("featurestore.pipeline.executors.WorkerPool", None)
    assert build(many, tmp_path / "s.zarr", device=TWO, dry_run=True, **settings).to_do == 12


@pytest.mark.slow
def test_a_supervisor_that_is_killed_takes_its_processes_along(many, tmp_path, settings, model_folder):
    command = [sys.executable, "-m", "fs_extract", "build", many, tmp_path / "s.zarr", "--model", model_folder]
    with subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE) as supervisor:
        while len(processes := children_of(supervisor.pid)) < 2 or not (tmp_path / "s.zarr" / "raw").exists():
            assert supervisor.poll() is None
            time.sleep(0.05)
        supervisor.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rest = build(many, tmp_path / "s.zarr", model=model_folder)
    assert (rest.processed + rest.cached, rest.failed) == (12, 0)
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok


TRACKS = [f"{number:02}" for number in range(20)]


@pytest.fixture
def run(tmp_path, clip, children, forked, monkeypatch):
    """Runs tracks through processes that pretend, and begin at once; returns the tally."""
    monkeypatch.setattr("featurestore.pipeline.processes.worker_main", pretend.worker_main)
    monkeypatch.setattr("multiprocessing.get_context", lambda _: forked)

    def run_tracks(track_ids, *devices, fail_fast=False, force=False):
        (tmp_path / "music").mkdir(exist_ok=True)
        tally = Tally(total=len(track_ids))
        job = Job(
            store=tmp_path / "s.zarr", kinds=("aggregated",), fail_fast=fail_fast, force=force, wait_for_others=60
        )
        tracks = [AudioFile(name, tmp_path / "music" / f"{name}.wav") for name in track_ids]
        for number, track in enumerate(tracks):
            if track.track_id == "bad":
                samples = np.full(48_000, 0.1)
                samples[-1] = np.inf
                soundfile.write(track.path, samples, 24_000, subtype="FLOAT")
            else:
                clip(track.path, 2.0, seed=number)
        with (
            Interrupts() as interrupts,
            WorkerPool(job, devices, {}, interrupts, tally) as pool,
        ):
            run_job(job, tracks, None, pool, interrupts, tally)
        return tally

    return run_tracks


@pytest.mark.slow
def test_counts_are_added_up(run, caplog):
    tally = run([*TRACKS, "bad"], "a", "b", "c")
    assert (tally.processed, tally.audio_seconds, tally.skipped_tracks, tally.cached) == (20, 40.0, [], 0)
    assert [failure.track_id for failure in tally.failures] == ["bad"]
    told = [record.getMessage() for record in caplog.records]
    assert {f"{name} is ready" for name in "abc"} <= set(told)


@pytest.mark.slow
def test_processes_that_replace_what_is_there_do_it_once(run, tmp_path):
    run(TRACKS, "a", "b")
    before = FeatureStore(tmp_path / "s.zarr")
    before = {track_id: before.provenance(track_id)["revision"] for track_id in before}
    tally = run(TRACKS, "a", "b", "c", force=True)
    assert (tally.processed, tally.cached, tally.skipped_tracks) == (20, 0, [])
    after = FeatureStore(tmp_path / "s.zarr")
    assert all(after.provenance(track_id)["revision"] != before[track_id] for track_id in TRACKS)


@pytest.mark.slow
def test_the_others_do_what_the_dead_leave(run):
    tally = run(TRACKS, "b", "mortal", "c")
    assert (tally.processed, tally.failures) == (20, [])


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_within_seconds(run, caplog):
    tally = run([f"{number:02}" for number in range(40)], "slow", "once")
    assert (tally.processed + tally.cached, tally.failures) == (40, [])
    ready = [record.created for record in caplog.records if record.getMessage() == "once is ready"]
    (died,) = [
        record.created for record in caplog.records if "of once was killed by somebody" in record.getMessage()
    ]
    assert len(ready) == 2
    assert ready[1] - died < 10


@pytest.mark.slow
def test_a_process_that_is_killed_for_memory_is_named_so_and_the_supervisor_lives(tmp_path, clip, small_memory):
    for name in TRACKS:
        clip(tmp_path / "music" / f"{name}.wav", 2.0)
    command = [sys.executable, Path(__file__).parent / "hungry.py", tmp_path, small_memory(900 * 10**6)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["20", "0"]), done.stderr
    told = re.findall("the process of .*", done.stderr)
    assert told == [
        "the process of hungry was killed, as memory was full (try fewer `processes` or a smaller `batch_size`); "
        "others take the tracks that it had at hand"
    ]


@pytest.mark.slow
def test_the_others_do_what_a_card_leaves_that_fails(run):
    tally = run(TRACKS, "b", "failing")
    assert (tally.processed, tally.failures) == (20, [])


@pytest.mark.slow
def test_a_card_that_fails_again_does_not_fail_the_same_track(run):
    tally = run(TRACKS[:4], "patient", "failing")  # each has two at hand at most
    assert (tally.processed, tally.failures) == (4, [])


@pytest.mark.slow
def test_a_track_with_which_cards_fail_is_given_up_and_no_other(run):
    tally = run([*TRACKS[:10], "card-killer", *TRACKS[10:]], "a", "b")
    assert [failure.track_id for failure in tally.failures] == ["card-killer"]
    assert (tally.processed, tally.skipped_tracks) == (20, [])


@pytest.mark.slow
def test_a_process_that_dies_after_all_others_have_ended_is_replaced(run):
    tally = run(TRACKS, "a", "late")
    assert (tally.processed, tally.failures, tally.skipped_tracks) == (20, [], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("track_id", "cause"), [("deadly", "ended with SIGSEGV"), ("too-large", "was killed by somebody")]
)
@pytest.mark.parametrize("devices", [("a", "b"), ("a", "b", "c")])
def test_a_track_that_kills_is_given_up_and_no_other(run, track_id, cause, devices):
    tally = run([*TRACKS[:10], track_id, *TRACKS[10:]], *devices)
    (failure,) = tally.failures
    assert (failure.track_id, failure.error) == (track_id, "ExtractionError")
    assert re.search(rf"{track_id}\.wav: 2 processes ended while they had it at hand; .*{cause}", failure.message)
    # What a process has published without having said so is found in the store.
    assert (tally.processed + tally.cached, tally.skipped_tracks) == (20, [])


@pytest.mark.slow
def test_the_last_process_is_replaced_too(run):
    tally = run(["deadly"], "a", "b")
    assert tally.processed == 0
    assert "2 processes ended while they had it at hand" in tally.failures[0].message


@pytest.mark.slow
def test_what_no_process_is_left_for_has_failed(run):
    tally = run(TRACKS, "mortal", "mortal")
    assert tally.processed == 0
    assert sorted(failure.track_id for failure in tally.failures) == TRACKS
    assert "no process is left to extract it; the process of mortal was killed" in tally.failures[-1].message


@pytest.mark.slow
def test_the_first_failure_ends_all_if_that_is_asked_for(run):
    tally = run(["bad", *TRACKS], "slow", "slow", fail_fast=True)
    assert (len(tally.failures), tally.skipped_tracks) == (1, [])
    assert tally.processed < 20


@pytest.mark.slow
def test_a_store_that_cannot_be_written_stops_all(run):
    with pytest.raises(BuildStoppedError, match="the disk is full"):
        run(TRACKS, "stuck", "b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (("a", "refusing"), DeviceError, "no such device"),
        (("a", "stillborn"), ExtractionError, r"of stillborn was killed.*, before it began; .*__main__"),
        (("a", "half"), SettingError, "a and half would differ .*`precision` is 'fp32' and 'fp16'"),
    ],
)
def test_processes_begin_together_or_not_at_all(run, devices, error, message):
    with pytest.raises(error, match=message):
        run(TRACKS, *devices)


@pytest.mark.slow
def test_processes_share_the_cores(model_folder, preloaded):
    code = (
        "import sys, torch; from featurestore.pipeline.worker import *; torch.set_num_threads(6);"
        "open_encoder(WorkerConfig(job=None, encoder={'model': sys.argv[1]}, processes=3));"
        "print(torch.get_num_threads())"
    )
    with preloaded.start(["-c", code, model_folder], stdout=subprocess.PIPE) as process:
        assert process.communicate() == ("2\n", None)
