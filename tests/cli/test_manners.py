"""What the command line says to those who mistype, or only ask."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("typed", "meant"), [("--modle", "--model"), ("--layer", "--layers"), ("--feature-levl", "--feature-level")]
)
def test_an_option_that_is_mistyped_is_guessed(run, typed, meant):
    result = run("build", "a", "b", typed, "x")
    assert result.code == 2
    assert f"No such option '{typed}'. Did you mean '{meant}'?" in result.err


@pytest.mark.slow
def test_a_dry_run_is_no_failure(run, music, tmp_path):
    (music / "broken.wav").write_bytes(b"no audio")
    arguments = ["build", music, tmp_path / "s.zarr", "--model", "logmel"]
    result = run(*arguments, "--dry-run")
    assert result.code == 0
    assert "broken.wav" in result.err
    assert run(*arguments).code == 1


def completed(*words):
    environment = {"_FS_EXTRACT_COMPLETE": "zsh_complete", "COMP_CWORD": str(len(words)), "COMP_WORDS": ""}
    environment["COMP_WORDS"] = " ".join(["fs-extract", *map(str, words)])
    command = [sys.executable, "-m", "fs_extract"]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.stderr == ""
    return result.stdout.splitlines()[1::3]


@pytest.mark.slow
def test_a_shell_completes_options_models_and_ids(small_store):
    assert completed("build", "music", "s.zarr", "--mod") == ["--model"]
    assert completed("build", "--model", "m-a-p/MERT-v1") == ["m-a-p/MERT-v1-95M", "m-a-p/MERT-v1-330M"]
    assert completed("similar", small_store, "a/") == ["a/one", "a/two"]
    assert completed("rm", small_store, "a/one", "a/t") == ["a/two"]
    assert completed("rm", "not-there.zarr", "a") == []


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_reads(run, shell):
    result = run("completion", shell)
    assert result.code == 0
    assert f"_FS_EXTRACT_COMPLETE={shell}_complete" in result.out
