"""fs-extract pretrain: options, results and exit codes."""

import json

import numpy as np
import pytest
import soundfile

from featurestore import load_model
from tests.training.pretrain.conftest import make_data

RECIPE = """
[data]
labels = ["km"]
window = 0.5
[model]
shape = "tiny"
[model.config]
conv_dim = [8, 8, 8, 8, 8, 8, 8]
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
[mixing]
seconds = [0.1, 0.2]
[cqt]
masked = 0.0
[run]
steps = 2
batch = 2
valid_windows = 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "music", files=3)


@pytest.mark.slow
def test_it_trains_and_the_same_command_goes_on(run, recipe, data, tmp_path):
    command = ["pretrain", "--config", recipe, "--data", data, "--out", tmp_path / "out"]
    result = run(*command)
    assert result.code == 0
    assert [line.partition(" fs-extract: ")[2][:10] for line in result.err.splitlines()] == ["training: "]
    assert "2 of 2, of which 2 by this run" in result.out
    assert load_model(tmp_path / "out" / "model").layers == 1
    result = run(*command, "--steps", 3, "--json")
    assert result.code == 0
    assert result.json["resumed_from"] == 2
    assert result.json["steps"] == 3
    assert result.json["model"] == str(tmp_path / "out" / "model")
    assert "going on from step-00000002 with other settings: run.steps" in result.err


@pytest.mark.slow
def test_options_and_set_change_the_recipe(run, recipe, data, tmp_path):
    result = run(
        *("pretrain", "--config", recipe, "--data", data, "--out", tmp_path / "out"),
        *("--seed", 7, "--batch-size", 1, "--set", "optimizer.lr=0.25", "--set", "data.windows_per_file=all"),
    )
    assert result.code == 0
    saved = json.loads((tmp_path / "out" / "checkpoints" / "step-00000002" / "training.json").read_text())[
        "recipe"
    ]
    assert (saved["run"]["seed"], saved["run"]["batch"]) == (7, 1)
    assert (saved["optimizer"]["lr"], saved["data"]["windows_per_file"]) == (0.25, "all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say with --config which recipe to train by"),
        (["--config", "maxi"], "neither one of 95m, 330m, mini nor a file"),
        (["--config", "95m"], "say with --data where the training data are"),
        (["--config", "95m", "--set", "run.steps"], "--set takes KEY=VALUE"),
        (["--config", "95m", "--set", "run.bacth=3"], "no setting run.bacth; allowed are steps"),
        (["--config", "95m", "--set", "run=1", "--set", "run.batch=3"], "run has the value 1 already"),
        (["--config", "95m", "--set", "run.batch=3", "--set", "run=1"], "run must be a table, not 1"),
        (["--config", "95m", "--batch-size", "3", "--set", "run.batch.x=3"], "so there is no run.batch.x"),
        (["--config", "95m", "--seed", "99999999999999999999"], "run.seed must be a whole number below 2**63"),
        (["--config", "95m", "--set", "optimizer.betas=[1.5,0.9]"], "from 0 to 0.9999, not 1.5"),
        (["--config", "95m", "--set", "optimizer.lr=inf"], "optimizer.lr must be a finite number"),
        (["--config", "95m", "--data", "nowhere"], "dict.encodec_0.txt cannot be read: No such file"),
    ],
)
def test_a_mistake_is_wrong_usage(run, tmp_path, arguments, message):
    result = run("pretrain", "--out", tmp_path / "out", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_a_failure(run, recipe, data, tmp_path):
    for path in data.glob("train*.wav"):
        wave, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, np.full_like(wave, np.nan), rate, subtype="FLOAT")
    result = run("pretrain", "--config", recipe, "--data", data, "--out", tmp_path / "out")
    assert result.code == 1
    assert "the loss of step 1 is no number any more" in result.err


def test_an_output_that_is_no_folder_is_wrong_usage(run, recipe, data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "metrics.jsonl").mkdir(parents=True)
    for out, named in (("file", "file"), ("file/x", "file/x"), ("out", "out/metrics.jsonl")):
        result = run("pretrain", "--config", recipe, "--data", data, "--out", tmp_path / out)
        assert result.code == 2
        assert str(tmp_path / named) in result.err
