"""fs-extract build: what a user sees, and real processes that are interrupted, killed, and run side by side."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest

from featurestore import FeatureStore, build


def wait_for(condition, process, seconds=60):
    """Wait until something holds; fails if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def staged(store):
    """What lies in staging and journal."""
    hidden = store / ".featurestore"
    return [path for name in ("staging", "journal") for path in (hidden / name).iterdir()]


def in_the_middle_of_a_track(store):
    return lambda: any(path.stat().st_size > 0 for path in store.glob(".featurestore/staging/*/*/raw/*"))


@pytest.mark.slow
def test_the_result_is_on_stdout_and_a_second_run_does_nothing(run, music, tmp_path, model_folder):
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder)
    assert result.code == 0
    assert len(result.err.splitlines()) == 1  # that it has begun
    assert "3: 3 extracted, 0 there before, 0 failed" in result.out
    again = run("build", music, tmp_path / "s.zarr", "--model", model_folder, "--json")
    assert (again.json["cached"], again.json["processed"]) == (3, 0)
    assert run("-q", "build", music, tmp_path / "s.zarr", "--model", model_folder).out == ""
    told = run("-v", "build", music, tmp_path / "s.zarr", "--model", model_folder, "--force")
    assert "fs-extract: a/one: 1.2 s of audio in " in told.err


def on_a_terminal(start, command):
    """What a command writes to stderr if that is a terminal of 40 lines of 120 characters."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    with start(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while more := os.read(ours, 4096):
                seen += more
    os.close(ours)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.slow
def test_there_is_a_progress_bar_on_a_terminal_only(music, tmp_path, clip, model_folder, preloaded):
    clip(music / "long.wav", 60, rate=8_000)
    command = ["-m", "fs_extract", "build", str(music), str(tmp_path / "s.zarr"), "--model", str(model_folder)]
    seen = on_a_terminal(subprocess.Popen, [sys.executable, *command])
    for text in ("opening the model", "checking", "extracting: ", "/4 tracks", "x real time", "packing"):
        assert text in seen
    assert on_a_terminal(preloaded.start, [*command, "--no-progress"]) == ""
    assert on_a_terminal(preloaded.start, [*command, "-q"]) == ""


@pytest.mark.slow
def test_options_reach_the_store(run, music, tmp_path, model_folder):
    options = {
        "--layers": "1,3",
        "--segment-duration": "0.5",
        "--overlap": "0.25",
        "--dtype": "float16",
        "--feature-level": "segments",
        "--dataset": "set",
        "--limit": "2",
        "--workers": "2",
        "--ahead-mb": "64",
        "--processes": "2",
        "--batch-size": "3",
        "--device": "cpu",
        "--precision": "fp32",
        "--id-from": "stem",
    }
    flags = ["--no-mixed-precision", "--disable-oom-recovery", "--fail-fast"]
    pairs = [word for pair in options.items() for word in pair]
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder, *pairs, *flags)
    assert result.code == 0
    store = FeatureStore(tmp_path / "s.zarr")
    spec = store.spec
    assert (spec.layers, spec.segment_duration, spec.overlap, spec.dtype) == ((1, 3), 0.5, 0.25, "float16")
    assert spec.precision == "fp32"
    assert store.track_ids == ["set/one", "set/three"]
    assert not store.has("set/one", kinds=("raw",))


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(run, music, tmp_path):
    result = run("build", music, tmp_path / "s.zarr", "--model", "logmel", "--precision", "int8")
    assert result.code == 2
    assert "'int8' is not one of 'fp32', 'fp16', 'bf16', 'auto'" in result.err
    assert not (tmp_path / "s.zarr").exists()


def test_all_layers_have_a_name(run, music, tmp_path):
    assert run("build", music, tmp_path / "s.zarr", "--model", "logmel", "--layers", "all").code == 0
    assert FeatureStore(tmp_path / "s.zarr").spec.layers == (0, 1, 2)


def test_a_dry_run_says_what_there_is_to_do(run, music, tmp_path, model_folder):
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder, "--dry-run")
    assert result.code == 0
    for text in ("3, of which 0 are there and 3 are to do", "3.6 s to do", "kB", "free", "nothing was written"):
        assert text in result.out
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_bad_files_are_named_and_the_others_go_on(run, music, tmp_path, model_folder):
    for number in range(25):
        (music / f"bad{number:02}.wav").write_text("no audio")
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder, "--no-progress")
    assert result.code == 1
    assert "28: 3 extracted, 0 there before, 25 failed" in result.out
    lines = result.err.splitlines()
    assert len(lines) == 21
    assert all(f"bad{number:02}.wav" in line for number, line in enumerate(lines[:20]))
    assert "5 more" in lines[20]
    assert "Traceback" not in result.err
    report = run("build", music, tmp_path / "s.zarr", "--model", model_folder, "--json").json
    assert len(report["errors"]) == 25


def test_names_of_files_cannot_command_the_terminal(run, music, tmp_path, model_folder):
    for name in (b"clear\x1b[2Jscreen.wav", b"not-unicode\xff.wav"):
        with open(os.path.join(os.fsencode(music), name), "w") as file:
            file.write("no audio")
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder)
    assert result.code == 1
    assert "\x1b" not in result.err
    assert "clear\\x1b[2Jscreen.wav" in result.err
    assert "not-unicode" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "99"], "layers 0 to 3"),
        (["--layers", "0-3000000000"], "names layers that no model has"),
        (["--segment-duration", "1e303"], "--segment-duration must be above 0 seconds"),
        (["--device", "abacus"], "cpu"),
        (["--model", "nothing/here/at/all"], "nothing/here"),
        (["--segment-duration", "0"], "--segment-duration"),
        (["--id-from", "stem", "--dataset", "/"], "dataset"),
    ],
)
def test_settings_that_only_the_library_knows_are_wrong_usage_too(
    run, music, tmp_path, model_folder, options, message
):
    result = run("build", music, tmp_path / "s.zarr", "--model", model_folder, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_other_settings_than_the_stores_are_listed(run, music, tmp_path, model_folder):
    run("build", music, tmp_path / "s.zarr", "--model", model_folder)
    result = run(
        "build", music, tmp_path / "s.zarr", "--model", model_folder, "--overlap", "0", "--dtype", "float16"
    )
    assert result.code == 2
    assert "overlap is 0.5, not 0.0" in result.err
    assert "dtype is 'float32', not 'float16'" in result.err


@pytest.mark.slow
def test_the_recorded_revision_is_used_again(run, music, tmp_path, model_folder, monkeypatch):
    """The store pins the commit: when the hub's main moves on, the same command goes on with the old weights."""
    cache = tmp_path / "cache"
    folder = cache / "models--owner--mert"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(model_folder, folder / "snapshots" / commit)
    weights = folder / "snapshots" / ("b" * 40) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = ["build", music, tmp_path / "s.zarr", "--model", "owner/mert"]
    assert run(*command, "--limit", "1").code == 0
    assert FeatureStore(tmp_path / "s.zarr").spec.revision == "a" * 40
    (folder / "refs" / "main").write_text("b" * 40)
    assert run(*command).code == 0
    newer = run(*command, "--revision", "main")
    assert newer.code == 2
    assert "weights_sha256" in newer.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_behind_and_goes_on(start, tmp_path, clip, model_folder, number):
    clip(tmp_path / "music" / "a.wav")
    clip(tmp_path / "music" / "b.wav", 240, rate=8_000)
    clip(tmp_path / "music" / "c.wav")
    store = tmp_path / "s.zarr"
    command = ["build", tmp_path / "music", store, "--feature-level", "all", "--model", model_folder, "--json"]
    process = start(*command, "--batch-size", "1", "--no-progress")
    wait_for(lambda: (store / "aggregated" / "a").exists(), process)
    wait_for(in_the_middle_of_a_track(store), process)
    began = time.monotonic()
    process.send_signal(number)
    process.send_signal(number)  # impatience changes nothing
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert err.splitlines() == ["fs-extract: error: interrupted; the same command goes on from here"]
    assert '"interrupted": true' in out
    assert '"processed": 1' in out
    assert staged(store) == []
    assert FeatureStore(store).track_ids == ["a"]
    assert FeatureStore(store).verify(deep=True).ok
    report = build(tmp_path / "music", store, model=model_folder, limit=1)
    assert (report.cached, report.processed) == (1, 0)


@pytest.mark.slow
def test_a_killed_build_is_completed_by_the_next_one(start, tmp_path, clip, model_folder):
    clip(tmp_path / "music" / "a.wav")
    clip(tmp_path / "music" / "b.wav", 60, rate=8_000)
    clip(tmp_path / "music" / "c.wav", seed=3)
    store = tmp_path / "s.zarr"
    process = start(
        "build", tmp_path / "music", store, "--feature-level", "all", "--model", model_folder, "--batch-size", "1"
    )
    wait_for(lambda: (store / "aggregated" / "a").exists(), process)
    wait_for(in_the_middle_of_a_track(store), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert staged(store) != []
    report = build(tmp_path / "music", store, model=model_folder)
    assert (report.cached, report.processed, report.failed, report.skipped) == (1, 2, 0, 0)
    assert staged(store) == []
    undisturbed = tmp_path / "undisturbed.zarr"
    build(tmp_path / "music", undisturbed, model=model_folder, feature_level="all")
    np.testing.assert_allclose(
        FeatureStore(store).aggregated().to_numpy(), FeatureStore(undisturbed).aggregated().to_numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        FeatureStore(store).raw("b").to_numpy(), FeatureStore(undisturbed).raw("b").to_numpy(), atol=1e-4
    )
    assert FeatureStore(store).verify(deep=True).ok


@pytest.mark.slow
def test_two_processes_share_the_work(start, tmp_path, clip, model_folder):
    for number in range(12):
        clip(tmp_path / "music" / f"{number:02}.wav", 6, seed=number)
    store = tmp_path / "s.zarr"
    command = ["build", tmp_path / "music", store, "--feature-level", "all", "--model", model_folder, "-q"]
    one, two = start(*command), start(*command)
    for process in (one, two):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), out
    opened = FeatureStore(store)
    assert sorted(opened.track_ids) == [f"{number:02}" for number in range(12)]
    assert opened.info()["packed"] == 12
    assert opened.verify(deep=True).ok
    assert staged(store) == []
