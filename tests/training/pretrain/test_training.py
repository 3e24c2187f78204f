"""Training: it learns, goes on from released models, and says what is wrong."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from featurestore import load_model
from featurestore.errors import DeviceError, SettingError, SourceError, TrainingError
from featurestore.models import save_random_checkpoint
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.kernels import fidelity
from featurestore.training.pretrain import pretrain, training
from featurestore.training.pretrain.losses import losses
from featurestore.training.pretrain.settings import OptimizerSettings
from featurestore.training.pretrain.updates import learning_rate
from tests.training.pretrain.conftest import (
    GOLDEN,
    NO_DROPOUT,
    SMALL,
    lines_of,
    losses_of,
    make_data,
    recipe_for,
    weights_of,
)


@pytest.mark.slow
def test_a_training_writes_metrics_checkpoints_and_a_model(whole):
    out, report = whole
    assert (report.steps, report.total, report.resumed_from, report.interrupted) == (8, 8, 0, False)
    assert report.model == out / "model"
    *steps, evaluation = lines_of(out)
    assert [x["step"] for x in steps] == list(range(1, 9))
    for line in steps:
        assert {"km", "features", "cqt", "keys", "odd", "lr", "gradient norm", "epoch"} <= line.keys()
        assert set(line["shares of time"]) >= {"reading", "model", "update"}
    assert evaluation["valid"].keys() >= {"loss", "km", "cqt", "effective rank", "probe"}
    assert report.valid == evaluation["valid"]
    assert [x.name for x in sorted((out / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]


@pytest.mark.slow
def test_every_checkpoint_and_the_model_open_like_released_ones(whole, shared_data):
    out, _ = whole
    for folder in (out / "checkpoints" / "step-00000006", out / "model"):
        model = load_model(folder)
        assert (model.layers, model.dim, model.sample_rate, model.do_normalize) == (2, 16, 24_000, False)
        assert torch.isfinite(model.hidden_states(torch.randn(1, 12_000))).all()
    weights = weights_of(out / "model")
    assert {f"encoder.pos_conv_embed.conv.weight_{x}" for x in "gv"} | {"masked_spec_embed"} <= weights.keys()
    assert sorted(x.name for x in (out / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.slow
def test_it_learns_a_handful_of_clips_by_heart(tmp_path):
    data = make_data(tmp_path / "music", files=2, seconds=1.0)
    recipe = recipe_for(
        data,
        dropout=NO_DROPOUT,
        mixing={"probability": 0.0},
        masking={"probability": 0.3},
        model={"config": {**SMALL, "hidden_size": 32, "intermediate_size": 64}},
        feature_gradient=1.0,
        feature_penalty=0.0,
        cqt={"scale": "log"},
        optimizer={"lr": 1e-2, "warmup": 10},
        run={"steps": 150, "batch": 2, "checkpoint_every": 1000, "evaluate_every": 1000},
    )
    pretrain(recipe, tmp_path / "out")
    first, last = (x for x in lines_of(tmp_path / "out")[:-1] if x["step"] in (1, 150))
    assert last["km"] < 0.3 < 2 < first["km"]
    assert last["keys"] < 0.2 < 0.5 < first["keys"]
    assert last["cqt"] < 0.25 * first["cqt"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_full(whole, shared_data, tmp_path, precision, grouped_convolutions):
    with grouped_convolutions() as seen:
        pretrain(recipe_for(shared_data, run={"precision": precision}), tmp_path)
    assert all(types == {torch.float32} for types in seen)
    assert losses_of(tmp_path) == pytest.approx(losses_of(whole[0]), rel=0.02)
    if precision == "fp16":
        saved = json.loads((tmp_path / "checkpoints" / "step-00000008" / "training.json").read_text())
        assert saved["scaler"]["scale"] > 1


@pytest.mark.slow
def test_half_precision_is_compared_with_full_before_the_first_step(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "LEAST_COSINE", 1.1)  # more than there is
    with pytest.raises(SettingError, match=r'run\.precision bf16 is far .* use run\.precision = "fp32"'):
        pretrain(recipe_for(shared_data, run={"precision": "bf16"}), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    pretrain(recipe_for(shared_data, run={"precision": "fp32", "steps": 1}), tmp_path)  # is not compared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_v1", "large_v1"])
def test_a_released_checkpoint_is_gone_on_from(shared_data, tmp_path, name, assert_states_close):
    """Nothing but training changes it: with a learning rate of 0 the same hidden states come out."""
    model = {"start": str(GOLDEN / name)}
    recipe = recipe_for(shared_data, model=model, optimizer={"lr": 0.0}, run={"steps": 1, "batch": 2})
    before = load_model(GOLDEN / name)
    if before.sample_rate != 24_000:
        pytest.fail("the data are made for 24 kHz")
    after = load_model(pretrain(recipe, tmp_path / "same").model)
    wave = torch.randn(2, 12_000)
    assert_states_close(after.hidden_states(wave), before.hidden_states(wave))
    assert after.do_normalize == before.do_normalize
    assert json.loads((tmp_path / "same" / "model" / "config.json").read_text()) == json.loads(
        (GOLDEN / name / "config.json").read_text()
    )


@pytest.mark.slow
def test_a_released_checkpoint_at_16_khz_is_gone_on_from(tmp_path):
    """Such as MERT v0: 50 frames a second."""
    start = save_random_checkpoint(
        tmp_path / "start", shape={**SHAPES["tiny"], **SMALL, "sample_rate": 16_000}, do_normalize=True
    )
    data = make_data(tmp_path / "music", files=3, rate=16_000)
    recipe = recipe_for(data, model={"start": str(start)}, run={"steps": 2, "batch": 2})
    report = pretrain(recipe, tmp_path / "out")
    model = load_model(report.model)
    assert (model.sample_rate, model.do_normalize, model.frames(16_000)) == (16_000, True, 49)
    assert report.valid["probe"] < 1
    assert len(losses_of(tmp_path / "out")) == 2
    recipe = recipe_for(make_data(tmp_path / "faster", files=3), model={"start": str(start)})
    with pytest.raises(SourceError, match=r"labels for the 1\.20 s of .* 75\.00 a second, not 50"):
        pretrain(recipe, tmp_path / "other")


@pytest.mark.slow
def test_a_released_checkpoint_with_a_pickle_of_weights_is_gone_on_from(
    shared_data, tmp_path, assert_states_close
):
    start = tmp_path / "start"
    start.mkdir()
    for name in ("config.json", "preprocessor_config.json", "pytorch_model.bin"):
        shutil.copy(GOLDEN / "base_v1" / name, start)
    for steps in (1, 2):
        recipe = recipe_for(
            shared_data, model={"start": str(start)}, optimizer={"lr": 0.0}, run={"steps": steps, "batch": 2}
        )
        report = pretrain(recipe, tmp_path / "out")
    assert (report.resumed_from, report.steps) == (1, 2)
    wave = torch.randn(2, 12_000)
    before, after = load_model(start), load_model(report.model)
    assert_states_close(after.hidden_states(wave), before.hidden_states(wave))
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.slow
def test_a_new_training_begins_with_weights_mask_and_heads_of_another(whole, shared_data, tmp_path):
    out, _ = whole
    checkpoint = out / "checkpoints" / "step-00000008"
    recipe = recipe_for(shared_data, model={"start": str(checkpoint)}, optimizer={"lr": 0.0}, run={"steps": 1})
    pretrain(recipe, tmp_path)
    new = tmp_path / "checkpoints" / "step-00000001"
    heads = [load_file(x / "training.safetensors") for x in (checkpoint, new)]
    names = [x for x in heads[0] if x.startswith("heads.")]
    assert names
    assert all(torch.equal(heads[0][x], heads[1][x]) for x in names)
    assert torch.equal(weights_of(checkpoint)["masked_spec_embed"], weights_of(new)["masked_spec_embed"])


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_it_and_names_the_windows(own_data, tmp_path):
    wave, rate = soundfile.read(own_data / "train1.wav", dtype="float32")
    wave[len(wave) // 2] = np.nan
    soundfile.write(own_data / "train1.wav", wave, rate, subtype="FLOAT")
    recipe = recipe_for(own_data, cqt={"masked": 0.0}, run={"batch": 3, "steps": 50})
    with pytest.raises(TrainingError, match=r"step \d+ is no number.*train1\.wav at \d") as caught:
        pretrain(recipe, tmp_path)
    assert lines_of(tmp_path)[-1]["diverged"]
    assert "optimizer.lr" in str(caught.value)


@pytest.mark.slow
def test_gradients_that_are_no_numbers_stop_it_in_float16_too(shared_data, tmp_path, monkeypatch):
    """The scaler skips such updates; a root of 0 has a finite loss and no finite gradient."""

    def rootless(states, *arguments):
        total, terms = losses(states, *arguments)
        return total + torch.sqrt(0 * states[-1].float().sum()), terms

    monkeypatch.setattr(training, "losses", rootless)
    recipe = recipe_for(shared_data, run={"steps": 60, "batch": 2, "precision": "fp16", "probe": ""})
    with pytest.raises(TrainingError, match=r"the gradient of step 30 is no number.*train\d\.wav at \d"):
        pretrain(recipe, tmp_path)
    *steps, last = lines_of(tmp_path)
    assert last["diverged"]
    assert [x["gradient norm"] for x in steps] == [None] * 29


@pytest.mark.slow
def test_a_file_of_valid_that_holds_no_numbers_is_named_before_the_first_step(own_data, tmp_path):
    wave, rate = soundfile.read(own_data / "valid1.wav", dtype="float32")
    wave[len(wave) // 2] = np.nan
    soundfile.write(own_data / "valid1.wav", wave, rate, subtype="FLOAT")
    for masked in (0.0, 1.0):
        with pytest.raises(
            SourceError, match=r"valid1\.wav, line 3 of .*valid\.tsv, has samples that are no numbers"
        ):
            pretrain(recipe_for(own_data, cqt={"masked": masked}, run={"valid_windows": 12}), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_labels_of_other_classes_in_valid_are_refused(own_data, tmp_path):
    labels = np.load(own_data / "valid.keys.npy")
    np.save(own_data / "valid.keys.npy", labels[:, :7])
    with pytest.raises(SourceError, match=r"valid\.keys\.npy has 7 classes, but .*train\.keys\.npy has 12"):
        pretrain(recipe_for(own_data), tmp_path)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_named(shared_data, tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(SettingError, match=r"step-00000001 cannot be written"):
        pretrain(recipe_for(shared_data, run={"steps": 1}), tmp_path)


@pytest.mark.slow
def test_a_folder_that_cannot_be_the_output_is_named(shared_data, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(SettingError, match=rf"{out} cannot be the folder of the output .*: give another one"):
            pretrain(recipe_for(shared_data), out)
    (tmp_path / "out" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(SettingError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        pretrain(recipe_for(shared_data), tmp_path / "out")


def test_a_hidden_state_that_there_is_not_is_refused(shared_data, tmp_path):
    for tables in ({"cqt": {"layer": 3}}, {"heads": [{"name": "keys", "layer": -4}]}):
        with pytest.raises(SettingError, match=r"layer.* must be from 0 to 2, or -1"):
            pretrain(recipe_for(shared_data, run={"probe": ""}, **tables), tmp_path)


def test_a_device_that_is_not_there_is_refused(shared_data, tmp_path):
    with pytest.raises(DeviceError, match="`device` must be"):
        pretrain(recipe_for(shared_data), tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no device cuda:0"):
            pretrain(recipe_for(shared_data), tmp_path, device="cuda")


def test_the_learning_rate_warms_up_and_decays():
    settings = OptimizerSettings(lr=1.0, warmup=10, end_lr=0.1, power=1.0)
    rates = [learning_rate(step, 110, settings) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert learning_rate(500, 110, settings) == pytest.approx(0.1)


@pytest.mark.slow
def test_a_probe_of_ones_own_goes_into_the_metrics(shared_data, tmp_path):
    report = pretrain(
        recipe_for(shared_data, run={"steps": 1}), tmp_path, probe=lambda encoder: {"own": float(encoder.dim)}
    )
    assert report.valid["own"] == 16.0


@pytest.mark.slow
def test_convolutions_that_are_not_to_learn_stay_as_they_are(whole, shared_data, tmp_path):
    checkpoint = whole[0] / "checkpoints" / "step-00000008"
    model = {"start": str(checkpoint)}
    for steps in (2, 4):  # the second call goes on from the first
        pretrain(recipe_for(shared_data, model=model, feature_gradient=0.0, run={"steps": steps}), tmp_path)
    before, after = weights_of(checkpoint), weights_of(tmp_path / "model")
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("feature_extractor."), name
