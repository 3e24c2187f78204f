"""What the command line says to those who mistype, or only ask."""

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
