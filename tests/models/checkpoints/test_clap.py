"""CLAP: the projection of its audio tower, one vector a window, as transformers gives it."""

import json

import numpy as np
import pytest
import torch
import transformers

from featurestore import FeatureExtractor
from featurestore.errors import CheckpointError, SettingError
from featurestore.models import check_encoder, load_model
from featurestore.models.kernels.engine import bf16_for_cpu

pytestmark = pytest.mark.slow  # transformers takes seconds to import

RATE = 8_000
AUDIO = {
    "spec_size": 32,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [2, 2],
    "window_size": 4,
    "patch_embeds_hidden_size": 8,
    "hidden_size": 32,
    "depths": [1, 2, 1],
    "num_attention_heads": [1, 2, 4],
    "projection_dim": 12,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}
EXTRACTOR = {
    "feature_size": 16,
    "sampling_rate": RATE,
    "hop_length": 160,
    "fft_window_size": 256,
    "max_length_s": 1,
    "frequency_max": 4_000,
}
SHORTEST, LONGEST = 300, RATE


def save(folder, *, fusion=False, whole=True, **preprocessing):
    """A checkpoint of random weights, as transformers writes it; gives the audio tower and the extractor."""
    config = transformers.ClapConfig(
        text_config=TEXT, audio_config={**AUDIO, "enable_fusion": fusion}, projection_dim=12
    )
    torch.manual_seed(0)
    network = (
        transformers.ClapModel(config) if whole else transformers.ClapAudioModelWithProjection(config.audio_config)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        network.audio_model.audio_encoder.batch_norm.running_mean.add_(-20)
        network.audio_model.audio_encoder.batch_norm.running_var.mul_(100)
    network.eval().save_pretrained(folder)
    settings = {**EXTRACTOR, "truncation": "fusion" if fusion else "rand_trunc", **preprocessing}
    extractor = transformers.ClapFeatureExtractor(**settings)
    extractor.save_pretrained(folder)
    return network, extractor


def plain(network, extractor, wave):
    """The projection by transformers alone."""
    heard = extractor([x.numpy() for x in wave], sampling_rate=RATE, return_tensors="pt")["input_features"]
    longer = torch.zeros(len(wave), 1, dtype=torch.bool)
    with torch.no_grad():
        output = network.audio_model(input_features=heard.float(), is_longer=longer)
        return network.audio_projection(output.pooler_output)[:, None, None]


def noise(samples, windows=2):
    wave = np.random.default_rng(samples).normal(0, 0.1, (windows, samples)).astype(np.float32)
    return torch.from_numpy(wave) * torch.tensor([[1.0], [0.01]])[:windows]


def change_json(path, **changes):
    values = json.loads(path.read_text())
    for key in [key for key in changes if "__" in key]:
        outer, inner = key.split("__")
        values[outer][inner] = changes.pop(key)
    path.write_text(json.dumps({key: x for key, x in {**values, **changes}.items() if x is not ...}))


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_the_state_is_the_projection_of_transformers(tmp_path, fusion, padding, assert_states_close):
    network, extractor = save(tmp_path, fusion=fusion, padding=padding)
    encoder = load_model(tmp_path)
    for samples in (SHORTEST, 3_001, LONGEST):
        found = encoder.hidden_states(noise(samples))
        assert found.shape == (2, 1, 1, 12)
        assert_states_close(found, plain(network, extractor, noise(samples)))


def test_beside_a_loud_tone_silent_bands_are_as_silent_as_in_the_extractor(tmp_path):
    _, extractor = save(tmp_path)
    encoder = load_model(tmp_path)
    tone = torch.sin(2 * torch.pi * 440 / RATE * torch.arange(LONGEST, dtype=torch.float64)).float()[None]
    wanted = extractor(tone[0].numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"]
    np.testing.assert_allclose(encoder._frontend(tone).numpy(), wanted.numpy(), atol=0.02)
    assert wanted.max() - wanted.min() > 100  # dB


def test_the_tower_may_be_saved_alone(tmp_path, assert_states_close):
    network, extractor = save(tmp_path, whole=False)
    assert_states_close(
        load_model(tmp_path).hidden_states(noise(LONGEST)), plain(network, extractor, noise(LONGEST))
    )


def test_the_rules_of_an_encoder(tmp_path):
    save(tmp_path, fusion=True)
    encoder = load_model(tmp_path)
    check_encoder(encoder)
    assert bf16_for_cpu(encoder)[0] is encoder  # its probe is close enough


def test_a_spec_says_that_there_is_one_state_of_one_frame(tmp_path):
    save(tmp_path)
    encoder = load_model(tmp_path)
    spec = FeatureExtractor(model=encoder, segment_duration=1.0).spec()
    assert (spec.layers, spec.dim, spec.sample_rate, spec.frame_rate) == ((0,), 12, RATE, None)
    assert (encoder.context_seconds, encoder.frames(1), encoder.frames(LONGEST)) == (1.0, 1, 1)
    with pytest.raises(SettingError, match="hears 1 s at most"):
        FeatureExtractor(model=encoder, segment_duration=1.5)
    with pytest.raises(SettingError, match="states 0 to 0, not 1"):
        list(encoder.states(noise(LONGEST), last=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_config": [1]}, "audio_config must be an object"),
        ({"audio_config__depths": [1, 10**9, 1]}, "depths must be a list"),
        ({"audio_config__depths": [1, 600, 1]}, "512 layers in all at most"),
        ({"audio_config__depths": [1, 2]}, "a number for each"),
        ({"audio_config__patch_embeds_hidden_size": 10**9}, "patch_embeds_hidden_size"),
        ({"audio_config__patch_embeds_hidden_size": 16}, "hidden_size 32 is not the width 64"),
        ({"audio_config__spec_size": 10**9}, "spec_size"),
        ({"audio_config__spec_size": 36}, "no multiple of num_mel_bins"),
        ({"audio_config__window_size": 10**9}, "window_size"),
        ({"audio_config__patch_stride": 0}, "stride must be a list"),
        ({"audio_config__mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"audio_config__enable_fusion": "yes"}, "enable_fusion must be true or false"),
        ({"projection_dim": 10**9}, "projection_dim"),
        ({"projection_dim": 13}, "has shape"),
    ],
)
def test_an_impossible_config(tmp_path, changes, message):
    save(tmp_path)
    change_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_length": 0}, "hop_length"),
        ({"hop_length": 10}, "801 spectra"),
        ({"fft_window_size": 10**9}, "fft_window_size"),
        ({"fft_window_size": 16_384}, "spectra of 16384 samples"),
        ({"feature_size": 64}, "64 bands"),
        ({"max_length_s": 10**9}, "max_length_s"),
        ({"sampling_rate": float("nan")}, "sampling_rate"),
        ({"frequency_max": float("nan")}, "frequency_max must be a number"),
        ({"frequency_min": 3_000}, "frequency_min"),
        ({"truncation": "fusion"}, "enable_fusion of config.json is False"),
        ({"padding": "mirror"}, "padding must be one of"),
        ({"feature_extractor_type": "ASTFeatureExtractor"}, "only ClapFeatureExtractor is"),
    ],
)
def test_impossible_preprocessing(tmp_path, changes, message):
    save(tmp_path)
    change_json(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)
