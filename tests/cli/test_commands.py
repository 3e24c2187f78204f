"""The commands: results on stdout, everything else on stderr, and exit codes that tell how it went."""

import json
import os
import shutil
import stat
import subprocess
import sys

import click
import numpy as np
import pytest

import featurestore
from featurestore import FeatureSpec, FeatureStore, StoreWriter
from fs_extract.commands import fs_extract
from fs_extract.parameters import TrackingUri

COMMANDS = [
    "build",
    "plan",
    "info",
    "ls",
    "verify",
    "pack",
    "rm",
    "runs",
    "failures",
    "export",
    "copy",
    "push",
    "pull",
    "import",
    "similar",
    "probe",
    "report",
]
COMMANDS += ["manifest", "labels", "pretrain", "config", "doctor", "completion"]


def test_help_names_every_command(run):
    result = run("--help")
    assert result.code == 0
    lines = result.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines[: len(COMMANDS)]] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    result = run(command, "-h")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: fs-extract {command}")


def test_version(run):
    assert run("--version").out == f"fs-extract {featurestore.__version__}\n"


def test_without_a_command_there_is_help(run):
    result = run()
    assert result.code == 2
    assert "Commands:" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "build"),
        (["build"], "SOURCE"),
        (["build", "x"], "STORE"),
        (["build", "absent", "s.zarr"], "absent"),
        (["build", "x", "s.zarr", "--batch-size", "0"], "--batch-size"),
        (["build", "x", "s.zarr", "--overlap", "1.0"], "--overlap"),
        (["build", "x", "s.zarr", "--overlap", "nan"], "overlap"),
        (["build", "x", "s.zarr", "--layers", "4-"], "4,7"),
        (["build", "x", "s.zarr", "--layers", "7-4"], "no layer"),
        (["build", "x", "s.zarr", "--feature-level", "most"], "aggregated"),
        (["build", "x", "s.zarr", "--wrong"], "--wrong"),
        (["info", "absent.zarr"], "absent.zarr"),
        (["ls", "absent.zarr"], "absent.zarr"),
        (["verify", "absent.zarr"], "absent.zarr"),
        (["pack", "absent.zarr"], "absent.zarr"),
        (["rm", "absent.zarr", "x", "--yes"], "absent.zarr"),
    ],
)
def test_wrong_usage_is_2_and_one_line_says_why(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    first = result.err.splitlines()[0]
    assert first.startswith("fs-extract: error: ")
    assert message in first
    assert os.listdir(tmp_path) == []


def test_every_option_can_come_from_the_environment(monkeypatch):
    """FEATURESTORE_BATCH_SIZE and so on: one flat name for each option, the same in every command."""
    values = {click.types.IntRange: "3", click.types.FloatRange: "0.25", click.types.FloatParamType: "2.5"}
    values[TrackingUri] = "sqlite:///runs.db"
    for command in fs_extract.commands.values():
        for option in command.params:
            if not isinstance(option, click.Option) or not option.expose_value:
                continue
            value = values.get(type(option.type), "7")
            if isinstance(option.type, click.Choice):
                value = option.type.choices[-1]
            elif option.is_flag:
                value = "1"
            name = "FEATURESTORE_" + max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
            with monkeypatch.context() as environment:
                environment.setenv(name, value)
                needed = [x for x in command.params if x.required and x is not option]
                arguments = [y for x in needed if isinstance(x, click.Option) for y in (x.opts[-1], "x")]
                arguments += ["x" for x in command.params if isinstance(x, click.Argument)]
                context = command.make_context(command.name, arguments)
                source = context.get_parameter_source(option.name)
                assert source is click.core.ParameterSource.ENVIRONMENT, (command.name, name)


@pytest.mark.slow
def test_the_command_line_wins_over_the_environment(run, music, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_MODEL", str(model_folder))
    monkeypatch.setenv("FEATURESTORE_LAYERS", "0-2")
    monkeypatch.setenv("FEATURESTORE_JSON", "1")
    result = run("build", music, tmp_path / "s.zarr", "--layers", "3")
    assert result.json["processed"] == 3
    assert FeatureStore(tmp_path / "s.zarr").spec.layers == (3,)


def test_info(run, small_store):
    result = run("info", small_store)
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert (lines["tracks"], lines["layers"], lines["dim"]) == ("3", "0-2", "8")
    found = run("info", small_store, "--json").json
    assert found["spec"] == FeatureStore(small_store).spec.to_dict()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.2, "3.6 s"), (60.0, "3.0 min"), (36_000.0, "30.0 h"), (None, "unknown")]
)
def test_info_shows_audio_in_a_unit_of_its_size(run, tmp_path, seconds, shown):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2)) as writer:
        for track_id in "abc":
            attributes = {"audio": {"duration": seconds}}
            with writer.track(track_id, kinds=[], attributes=attributes) as track:
                track.append(segments=np.ones((1, 1, 2)))
    rows = dict(line.split(maxsplit=1) for line in run("info", tmp_path / "s.zarr").out.splitlines())
    assert rows["audio"] == shown
    hours = run("info", tmp_path / "s.zarr", "--json").json["hours"]
    assert hours == (seconds if seconds is None else pytest.approx(3 * seconds / 3600))


def test_info_of_a_store_of_int8_that_an_earlier_release_made(run, tmp_path):
    measured = {"precision_cosines": (0.999, 0.998, 0.997), "precision_errors": (0.01, 0.02, 0.03)}
    StoreWriter(
        tmp_path / "s.zarr", spec=FeatureSpec(layers=(0, 1, 2), dim=8, precision="int8", **measured)
    ).close()
    result = run("info", tmp_path / "s.zarr")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert (lines["layers"], lines["precision_cosines"], lines["precision_errors"]) == (
        "0-2",
        "0.999,0.998,0.997",
        "0.01,0.02,0.03",
    )


def test_ls_prints_one_id_per_line_and_nothing_that_a_terminal_obeys(run, small_store):
    assert run("ls", small_store).out.splitlines() == ["a/one", "a/two", "bell\\x07\\nhere"]
    assert run("ls", small_store, "--json").json == ["a/one", "a/two", "bell\x07\nhere"]
    long = run("ls", "--long", small_store).out.splitlines()
    assert [line.split()[-1] for line in long] == ["a/one", "a/two", "bell\\x07\\nhere"]
    assert "segments,aggregated" in long[0]
    assert run("ls", small_store, "--long", "--json").json[0]["segments"] == 0  # no starts were given


def damage(store):
    shard = next((store / "segments").glob("a*/c.*"))
    content = bytearray(shard.read_bytes())
    content[10] ^= 255
    shard.write_bytes(content)


def test_verify_finds_damage_and_repair_puts_it_aside(run, small_store):
    result = run("verify", "--deep", small_store)
    assert (result.code, result.err) == (0, "")
    damage(small_store)
    assert run("verify", small_store).code == 0
    result = run("verify", small_store, "--deep")
    assert result.code == 1
    assert "a/" in result.err
    report = run("verify", small_store, "--deep", "--json")
    assert (report.code, report.json["ok"], len(report.json["problems"])) == (1, False, 1)
    assert run("verify", small_store, "--deep", "--repair").code == 1
    assert run("verify", small_store, "--deep").code == 0
    assert run("info", small_store, "--json").json["tracks"] == 2


@pytest.mark.parametrize("options", [[], ["--deep"], ["--repair"], ["--deep", "--repair"]])
def test_verify_reports_a_damaged_root(run, small_store, options):
    root = small_store / "zarr.json"
    root.write_text(root.read_text().replace('"dim": 8', '"dim": 9'))
    report = run("verify", small_store, "--json", *options)
    assert (report.code, report.json["ok"], report.json["deep"]) == (1, False, "--deep" in options)
    (problem,) = report.json["problems"]
    assert problem["what"] == "structure"
    assert "root metadata" in problem["message"]
    result = run("verify", small_store, *options)
    assert result.code == 1
    assert "root metadata is damaged" in result.err


@pytest.mark.parametrize("kind", ["raw", "aggregated"])
def test_verify_reports_a_missing_group(run, small_store, kind):
    shutil.rmtree(small_store / kind)
    for options in ([], ["--repair"]):
        report = run("verify", small_store, "--json", *options)
        assert (report.code, report.json["ok"]) == (1, False)
        assert "structure" in {problem["what"] for problem in report.json["problems"]}
    assert run("verify", small_store, "--deep").code == 0


def test_ls_goes_on_over_damaged_tracks(run, small_store):
    metadata = next((small_store / "aggregated").glob("a*one/zarr.json"))
    metadata.write_text("{")
    result = run("ls", "--long", small_store)
    assert result.code == 0
    assert len(result.out.splitlines()) >= 2


def test_pack(run, small_store):
    assert run("info", small_store, "--json").json["packed"] == 0
    assert run("pack", small_store).code == 0
    assert run("info", small_store, "--json").json["packed"] == 3
    assert run("pack", small_store, "--json").json == {"tracks": 3, "packed": 3, "sealed": 0}


def test_pack_counts_what_it_packed(run, small_store):
    metadata = next((small_store / "aggregated").glob("a*one/zarr.json"))
    metadata.write_text("{")
    assert "2 of 3 tracks are packed" in run("pack", small_store).out
    assert run("pack", small_store, "--json").json == {"tracks": 3, "packed": 2, "sealed": 0}


@pytest.mark.slow
def test_pack_seals_and_unseals(run, small_store):
    tracks = sorted(run("ls", small_store).out.splitlines())
    assert "3 tracks are packed, 3 of them sealed" in run("pack", small_store, "--seal").out
    assert run("info", small_store, "--json").json["sealed"] == 3
    assert sorted(run("ls", small_store).out.splitlines()) == tracks
    assert run("verify", small_store, "--deep").code == 0
    assert run("pack", small_store, "--unseal", "--json").json == {"tracks": 3, "packed": 3, "sealed": 0}
    assert run("info", small_store, "--json").json["sealed"] == 0


def test_ls_leaves_out_what_is_removed_meanwhile(run, small_store, monkeypatch):
    monkeypatch.setattr(FeatureStore, "__iter__", lambda self: iter([*self.track_ids, "gone"]))
    result = run("ls", "--long", small_store)
    assert (result.code, len(result.out.splitlines())) == (0, 3)
    assert len(run("ls", "--long", "--json", small_store).json) == 3


def test_rm_removes_what_it_is_told_and_nothing_else(run, small_store):
    result = run("rm", small_store, "a/one", "a/tow", "--yes")
    assert result.code == 2
    assert "a/two" in result.err
    assert len(FeatureStore(small_store)) == 3
    assert run("rm", small_store, "a/one", "a/one", "--yes", "--json").json == {"removed": ["a/one"]}
    assert FeatureStore(small_store).track_ids == ["a/two", "bell\x07\nhere"]


def test_rm_without_a_terminal_needs_yes(run, small_store):
    result = run("rm", small_store, "a/one")
    assert result.code == 2
    assert "--yes" in result.err
    assert len(FeatureStore(small_store)) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "left"), [("n\n", 3), ("y\n", 2)])
def test_rm_asks_on_a_terminal(small_store, answer, left):
    command = [sys.executable, "-m", "fs_extract", "rm", str(small_store), "a/one"]
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert "Remove a/one" in done.stderr
    assert len(FeatureStore(small_store)) == left


def test_doctor_fits_on_a_screen_and_leaves_nothing(run, tmp_path):
    result = run("doctor", tmp_path / "not" / "there")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) <= 40
    for word in (
        "versions",
        "python",
        "torch",
        "devices",
        "cpu",
        "hub",
        "fsync",
        "locks",
        "RENAME_EXCHANGE",
        "free",
    ):
        assert any(word in line for line in lines), word
    assert os.listdir(tmp_path) == []
    found = run("doctor", tmp_path, "--json").json
    assert {check["name"] for check in found} > {"featurestore", "rename", "hard links", "free space"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_doctor_says_where_nothing_can_be_written(run, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    result = run("doctor", tmp_path)
    assert result.code == 1
    assert "can only be read" in result.out


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    path = tmp_path / "many.zarr"
    with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=1, dim=1), durable=False) as writer:
        for number in range(40):
            writer.put(f"{number}" + "x" * 5_000, {"aggregated": np.zeros((1, 1))})
    command = [sys.executable, "-m", "fs_extract", "ls", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stream:
        complaint = stream.read()
    assert (process.wait(), complaint) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [False, True])
def test_what_nobody_expected_is_one_line_and_the_whole_story_with_v(small_store, verbose):
    lines = (
        "import featurestore",
        "import fs_extract.__main__",
        "featurestore.FeatureStore.__init__ = None",
        "fs_extract.__main__.main()",
    )
    command = [sys.executable, "-c", "; ".join(lines), "ls", str(small_store), *["-v"] * verbose]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == verbose
    assert "fs-extract: error: " in done.stderr
    assert ("-v" in done.stderr) == (not verbose)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_may_be_closed(music, tmp_path, closed):
    """As services and cron close them."""
    build = [sys.executable, "-m", "fs_extract", "build", music, tmp_path / "s.zarr", "--model", "logmel", "-q"]
    result = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *build], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(FeatureStore(tmp_path / "s.zarr")) == 3


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_below_stdout_is_named(small_store):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fs_extract", "ls", small_store]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "fs-extract: error: stdout cannot be written: [Errno 28] No space left on device\n"


def test_a_message_of_several_lines_is_shown_in_lines(run, music, clip, tmp_path):
    clip(music / "a" / "one.ogg")
    clip(music / "a" / "tw\x1bo.ogg")
    clip(music / "a" / "tw\x1bo.wav")
    result = run("build", music, tmp_path / "s.zarr", "--model", "logmel")
    assert result.code == 2
    assert "\\n" not in result.err
    assert "\x1b" not in result.err
    assert len(result.err.splitlines()) >= 4


def test_an_empty_path_is_refused(run, music, small_store, monkeypatch):
    monkeypatch.chdir(music)
    for arguments in (
        ("build", music, "", "--model", "logmel"),
        ("info", ""),
        ("manifest", "", "out"),
        ("verify", ""),
    ):
        result = run(*arguments)
        assert result.code == 2
        assert "the path is empty" in result.err


def test_json_is_ascii_whatever_the_ids_are(run, small_store):
    with StoreWriter(small_store, spec=FeatureStore(small_store).spec) as writer:
        writer.put("🎻", {"aggregated": np.zeros((3, 8))})
    text = run("ls", small_store, "--json").out
    assert text.isascii()
    assert "🎻" in json.loads(text)
