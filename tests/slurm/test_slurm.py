"""Job arrays of Slurm on two nodes: nothing is done twice, nothing is lost, and exit codes say what to do.

FEATURESTORE_KILL_RUNS says how many times a node is killed, at random.
"""

import os
import random
import time

import numpy as np
import pytest

from featurestore import FeatureStore

pytestmark = pytest.mark.slow


def is_begun(store):
    return lambda: any(store.glob("aggregated/*/zarr.json"))


def left_over(store):
    return [
        path.name
        for name in ("staging", "journal", "trash")
        for path in (store / ".featurestore" / name).iterdir()
    ]


def extracted(store):
    """How many tracks each build has extracted."""
    return [run["processed"] for run in FeatureStore(store).runs()]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "s.zarr"


@pytest.fixture
def check(store, music):
    """Compares a store with all tracks of the source."""

    def is_whole():
        opened = FeatureStore(store)
        assert sorted(opened.track_ids) == [f"{number:02}" for number in range(24)]
        assert opened.verify(deep=True).ok
        assert np.isfinite(opened.aggregated(layer=4).to_numpy()).all()
        assert left_over(store) == []

    return is_whole


def test_an_array_of_four_does_each_track_once(cluster, script, store, check):
    job = cluster.submit(script(), "--array=0-3")
    tasks = cluster.wait_for(job)
    assert {task["ExitCode"] for task in tasks.values()} == {"0:0"}, cluster.logs()
    assert {task["NodeList"] for task in tasks.values()} == {"n1", "n2"}
    check()
    assert len(extracted(store)) == 4
    assert sum(extracted(store)) == 24


def test_a_job_that_is_cancelled_leaves_nothing_and_is_not_queued_again(cluster, script, store, check):
    job = cluster.submit(script(shard=""), "--array=0-1")
    cluster.wait_until(is_begun(store))
    began = time.monotonic()
    cluster.run("scancel", job)
    tasks = cluster.wait_for(job)
    assert {task["JobState"] for task in tasks.values()} == {"CANCELLED"}
    cluster.wait_until(lambda: cluster.processes(f"SLURM_ARRAY_JOB_ID={job}") == [])
    assert time.monotonic() - began < 20
    assert left_over(store) == []
    done = len(FeatureStore(store))
    assert 0 < done < 24
    assert {task["ExitCode"] for task in cluster.wait_for(cluster.submit(script(), "--array=0-1")).values()} == {
        "0:0"
    }
    check()
    assert sum(extracted(store)) == 24


def test_a_job_goes_on_after_its_time_limit(cluster, script, store, check):
    job = cluster.submit(script(), "--array=0-0")
    cluster.wait_until(is_begun(store))
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal does before the limit
    cluster.wait_until(lambda: cluster.jobs(job)["0"]["Restarts"] == "1")
    cluster.wait_until(lambda: cluster.jobs(job)["0"]["JobState"] == "PENDING")
    cluster.start_soon(f"{job}_0")
    (task,) = cluster.wait_for(job).values()
    assert (task["JobState"], task["ExitCode"]) == ("COMPLETED", "0:0"), cluster.logs()
    check()
    first, second = FeatureStore(store).runs()
    assert (first["interrupted"], first["processed"] + second["processed"]) == (True, 24)


def test_tracks_of_another_process_end_a_task_with_3_and_queue_it_again(cluster, script, store, music, check):
    from featurestore import StoreWriter, build

    build(music, store, model="mini", limit=1)
    with (
        StoreWriter(store, spec=FeatureStore(store).spec) as writer,
        writer.track("07", kinds=["segments"]) as track,
    ):
        job = cluster.submit(script("--wait-for-others 0"), "--array=0-0")
        cluster.wait_until(lambda: cluster.jobs(job)["0"]["Restarts"] == "1", 240)
        assert FeatureStore(store).runs()[-1]["skipped_tracks"] == ["07"]
        track.append(segments=np.ones((1, *FeatureStore(store).segments("00").shape[1:])))
    cluster.wait_until(lambda: cluster.jobs(job)["0"]["JobState"] == "PENDING")
    cluster.start_soon(f"{job}_0")
    (task,) = cluster.wait_for(job).values()
    assert (task["JobState"], task["ExitCode"]) == ("COMPLETED", "0:0"), cluster.logs()
    check()


@pytest.mark.parametrize("seed", range(int(os.environ.get("FEATURESTORE_KILL_RUNS", "1"))))
def test_a_node_that_is_killed_loses_nothing(cluster, script, store, check, seed):
    chance = random.Random(seed)
    node, wanted = chance.choice(["n1", "n2"]), chance.randrange(1, 9)
    job = cluster.submit(script(), "--array=0-3")
    cluster.wait_until(lambda: len(list(store.glob("aggregated/*/zarr.json"))) >= wanted)
    cluster.kill_node(node)
    cluster.wait_until(lambda: any(task["Restarts"] == "1" for task in cluster.jobs(job).values()))
    for number, task in cluster.jobs(job).items():
        if task["JobState"] == "PENDING":
            cluster.start_soon(f"{job}_{number}")
    tasks = cluster.wait_for(job)
    assert {task["ExitCode"] for task in tasks.values()} == {"0:0"}, cluster.logs()
    check()
    assert sum(extracted(store)) <= 24  # the killed have told nobody
    cluster.start_node(node)
    cluster.wait_until(lambda: cluster.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"])
