"""A checkpoint of MERT-v2 is read strictly by name and shape, and never trusted; its code is never run."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurestore import FeatureExtractor
from featurestore.errors import CheckpointError, SettingError
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.config_mert2 import Mert2Config
from featurestore.models.checkpoints.shapes import MERT2_SHAPES
from featurestore.models.mert2 import Mert2Encoder

WAVE = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 4_000)).astype(np.float32))


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint of its own, to be tampered with."""
    return save_random_checkpoint(tmp_path / "mert2", shape="mert2-tiny")


def change_json(path, **changes):
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_what_is_known_of_a_checkpoint(folder):
    model = load_model(folder)
    assert (model.sample_rate, model.layers, model.dim, model.do_normalize) == (24_000, 3, 64, False)
    assert (model.name, model.revision, model.context_seconds) == (str(folder), None, 30.0)
    assert model.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert not model.training
    assert not any(x.requires_grad for x in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "seconds"), [("mert2-30s", 30.0), ("mert2-fs", 360.0)])
def test_the_released_shapes(shape, seconds):
    with torch.device("meta"):
        model = Mert2Encoder(Mert2Config.from_dict(MERT2_SHAPES[shape], source=shape), sample_rate=24_000)
    assert (model.layers, model.dim, model.context_seconds) == (24, 1024, seconds)
    # The released file of 2,529,812,848 bytes less its header.
    assert sum(4 * x.numel() for x in model.network.state_dict().values()) == 2_529_717_248


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_and_pickles_are_the_same_model(folder, suffix):
    states = load_model(folder).hidden_states(WAVE)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    weight_map = {key: names[number % 2] for number, key in enumerate(state)}
    for name in names:
        part = {key: value for key, value in state.items() if weight_map[key] == name}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / name)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_model(folder).hidden_states(WAVE), states)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(folder, dtype):
    change_weights(folder, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    found = load_model(folder)
    assert {x.dtype for x in found.network.state_dict().values()} == {torch.float32}
    change_weights(folder, lambda state: state.update({k: v.float() for k, v in state.items()}))
    assert torch.equal(found.hidden_states(WAVE), load_model(folder).hidden_states(WAVE))


def replace(key, change):
    return lambda state: state.update({key: change(state[key]).contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layers.1.conv_module.conv_block.4.1.bias"),
            r"lack 1 tensors.*layers\.1\.conv_module\.conv_block\.4\.1\.bias",
        ),
        (lambda s: s.pop("feature_extractor.mel_std"), r"lack 1 tensors.*feature_extractor\.mel_std"),
        (lambda s: s.update({"layers.3.ffn1.w_1.bias": torch.zeros(128)}), r"has not: layers\.3\.ffn1\.w_1\.bias"),
        (
            lambda s: s.update({"subsampling_module.0.resampling_layer.0.bias": torch.zeros(32)}),
            r"has not: subsampling_module\.0\.resampling_layer\.0\.bias",
        ),
        (
            replace("subsampling_module.2.convnext_layers.0.pointwise_block.3.weight", lambda x: x[0, 0]),
            r"pointwise_block\.3\.weight has shape \(256,\), but config\.json asks for \(1, 1, 256\)",
        ),
        (replace("layers.0.attn.key_proj.weight", lambda x: x[:32]), r"key_proj\.weight has shape \(32, 64\)"),
        (replace("feature_extractor.mel_scale.fb", lambda x: x.T), r"fb has shape \(32, 1025\)"),
        (replace("layers.0.ffn2.w_2.bias", lambda x: x.int()), r"ffn2\.w_2\.bias is of type torch\.int32"),
        (replace("feature_extractor.mel_mean", lambda x: x * torch.nan), "mel_mean holds NaN or infinity"),
        (replace("feature_extractor.mel_std", lambda x: x / 0), "mel_std holds NaN or infinity"),
        (replace("feature_extractor.mel_std", lambda x: x.double() * 1e300), "mel_std holds NaN or infinity"),
        (replace("feature_extractor.spectrogram.window", lambda x: x / 0), "window holds NaN or infinity"),
        (replace("feature_extractor.mel_scale.fb", lambda x: x / 0), "fb holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_length": 0}, "hop_length must be a whole number from 1"),
        ({"hop_length": -240}, "hop_length"),
        ({"hop_length": 240.0}, "hop_length"),
        ({"hop_length": ...}, "does not say hop_length"),
        ({"n_fft": 0}, "n_fft"),
        ({"n_fft": 2_047, "win_length": 2_047}, "n_fft must be even"),
        ({"n_fft": 10**9}, "n_fft"),
        ({"win_length": 2_049}, "win_length must be a whole number from 1 to 2048"),
        ({"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size must be odd, not 30"),
        ({"conv_depthwise_kernel_size": 10**9 + 1}, "conv_depthwise_kernel_size"),
        ({"num_attention_heads": 64}, "even size of heads"),
        ({"num_attention_heads": 5}, "even size of heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": 10**9}, "hidden_size must be a whole number from 1 to 65536, not 1000000000"),
        ({"intermediate_size": 10**9}, "intermediate_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"num_mel_bins": 10**9}, "num_mel_bins"),
        ({"num_mel_bins": 31}, "must begin with num_mel_bins 31"),
        ({"subsampling_channels": [32, 48, 60]}, "end with hidden_size 64"),
        ({"subsampling_channels": [32, 10**9, 64]}, "subsampling_channels"),
        ({"subsampling_channels": [32, 64]}, "3 numbers each"),
        ({"subsampling_channels": 64}, "subsampling_channels must be a list"),
        ({"subsampling_depths": [1, 2, 1, 1]}, "3 numbers each"),
        ({"subsampling_depths": [1, 0, 1]}, "subsampling_depths"),
        ({"subsampling_depths": [1, 60_000, 1]}, "subsampling_depths must be at most 512"),
        ({"rotary_embedding_base": 0}, "rotary_embedding_base must be a number from 1"),
        ({"rotary_embedding_base": float("nan")}, "rotary_embedding_base"),
        ({"rotary_embedding_base": float("inf")}, "rotary_embedding_base"),
        ({"rotary_embedding_base": "10000"}, "rotary_embedding_base"),
        ({"rotary_embedding_base": ...}, "does not say rotary_embedding_base"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"subsampling_layer_norm_eps": True}, "subsampling_layer_norm_eps"),
        ({"variant": "60s"}, "variant must be one of 30s, fs"),
        ({"context_seconds": float("nan")}, "context_seconds"),
        ({"context_seconds": 1e30}, "context_seconds"),
        ({"context_seconds": ..., "variant": ...}, "does not say context_seconds"),
        ({"hop_length": 60_000, "context_seconds": 0.5}, "context_seconds 0.5 is less than the shortest window"),
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"sampling_rate": 48_000}, "24000 Hz, but config.json says 48000 Hz"),
    ],
)
def test_settings_that_cannot_be(folder, changes, message):
    change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"context_seconds": ...}, 30.0),
        ({"context_seconds": ..., "variant": "fs"}, 360.0),
        ({"context_seconds": 12, "variant": ...}, 12.0),
        ({"win_length": ..., "layer_norm_eps": ..., "subsampling_layer_norm_eps": ...}, 30.0),
    ],
)
def test_settings_that_may_be_left_out(folder, changes, seconds):
    wanted = load_model(folder).hidden_states(WAVE)
    change_json(folder / "config.json", **changes)
    model = load_model(folder)
    assert model.context_seconds == seconds
    assert torch.equal(model.hidden_states(WAVE), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": ...},
        {"feature_extractor_type": "MERT2FeatureExtractor", "processor_class": "MERT2Processor"},
        {"feature_extractor_type": ..., "auto_map": {"AutoFeatureExtractor": "processing_mert2.MERT2Processor"}},
        {"sampling_rate": ..., "do_normalize": ..., "feature_extractor_type": ...},
    ],
)
def test_a_processor_of_any_class_where_the_rate_is_known(folder, changes):
    wanted = load_model(folder).hidden_states(WAVE)
    change_json(folder / "preprocessor_config.json", **changes)
    model = load_model(folder)
    assert (model.sample_rate, model.do_normalize) == (24_000, False)
    assert torch.equal(model.hidden_states(WAVE), wanted)


@pytest.mark.slow
def test_the_rate_of_a_processor_is_enough(folder):
    change_json(folder / "config.json", sampling_rate=...)
    assert load_model(folder).sample_rate == 24_000
    change_json(folder / "preprocessor_config.json", sampling_rate=...)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json does not say sampling_rate"):
        load_model(folder)


def test_no_processor_is_needed_as_the_rate_is_known(folder):
    (folder / "preprocessor_config.json").unlink()
    assert load_model(folder).sample_rate == 24_000
    change_json(folder / "config.json", sampling_rate=...)
    assert load_model(folder).sample_rate == 24_000


def test_normalised_audio_is_refused(folder):
    change_json(folder / "preprocessor_config.json", do_normalize=True)
    with pytest.raises(CheckpointError, match="MERT-v2 does not hear normalised audio"):
        load_model(folder)
    with pytest.raises(SettingError, match="MERT-v2 does not hear normalised audio"):
        save_random_checkpoint(folder, shape="mert2-tiny", do_normalize=True)


@pytest.mark.slow
def test_code_of_the_repository_is_never_run(folder, tmp_path):
    target = tmp_path / "executed"
    for name in ("modeling_mert2.py", "configuration_mert2.py"):
        (folder / name).write_text(f"open({str(target)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "configuration_mert2.MERT2Config", "AutoModel": "modeling_mert2.MERT2Model"}
    change_json(folder / "config.json", auto_map=auto_map)
    load_model(folder).hidden_states(WAVE)
    assert not target.exists()


@pytest.mark.slow
def test_random_checkpoints_are_deterministic_and_alive(tmp_path):
    one = save_random_checkpoint(tmp_path / "one", shape="mert2-tiny", seed=3)
    same = save_random_checkpoint(tmp_path / "same", shape=MERT2_SHAPES["mert2-tiny"], seed=3, do_normalize=False)
    other = save_random_checkpoint(tmp_path / "other", shape="mert2-tiny", seed=4)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
    states = load_model(one).hidden_states(WAVE)
    assert (states - load_model(other).hidden_states(WAVE)).abs().max() > 0.1
    assert (states.std(dim=2) > 1e-3).float().mean() > 0.9  # frames differ


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_callers_default_type_changes_nothing(folder, dtype):
    wanted = load_model(folder).hidden_states(WAVE)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = load_model(folder).hidden_states(WAVE)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, wanted)


@pytest.mark.slow
def test_the_last_of_24_blocks_is_state_24(tmp_path):
    shape = {**MERT2_SHAPES["mert2-tiny"], "num_hidden_layers": 24}
    model = load_model(save_random_checkpoint(tmp_path / "deep", shape=shape))
    assert FeatureExtractor(model=model, layers=[24]).spec().layers == (24,)
    with pytest.raises(SettingError, match=r"`layers` has 25, which does not exist; .* has layers 0 to 24"):
        FeatureExtractor(model=model, layers=[25])
