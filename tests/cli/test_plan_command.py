"""fs-extract plan: one list of a source, for several builds."""

import pytest

from featurestore import FeatureStore


@pytest.mark.slow
def test_tasks_build_what_was_planned_once(run, music, tmp_path):
    listed = tmp_path / "plan.csv"
    assert "tracks   3" in run("plan", music, listed, "--dataset", "mine").out
    codes = [
        run("build", listed, tmp_path / "s.zarr", "--model", "logmel", "--shard", f"{number}/2").code
        for number in (1, 2)
    ]
    assert codes == [0, 0]
    assert sorted(FeatureStore(tmp_path / "s.zarr")) == sorted(
        f"mine/{path.relative_to(music).with_suffix('').as_posix()}" for path in music.rglob("*.*")
    )


def test_files_that_cannot_be_used_are_named_and_listed(run, music, tmp_path):
    (music / "bad.wav").write_bytes(b"no audio")
    result = run("plan", music, tmp_path / "plan.csv", "--json")
    assert (result.code, result.json["tracks"]) == (1, 4)
    assert [failure["track_id"] for failure in result.json["errors"]] == ["bad"]
    assert "bad.wav" in result.err
    assert "bad.wav" in (tmp_path / "plan.csv").read_text()


def test_a_list_of_another_name_is_refused(run, music, tmp_path):
    assert run("plan", music, tmp_path / "plan.txt").code == 2
