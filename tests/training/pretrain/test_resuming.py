"""A training goes on exactly where it was stopped, also in processes, or says what is in the way."""

import contextlib
import json
import shutil
import signal
import socket
import time

import pytest
import torch

from featurestore.errors import CheckpointError, SettingError
from featurestore.training.pretrain import pretrain, training
from tests.training.pretrain.conftest import (
    NO_DROPOUT,
    SMALL,
    lines_of,
    losses_of,
    recipe_for,
    settings,
    weights_of,
)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_exactly(whole, shared_data, tmp_path):
    for steps in (2, 5, 8):
        report = pretrain(recipe_for(shared_data, run={"steps": 8}), tmp_path, progress=StopAt(steps))
        assert (report.steps, report.interrupted) == (steps, steps < 8)
    assert losses_of(tmp_path) == losses_of(whole[0])
    for name, x in weights_of(whole[0] / "model").items():
        assert torch.equal(x, weights_of(tmp_path / "model")[name]), name


class StopAt:
    """Sends this process a signal when a step is done, as a scheduler does."""

    def __init__(self, step):
        self.step = step

    def __call__(self, now):
        if now.stage == "training" and now.done == self.step < now.total:
            signal.raise_signal(signal.SIGTERM)


def write_recipe(path, values):
    """A recipe as TOML, of JSON, which is close enough for numbers, texts and lists."""
    heads = values.pop("heads", [])
    lines = []
    for table, content in values.items():
        nested = {k: v for k, v in content.items() if isinstance(v, dict)}
        lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in content.items() if k not in nested)]
        for name, inner in nested.items():
            lines += [f"[{table}.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in inner.items())]
    for head in heads:
        lines += ["[[heads]]", *(f"{k} = {json.dumps(v)}" for k, v in head.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


KILLED_WHILE_SAVING = """
import json, os, signal, sys
from featurestore.training.pretrain import Recipe, checkpoints, pretrain

write, saved = checkpoints.write_model, []

def write_and_die(folder, *arguments):
    write(folder, *arguments)
    saved.append(folder)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.write_model = write_and_die
pretrain(Recipe.from_dict(json.loads(sys.argv[1]), source="the test"), sys.argv[2])
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(shared_data, tmp_path):
    def hurry(now):
        if now.stage == "training" and now.done == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe_for(shared_data), tmp_path, progress=hurry)
    assert not (tmp_path / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_data_are_opened_ends_it_at_once(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_corpus", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe_for(shared_data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_trainings_in_one_folder_are_refused(shared_data, tmp_path):
    def again(now):
        if now.stage == "training" and now.done == 2:
            with pytest.raises(
                SettingError, match=rf"another training is at work in {tmp_path}: wait for its end"
            ):
                pretrain(recipe_for(shared_data), tmp_path)

    recipe = recipe_for(shared_data, run={"steps": 3})
    assert pretrain(recipe, tmp_path, progress=again).steps == 3
    assert losses_of(tmp_path)
    assert pretrain(recipe, tmp_path).resumed_from == 3


@pytest.mark.slow
def test_a_training_that_is_killed_loses_one_interval_and_goes_on_exactly(
    whole, shared_data, tmp_path, start_process
):
    values = json.dumps(settings(shared_data))
    killed = start_process(["-c", KILLED_WHILE_SAVING, values, tmp_path])
    said = killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL, said
    assert [x["step"] for x in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    report = pretrain(recipe_for(shared_data), tmp_path)
    assert (report.resumed_from, report.steps) == (3, 8)
    assert losses_of(tmp_path) == losses_of(whole[0])
    for name, x in weights_of(whole[0] / "model").items():
        assert torch.equal(x, weights_of(tmp_path / "model")[name]), name
    assert [x.name for x in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]


@pytest.mark.slow
def test_a_command_that_is_terminated_saves_and_says_so(shared_data, tmp_path, start_command):
    recipe = write_recipe(tmp_path / "recipe.toml", settings(shared_data))
    out = tmp_path / "out"
    running = start_command(["pretrain", "--config", recipe, "--out", out, "--steps", 1_000_000])
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(lines_of(out)) > 3, running)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 130, errors
    assert "the same command goes on" in errors
    last = losses_of(out)
    newest = sorted((out / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "training.json").read_text())["step"] == len(last)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(shared_data, tmp_path, start_command):
    tables = {"dropout": NO_DROPOUT, "mixing": {"probability": 0.9}, "masking": {"equal": False}}
    pretrain(recipe_for(shared_data, **tables, run={"batch": 4, "accumulate": 2, "steps": 4}), tmp_path / "one")
    values = settings(shared_data, **tables, run={"batch": 2, "accumulate": 2, "steps": 4})
    recipe = write_recipe(tmp_path / "recipe.toml", values)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["pretrain", "--config", recipe, "--out", tmp_path / "two"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [start_command(command, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    said = [x.communicate(timeout=100) for x in running]
    assert [x.returncode for x in running] == [0, 0], said
    assert "4 of 4" in said[0][0]
    assert said[1][0] == ""
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    one, two = (weights_of(tmp_path / x / "model") for x in ("one", "two"))
    for name in one:
        # Adam turns rounding into steps of its own where a gradient is none but rounding: the bias of the keys.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    last_one, last_two = lines_of(tmp_path / "one")[-1]["valid"], lines_of(tmp_path / "two")[-1]["valid"]
    assert last_two == pytest.approx(last_one, rel=1e-3)


SHARED_IN_TWO_RUNS = """
import json, os, sys
from featurestore.training.pretrain import Recipe, pretrain

for steps, port in ((2, sys.argv[3]), (4, sys.argv[4])):
    os.environ["MASTER_PORT"] = port
    values = json.loads(sys.argv[1])
    values["run"]["steps"] = steps
    report = pretrain(Recipe.from_dict(values, source="the test"), sys.argv[2])
    print(report.resumed_from, report.steps)
"""


def free_ports(count):
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


@pytest.mark.slow
def test_two_processes_go_on_exactly_and_another_number_of_them_is_told(
    shared_data, tmp_path, caplog, start_process
):
    tables = {
        "dropout": NO_DROPOUT,
        "masking": {"equal": False},
        "optimizer": {"power": 0.0},  # whatever the number of steps is
    }
    pretrain(recipe_for(shared_data, **tables, run={"batch": 4, "steps": 4}), tmp_path / "one")
    values = settings(shared_data, **tables, run={"batch": 2})
    command = ["-c", SHARED_IN_TWO_RUNS, json.dumps(values), tmp_path / "two", *free_ports(2)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    running = [start_process(command, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    said = [x.communicate(timeout=200) for x in running]
    assert [x.returncode for x in running] == [0, 0], said
    assert said[0][0] == said[1][0] == "0 2\n2 4\n"
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    caplog.clear()
    report = pretrain(recipe_for(shared_data, **tables, run={"batch": 2, "steps": 5}), tmp_path / "two")
    assert (report.resumed_from, report.steps) == (4, 5)
    assert "other settings: run.steps, the number of processes (2, now 1)" in caplog.text


@pytest.mark.slow
def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(whole, shared_data, tmp_path):
    def fail(encoder):
        raise ZeroDivisionError

    recipe = recipe_for(shared_data)
    with pytest.raises(ZeroDivisionError):
        pretrain(recipe, tmp_path, probe=fail)
    report = pretrain(recipe, tmp_path)
    assert (report.resumed_from, report.steps) == (8, 8)
    assert report.valid == whole[1].valid
    assert lines_of(tmp_path)[-1]["valid"] == whole[1].valid
    assert pretrain(recipe, tmp_path).valid == {}  # it is there, and not computed again
    assert len(lines_of(tmp_path)) == 9


@pytest.mark.slow
def test_a_damaged_checkpoint_and_another_network_are_refused(shared_data, tmp_path):
    pretrain(recipe_for(shared_data, run={"steps": 2}), tmp_path)
    for name, tables in {
        r"model\.config": {"model": {"config": {**SMALL, "hidden_size": 32}}},
        r"cqt\.masked or cqt\.everywhere above 0": {"cqt": {"masked": 0.0}},
        r"cqt\.bins": {"cqt": {"bins": 40}},
        r"tokens\.dim": {"tokens": {"dim": 4}},
        r"data\.labels": {"data": {"labels": []}},
        "list of heads": {"heads": [{"name": "keys"}]},
    }.items():
        with pytest.raises(
            SettingError, match=rf"step-00000002 was trained with another {name}: .* `model.start='/"
        ):
            pretrain(recipe_for(shared_data, **tables), tmp_path)
    path = tmp_path / "checkpoints" / "step-00000002" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is damaged.*Remove .*step-00000002 to begin anew"):
        pretrain(recipe_for(shared_data, run={"steps": 3}), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training.json", "config.json", "model.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(whole, shared_data, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "checkpoints" / "step-00000099").mkdir()  # is none, without training.json
    damaged = out / "checkpoints" / "step-00000008" / name
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{name} .*Remove .*step-00000008 to go on from step-00000006"):
        pretrain(recipe_for(shared_data), out)
    shutil.rmtree(damaged.parent)
    assert pretrain(recipe_for(shared_data), out).resumed_from == 6
    assert losses_of(out) == losses_of(whole[0])


@pytest.mark.slow
def test_labels_that_have_got_other_classes_are_refused_on_the_way(own_data, tmp_path):
    pretrain(recipe_for(own_data, run={"steps": 1}), tmp_path)
    with (own_data / "dict.km.txt").open("a") as file:
        file.write("12 1\n")
    with pytest.raises(
        SettingError, match=r"label_embs_concat has shape \(12, 8\), but .* \(13, 8\).* `model.start='"
    ):
        pretrain(recipe_for(own_data, run={"steps": 2}), tmp_path)


@pytest.mark.slow
def test_a_training_goes_on_without_the_checkpoint_that_it_started_from(whole, shared_data, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(whole[0] / "model", start)
    for steps in (1, 2):
        recipe = recipe_for(shared_data, model={"start": str(start)}, run={"steps": steps, "probe": ""})
        report = pretrain(recipe, tmp_path / "out")
        shutil.rmtree(start, ignore_errors=True)
    assert (report.resumed_from, report.steps) == (1, 2)
    assert json.loads((report.model / "config.json").read_text()) == json.loads(
        (whole[0] / "model" / "config.json").read_text()
    )


@pytest.mark.slow
def test_settings_that_are_changed_on_the_way_are_told(whole, shared_data, tmp_path, caplog):
    pretrain(recipe_for(shared_data, run={"steps": 2}), tmp_path)
    caplog.clear()
    report = pretrain(recipe_for(shared_data, run={"steps": 3}, optimizer={"lr": 1e-4}), tmp_path)
    assert (report.resumed_from, report.steps) == (2, 3)
    assert "optimizer.lr, run.steps" in caplog.text
