"""MuQ and MusicFM compute what their authors' packages compute, and keep the rules of an encoder."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from featurestore import FeatureExtractor, FeatureStore, build
from featurestore.errors import SettingError
from featurestore.models import MuqEncoder, check_encoder, load_model, save_random_checkpoint
from featurestore.models.checkpoints.config_muq import MuqConfig
from featurestore.models.checkpoints.shapes import MUQ_SHAPES, MUQ_STATISTICS
from featurestore.models.kernels.half import to_half

CLIPS = ["music_5s", "music_1p3s", "quiet_2s", "silence_1s", "shortest"]
NETWORKS = ["muq", "musicfm"]
RATE = 24_000
TINY = MUQ_SHAPES["muq-tiny"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return request.param


@pytest.fixture(scope="module")
def encoder(golden, network):
    return load_model(golden / network)


@pytest.fixture(scope="module")
def audio(golden):
    """The clips of MERT-v2, which all networks of 24 kHz are given."""
    with np.load(golden / "mert2_30s" / "expected.npz") as arrays:
        return {clip: torch.from_numpy(arrays[f"{clip}__audio"])[None] for clip in CLIPS}


def noise(samples, windows=1, gain=0.1):
    return torch.from_numpy(np.random.default_rng(samples).normal(0, gain, (windows, samples)).astype(np.float32))


def config(**changes):
    return MuqConfig.from_dict({**TINY, **changes}, MUQ_STATISTICS, source="test", statistics_source="test")


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_golden_states(golden, network, encoder, audio, clip):
    with np.load(golden / network / "expected.npz") as arrays:
        wanted = arrays[f"{clip}__hidden"]
    found = encoder.hidden_states(audio[clip])
    assert (found.dtype, found.shape[1:]) == (torch.float32, wanted.shape)
    error = np.abs(found[0].numpy() - wanted).max(axis=(1, 2)) / np.abs(wanted).max(axis=(1, 2))
    assert (error <= 8e-6).all(), error


@pytest.mark.slow
def test_it_keeps_the_rules_of_an_encoder(encoder):
    check_encoder(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"label_rate": 50}, {"hop_length": 5_000}, {"n_mels": 4, "conv_dim": 1}])
def test_other_shapes_keep_them_too(tmp_path, changes):
    check_encoder(load_model(save_random_checkpoint(tmp_path, shape={**TINY, **changes})))


@pytest.mark.slow
def test_a_window_does_not_depend_on_its_batch(encoder, audio, assert_states_close):
    music = audio["music_1p3s"]
    waves = torch.cat([music, music * 0.01, torch.zeros_like(music), music.flip(1)])
    alone = torch.cat([encoder.hidden_states(wave[None]) for wave in waves])
    assert_states_close(encoder.hidden_states(waves), alone)


@pytest.mark.slow
def test_the_last_state_alone_has_passed_the_final_norm(encoder, audio):
    norm = encoder.network.layer_norm
    seen = {}
    hook = encoder.network.layers[-1].register_forward_hook(lambda _, __, out: seen.update(last=out))
    states = list(encoder.states(audio["music_1p3s"]))
    hook.remove()
    assert torch.equal(states[-1], norm(seen["last"]))
    assert torch.equal(states[1], list(encoder.states(audio["music_1p3s"], last=1))[1])
    assert not torch.allclose(states[-1], seen["last"], atol=1e-2)


@pytest.mark.slow
def test_what_lies_beyond_the_last_state_is_not_computed(encoder):
    computed = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: computed.append(number))
        for number, block in enumerate(encoder.network.layers, 1)
    ]
    states = encoder.hidden_states(noise(4_000)).unbind(1)
    for last in range(encoder.layers + 1):
        computed.clear()
        for seen, state in enumerate(encoder.states(noise(4_000), last=last)):
            assert computed == list(range(1, seen + 1))
            assert torch.equal(state, states[seen])
        assert computed == list(range(1, last + 1))
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("last", [-1, 4, 12])
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
    assert (encoder.min_samples, encoder.context_seconds, encoder.do_normalize) == (1_025, 30.0, False)
    samples = [0, 1_024, 1_025, 1_199, 1_200, 2_160, 5 * RATE, 30 * RATE]
    assert [encoder.frames(n) for n in samples] == [0, 0, 1, 1, 2, 3, 125, 750]


@pytest.mark.slow
@given(hop=st.integers(1, 2_000), extra=st.integers(0, 5_000), rate=st.sampled_from([25, 50]))
def test_frames_and_the_shortest_window_are_exact(hop, extra, rate):
    small = {"n_mels": 4, "conv_dim": 1, "encoder_dim": 8, "encoder_depth": 1}
    model = MuqEncoder(config(hop_length=hop, label_rate=rate, **small))
    samples = model.min_samples + extra
    assert next(model.states(torch.zeros(1, samples), last=0)).shape[1] == model.frames(samples)
    assert model.frames(model.min_samples) >= 1
    assert model.frames(model.min_samples - 1) == 0


@pytest.mark.slow
def test_a_window_beyond_the_context_is_refused(encoder):
    with pytest.raises(SettingError, match=r"hears 30 s at most, and a window of 720001 samples"):
        encoder.frames(30 * RATE + 1)
    with pytest.raises(SettingError, match="hears 30 s at most"):
        FeatureExtractor(model=encoder, segment_duration=31)
    assert FeatureExtractor(model=encoder, segment_duration=30).spec().frame_rate == 25.0


@pytest.mark.slow
def test_the_window_filters_and_positions_are_those_of_the_checkpoint(golden, tmp_path):
    """MusicFM's weights hold them; those of MuQ may, where its package kept none."""
    state = load_file(golden / "muq" / "model.safetensors")
    wave = noise(4_000)
    (tmp_path / "config.json").write_bytes((golden / "muq" / "config.json").read_bytes())
    known = load_model(golden / "muq").network.state_dict()
    mel = "model.preprocessor_melspec_2048.mel_stft"
    state[f"{mel}.spectrogram.window"] = known["feature_extractor.spectrogram.window"].clone()
    state[f"{mel}.mel_scale.fb"] = known["feature_extractor.mel_scale.fb"].clone()
    save_file(state, tmp_path / "model.safetensors")
    same = load_model(tmp_path).hidden_states(wave)
    assert torch.equal(same, load_model(golden / "muq").hidden_states(wave))
    frequencies = "model.conformer.embed_positions.inv_freq"
    for key in (f"{mel}.spectrogram.window", f"{mel}.mel_scale.fb", frequencies):
        save_file({**state, key: state[key] * 0.9}, tmp_path / "model.safetensors")
        assert (load_model(tmp_path).hidden_states(wave) - same).abs().max() > 1e-3
    del state[frequencies]
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path).hidden_states(wave), same)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spectra_positions_and_the_residual_stream_stay_single_under_autocast(encoder, audio, dtype):
    wanted = encoder.hidden_states(audio["quiet_2s"])
    seen = {}
    hooks = [
        encoder.network.feature_extractor.register_forward_hook(lambda _, __, out: seen.update(mel=out)),
        encoder.network.layers[0].register_forward_pre_hook(lambda _, args: seen.update(rotation=args[1])),
    ]
    with torch.autocast("cpu", dtype=dtype):
        found = list(encoder.states(audio["quiet_2s"]))
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["mel"], encoder.network.feature_extractor(audio["quiet_2s"]))
    assert [x.dtype for x in (*seen["rotation"], *found)] == [torch.float32] * 6
    for state, exact in zip(found, wanted.unbind(1), strict=True):
        centre = exact.mean(dim=(0, 1))
        cosine = torch.nn.functional.cosine_similarity(state - centre, exact - centre, dim=-1)
        assert cosine.mean() > (0.999 if dtype is torch.float16 else 0.99)
    assert to_half(encoder, dtype).name == encoder.name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_grouped_convolution_is_in_half_on_a_cpu(encoder, dtype, grouped_convolutions):
    with grouped_convolutions() as seen, torch.autocast("cpu", dtype=dtype):
        encoder.hidden_states(noise(4_000))
    assert len(seen) == encoder.layers
    assert all(types == {torch.float32} for types in seen)


@pytest.mark.slow
def test_it_needs_neither_transformers_nor_torchaudio(golden, network):
    program = (
        "import sys, torch; from featurestore import load_model; "
        "model = load_model(sys.argv[1]); model.hidden_states(torch.zeros(1, 4000)); "
        "print({'transformers', 'torchaudio', 'muq'} & sys.modules.keys() or 'none')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, golden / network], capture_output=True, text=True, timeout=120
    )
    assert (ran.stdout, ran.stderr) == ("none\n", "")


@pytest.mark.slow
def test_a_store_of_it(tmp_path, golden, network, encoder, assert_states_close):
    (tmp_path / "music").mkdir()
    samples = noise(3 * RATE)[0].numpy()
    soundfile.write(tmp_path / "music" / "a.wav", samples, RATE, subtype="FLOAT")
    settings = {"model": golden / network, "layers": [3, 0], "segment_duration": 3.0, "feature_level": "all"}
    report = build(tmp_path / "music", tmp_path / "store.zarr", **settings)
    assert (report.processed, report.failed) == (1, 0)
    store = FeatureStore(tmp_path / "store.zarr")
    assert (store.spec.layers, store.spec.frame_rate, store.spec.do_normalize) == ((0, 3), 25.0, False)
    wanted = encoder.hidden_states(torch.from_numpy(samples)[None])[:, [0, 3]].numpy()
    assert_states_close(store.raw("a"), wanted)
