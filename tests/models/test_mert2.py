"""MERT-v2 computes what the hub's code computes, and what a plain reference in float64 does, for any shape."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from featurestore import FeatureExtractor, FeatureStore, build
from featurestore.audio import decode
from featurestore.errors import SettingError
from featurestore.models import Mert2Encoder, check_encoder, load_model, save_random_checkpoint
from featurestore.models.checkpoints.config_mert2 import Mert2Config
from featurestore.models.checkpoints.shapes import MERT2_SHAPES
from featurestore.models.kernels.half import to_half
from featurestore.windows import sliding_windows

CLIPS = ["music_5s", "music_1p3s", "quiet_2s", "silence_1s", "shortest"]
RATE = 24_000
TINY = MERT2_SHAPES["mert2-tiny"]
# Other widths, kernels, depths, heads, rotary base and spectra than the golden checkpoint.
SHAPES = {
    "other widths": {
        **TINY,
        **{"num_mel_bins": 20, "subsampling_channels": [20, 24, 40], "subsampling_depths": [2, 1, 3]},
        **{"hidden_size": 40, "intermediate_size": 72, "num_attention_heads": 5, "num_hidden_layers": 2},
        **{"conv_depthwise_kernel_size": 7, "rotary_embedding_base": 500.5},
        **{"n_fft": 512, "win_length": 400, "hop_length": 120},
    },
    "one width": {
        **TINY,
        **{"num_mel_bins": 24, "subsampling_channels": [24, 24, 24], "subsampling_depths": [1, 1, 1]},
        **{"hidden_size": 24, "num_attention_heads": 1, "num_hidden_layers": 1},
        **{"conv_depthwise_kernel_size": 1, "rotary_embedding_base": 1_000_000},
        **{"layer_norm_eps": 1e-3, "subsampling_layer_norm_eps": 1e-4},
    },
    "a kernel beyond the window": {**TINY, "conv_depthwise_kernel_size": 255, "num_hidden_layers": 1},
    "full song": {**TINY, "variant": "fs", "context_seconds": 360.0},
}


def random_model(folder, shape):
    """A checkpoint of random weights, of which none says nothing, as biases and norms of a new network do."""
    save_random_checkpoint(folder, shape=shape)
    random = np.random.default_rng(0)
    state = load_file(folder / "model.safetensors")
    for key, value in state.items():
        if not key.startswith("feature_extractor."):
            state[key] = value + random.normal(0, 0.1, value.shape).astype(np.float32)
    save_file(state, folder / "model.safetensors")
    return load_model(folder), state


def noise(samples, windows=1, gain=0.1):
    return torch.from_numpy(np.random.default_rng(samples).normal(0, gain, (windows, samples)).astype(np.float32))


@pytest.fixture(scope="module")
def encoder(golden):
    return load_model(golden / "mert2_30s")


@pytest.fixture(scope="module")
def expected(golden):
    with np.load(golden / "mert2_30s" / "expected.npz") as arrays:
        return dict(arrays)


def assert_close(found, wanted, bound=2e-5):
    """States [state, frame, feature] within a bound of each state's largest value."""
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max(axis=(1, 2)) / np.abs(wanted).max(axis=(1, 2))
    assert (error <= bound).all(), error


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_golden_states(encoder, expected, clip):
    found = encoder.hidden_states(torch.from_numpy(expected[f"{clip}__audio"])[None])
    assert found.dtype == torch.float32
    assert_close(found[0].numpy(), expected[f"{clip}__hidden"])


class Reference:
    """The network again in numpy and float64, of one window, written from its description."""

    def __init__(self, shape, state):
        self.shape, self.state = shape, {key: value.astype(np.float64) for key, value in state.items()}

    def states(self, wave):
        x = self.mel(wave.astype(np.float64))
        for number, stride in enumerate((1, 2, 2)):
            x = self.stage(x, f"subsampling_module.{number}.", stride)
        yield x
        for number in range(self.shape["num_hidden_layers"]):
            x = self.block(x, f"layers.{number}.")
            yield x

    def mel(self, wave):
        n_fft, hop = self.shape["n_fft"], self.shape["hop_length"]
        window = self.state["feature_extractor.spectrogram.window"]
        before = (n_fft - len(window)) // 2
        window = np.pad(window, (before, n_fft - len(window) - before))
        padded = np.pad(wave, n_fft // 2, mode="reflect")
        frames = [padded[hop * t : hop * t + n_fft] * window for t in range(len(wave) // hop)]
        power = np.abs(np.fft.rfft(frames)) ** 2 @ self.state["feature_extractor.mel_scale.fb"]
        decibels = 10 * np.log10(np.maximum(power, 1e-10))
        mean, deviation = (self.state[f"feature_extractor.mel_{x}"] for x in ("mean", "std"))
        return (decibels - mean) / np.maximum(deviation, 1e-5)

    def stage(self, x, name, stride):
        eps = self.shape["subsampling_layer_norm_eps"]
        if f"{name}resampling_layer.2.weight" in self.state:
            x = self.norm(x, f"{name}resampling_layer.0", eps)
            weight, bias = (self.state[f"{name}resampling_layer.2.{k}"] for k in ("weight", "bias"))
            pairs = [np.stack([x[t], x[t + 1]], axis=1) for t in range(0, len(x) - 1, stride)]
            x = np.einsum("tik,oik->to", pairs, weight) + bias
        number = 0
        while f"{name}convnext_layers.{number}.pointwise_block.0.weight" in self.state:
            layer = f"{name}convnext_layers.{number}."
            y = self.depthwise(x, f"{layer}depthwise_block.1") + self.state[f"{layer}depthwise_block.1.bias"]
            y = self.norm(y, f"{layer}pointwise_block.0", eps)
            y = gelu(self.dense(y, f"{layer}pointwise_block.1"))
            response = np.sqrt((y**2).sum(axis=0))
            relative = response / (response.mean() + 1e-6)
            weight, bias = (self.state[f"{layer}pointwise_block.3.{k}"][0, 0] for k in ("weight", "bias"))
            y = weight * (y * relative) + bias + y
            x = x + self.dense(y, f"{layer}pointwise_block.4")
            number += 1
        return x

    def block(self, x, name):
        eps = self.shape["layer_norm_eps"]
        x = x + self.feed_forward(self.norm(x, f"{name}ffn1_layer_norm", eps), f"{name}ffn1.") / 2
        x = x + self.attention(self.norm(x, f"{name}attn_layer_norm", eps), f"{name}attn.")
        x = x + self.convolution(x, f"{name}conv_module.", eps)
        x = x + self.feed_forward(self.norm(x, f"{name}ffn2_layer_norm", eps), f"{name}ffn2.") / 2
        return self.norm(x, f"{name}final_layer_norm", eps)

    def feed_forward(self, x, name):
        return self.dense(gelu(self.dense(x, f"{name}w_1")), f"{name}w_2")

    def attention(self, x, name):
        heads = self.shape["num_attention_heads"]
        size = x.shape[1] // heads
        pairs = self.shape["rotary_embedding_base"] ** (-np.arange(0, size, 2) / size)
        turn = np.exp(1j * np.arange(len(x))[:, None] * pairs)
        out = np.empty_like(x)
        query, key, value = (self.dense(x, f"{name}{part}_proj") for part in ("query", "key", "value"))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            # A pair as a complex number: turning is a product, and their inner product is its real part.
            q, k = ((y[:, part][:, : size // 2] + 1j * y[:, part][:, size // 2 :]) * turn for y in (query, key))
            scores = np.real(q @ k.conj().T) / np.sqrt(size)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, part] = weights / weights.sum(axis=1, keepdims=True) @ value[:, part]
        return self.dense(out, f"{name}out_proj")

    def convolution(self, x, name, eps):
        x = self.norm(x, f"{name}layer_norm", eps)
        values, gates = np.split(x @ self.state[f"{name}conv_block.1.weight"][:, :, 0].T, 2, axis=1)
        x = self.depthwise(values / (1 + np.exp(-gates)), f"{name}conv_block.3")
        x = gelu(self.norm(x, f"{name}conv_block.4.1", eps))
        return x @ self.state[f"{name}conv_block.6.weight"][:, :, 0].T

    def depthwise(self, x, name):
        taps = self.state[f"{name}.weight"][:, 0]
        reach = taps.shape[1] // 2
        padded = np.pad(x, ((reach, reach), (0, 0)))
        return sum(padded[k : k + len(x)] * taps[:, k] for k in range(taps.shape[1]))

    def dense(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name, eps):
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.special.erf(torch.from_numpy(x / np.sqrt(2))).numpy()) / 2


def assert_is_reference(model, shape, state, wave):
    found = model.hidden_states(wave)[0].numpy()
    assert found.shape[1] == model.frames(wave.shape[1])
    assert_close(found, np.stack(list(Reference(shape, state).states(wave[0].numpy()))))


def test_the_reference_is_the_network(golden, expected):
    state = load_file(golden / "mert2_30s" / "model.safetensors")
    shape = {**TINY, "num_attention_heads": 4, "num_hidden_layers": 3}
    found = np.stack(list(Reference(shape, state).states(expected["music_1p3s__audio"])))
    assert_close(found, expected["music_1p3s__hidden"])


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1_025, 12_345, 6 * 960 - 1])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_agrees_with_the_reference(tmp_path, name, samples):
    model, state = random_model(tmp_path, SHAPES[name])
    assert_is_reference(model, SHAPES[name], state, noise(samples))


@pytest.mark.slow
def test_long_windows_agree_with_the_reference(tmp_path):
    model, state = random_model(tmp_path, SHAPES["full song"])
    assert model.frames(41 * RATE) == 41 * 25
    assert_is_reference(model, SHAPES["full song"], state, noise(41 * RATE))


@pytest.mark.slow
def test_a_small_deviation_of_a_band_is_bounded(tmp_path):
    folder = save_random_checkpoint(tmp_path, shape="mert2-tiny")
    state = load_file(folder / "model.safetensors")
    state["feature_extractor.mel_std"][:] = 0
    save_file(state, folder / "model.safetensors")
    assert_is_reference(load_model(folder), TINY, state, noise(4_000))


@pytest.mark.slow
def test_the_window_and_the_filters_are_those_of_the_checkpoint(tmp_path):
    folder = save_random_checkpoint(tmp_path, shape="mert2-tiny")
    state = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    for key in ("spectrogram.window", "mel_scale.fb"):
        state[f"feature_extractor.{key}"] *= random.uniform(0.5, 1.5, state[f"feature_extractor.{key}"].shape)
    save_file(state, folder / "model.safetensors")
    assert_is_reference(load_model(folder), TINY, state, noise(4_000))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_it_keeps_the_rules_of_an_encoder(tmp_path, name):
    check_encoder(random_model(tmp_path, SHAPES[name])[0])


@pytest.mark.slow
def test_the_golden_checkpoint_keeps_them_too(encoder):
    check_encoder(encoder)


@pytest.mark.slow
def test_a_window_does_not_depend_on_its_batch(encoder, expected, assert_states_close):
    music = torch.from_numpy(expected["music_1p3s__audio"])[None]
    waves = torch.cat([music, music * 0.01, torch.zeros_like(music), music.flip(1)])
    alone = torch.cat([encoder.hidden_states(wave[None]) for wave in waves])
    assert_states_close(encoder.hidden_states(waves), alone)


@pytest.mark.slow
def test_states_come_one_by_one_and_stop_early(encoder):
    wave = noise(4_000)
    states = encoder.hidden_states(wave).unbind(1)
    computed = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: computed.append(number))
        for number, block in enumerate(encoder.network.layers, 1)
    ]
    for last in range(encoder.layers + 1):
        computed.clear()
        for seen, state in enumerate(encoder.states(wave, last=last)):
            assert computed == list(range(1, seen + 1))
            assert torch.equal(state, states[seen])
            assert not state.requires_grad
        assert computed == list(range(1, last + 1))
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("last", [-1, 4, 25])
def test_a_state_that_does_not_exist(encoder, last):
    with pytest.raises(SettingError, match="states 0 to 3"):
        list(encoder.states(noise(4_000), last=last))


@pytest.mark.parametrize("shape", [(1, 1_024), (1_025,), (1, 1, 1_025)])
def test_a_wave_of_another_shape(encoder, shape):
    with pytest.raises(SettingError, match="at least 1025 samples"):
        list(encoder.states(torch.zeros(shape)))


def test_silence_offsets_and_clipping_stay_finite(encoder, not_finite):
    levels, ripples = [0.0, 0.7, -1.0, 1e-6, 1e-30], [0.0, 1e-7, 1e3]
    assert not_finite(encoder, levels=levels, ripples=ripples, clips=[False, True]) == []


def test_known_frames(encoder):
    assert encoder.min_samples == 1_025
    samples = [0, 1_024, 1_025, 1_919, 1_920, 2_880, 5 * RATE, 30 * RATE]
    assert [encoder.frames(n) for n in samples] == [0, 0, 1, 1, 2, 3, 125, 750]


@pytest.mark.slow
@given(n_fft=st.integers(1, 300).map(lambda n: 2 * n), hop=st.integers(1, 200), extra=st.integers(0, 900))
def test_frames_and_the_shortest_window_are_exact(n_fft, hop, extra):
    small = {"num_mel_bins": 2, "subsampling_channels": [2, 2, 2], "subsampling_depths": [1, 1, 1]}
    small |= {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    values = {**TINY, **small, "n_fft": n_fft, "win_length": n_fft, "hop_length": hop}
    model = Mert2Encoder(Mert2Config.from_dict(values, source="test"), sample_rate=RATE)
    samples = model.min_samples + extra
    assert next(model.states(torch.zeros(1, samples), last=0)).shape[1] == model.frames(samples)
    assert model.frames(model.min_samples) >= 1
    assert model.frames(model.min_samples - 1) == 0


@pytest.mark.slow
def test_a_window_beyond_the_context_is_refused(tmp_path, encoder):
    with pytest.raises(SettingError, match=r"hears 30 s at most, and a window of 720001 samples"):
        encoder.frames(30 * RATE + 1)
    with pytest.raises(SettingError, match="hears 30 s at most"):
        FeatureExtractor(model=encoder, segment_duration=31)
    song = load_model(save_random_checkpoint(tmp_path, shape=SHAPES["full song"]))
    assert FeatureExtractor(model=song, segment_duration=360).spec().frame_rate == 25.0
    with pytest.raises(SettingError, match="hears 360 s at most"):
        FeatureExtractor(model=song, segment_duration=361)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spectra_positions_and_the_residual_stream_stay_single_under_autocast(encoder, expected, dtype):
    wave = torch.from_numpy(expected["quiet_2s__audio"])[None]
    wanted = encoder.hidden_states(wave)
    seen = {}
    hooks = [
        encoder.network.feature_extractor.register_forward_hook(lambda _, __, out: seen.update(mel=out)),
        encoder.network.layers[0].register_forward_pre_hook(lambda _, args: seen.update(rotation=args[1])),
    ]
    spectra = encoder.network.feature_extractor(wave)
    with torch.autocast("cpu", dtype=dtype):
        found = list(encoder.states(wave))
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["mel"], spectra)
    assert [x.dtype for x in (*seen["rotation"], *found)] == [torch.float32] * 6
    for state, exact in zip(found, wanted.unbind(1), strict=True):
        centre = exact.mean(dim=(0, 1))
        cosine = torch.nn.functional.cosine_similarity(state - centre, exact - centre, dim=-1)
        assert cosine.mean() > (0.9999 if dtype is torch.float16 else 0.99)
    assert to_half(encoder, dtype) is encoder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_grouped_convolution_is_in_half_on_a_cpu(encoder, dtype, grouped_convolutions):
    with grouped_convolutions() as seen, torch.autocast("cpu", dtype=dtype):
        encoder.hidden_states(noise(4_000))
    assert len(seen) == 4 + 3
    assert all(types == {torch.float32} for types in seen)


@pytest.mark.slow
def test_it_needs_neither_transformers_nor_torchaudio(golden):
    program = (
        "import sys, torch; from featurestore import load_model; "
        "model = load_model(sys.argv[1]); model.hidden_states(torch.zeros(1, 4000)); "
        "print({'transformers', 'torchaudio'} & sys.modules.keys() or 'neither')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, golden / "mert2_30s"], capture_output=True, text=True, timeout=120
    )
    assert (ran.stdout, ran.stderr) == ("neither\n", "")


@pytest.mark.slow
def test_a_store_of_it(tmp_path, assert_states_close):
    folder = tmp_path / "model"
    model, _ = random_model(folder, "mert2-tiny")
    (tmp_path / "music").mkdir()
    lengths = {"long": 44_100 * 8 + 777, "short": 44_100 * 3}
    for name, length in lengths.items():
        samples = np.random.default_rng(length).normal(0, 0.1, (length, 2))
        soundfile.write(tmp_path / "music" / f"{name}.wav", samples, 44_100)
    settings = {
        "model": folder,
        "layers": [3, 0],
        "segment_duration": 5.0,
        "batch_size": 2,
        "feature_level": "all",
    }
    report = build(tmp_path / "music", tmp_path / "store.zarr", **settings)
    assert (report.processed, report.failed) == (2, 0)
    store = FeatureStore(tmp_path / "store.zarr")
    assert (store.spec.layers, store.spec.frame_rate, store.spec.do_normalize) == ((0, 3), 25.0, False)
    for name in lengths:
        blocks = decode(tmp_path / "music" / f"{name}.wav", RATE)
        windows = np.stack([x for _, x in sliding_windows(blocks, 5 * RATE, 5 * RATE // 2)])
        wanted = model.hidden_states(torch.from_numpy(windows))[:, [0, 3]].numpy()
        assert wanted.shape[2] == (125 if name == "long" else 75)
        assert_states_close(store.raw(name), wanted)
        assert_states_close(store.aggregated(tracks=[name]), wanted.mean(axis=(0, 2))[None])
