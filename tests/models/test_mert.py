"""The native encoder computes what the hub's code computes, and no more than it is asked for."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import SettingError
from featurestore.models import MertEncoder, load_model, save_random_checkpoint
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.shapes import SHAPES

CLIPS = ["music_0p7s", "min_400", "two_720", "silence_1s"]


@pytest.fixture(scope="module", params=["base_v1", "large_v1"])
def checkpoint(request, golden):
    return golden / request.param


@pytest.fixture(scope="module", params=["model.safetensors", "pytorch_model.bin"])
def encoder(request, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for name in ("config.json", "preprocessor_config.json", request.param):
        shutil.copy(checkpoint / name, folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def expected(checkpoint):
    with np.load(checkpoint / "expected.npz") as arrays:
        return dict(arrays)


def wave_of(samples):
    return torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]


@pytest.mark.parametrize("clip", CLIPS)
def test_golden_states(encoder, expected, clip):
    found = encoder.hidden_states(wave_of(expected[f"{clip}__audio"]))
    wanted = torch.from_numpy(expected[f"{clip}__hidden"]).transpose(0, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_a_window_does_not_depend_on_its_batch(encoder, expected, assert_states_close):
    music = wave_of(expected["music_0p7s__audio"])
    others = torch.cat([music, music * 0.01, torch.zeros_like(music), music.flip(1)])
    found = encoder.hidden_states(others)
    wanted = torch.cat([encoder.hidden_states(wave[None]) for wave in others])
    assert_states_close(found, wanted)


@pytest.mark.slow
def test_states_come_one_by_one_and_stop_early(encoder, expected):
    wave = wave_of(expected["music_0p7s__audio"])
    states = encoder.hidden_states(wave).unbind(1)
    computed = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: computed.append(number))
        for number, layer in enumerate(encoder.encoder.layers, 1)
    ]
    for last in range(encoder.layers + 1):
        computed.clear()
        seen = 0
        for state, wanted in zip(encoder.states(wave, last=last), states, strict=False):
            assert computed == list(range(1, seen + 1))
            assert torch.equal(state, wanted)
            seen += 1
        assert seen == last + 1
        assert computed == list(range(1, last + 1))
    for hook in hooks:
        hook.remove()


@pytest.mark.slow
def test_there_is_no_gradient(encoder):
    state = next(encoder.states(torch.zeros(1, 400)))
    assert not state.requires_grad
    assert not encoder.training


@pytest.mark.parametrize("last", [-1, 4, 99])
def test_a_state_that_does_not_exist(encoder, last):
    with pytest.raises(SettingError, match="states 0 to 3"):
        list(encoder.states(torch.zeros(1, 400), last=last))


@pytest.mark.parametrize("shape", [(1, 399), (400,), (1, 1, 400)])
def test_a_wave_of_another_shape(encoder, shape):
    with pytest.raises(SettingError, match="at least 400 samples"):
        list(encoder.states(torch.zeros(shape)))


def test_silence_and_offsets_stay_finite(encoder, not_finite):
    assert not_finite(encoder, levels=[0.0, 0.7, -1.0, 1e-6], ripples=[0.0, 1e-7], clips=[False]) == []


@pytest.mark.slow
def test_normalisation_is_that_of_the_checkpoint(golden, expected, encoder):
    music = wave_of(expected["music_0p7s__audio"])
    quiet = encoder.hidden_states(music * 0.01)
    loud = encoder.hidden_states(music)
    distance = (quiet - loud).abs().max()
    assert (distance < 1e-2) == encoder.do_normalize


def config_of(kernels, strides):
    values = {**SHAPES["tiny"], "conv_kernel": kernels, "conv_stride": strides}
    values |= {"conv_dim": [8] * len(kernels), "num_feat_extract_layers": len(kernels)}
    values |= {"hidden_size": 16, "num_hidden_layers": 1, "feat_extract_norm": "layer"}
    return MertConfig.from_dict(values, source="test")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    convs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4),
    extra=st.integers(0, 300),
)
def test_frames_and_shortest_window_are_exact(convs, extra):
    kernels, strides = [k for k, _ in convs], [s for _, s in convs]
    encoder = MertEncoder(config_of(kernels, strides), sample_rate=24_000, do_normalize=False)
    samples = encoder.min_samples + extra
    assert next(encoder.states(torch.zeros(1, samples))).shape[1] == encoder.frames(samples)
    assert encoder.frames(encoder.min_samples) == 1
    assert encoder.frames(encoder.min_samples - 1) == 0


def test_known_frames(golden):
    encoder = load_model(golden / "base_v1")
    assert encoder.min_samples == 400
    assert encoder.frames(5 * 24_000) == 374
    assert [encoder.frames(n) for n in (0, 399, 400, 719, 720)] == [0, 0, 1, 1, 2]


PEERS = list(itertools.product([False, True], ["group", "layer"], [False, True]))


@pytest.mark.slow
@pytest.mark.parametrize(("pre_norm", "norm", "bias"), PEERS)
def test_every_shape_agrees_with_transformers(tmp_path, pre_norm, norm, bias, assert_states_close):
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    peer = HubertModel(
        HubertConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            conv_dim=(32, 32, 24),
            conv_kernel=(10, 3, 2),
            conv_stride=(5, 2, 2),
            num_feat_extract_layers=3,
            num_conv_pos_embeddings=16 if bias else 15,
            num_conv_pos_embedding_groups=4,
            do_stable_layer_norm=pre_norm,
            feat_extract_norm=norm,
            conv_bias=bias,
            feat_proj_layer_norm=bias,
        )
    ).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms of a new network say nothing
    peer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false, "sampling_rate": 16000}')
    wave = torch.randn(2, 4_000)
    with torch.no_grad():
        output = peer(wave, output_hidden_states=True)
    # For pre-LN networks, transformers' last hidden state lacks the final layer norm.
    wanted = torch.stack([*output.hidden_states[:-1], output.last_hidden_state], dim=1)
    found = load_model(tmp_path).hidden_states(wave)
    assert_states_close(found, wanted)


@pytest.mark.slow
def test_the_true_shape_agrees_with_transformers(tmp_path, assert_states_close):
    from safetensors.torch import load_file
    from transformers import HubertConfig, HubertModel

    shape = {**SHAPES["95m"], "num_hidden_layers": 2}
    encoder = load_model(save_random_checkpoint(tmp_path, shape=shape))
    peer = HubertModel(HubertConfig(**{**shape, "model_type": "hubert"})).eval()
    state = load_file(tmp_path / "model.safetensors")
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        conv = "encoder.pos_conv_embed.conv"
        state[f"{conv}.parametrizations.weight.{new}"] = state.pop(f"{conv}.{old}")
    peer.load_state_dict(state, strict=True)
    samples = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    normalised = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        output = peer(wave_of(normalised), output_hidden_states=True)
    found = encoder.hidden_states(wave_of(samples))
    assert_states_close(found, torch.stack(output.hidden_states, dim=1))
