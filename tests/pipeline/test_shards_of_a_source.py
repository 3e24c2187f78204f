"""Parts of a source, and a list of it that is written once: several builds do all of it, each its own part."""

import csv
import itertools
import os

import pytest

import featurestore.pipeline.plan as planning
from featurestore import FeatureStore, build
from featurestore.errors import SettingError, SourceError
from featurestore.pipeline import write_source_list
from featurestore.shard import Shard


def array(task, count, **others):
    values = {"ID": task, "COUNT": count, **others}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_each_track_is_in_one_part_and_parts_are_about_equal():
    ids = [f"genre/{number}" for number in range(4000)]
    parts = [[x for x in ids if Shard(number, 7).holds(x)] for number in range(1, 8)]
    assert sorted(itertools.chain(*parts)) == sorted(ids)
    assert 450 < min(map(len, parts)) <= max(map(len, parts)) < 700


def test_parts_are_what_other_releases_and_machines_have():
    ids = ["rock/song", "a", "é", "\udcff", "x" * 1000]
    assert [next(n for n in range(1, 5) if Shard(n, 4).holds(x)) for x in ids] == [4, 3, 4, 2, 4]


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (array(0, 4, MIN=0, MAX=3, STEP=1), "1/4"),
        (array(3, 4, MIN=0, MAX=3, STEP=1), "4/4"),
        (array(4, 4, MIN=1, MAX=4, STEP=1), "4/4"),
        (array(14, 3, MIN=10, MAX=14, STEP=2), "3/3"),
        (array(2, 4), "3/4"),
    ],
)
def test_the_part_of_a_task_is_its_place_in_the_array(environment, part):
    assert str(Shard.parse("auto", environment)) == part


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/4", {}, "from 1 to N"),
        ("5/4", {}, "from 1 to N"),
        ("1/0", {}, "from 1 to N"),
        ("two", {}, "'two'"),
        ("auto", {}, "job array of Slurm"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT"),
        ("auto", array(7, 3, MIN=1, MAX=7, STEP=1), "task 7 is none of 3 in a row"),
        ("auto", array(3, 3, MIN=0, MAX=4, STEP=2), "task 3 is none of 3 in a row"),
    ],
)
def test_what_is_no_part_says_so(text, environment, message):
    with pytest.raises(SettingError, match=message):
        Shard.parse(text, environment)


@pytest.mark.slow
def test_several_parts_are_ordinary_builds_on_one_store(music, tmp_path, monkeypatch):
    store, options = tmp_path / "s.zarr", {"model": "logmel", "feature_level": "aggregated"}
    reports = [build(music, store, shard=f"{number}/3", **options) for number in (1, 2, 3)]
    assert sum(report.processed for report in reports) == sum(report.total_files for report in reports) == 4
    assert {report.exit_code for report in reports} == {0}
    assert len(FeatureStore(store)) == 4
    for name, value in array(1, 3).items():
        monkeypatch.setenv(name, value)
    assert build(music, store, shard="auto", **options).cached == reports[1].total_files
    assert FeatureStore(store).runs()[-1]["options"]["shard"] == "2/3"


@pytest.mark.slow
def test_a_part_may_be_empty(music, tmp_path):
    empty = next(
        f"{n}/50" for n in range(1, 51) if not any(Shard(n, 50).holds(x) for x in ("one", "two", "three"))
    )
    options = {"model": "logmel", "shard": empty, "id_from": "stem", "exclude": ["b/*"]}
    report = build(music, tmp_path / "s.zarr", **options)
    assert (report.total_files, report.exit_code) == (0, 0)


@pytest.mark.slow
def test_failures_of_a_part_are_forgotten_when_it_is_built_again(music, tmp_path):
    whole = (music / "a" / "one.wav").read_bytes()
    (music / "a" / "one.wav").write_bytes(b"no audio")
    store = tmp_path / "s.zarr"
    for _ in range(2):
        for number in (1, 2):
            build(music, store, model="logmel", shard=f"{number}/2")
    assert [failure["track_id"] for failure in FeatureStore(store).failures()] == ["a/one"]
    (music / "a" / "one.wav").write_bytes(whole)
    for number in (1, 2):
        build(music, store, model="logmel", shard=f"{number}/2")
    assert FeatureStore(store).failures() == []


@pytest.mark.slow
def test_a_list_is_built_with_its_ids_and_no_second_look(music, tmp_path, monkeypatch):
    (music / "a" / "bad.wav").write_bytes(b"no audio")
    written = write_source_list(music, tmp_path / "lists" / "plan.csv", dataset="mine")
    assert (written.tracks, written.guessed) == (5, 1)
    assert [failure.track_id for failure in written.errors] == ["mine/a/bad"]
    assert written.audio_hours * 3600 == pytest.approx(1.6 * 3 + 2.3, abs=0.01)
    looked, read_header = [], planning.read_header
    monkeypatch.setattr(planning, "read_header", lambda path: looked.append(path.stem) or read_header(path))
    monkeypatch.chdir(tmp_path)
    report = build("lists/plan.csv", tmp_path / "s.zarr", model="logmel")
    assert looked == ["bad"]
    assert (report.processed, report.guessed) == (4, 1)
    assert [failure.track_id for failure in report.errors] == ["mine/a/bad"]
    assert report.audio_hours_to_do == pytest.approx(report.audio_hours, rel=1e-3)
    assert FeatureStore(tmp_path / "s.zarr").track_ids == [
        "mine/a/one",
        "mine/a/two",
        "mine/b/one",
        "mine/b/three",
    ]
    (music / "b" / "one.ogg").unlink()
    report = build("lists/plan.csv", tmp_path / "s.zarr", model="logmel", force=True)
    assert sorted(failure.error for failure in report.errors) == ["AudioFormatError", "AudioNotFoundError"]


def test_names_of_any_bytes_are_listed(tmp_path, clip):
    folder = tmp_path / os.fsdecode(b'\xff, "x"')
    folder.mkdir()
    clip(tmp_path / "clip.wav").rename(folder / "new\nline.wav")
    write_source_list(tmp_path, tmp_path / "plan.csv")
    with (tmp_path / "plan.csv").open(newline="", errors="surrogateescape") as file:
        (row,) = csv.DictReader(file)
    assert os.path.exists(row["path"])
    assert build(tmp_path / "plan.csv", tmp_path / "s.zarr", model="logmel", dry_run=True).to_do == 1


@pytest.mark.parametrize("column", ["-1", "nan", "inf", "1_0", "long", ""])
def test_a_column_of_lengths_that_says_no_length_is_looked_up(music, tmp_path, column):
    (tmp_path / "list.csv").write_text(f"track_id,path,audio_seconds\none,{music}/a/one.wav,{column}\n")
    report = build(tmp_path / "list.csv", tmp_path / "s.zarr", model="logmel", dry_run=True)
    assert report.audio_hours_to_do * 3600 == pytest.approx(1.6, abs=0.01)


def test_a_list_has_a_name_that_builds_know(music, tmp_path):
    with pytest.raises(SettingError, match=r"plan\.csv"):
        write_source_list(music, tmp_path / "plan.json")
    with pytest.raises(SourceError):
        write_source_list(tmp_path / "nowhere", tmp_path / "plan.csv")
    assert not (tmp_path / "plan.csv").exists()
