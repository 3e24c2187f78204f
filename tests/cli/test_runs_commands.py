import csv

import pytest


@pytest.mark.slow
def test_runs_failures_and_the_command_that_goes_on(run, music, tmp_path):
    (music / "broken.wav").write_bytes(b"RIFF")
    store, log = tmp_path / "s.zarr", tmp_path / "build.log"
    options = ("--model", "logmel", "--layers", "0", "--exclude", "b/*", "--log-file", log)
    assert run("build", music, store, *options).code == 1
    assert "2 extracted, 0 there before, 1 failed" in run("runs", store).out
    assert run("runs", store, "--json").json[0]["processed"] == 2
    assert run("failures", store).out.startswith("broken: ")
    rows = list(csv.DictReader(run("failures", store, "--csv").out.splitlines()))
    assert [(row["track_id"], row["path"]) for row in rows] == [("broken", str(music / "broken.wav"))]
    assert "a/one: 1.2 s of audio" in log.read_text()
    info = run("info", store, "--json").json
    assert info["failures"] == 1
    assert info["go_on_with"] == f"fs-extract build {music} {store} --exclude 'b/*'"
    (music / "broken.wav").unlink()
    again = run(*info["go_on_with"].replace("'", "").split()[1:], "--json")
    assert (again.code, again.json["cached"]) == (0, 2)
