"""A Dask cluster extracts: as one process does, whatever becomes of its workers, its tracks, or the client."""

import signal
import subprocess
import time
from dataclasses import replace

import dask
import pretend
import pytest
from distributed import LocalCluster

from featurestore import FeatureStore, build
from featurestore.audio import AudioFile
from featurestore.errors import BuildStoppedError, DeviceError, SettingError
from featurestore.pipeline.dask_executor import DaskExecutor
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import run_job
from featurestore.pipeline.plan import Job
from featurestore.pipeline.tally import Tally

pytestmark = [
    pytest.mark.slow,
    # What distributed leaves open when a worker is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process; a task whose worker dies twice is given up."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
    ):
        yield cluster


@pytest.fixture
def run(cluster, tmp_path, clip):
    """Runs tracks through workers that pretend to have a model; returns the tally."""

    def run_tracks(track_ids, device="fine", *, fail_fast=False):
        tally = Tally()
        job = Job(store=tmp_path / "s.zarr", kinds=("aggregated",), fail_fast=fail_fast)
        tracks = [AudioFile(name, clip(tmp_path / "music" / f"{name}.wav", 2.0)) for name in track_ids]
        for track in tracks:
            if track.track_id == "bad":
                track.path.write_text("no audio")
        with (
            Interrupts() as interrupts,
            DaskExecutor(
                job,
                cluster.scheduler_address,
                {"device": device, "model": None},
                processes=1,
                open_encoder=pretend.Encoder,
            ) as executor,
        ):
            run_job(job, tracks, None, executor, interrupts, tally)
        return tally

    return run_tracks


def test_a_cluster_makes_what_one_process_makes(cluster, music, tmp_path, model_folder, assert_states_close):
    (music / "bad.wav").write_text("no audio")
    settings = {"model": model_folder, "segment_duration": 1.0, "feature_level": "all"}
    build(music, tmp_path / "one.zarr", **settings)
    seen = []
    report = build(
        music, tmp_path / "two.zarr", scheduler=cluster.scheduler_address, progress=seen.append, **settings
    )
    assert (report.processed, report.failed) == (4, 1)
    assert report.audio_hours > 0
    assert report.x_real_time > 0
    assert seen[-1].done == 5
    one, two = FeatureStore(tmp_path / "one.zarr"), FeatureStore(tmp_path / "two.zarr")
    assert two.spec == one.spec
    assert list(two) == list(one)
    assert two.verify().problems == ()
    for track_id in one:
        assert_states_close(two.raw(track_id).to_numpy(), one.raw(track_id).to_numpy())
    assert build(music, tmp_path / "two.zarr", scheduler=cluster.scheduler_address, **settings).cached == 4


def test_a_local_cluster_is_there_as_long_as_the_build(music, tmp_path):
    report = build(music, tmp_path / "s.zarr", model="logmel", scheduler="local", processes=1)
    assert (report.processed, report.device) == (4, "cpu of Dask local")


def test_a_worker_that_dies_loses_nothing(run):
    tally = run([f"{number:02}" for number in range(24)], "late")
    assert tally.failures == []
    assert tally.processed + tally.cached == 24


def test_a_track_that_kills_workers_fails_alone(run):
    tally = run([*(f"{number:02}" for number in range(40)), "deadly"])
    assert [failure.track_id for failure in tally.failures] == ["deadly"]
    assert "2 workers ended while they had it at hand" in tally.failures[0].message
    assert tally.processed + tally.cached == 40


def test_a_card_that_fails_with_a_track_fails_that_track(run):
    tally = run(["a", "b", "card-killer", "c"])
    assert [failure.track_id for failure in tally.failures] == ["card-killer"]
    assert tally.processed == 3


def test_a_store_that_cannot_be_written_ends_the_build(run):
    with pytest.raises(BuildStoppedError, match="the disk is full"):
        run(["a", "b", "c"], "stuck")


def test_a_model_that_cannot_be_opened_ends_the_build(run, tmp_path):
    with pytest.raises(DeviceError, match="no such device"):
        run(["a"], "refusing")
    assert not (tmp_path / "s.zarr").exists()


def test_the_first_failure_may_end_the_build(run):
    tally = run(["bad", *(f"{number:03}" for number in range(80))], "slow", fail_fast=True)
    assert len(tally.failures) == 1
    assert tally.processed < 80


def test_ctrl_c_gives_back_what_is_at_hand(music, tmp_path, clip, staged, model_folder, preloaded):
    for number in range(30):
        clip(music / f"{number}.wav", 20.0, seed=number)
    command = ["-m", "fs_extract", "build", music, tmp_path / "s.zarr", "--model", model_folder]
    command += ["--scheduler", "local", "--processes", "2"]
    with preloaded.start(command, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob("s.zarr/segments/*/zarr.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "interrupted" in told
    assert staged(tmp_path / "s.zarr") == []
    done = len(FeatureStore(tmp_path / "s.zarr"))
    assert 0 < done < 34
    assert FeatureStore(tmp_path / "s.zarr").verify().problems == ()


def test_what_cannot_be_is_refused(music, tmp_path, extractor, monkeypatch):
    at = tmp_path / "s.zarr"
    with pytest.raises(SettingError, match="`scheduler`: no Dask scheduler answers at 'nonsense'"):
        build(music, at, model="logmel", scheduler="nonsense")
    monkeypatch.setattr("featurestore.pipeline.dask_cluster.PATIENCE", 0.2)
    with pytest.raises(SettingError, match="`scheduler`: no Dask scheduler answers at 'tcp://localhost:1'"):
        build(music, at, model="logmel", scheduler="tcp://localhost:1")
    with pytest.raises(SettingError, match="`device` is that of each worker"):
        build(music, at, model="logmel", scheduler="local", device="cpu,cpu")
    with pytest.raises(SettingError, match="not a loaded one"):
        build(music, at, model=extractor.model, scheduler="local")
    with pytest.raises(SettingError, match="an extractor has its own `scheduler`"):
        build(music, at, extractor=extractor, scheduler="local")
    assert not at.exists()


def test_a_dry_run_needs_no_cluster(music, tmp_path):
    assert build(music, tmp_path / "s.zarr", model="logmel", scheduler="nonsense", dry_run=True).to_do == 4


def test_a_client_that_is_killed_leaves_a_store_that_the_next_one_completes(cluster, tmp_path, clip, preloaded):
    for number in range(40):
        clip(tmp_path / "music" / f"{number:02}.wav", 10.0, seed=number)
    at = tmp_path / "s.zarr"
    command = ["-m", "fs_extract", "build", tmp_path / "music", at, "--model", "logmel"]
    with preloaded.start([*command, "--scheduler", cluster.scheduler_address]) as process:
        while not list(at.glob("segments/*/zarr.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    report = build(tmp_path / "music", at, scheduler=cluster.scheduler_address)
    assert (report.failed, report.processed + report.cached + report.skipped) == (0, 40)
    assert report.processed < 40
    assert len(FeatureStore(at)) == 40
    assert FeatureStore(at).verify(deep=True).problems == ()


def test_a_worker_that_does_not_see_the_store_says_so(run, monkeypatch):
    real = DaskExecutor.__init__

    def elsewhere(self, job, *arguments, **options):
        real(self, job, *arguments, **options)
        self._job = replace(self._job, store=job.store.with_name("elsewhere.zarr"))

    monkeypatch.setattr(DaskExecutor, "__init__", elsewhere)
    with pytest.raises(BuildStoppedError, match=r"sees no store at .*elsewhere.zarr: all workers need the same"):
        run(["a", "b"])
