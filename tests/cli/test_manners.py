"""What the command line says to those who mistype, or only ask."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from featurestore import FeatureSpec, StoreWriter
from fs_extract.command import Command
from fs_extract.commands import fs_extract
from fs_extract.console import Console


@pytest.mark.parametrize(
    ("typed", "meant"), [("--modle", "--model"), ("--layer", "--layers"), ("--feature-levl", "--feature-level")]
)
def test_an_option_that_is_mistyped_is_guessed(run, typed, meant):
    result = run("build", "a", "b", typed, "x")
    assert result.code == 2
    assert f"No such option '{typed}'. Did you mean '{meant}'?" in result.err


def test_a_command_that_is_mistyped_is_guessed(run):
    result = run("biuld", "a", "b")
    assert result.code == 2
    assert "No such command 'biuld'. Did you mean 'build'?" in result.err


def test_a_track_is_guessed_by_the_end_of_its_id(run, tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2)) as writer:
        writer.put("Albums/A long name of an artist/A longer name of an album/01 Song", {"segments": [[[1, 2]]]})
    result = run("rm", tmp_path / "s.zarr", "01 Song", "--yes")
    assert result.code == 2
    assert "did you mean 'Albums/A long name of an artist/A longer name of an album/01 Song'?" in result.err


def test_the_options_of_build_stand_in_groups(run):
    text = run("build", "--help").out
    titles = ["Features:", "Source:", "Speed and memory:", "What is done:", "Output:", "Examples:"]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert places[0] < text.index("--layers") < places[1] < text.index("--exclude") < places[2]
    assert places[4] < text.index("--log-file") < places[5]


COMMANDS = [command for command in fs_extract.commands.values() if isinstance(command, Command)]


@pytest.mark.parametrize("command", COMMANDS, ids=[str(command.name) for command in COMMANDS])
def test_examples_of_a_command_can_be_typed(run, command):
    text = run(command.name, "--help").out
    for wish, line in command.examples.items():
        assert f"  # {wish}\n  fs-extract {line}\n" in text
        name, *words = shlex.split(re.split("[|>]", line)[0])
        fs_extract.commands[name].make_context(name, words, resilient_parsing=False, obj=Console())


@pytest.mark.slow
def test_without_a_terminal_a_build_tells_when_it_began_and_colours_nothing(run, music, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    result = run("build", music, tmp_path / "s.zarr", "--model", "logmel", "-v")
    lines = result.err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d fs-extract: extracting: 0/3 tracks, .*", lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d fs-extract: a/one: 1.2 s of audio in .*", lines[1])
    assert "\x1b" not in result.err + result.out


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
