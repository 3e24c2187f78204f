"""A checkpoint is read strictly, never executed, and never trusted."""

import hashlib
import json
import os
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from featurestore.errors import CheckpointError, ModelError, SettingError
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.shapes import SHAPES

WAVE = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 2_000)).astype(np.float32))


def change_json(path, **changes):
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            values.pop(key, None)
        else:
            values[key] = value
    path.write_text(json.dumps(values))


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def to_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_what_is_known_of_a_local_checkpoint(tiny):
    model = load_model(tiny)
    assert (model.sample_rate, model.layers, model.dim) == (24_000, 3, 64)
    assert model.do_normalize is True
    assert model.name == str(tiny)
    assert model.revision is None
    assert model.weights_sha256 == hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_safetensors_pickle_and_shards_are_the_same_model(tiny, tmp_path):
    states = load_model(tiny).hidden_states(WAVE)
    state = load_file(tiny / "model.safetensors")
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    weight_map = {}
    for number, (key, value) in enumerate(sorted(state.items())):
        name = sorted(shards)[number % 2]
        shards[name][key] = value
        weight_map[key] = name
    to_pickle(tiny)
    assert torch.equal(load_model(tiny).hidden_states(WAVE), states)
    (tiny / "pytorch_model.bin").unlink()
    for name, part in shards.items():
        save_file(part, tiny / name)
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = load_model(tiny)
    assert torch.equal(sharded.hidden_states(WAVE), states)
    lines = "".join(f"{hashlib.sha256((tiny / x).read_bytes()).hexdigest()}  {x}\n" for x in sorted(shards))
    assert sharded.weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    for name, part in shards.items():
        (tiny / name).unlink()
        torch.save(part, tiny / name.replace(".safetensors", ".bin"))
    (tiny / "model.safetensors.index.json").unlink()
    index = {"weight_map": {key: name.replace(".safetensors", ".bin") for key, name in weight_map.items()}}
    (tiny / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(load_model(tiny).hidden_states(WAVE), states)


def test_safetensors_are_preferred(tiny):
    (tiny / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_model(tiny)


def test_both_names_of_the_weight_norm_and_folded_weights_are_one(tiny, assert_states_close):
    states = load_model(tiny).hidden_states(WAVE)
    conv = "encoder.pos_conv_embed.conv"

    def newer(state):
        state[f"{conv}.parametrizations.weight.original0"] = state.pop(f"{conv}.weight_g")
        state[f"{conv}.parametrizations.weight.original1"] = state.pop(f"{conv}.weight_v")

    def folded(state):
        g = state.pop(f"{conv}.parametrizations.weight.original0")
        v = state.pop(f"{conv}.parametrizations.weight.original1")
        state[f"{conv}.weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)

    change_weights(tiny, newer)
    assert torch.equal(load_model(tiny).hidden_states(WAVE), states)
    change_weights(tiny, folded)
    assert_states_close(load_model(tiny).hidden_states(WAVE), states)


def test_the_magnitude_of_the_weight_norm_counts(tiny):
    states = load_model(tiny).hidden_states(WAVE)
    change_weights(tiny, lambda state: state["encoder.pos_conv_embed.conv.weight_g"].mul_(3))
    assert not torch.allclose(load_model(tiny).hidden_states(WAVE), states, atol=1e-2)


def test_heads_of_pretraining_are_left_out(tiny):
    def add(state):
        for key in ("mask_emb", "final_proj.weight", "label_embs_concat", "encoder_cqt_model.fc.weight"):
            state[key] = torch.zeros(4, 4)

    change_weights(tiny, add)
    load_model(tiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(tiny, dtype):
    change_weights(tiny, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    assert load_model(tiny).hidden_states(WAVE).dtype == torch.float32


@pytest.mark.parametrize("reader", ["safetensors", "pickle"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("encoder.layers.1.attention.k_proj.bias"),
            r"lack 1 tensors.*layers\.1\.attention\.k_proj\.bias",
        ),
        (
            lambda s: s.pop("encoder.pos_conv_embed.conv.weight_g"),
            r"lack 1 tensors.*pos_conv_embed\.conv\.weight_g",
        ),
        (lambda s: s.clear() or s.update(x=torch.zeros(1)), r"lack \d+ tensors.*, \.\.\."),
        (lambda s: s.update(surprise=torch.zeros(1)), "1 tensors that this network has not: surprise"),
        (
            lambda s: s.update({"encoder.layer_norm.bias": torch.zeros(65)}),
            r"encoder\.layer_norm\.bias has shape \(65,\), but config\.json asks for \(64,\)",
        ),
        (
            lambda s: s.update({"encoder.layer_norm.bias": torch.zeros(64, dtype=torch.int32)}),
            r"encoder\.layer_norm\.bias is of type torch\.int32",
        ),
    ],
)
def test_weights_that_do_not_fit(tiny, reader, change, message):
    change_weights(tiny, change)
    if reader == "pickle":
        to_pickle(tiny)
    with pytest.raises(CheckpointError, match=message):
        load_model(tiny)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_bomb_is_not_executed(tiny, tmp_path, protocol):
    target = str(tmp_path / "executed")
    (tiny / "model.safetensors").unlink()
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(target)}, protocol=protocol))
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        load_model(tiny)
    assert not os.path.exists(target)


def test_a_pickle_bomb_in_torchs_own_format_is_not_executed(tiny, tmp_path):
    target = str(tmp_path / "executed")
    (tiny / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1), "b": Bomb(target)}, tiny / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged or unsafe"):
        load_model(tiny)
    assert not os.path.exists(target)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {"a": torch.zeros(1).to_sparse()}])
def test_a_pickle_of_something_else(tiny, content):
    (tiny / "model.safetensors").unlink()
    torch.save(content, tiny / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"something else than tensors|unsafe"):
        load_model(tiny)


def test_tensors_that_claim_more_than_the_file_holds(tiny):
    change_json(tiny / "config.json", intermediate_size=1 << 16, hidden_size=1 << 16)
    (tiny / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1).expand(1 << 16, 1 << 16)}, tiny / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="claim 17179869184 bytes"):
        load_model(tiny)


@pytest.mark.slow
def test_a_compressed_archive_is_not_unfolded(tiny):
    (tiny / "model.safetensors").unlink()
    path = tiny / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1 << 22)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(tiny)


HOSTILE = {
    "hidden_size": [10**9, 0, -1, "64", 64.0, True, None, [64]],
    "num_hidden_layers": [10**9, 0, 2.5],
    "num_attention_heads": [5, 0, 10**9],
    "intermediate_size": [10**12],
    "conv_dim": [[10**9] * 7, [], [32] * 6, 32, [32.0] * 7, [32] * 1000],
    "conv_stride": [[0] * 7, [5, 2], None],
    "conv_kernel": [[-1] * 7, "10"],
    "conv_bias": [1, "false"],
    "num_conv_pos_embeddings": [10**9, 0],
    "num_conv_pos_embedding_groups": [7, 0],
    "layer_norm_eps": [0, -1, float("nan"), float("inf"), "1e-5"],
    "sample_rate": [0, 10**9, 24_000.5],
    "do_stable_layer_norm": ["no", ...],
    "feat_extract_norm": ["batch", 3],
    "num_feat_extract_layers": [6],
    "model_type": ["bert", None, ...],
    "hidden_act": ["relu", 5],
    "feat_extract_activation": ["swish"],
    "deepnorm": [True],
    "feature_extractor_cqt": [True],
    "conv_pos_batch_norm": [True],
    "adapter_attn_dim": [16],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_an_impossible_or_unsupported_config(tiny, key, value):
    change_json(tiny / "config.json", **{key: value})
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_model(tiny)
    assert time.perf_counter() - began < 2
    assert key.split("_")[0] in str(caught.value)


@pytest.mark.parametrize("key", ["deepnorm", "feature_extractor_cqt"])
def test_what_is_not_supported_is_said(tiny, key):
    change_json(tiny / "config.json", **{key: True})
    with pytest.raises(CheckpointError, match=f"{key} .* is not supported"):
        load_model(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"hidden_size": 1 << 16}, {"num_hidden_layers": 512}])
def test_a_config_that_the_weights_contradict(tiny, sizes):
    change_json(tiny / "config.json", **sizes)
    with pytest.raises(CheckpointError, match=r"lack|asks for"):
        load_model(tiny)


def test_attention_relaxation_and_remote_code_play_no_part(tiny, tmp_path):
    states = load_model(tiny).hidden_states(WAVE)
    evil = tiny / "modeling_MERT.py"
    evil.write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    change_json(tiny / "config.json", attention_relax=32.0, auto_map={"AutoModel": "modeling_MERT.MERTModel"})
    assert torch.equal(load_model(tiny).hidden_states(WAVE), states)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny, name):
    (tiny / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_model(tiny)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{", b"[" * 100_000])
def test_a_damaged_json_file(tiny, name, content):
    (tiny / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_model(tiny)


def test_an_oversized_json_file_is_not_read(tiny):
    with open(tiny / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than"):
        load_model(tiny)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
@pytest.mark.parametrize("reader", ["safetensors", "pickle"])
def test_a_truncated_file_of_weights(tiny, kept, reader):
    if reader == "pickle":
        to_pickle(tiny)
    path = tiny / ("model.safetensors" if reader == "safetensors" else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tiny)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=300), keep=st.integers(0, 2_000), seed=st.booleans())
def test_noise_as_weights_is_an_error_of_ours(golden, tmp_path, noise, keep, seed):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((golden / "base_v1" / name).read_bytes())
    start = (golden / "base_v1" / "pytorch_model.bin").read_bytes()[:keep] if seed else pickle.dumps({})[:keep]
    (tmp_path / "pytorch_model.bin").write_bytes(start + noise)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def pickle_shard(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_a_pickle_bomb_in_a_shard_is_not_executed(tiny, tmp_path):
    pickle_shard(tiny, {"a": Bomb(str(tmp_path / "executed"))})
    with pytest.raises(CheckpointError, match=r"00001\.bin is damaged or unsafe"):
        load_model(tiny)
    assert not (tmp_path / "executed").exists()


def test_a_shard_that_claims_more_than_it_holds(tiny):
    pickle_shard(tiny, {"a": torch.zeros(1).expand(1 << 16, 1 << 16)})
    with pytest.raises(CheckpointError, match="claim 17179869184 bytes"):
        load_model(tiny)


@pytest.mark.parametrize("name", ["../model.bin", "model.safetensors", "a/b.bin", ".bin", 3])
def test_shards_of_a_pickle_lie_beside_their_index(tiny, name):
    (tiny / "model.safetensors").rename(tiny.parent / "model.safetensors")
    (tiny / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"no \.bin file beside it"):
        load_model(tiny)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "", 3, "gone.safetensors"]
)
def test_shards_lie_beside_their_index(tiny, name):
    (tiny / "model.safetensors").rename(tiny.parent / "model.safetensors")
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"names '?.*"):
        load_model(tiny)


def test_shards_must_not_repeat_a_tensor(tiny):
    content = (tiny / "model.safetensors").read_bytes()
    for name in ("a.safetensors", "b.safetensors"):
        (tiny / name).write_bytes(content)
    (tiny / "model.safetensors").unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="repeats"):
        load_model(tiny)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 16_000}, "16000 Hz, but config.json says 24000 Hz"),
        ({"sampling_rate": "24000"}, "sampling_rate"),
        ({"do_normalize": "yes"}, "do_normalize"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperFeatureExtractor"),
    ],
)
def test_contradictory_audio_settings(tiny, changes, message):
    change_json(tiny / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tiny)


def test_audio_settings_of_a_processor(tiny):
    settings = json.loads((tiny / "preprocessor_config.json").read_text())
    other = {"feature_extractor": {**settings, "do_normalize": False}, "processor_class": "Wav2Vec2Processor"}
    (tiny / "processor_config.json").write_text(json.dumps(other))
    assert load_model(tiny).do_normalize is True  # preprocessor_config.json comes first
    (tiny / "preprocessor_config.json").unlink()
    assert load_model(tiny).do_normalize is False
    for damaged in (..., [settings], "Wav2Vec2FeatureExtractor", None):
        change_json(tiny / "processor_config.json", feature_extractor=damaged)
        with pytest.raises(
            CheckpointError, match=r"preprocessor_config\.json, nor a processor_config\.json with a"
        ):
            load_model(tiny)


def test_audio_settings_have_the_defaults_of_their_format(tiny):
    change_json(tiny / "preprocessor_config.json", do_normalize=..., sampling_rate=...)
    model = load_model(tiny)
    assert (model.sample_rate, model.do_normalize) == (24_000, True)
    change_json(tiny / "config.json", sample_rate=...)
    with pytest.raises(CheckpointError, match="sampling_rate"):
        load_model(tiny)


@pytest.mark.parametrize(
    "path", ["./gone", "/gone", "~/gone/far", "a/b/c", "gone/", "gone", "a b/c", "", "C:\\x\\y", ".../x"]
)
def test_a_path_that_is_not_there_is_never_sent_to_the_hub(path, monkeypatch):
    monkeypatch.setattr("featurestore.models.checkpoints.load.fetch", None)
    with pytest.raises(ModelError, match="folder"):
        load_model(path)


def test_a_path_object_is_never_sent_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="folder"):
        load_model(type(tmp_path)("m-a-p/MERT-v1-95M"))


def test_a_file_instead_of_its_folder(tiny):
    with pytest.raises(ModelError, match="give the folder"):
        load_model(tiny / "model.safetensors")


def test_a_folder_has_no_revisions(tiny):
    with pytest.raises(SettingError, match="revision"):
        load_model(tiny, revision="main")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tiny", {**SHAPES["330m"], "num_hidden_layers": 1}])
def test_random_checkpoints_are_deterministic_and_alive(tmp_path, shape):
    one = save_random_checkpoint(tmp_path / "one", shape=shape, seed=3, do_normalize=False)
    same = save_random_checkpoint(tmp_path / "same", shape=shape, seed=3, do_normalize=False)
    other = save_random_checkpoint(tmp_path / "other", shape=shape, seed=4, do_normalize=False)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
    model = load_model(one)
    assert model.do_normalize is False
    assert model.weights_sha256 != load_model(other).weights_sha256
    states = model.hidden_states(WAVE)
    assert (states.std(dim=2) > 1e-3).float().mean() > 0.9  # frames differ


def test_random_checkpoints_do_not_depend_on_the_callers_default_type(tmp_path):
    wanted = save_random_checkpoint(tmp_path / "float32", shape="tiny")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = save_random_checkpoint(tmp_path / "float64", shape="tiny")
    finally:
        torch.set_default_dtype(before)
    assert (found / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()


def test_released_shapes(tmp_path):
    for shape, layers, dim in (("95m", 12, 768), ("330m", 24, 1024)):
        assert (SHAPES[shape]["num_hidden_layers"], SHAPES[shape]["hidden_size"]) == (layers, dim)
    with pytest.raises(SettingError, match="95m, 330m, tiny"):
        save_random_checkpoint(tmp_path, shape="7b")
