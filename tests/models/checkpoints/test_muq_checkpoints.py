"""Checkpoints of MuQ and MusicFM are read strictly by name and shape, and never trusted."""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurestore.errors import CheckpointError, SettingError
from featurestore.models import MuqEncoder, load_model, save_random_checkpoint
from featurestore.models.checkpoints.config_muq import MuqConfig
from featurestore.models.checkpoints.shapes import MUQ_SHAPES, MUQ_STATISTICS

WAVE = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 4_000)).astype(np.float32))


@pytest.fixture
def muq(tmp_path, golden):
    """The golden checkpoint, to be tampered with."""
    return shutil.copytree(golden / "muq", tmp_path / "muq")


@pytest.fixture
def musicfm(tmp_path, golden):
    return shutil.copytree(golden / "musicfm", tmp_path / "musicfm")


def change_json(path, part=None, **changes):
    values = json.loads(path.read_text())
    place = values[part] if part else values
    place.update(changes)
    for key in [key for key, value in place.items() if value is ...]:
        del place[key]
    path.write_text(json.dumps(values))


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_what_is_known_of_a_checkpoint(muq, musicfm):
    for folder, file in ((muq, "model.safetensors"), (musicfm, "pretrained_fma.pt")):
        model = load_model(folder)
        assert (model.sample_rate, model.layers, model.dim, model.do_normalize) == (24_000, 3, 48, False)
        assert (model.name, model.revision, model.context_seconds) == (str(folder), None, 30.0)
        assert model.weights_sha256 == hashlib.sha256((folder / file).read_bytes()).hexdigest()
        assert not model.training
        assert not any(x.requires_grad for x in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["muq", "musicfm"])
def test_the_released_shapes(shape):
    with torch.device("meta"):
        model = MuqEncoder(
            MuqConfig.from_dict(MUQ_SHAPES[shape], MUQ_STATISTICS, source=shape, statistics_source=shape)
        )
    assert (model.layers, model.dim, model.context_seconds) == (12, 1024, 30.0)
    # pretrained_msd.pt has 1,316,802,088 bytes, of which the target, the head and names take the rest.
    parameters = sum(4 * x.numel() for x in model.network.state_dict().values())
    of_training = 4 * (1024 + 512 * 16 + 4096 * 16 + 4096 * 1025 + 1024 + 128 + 1024 * 64 * 128 + 18)
    assert parameters + of_training == pytest.approx(1_316_802_088, abs=200_000)


@pytest.mark.slow
def test_weights_of_training_may_be_left_out(muq):
    wanted = load_model(muq).hidden_states(WAVE)
    names = ("cls_token", "rvq.", "linear.", "pos_conv_embed.", "num_batches_tracked")
    state = load_file(muq / "model.safetensors")
    kept = {
        key: x for key, x in state.items() if not any(name in key.removeprefix("model.conv.") for name in names)
    }
    assert 0 < len(kept) < len(state) - 15
    kept |= {key: x for key, x in state.items() if key.startswith("model.conv.linear")}
    save_file(kept, muq / "model.safetensors")
    assert torch.equal(load_model(muq).hidden_states(WAVE), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_and_pickles_are_the_same_model(muq, suffix):
    states = load_model(muq).hidden_states(WAVE)
    state = load_file(muq / "model.safetensors")
    (muq / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    weight_map = {key: names[number % 2] for number, key in enumerate(state)}
    for name in names:
        part = {key: value for key, value in state.items() if weight_map[key] == name}
        (save_file if suffix == ".safetensors" else torch.save)(part, muq / name)
    (muq / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_model(muq).hidden_states(WAVE), states)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(muq, dtype):
    change_weights(muq, lambda s: s.update({k: v.to(dtype) for k, v in s.items() if v.is_floating_point()}))
    found = load_model(muq)
    assert {x.dtype for x in found.network.state_dict().values()} == {torch.float32}


def replace(key, change):
    return lambda state: state.update({key: change(state[key]).contiguous()})


LAYER = "model.conformer.layers.1."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop(f"{LAYER}conv_module.batch_norm.running_var"),
            r"lack 1 tensors.*batch_norm\.running_var",
        ),
        (lambda s: s.pop("model.conv.conv.0.bn3.weight"), r"lack 1 tensors.*model\.conv\.conv\.0\.bn3\.weight"),
        (lambda s: s.pop("model.conformer.layer_norm.bias"), r"lack 1 tensors.*model\.conformer\.layer_norm"),
        (
            lambda s: s.update({"model.conformer.layers.3.ffn1.output_dense.bias": torch.zeros(48)}),
            r"has not: model\.conformer\.layers\.3\.ffn1",
        ),
        (
            lambda s: s.update({"layers.0.ffn1.w_1.bias": torch.zeros(96)}),
            r"has not: layers\.0\.ffn1\.w_1\.bias",
        ),
        (
            lambda s: s.update({"model.preprocessor_melspec_2048.mel_stft.mel_std": torch.ones(128)}),
            r"has not: model\.preprocessor_melspec_2048\.mel_stft\.mel_std",
        ),
        (lambda s: s.update({"model.mulan.weight": torch.zeros(1)}), r"has not: model\.mulan\.weight"),
        (replace(f"{LAYER}self_attn.linear_k.weight", lambda x: x[:32]), r"linear_k\.weight has shape \(32, 48\)"),
        (replace("model.conv.linear.weight", lambda x: x.T), r"linear\.weight has shape \(256, 48\)"),
        (
            replace(f"{LAYER}conv_module.depthwise_conv.weight", lambda x: x[:, :, :8]),
            r"depthwise_conv\.weight has shape \(48, 1, 8\)",
        ),
        (
            replace(f"{LAYER}ffn2.output_dense.bias", lambda x: x.int()),
            r"output_dense\.bias is of type torch\.int32",
        ),
        (replace("model.conv.conv.1.bn2.running_mean", lambda x: x * torch.nan), "running_mean holds NaN or inf"),
        (replace("model.conv.conv.1.bn2.running_var", lambda x: x / 0), "running_var holds NaN or infinity"),
        (replace(f"{LAYER}conv_module.batch_norm.running_var", lambda x: -x), "holds a negative variance"),
        (replace("model.conformer.embed_positions.inv_freq", lambda x: x / 0), "inv_freq holds NaN or infinity"),
        (replace("model.conformer.embed_positions.inv_freq", lambda x: x[:5]), r"inv_freq has shape \(5,\)"),
    ],
)
def test_weights_that_do_not_fit(muq, change, message):
    change_weights(muq, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(muq)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"hop_length": 0}, "hop_length must be a whole number from 1"),
        (None, {"hop_length": -240}, "hop_length"),
        (None, {"hop_length": 240.0}, "hop_length"),
        (None, {"hop_length": 10**9}, "hop_length"),
        (None, {"n_mels": 126}, "n_mels 126 is no multiple of 4"),
        (None, {"n_mels": 10**9}, "n_mels"),
        (None, {"conv_dim": 10**9}, "conv_dim must be a whole number from 1 to 65536, not 1000000000"),
        (None, {"encoder_dim": 10**9}, "encoder_dim must be a whole number from 1 to 65536, not 1000000000"),
        (None, {"encoder_dim": 44}, "even size of heads"),
        (None, {"encoder_depth": 10**6}, "encoder_depth"),
        (None, {"encoder_depth": "3"}, "encoder_depth"),
        (None, {"label_rate": 75}, "label_rate 75 is not supported, only 25 and 50 are"),
        (None, {"label_rate": 0}, "label_rate"),
        (None, {"w2v2_config": "rope"}, "w2v2_config is not a JSON object"),
        (None, {"stat": ...}, "stat is not a JSON object"),
        (None, {"model_type": "speech_to_text"}, "model_type 'speech_to_text'"),
        ("w2v2_config", {"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size must be odd, not 30"),
        ("w2v2_config", {"conv_depthwise_kernel_size": 10**9 + 1}, "conv_depthwise_kernel_size"),
        ("w2v2_config", {"num_attention_heads": 48}, "even size of heads"),
        ("w2v2_config", {"num_attention_heads": 16}, "even size of heads"),
        ("w2v2_config", {"num_attention_heads": 0}, "num_attention_heads"),
        ("w2v2_config", {"num_attention_heads": ...}, "does not say num_attention_heads"),
        ("w2v2_config", {"intermediate_size": 10**9}, "intermediate_size"),
        ("w2v2_config", {"hidden_act": "relu"}, "hidden_act must be one of gelu, silu, swish, not 'relu'"),
        ("w2v2_config", {"hidden_act": ["gelu"]}, "hidden_act"),
        ("w2v2_config", {"position_embeddings_type": "relative"}, "must be one of rotary, not 'relative'"),
        ("w2v2_config", {"rotary_embedding_base": 0}, "rotary_embedding_base must be a number from 1"),
        ("w2v2_config", {"rotary_embedding_base": float("nan")}, "rotary_embedding_base"),
        ("w2v2_config", {"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ("stat", {"melspec_2048_mean": float("nan")}, "stat: melspec_2048_mean must be a number"),
        ("stat", {"melspec_2048_mean": ...}, "stat does not say melspec_2048_mean"),
        ("stat", {"melspec_2048_std": float("inf")}, "melspec_2048_std must be a number"),
        ("stat", {"melspec_2048_std": 0}, "melspec_2048_std must be a number from 1e-05"),
        ("stat", {"melspec_2048_std": -18.4}, "melspec_2048_std"),
        ("stat", {"melspec_2048_std": "18.4"}, "melspec_2048_std"),
    ],
)
def test_settings_that_cannot_be(muq, part, changes, message):
    change_json(muq / "config.json", part, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(muq)


@pytest.mark.slow
def test_settings_that_may_be_left_out(muq):
    wanted = load_model(muq).hidden_states(WAVE)
    change_json(muq / "config.json", hop_length=..., n_mels=..., label_rate=..., features=..., model_type=None)
    change_json(muq / "config.json", "w2v2_config", layer_norm_eps=..., model_type=..., hidden_size=...)
    assert torch.equal(load_model(muq).hidden_states(WAVE), wanted)


class TestMusicfmFolder:
    """Statistics and weights by their released names."""

    @pytest.mark.slow
    def test_the_million_song_dataset_comes_first(self, musicfm):
        fma = load_model(musicfm)
        state = torch.load(musicfm / "pretrained_fma.pt", weights_only=True)
        state["state_dict"]["model.conv.linear.bias"] += 1
        torch.save(state, musicfm / "pretrained_msd.pt")
        assert load_model(musicfm).weights_sha256 == fma.weights_sha256  # without its statistics
        shutil.copy(musicfm / "fma_stats.json", musicfm / "msd_stats.json")
        msd = load_model(musicfm)
        assert msd.weights_sha256 == hashlib.sha256((musicfm / "pretrained_msd.pt").read_bytes()).hexdigest()
        assert msd.weights_sha256 != fma.weights_sha256

    @pytest.mark.slow
    def test_safetensors_come_before_the_pickle(self, musicfm):
        wanted = load_model(musicfm).hidden_states(WAVE)
        state = torch.load(musicfm / "pretrained_fma.pt", weights_only=True)["state_dict"]
        save_file(state, musicfm / "pretrained_fma.safetensors")
        (musicfm / "pretrained_fma.pt").write_bytes(b"not read")
        assert torch.equal(load_model(musicfm).hidden_states(WAVE), wanted)

    @pytest.mark.parametrize("file", ["fma_stats.json", "pretrained_fma.pt"])
    def test_one_without_the_other(self, musicfm, file):
        (musicfm / file).unlink()
        with pytest.raises(
            CheckpointError, match=r"holds neither msd_stats\.json with pretrained_msd\.pt nor fma"
        ):
            load_model(musicfm)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"melspec_2048_std": 0}, r"fma_stats\.json: melspec_2048_std must be a number from 1e-05"),
            ({"melspec_2048_std": float("nan")}, r"fma_stats\.json: melspec_2048_std"),
            ({"melspec_2048_mean": float("-inf")}, r"fma_stats\.json: melspec_2048_mean"),
            ({"melspec_2048_mean": ...}, r"fma_stats\.json does not say melspec_2048_mean"),
        ],
    )
    def test_statistics_that_cannot_be(self, musicfm, changes, message):
        change_json(musicfm / "fma_stats.json", **changes)
        with pytest.raises(CheckpointError, match=message):
            load_model(musicfm)

    def test_the_released_shape_needs_no_config(self, musicfm):
        (musicfm / "config.json").unlink()
        with pytest.raises(
            CheckpointError, match=r"lack \d+ tensors of this network: model\.conformer\.layers\.10"
        ):
            load_model(musicfm)

    def test_a_filter_that_is_not_finite(self, musicfm):
        state = torch.load(musicfm / "pretrained_fma.pt", weights_only=True)
        state["state_dict"]["model.preprocessor_melspec_2048.mel_stft.mel_scale.fb"][3, 0] = torch.nan
        torch.save(state, musicfm / "pretrained_fma.pt")
        with pytest.raises(CheckpointError, match=r"mel_scale\.fb holds NaN or infinity"):
            load_model(musicfm)

    def test_a_pickle_that_would_run_code(self, musicfm, tmp_path):
        target = tmp_path / "executed"

        class Hostile:
            def __reduce__(self):
                return open, (str(target), "w")

        with open(musicfm / "pretrained_fma.pt", "wb") as file:
            pickle.dump({"state_dict": Hostile()}, file)
        with pytest.raises(
            CheckpointError, match=r"unsafe, nothing of it was executed.*weights_only=False"
        ) as raised:
            load_model(musicfm)
        assert not target.exists()
        assert "pretrained_fma.safetensors" in str(raised.value)

    def test_a_pickle_without_tensors(self, musicfm):
        torch.save({"state_dict": {"model.cls_token": 1}}, musicfm / "pretrained_fma.pt")
        with pytest.raises(CheckpointError, match="something else than tensors"):
            load_model(musicfm)

    @pytest.mark.slow
    def test_the_line_of_the_error_makes_what_is_read(self, musicfm):
        from featurestore.models.checkpoints.native import convert_command

        wanted = load_model(musicfm).hidden_states(WAVE)
        program = convert_command(musicfm / "pretrained_fma.pt").removeprefix('python -c "').removesuffix('"')
        exec(program)
        assert (musicfm / "pretrained_fma.safetensors").is_file()
        assert torch.equal(load_model(musicfm).hidden_states(WAVE), wanted)

    def test_a_folder_of_muq_beside_it_is_muq(self, muq, musicfm):
        for file in ("fma_stats.json", "pretrained_fma.pt"):
            shutil.copy(musicfm / file, muq / file)
        wanted = hashlib.sha256((muq / "model.safetensors").read_bytes()).hexdigest()
        assert load_model(muq).weights_sha256 == wanted


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["muq-tiny", "musicfm-tiny"])
def test_random_checkpoints_are_deterministic_and_alive(tmp_path, shape):
    one = save_random_checkpoint(tmp_path / "one", shape=shape, seed=3)
    same = save_random_checkpoint(tmp_path / "same", shape=MUQ_SHAPES[shape], seed=3, do_normalize=False)
    other = save_random_checkpoint(tmp_path / "other", shape=shape, seed=4)
    files = sorted(path.name for path in one.iterdir())
    assert files == (
        ["config.json", "model.safetensors"]
        if shape == "muq-tiny"
        else ["config.json", "msd_stats.json", "pretrained_msd.pt"]
    )
    for name in files:
        assert (one / name).read_bytes() == (same / name).read_bytes()
    states = load_model(one).hidden_states(WAVE)
    assert (states - load_model(other).hidden_states(WAVE)).abs().max() > 0.1
    assert (states.std(dim=2) > 1e-3).float().mean() > 0.9  # frames differ
    with pytest.raises(SettingError, match=r"Mu(Q|sicFM) does not hear normalised audio"):
        save_random_checkpoint(tmp_path / "normal", shape=shape, do_normalize=True)
