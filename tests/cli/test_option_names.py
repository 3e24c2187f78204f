"""Messages name settings as they were typed: options on the command line, keywords in a call."""

import ast
import inspect
import logging
import re
from pathlib import Path

import click
import pytest

import featurestore
from featurestore import build
from featurestore.errors import SettingError
from fs_extract.build import build as build_command
from fs_extract.command import Command
from fs_extract.commands import fs_extract
from fs_extract.labels import labels
from fs_extract.pretrain import pretrain

BAD = {
    "--model": ["not/a/folder/at/all", ""],
    "--revision": ["0" * 40],
    "--device": ["abacus", "cuda:99", "auto,cpu", ""],
    "--workers": ["0", "-1", "x", "1.5"],
    "--ahead-mb": ["0", "-1", "x", "1.5"],
    "--processes": ["0", "-1", "x", "1.5"],
    "--scheduler": ["nonsense", ""],
    "--feature-level": ["most", ""],
    "--layers": ["99", "4-", "x", "", "7-4", "0,7-4"],
    "--batch-size": ["0", "x"],
    "--segment-duration": ["0", "-1", "nan", "inf", "1e303", "x", "0.001"],
    "--overlap": ["1", "-0.1", "nan", "x"],
    "--dtype": ["float8"],
    "--codec": ["zip"],
    "--force": ["yes"],
    "--upgrade": ["yes"],
    "--prune": ["yes"],
    "--seal": ["yes"],
    "--dry-run": ["yes"],
    "--retry-failed": ["yes"],
    "--limit": ["0", "x"],
    "--shard": ["0/2", "3/2", "x", "", "auto"],
    "--fail-fast": ["yes"],
    "--wait-for-others": ["-1", "nan", "x"],
    "--dataset": ["/", ""],
    "--id-from": ["name"],
    "--file-pattern": ["a/*.wav", ""],
    "--exclude": [""],
    "--log-file": ["", "/nothing/there.log"],
    "--precision": ["fp8", "fp16"],
    "--no-mixed-precision": ["yes"],
    "--mlflow": ["runs"],
    "--disable-oom-recovery": ["yes"],
    "--json": ["yes"],
    "--verbose": ["yes"],
    "--quiet": ["yes"],
    "--no-progress": ["yes"],
    "--config-file": ["", "/nothing/there.toml"],
}
OTHERS = {
    ("manifest", "--file-pattern"): ["a/*.wav"],
    ("manifest", "--valid"): ["1", "nan"],
    ("labels", "--name"): ["a/b"],
    ("labels", "--fit-batch-size"): ["3"],
    ("labels", "--seed"): [str(2**32)],
    ("pretrain", "--device"): ["abacus"],
}


def longest(option):
    return max(option.opts, key=len)


def test_every_option_of_build_has_a_bad_value_here():
    assert set(BAD) == {longest(option) for option in build_command.params if isinstance(option, click.Option)}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in BAD.items() for value in values]
)
def test_a_bad_value_is_told_with_the_option_as_it_was_typed(run, music, tmp_path, model_folder, option, value):
    rest = [] if option == "--model" else ["--model", model_folder]
    result = run("build", music, tmp_path / "s.zarr", *rest, f"{option}={value}")
    assert (result.code, result.out) == (2, "")
    first = result.err.splitlines()[0]
    assert re.search(rf"{option}\b", first), first
    assert not re.search(r"`|\b[a-z]+_[a-z]+\b", first.replace(str(model_folder), "")), first
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("command", "option", "value"), [(*key, x) for key, values in OTHERS.items() for x in values]
)
def test_other_commands_do_so_too(run, music, small_store, tmp_path, command, option, value):
    places = {
        "manifest": [music, tmp_path / "out"],
        "labels": [small_store, tmp_path, "--layer", 0],
        "pretrain": ["--config", "mini", "--out", tmp_path / "out", "--data", tmp_path],
    }
    result = run(command, *places[command], f"{option}={value}")
    assert result.code == 2
    assert re.search(rf"{option}\b", result.err.splitlines()[0])


def test_ways_out_are_options_that_can_be_typed(run, music, tmp_path, clip):
    clip(music / "a" / "one.flac")
    result = run("build", music, tmp_path / "s.zarr", "--model", "logmel", "--id-from", "stem")
    assert result.code == 2
    assert "(--id-from path)" in result.err
    assert "(--file-pattern '*.wav')" in result.err


@pytest.mark.slow
def test_settings_that_differ_are_options(run, music, tmp_path):
    run("build", music, tmp_path / "s.zarr", "--model", "logmel")
    result = run(
        "build", music, tmp_path / "s.zarr", "--model", "logmel", "--overlap", "0", "--segment-duration", "1"
    )
    assert "--overlap is 0.5, not 0.0" in result.err
    assert "--segment-duration is 5.0, not 1.0" in result.err


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`overlap` must be below 1", "--overlap must be below 1"),
        ("try `dtype='float16'` or `layers=[4, 7]`", "try --dtype float16 or --layers 4,7"),
        ("`batch_size=1`", "--batch-size 1"),
        ("choose names (`file_pattern='*.wav'`)", "choose names (--file-pattern '*.wav')"),
        ("leave out `mixed_precision=False`", "leave out --no-mixed-precision"),
        ("leave out `oom_recovery=False`", "leave out --disable-oom-recovery"),
        ("`segment_duration=2 x`", "--segment-duration 2 x"),
        ("`frame_rate` is 75", "`frame_rate` is 75"),
        ("run `git lfs pull`", "run `git lfs pull`"),
        ("'/music/overlap_ratio/file_pattern.wav'", "'/music/overlap_ratio/file_pattern.wav'"),
    ],
)
def test_a_message_in_options(message, shown):
    assert build_command.in_options(message) == shown


def test_options_of_other_names():
    assert (
        labels.in_options("`batch_size`, `passes`, `fraction`") == "--fit-batch-size, --fit-passes, --fit-fraction"
    )
    assert pretrain.in_options("`model.start='/a b'`, `run.steps`") == "--start '/a b', --steps"


@pytest.mark.slow
def test_the_log_and_failures_of_tracks_use_the_options_too(run, music, tmp_path, monkeypatch):
    from featurestore.encode.forward import Forward

    def fails(*_, **__):
        logging.getLogger("featurestore").warning("try `batch_size=%d`", 2)
        raise MemoryError

    monkeypatch.setattr(Forward, "_encode", fails)
    for options in ([], ["--json"]):
        result = run("build", music, tmp_path / "s.zarr", "--model", "logmel", "--workers", 2, *options)
        assert result.code == 1
        shown = result.out if options else result.err
        assert "segment_duration" not in shown
        assert "--segment-duration" in shown
        assert "fs-extract: try --batch-size 2" in result.err


def test_in_a_call_the_keywords_stay(music, tmp_path):
    with pytest.raises(SettingError, match=r"^`segment_duration` must be above 0"):
        build(music, tmp_path / "s.zarr", model="logmel", segment_duration=0)
    with pytest.raises(SettingError, match=r"^`file_pattern` must match"):
        build(music, tmp_path / "s.zarr", model="logmel", file_pattern="")


def test_every_setting_of_build_is_an_option():
    """What `build` calls a setting, its command shows as an option."""
    settings = set(inspect.signature(build).parameters) - {"source", "store", "extractor", "progress", "callbacks"}
    for name in settings:
        assert build_command.in_options(f"`{name}`").startswith("--"), name


def texts(tree):
    """Texts of a module that are not docstrings, with {} for values."""
    inner = {id(x) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for x in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(x.value if isinstance(x, ast.Constant) else "{}" for x in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


MODULES = sorted(Path(featurestore.__file__).parent.rglob("*.py"))


@pytest.mark.slow
def test_the_library_names_no_option_and_no_setting_without_its_backticks():
    commands = [command for command in fs_extract.commands.values() if isinstance(command, Command)]
    options = [x for command in commands for x in command.params if isinstance(x, click.Option)]
    # A single word may stand for itself in a sentence.
    settings = "|".join(sorted({x.name for x in options if "_" in x.name and not x.is_eager} | {"overlap_ratio"}))
    wrong = []
    for module in MODULES:
        for text in texts(ast.parse(module.read_text())):
            if " " not in text.strip():
                continue
            bare = re.sub(r"`[^`]*`|(fs-extract |\brun |\bby )?verify (--deep )?--repair", "", text)
            if re.search(rf"(?<![\w-])--[a-z]|\b({settings})\b", bare):
                wrong.append((module.name, text))
    assert wrong == []
