"""Builds that are killed at random, and begun again until one says that all is done: it never says so too early.

FEATURESTORE_KILL_RUNS says how many runs there are. Every other one has a cluster of Dask instead of processes.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest
from processes_of import children_of

from featurestore import FeatureStore, build

RUNS = int(os.environ.get("FEATURESTORE_KILL_RUNS", "1"))
TRACKS = [f"{number:02}" for number in range(24)]
SETTINGS = {"model": "mini", "feature_level": "all", "layers": [0, 4]}
EXECUTORS = [("--processes", "2"), ("--scheduler", "local", "--processes", "2")]
_MOST_ATTEMPTS = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A source, and a store of it that nobody has disturbed."""
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "music").mkdir()
    noise = np.random.default_rng(0)
    for track in TRACKS:
        soundfile.write(folder / "music" / f"{track}.wav", noise.normal(0, 0.1, 6 * 24_000), 24_000)
    assert build(folder / "music", folder / "s.zarr", **SETTINGS).processed == len(TRACKS)
    return folder


def start(preloaded, music, store, errors, *options):
    command = ["-m", "fs_extract", "build", music, store, "--model", "mini", "--layers", "0,4"]
    with open(errors, "w") as stderr:
        return preloaded.start(
            [*command, "--feature-level", "all", *options], stdout=subprocess.DEVNULL, stderr=stderr
        )


def published(store):
    return len(list(store.glob("aggregated/*/zarr.json")))


def kill_one(chance, supervisor, other):
    """Kill the supervisor (Dask's client), one of its processes, or the other build."""
    victim = chance.choice(["supervisor", "process", "process", "other"])
    target = {"supervisor": supervisor.pid, "other": other.pid}.get(victim)
    if victim == "process" and (processes := children_of(supervisor.pid)):
        target = chance.choice(processes)
    with contextlib.suppress(ProcessLookupError, TypeError):
        os.kill(target, signal.SIGKILL)


def is_whole(store):
    return sorted(FeatureStore(store).track_ids) == TRACKS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_every_track_is_there_once_and_as_if_nothing_had_happened(
    undisturbed, tmp_path, seed, assert_states_close, preloaded
):
    chance, store, music = random.Random(seed), tmp_path / "s.zarr", undisturbed / "music"
    executor, codes = EXECUTORS[seed % 2], []
    errors = [tmp_path / "supervisor", tmp_path / "other"]
    while 0 not in codes:
        assert len(codes) < _MOST_ATTEMPTS, codes
        waits = [str(chance.choice([0, 5])) for _ in range(2)]
        with (
            start(preloaded, music, store, errors[0], *executor, "--wait-for-others", waits[0]) as supervisor,
            start(preloaded, music, store, errors[1], "--wait-for-others", waits[1]) as other,
        ):
            for _ in range(chance.choice([1, 2, 3]) if len(codes) < 6 else 0):
                wanted = chance.randrange(len(TRACKS))
                while published(store) < wanted and None in (supervisor.poll(), other.poll()):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 0.3))
                kill_one(chance, supervisor, other)
            for process, told in zip((supervisor, other), errors, strict=True):
                codes.append(process.wait(300))
                # 1: two processes were killed with the same track at hand: it is named and given up for this time.
                # 2: one was killed before it began, and so was the one in its place.
                assert codes[-1] in (0, 1, 2, 3, -signal.SIGKILL), (codes, told.read_text())
                if codes[-1] == 2:
                    assert "SIGKILL, before it began" in told.read_text()
                if codes[-1] == 0:
                    assert is_whole(store), codes
    assert is_whole(store)
    done, before = FeatureStore(store), FeatureStore(undisturbed / "s.zarr")
    assert done.verify(deep=True).ok
    assert done.info()["packed"] == len(TRACKS)
    for track in TRACKS:
        for kind in ("raw", "segments"):
            assert_states_close(getattr(done, kind)(track), getattr(before, kind)(track))
    report = build(music, store)
    assert (report.cached, report.exit_code) == (len(TRACKS), 0)
    hidden = store / ".featurestore"
    assert [path for name in ("staging", "journal", "trash") for path in (hidden / name).iterdir()] == []
