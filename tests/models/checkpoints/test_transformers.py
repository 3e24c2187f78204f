"""Encoders of transformers: the numbers of a plain forward, state by state; nothing of a checkpoint is run."""

import json
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
import transformers

from featurestore import FeatureExtractor
from featurestore.errors import CheckpointError, ModelError, SettingError
from featurestore.models import check_encoder, load_model, transformers_encoder
from featurestore.models.checkpoints.transformers import load_transformers_checkpoint
from featurestore.models.kernels.engine import bf16_for_cpu
from featurestore.models.kernels.products import autocast_on_cpu
from featurestore.models.transformers_encoder import TransformersEncoder

pytestmark = pytest.mark.slow  # transformers takes seconds to import

RATE = 16_000
SAMPLES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 100,
    "num_mel_bins": 20,
    "vocab_size": 50,
    **{f"{token}_token_id": 1 for token in ("pad", "bos", "eos", "decoder_start")},
}
PRE_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
CONFORMER = {"conv_depthwise_kernel_size": 5, "position_embeddings_type": "relative"}
BERT = {
    **{key: SAMPLES[key] for key in list(SAMPLES)[:4]},
    "feature_projection_input_dim": 40,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
    "position_embeddings_type": "relative_key",
}
AST = {
    **{key: SAMPLES[key] for key in list(SAMPLES)[:4]},
    "patch_size": 8,
    "frequency_stride": 5,
    "time_stride": 4,
    "max_length": 120,
    "num_mel_bins": 20,
}
POSITIONS = {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
# Name: class, configuration, settings, do_normalize.
NETWORKS = {
    "hubert with a head": ("HubertForCTC", "HubertConfig", {}, True),
    "hubert with batch norm": ("HubertModel", "HubertConfig", {"conv_pos_batch_norm": True}, False),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", {}, True),
    "wav2vec2 pre-LN": ("Wav2Vec2ForPreTraining", "Wav2Vec2Config", PRE_NORM, True),
    "wav2vec2 with adapters": ("Wav2Vec2ForCTC", "Wav2Vec2Config", {**PRE_NORM, "adapter_attn_dim": 8}, False),
    "wavlm": ("WavLMModel", "WavLMConfig", {}, False),
    "wavlm pre-LN": ("WavLMForCTC", "WavLMConfig", PRE_NORM, True),
    "data2vec": ("Data2VecAudioModel", "Data2VecAudioConfig", POSITIONS, True),
    "whisper": ("WhisperModel", "WhisperConfig", {}, False),
    "whisper with a head": ("WhisperForConditionalGeneration", "WhisperConfig", {}, False),
    "conformer": ("Wav2Vec2ConformerModel", "Wav2Vec2ConformerConfig", CONFORMER, True),
    "conformer, rotary": (
        *("Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig"),
        {
            **CONFORMER,
            "position_embeddings_type": "rotary",
            "feat_extract_norm": "layer",
            "add_adapter": True,
            "vocab_size": 9,
        },
        False,
    ),
    "conformer, no positions": (
        *("Wav2Vec2ConformerForPreTraining", "Wav2Vec2ConformerConfig"),
        {**CONFORMER, "position_embeddings_type": None},
        True,
    ),
    "unispeech-sat": ("UniSpeechSatModel", "UniSpeechSatConfig", {}, True),
    "unispeech-sat pre-LN": ("UniSpeechSatForCTC", "UniSpeechSatConfig", PRE_NORM, True),
    "w2v-bert": ("Wav2Vec2BertModel", "Wav2Vec2BertConfig", {}, True),
    "w2v-bert, rotary": (
        *("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig"),
        {"position_embeddings_type": "rotary", "vocab_size": 9},
        True,
    ),
    "w2v-bert, relative": (
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {"position_embeddings_type": "relative"},
        True,
    ),
    "ast": ("ASTModel", "ASTConfig", {}, False),
    "ast with a head": ("ASTForAudioClassification", "ASTConfig", {"qkv_bias": False}, False),
}
BASES = {"whisper": WHISPER, "w2v-bert": BERT, "ast": AST}
FRAME_RATES = {"whisper": 50.0, "w2v-bert": 50.0, "ast": 25.0}
CONTEXTS = {"whisper": 2.0, "ast": 1.2}


def exact_feature_extractor(**settings):
    """That of w2v-BERT: its means and variances are sums of float32, which round more than we may differ."""

    class Exact(transformers.SeamlessM4TFeatureExtractor):  # to name it takes seconds, of whoever collects tests
        def _extract_fbank_features(self, waveform):
            return super()._extract_fbank_features(waveform).astype(np.float64)

        def to_dict(self):
            return {**super().to_dict(), "feature_extractor_type": "SeamlessM4TFeatureExtractor"}

    return Exact(**settings)


def family(name):
    return name.split(" ")[0].rstrip(",")


def save(folder, name, **options):
    """A checkpoint of random weights, as transformers writes it; gives the network."""
    kind, config, settings, _ = NETWORKS[name]
    base = BASES.get(family(name), SAMPLES)
    torch.manual_seed(0)
    network = getattr(transformers, kind)(getattr(transformers, config)(**{**base, **settings})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms of a new network say nothing
    network.save_pretrained(folder, **options)
    extractor(name).save_pretrained(folder)
    return network


def extractor(name):
    if family(name) == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    if family(name) == "w2v-bert":
        return exact_feature_extractor(feature_size=20, num_mel_bins=20, padding_value=1.0)
    if family(name) == "ast":
        return transformers.ASTFeatureExtractor(num_mel_bins=20, max_length=120, mean=-3.0, std=2.0)
    return transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=NETWORKS[name][3])


def plain(network, name, wave):
    """All states by transformers alone, with its own preprocessing."""
    heard = extractor(name)([x.numpy() for x in wave], sampling_rate=RATE, return_tensors="pt")
    inner = network.get_encoder() if family(name) == "whisper" else network
    inner = getattr(inner, network.base_model_prefix, inner)
    if family(name) == "w2v-bert":
        inner.intermediate_ffn = inner.adapter = None
    if getattr(inner, "adapter", None) is not None:
        inner.adapter = None
    given = {key: x for key, x in heard.items() if family(name) == "w2v-bert" or key != "attention_mask"}
    with torch.no_grad():
        output = inner(**given, output_hidden_states=True)
    # For pre-LN networks, transformers' last hidden state may lack the final layer norm.
    states = torch.stack([*output.hidden_states[:-1], output.last_hidden_state], dim=1)
    spectra = (wave.shape[1] - 400) // 160 + 1
    if family(name) == "whisper":
        return states[:, :, : -(-wave.shape[1] // 320)]
    if family(name) == "w2v-bert":
        return states[:, :, : spectra // 2]
    if family(name) == "ast":
        # 2 tokens, then 3 patches along frequency of 29 along time each.
        return states[:, :, 2:].unflatten(2, (3, 29)).mean(dim=2)[:, :, : (spectra - 8) // 4 + 1]
    return states


def change_json(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: x for key, x in {**values, **changes}.items() if x is not ...}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder and network of a name, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[name] = (folder, save(folder, name))
        return made[name]

    return get


@pytest.fixture
def own(tmp_path):
    """A checkpoint of a name, to be tampered with."""

    def make(name, **options):
        save(tmp_path / name, name, **options)
        return tmp_path / name

    return make


@pytest.fixture(params=NETWORKS)
def case(request, saved):
    folder, network = saved(request.param)
    return request.param, load_model(folder), network


def noise(samples, windows=2):
    return torch.from_numpy(np.random.default_rng(samples).normal(0, 0.1, (windows, samples)).astype(np.float32))


@pytest.mark.parametrize("samples", [800, 16_001, 16_160])
def test_states_are_those_of_a_plain_forward(case, samples, assert_states_close):
    name, encoder, network = case
    samples = max(samples, encoder.min_samples)
    wave = noise(samples) * torch.tensor([[1.0], [0.01]])
    found = encoder.hidden_states(wave)
    wanted = plain(network, name, wave)
    assert found.shape == (2, 4, encoder.frames(samples), 32)
    assert_states_close(found, wanted)


def test_no_grouped_convolution_is_in_half_on_a_cpu(case, grouped_convolutions):
    name, encoder, _ = case
    wave = noise(16_001)
    wanted = encoder.hidden_states(wave)
    with grouped_convolutions() as seen:
        assert bf16_for_cpu(encoder)[0] is encoder  # its probe is close enough
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = encoder.hidden_states(wave).float()
    assert (family(name) in ("whisper", "ast")) == (not seen)
    assert all(types == {torch.float32} for types in seen)
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=-1).min() > 0.995


def test_products_in_bf16_have_inner_lengths_that_are_right_with_amx(case, inner_lengths, are_right):
    _, encoder, _ = case
    wave = noise(16_001)
    wanted = encoder.hidden_states(wave)
    with inner_lengths() as seen, autocast_on_cpu(torch.bfloat16):
        found = encoder.hidden_states(wave).float()
    assert are_right(seen)
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=-1).min() > 0.995
    with inner_lengths() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        encoder.hidden_states(wave)
    assert not are_right(seen)  # what would be wrong without


def test_front_ends_on_a_card_are_in_half_but_for_the_first_convolution(case, monkeypatch):
    """The CPU stands for the card, whose grouped convolutions are right."""
    name, encoder, _ = case
    wave, types = noise(16_001) * torch.tensor([[1.0], [1e-4]]), []
    wanted = encoder.hidden_states(wave)
    monkeypatch.setattr(transformers_encoder, "_EXACT_FRONT_ENDS", ())
    front = [x for x in encoder._network.modules() if isinstance(x, torch.nn.Conv1d | torch.nn.Conv2d)]
    for convolution in front:
        convolution.register_forward_hook(lambda *x: types.append(x[-1].dtype))
    with autocast_on_cpu(torch.bfloat16):
        found = list(encoder.states(wave))
    assert types[:1] in ([torch.float32], [])
    assert bool(types) == (family(name) != "w2v-bert")
    assert (torch.bfloat16 in types) == (family(name) not in ("ast", "w2v-bert"))
    assert found[0].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(torch.stack(found, 1).float(), wanted, dim=-1).min() > 0.98


def test_the_rules_of_an_encoder(case):
    check_encoder(case[1])


@pytest.mark.parametrize("checkpoint", ["base_v1", "large_v1"])
def test_the_native_encoder_keeps_them_too(golden, checkpoint):
    check_encoder(load_model(golden / checkpoint))


def test_states_come_one_by_one_and_stop_early(case):
    _, encoder, _ = case
    computed = []
    for module in encoder.modules():
        if type(module).__name__.endswith(("EncoderLayer", "EncoderLayerStableLayerNorm", "ASTLayer")):
            module.register_forward_hook(lambda *_: computed.append(1))
    for last in range(encoder.layers + 1):
        computed.clear()
        for number, _ in enumerate(encoder.states(noise(8_000), last=last)):
            assert len(computed) == number
        assert len(computed) == last


def test_no_other_layer_than_those_that_exist(case):
    with pytest.raises(SettingError, match="layers 0 to 3"):
        FeatureExtractor(model=case[1], segment_duration=1.0, layers=[99])
    with pytest.raises(SettingError, match="states 0 to 3"):
        list(case[1].states(noise(8_000), last=4))


def test_a_window_leaves_nothing_behind_for_that_of_another_thread(case):
    _, encoder, _ = case

    def held():
        return [value for module in encoder.modules() for value in {**vars(module), **module._buffers}.values()]

    for module in encoder.modules():
        if hasattr(module, "pe"):  # those of 100 s, which grow with longer windows
            module.pe = module.pe[:, 4_999 - 5 : 4_999 + 6]
    encoder.hidden_states(noise(4_000))
    before = held()
    encoder.hidden_states(noise(8_000))
    assert all(now is then for now, then in zip(held(), before, strict=True))


def test_threads_may_share_an_encoder(case, assert_states_close):
    _, encoder, _ = case
    waves = [noise(4_000 + 500 * number) for number in range(3)]
    wanted = [encoder.hidden_states(wave) for wave in waves]
    found = [None] * 3

    def run(number):
        for _ in range(5):
            found[number] = encoder.hidden_states(waves[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, wanted, strict=True):
        assert_states_close(one, other)


def test_a_spec_says_what_the_model_hears(case):
    name, encoder, _ = case
    spec = FeatureExtractor(model=encoder, segment_duration=1.0, layers=[1, 3]).spec()
    assert (spec.layers, spec.dim, spec.sample_rate) == ((1, 3), 32, RATE)
    assert spec.do_normalize == NETWORKS[name][3]
    assert spec.frame_rate == FRAME_RATES.get(family(name), 100.0)
    assert len(spec.weights_sha256) == 64
    assert encoder.context_seconds == CONTEXTS.get(family(name), 5.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["wavlm", "whisper"])
def test_the_callers_default_type_changes_nothing(saved, name, dtype):
    wave = noise(4_000)
    wanted = load_model(saved(name)[0]).hidden_states(wave)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        encoder = load_model(saved(name)[0])
        check_encoder(encoder)
        assert torch.equal(encoder.hidden_states(wave), wanted)
    finally:
        torch.set_default_dtype(before)


def test_weights_of_another_type_are_refused(saved):
    encoder = load_model(saved("wavlm")[0]).double()
    with pytest.raises(ModelError, match=r"are torch\.float64: give the model in float32"):
        encoder.hidden_states(noise(4_000))


def test_only_hubert_that_the_native_network_cannot_hold_takes_transformers(saved, tmp_path, assert_states_close):
    for name in ("hubert with a head", "hubert with batch norm"):
        assert isinstance(load_model(saved(name)[0]), TransformersEncoder)
    network = transformers.HubertModel(transformers.HubertConfig(**SAMPLES)).eval()
    network.save_pretrained(tmp_path)
    extractor("wav2vec2").save_pretrained(tmp_path)
    native, other = load_model(tmp_path), load_transformers_checkpoint(tmp_path, name="other")
    assert not isinstance(native, TransformersEncoder)
    assert FeatureExtractor(model=native).spec().fingerprint == FeatureExtractor(model=other).spec().fingerprint
    assert_states_close(native.hidden_states(noise(8_000)), other.hidden_states(noise(8_000)))


def test_a_pickle_gives_the_same(own):
    from safetensors.torch import load_file

    folder = own("wavlm pre-LN")
    wanted = load_model(folder).hidden_states(noise(4_000))
    state = load_file(folder / "model.safetensors")
    old = {"original0": "weight_g", "original1": "weight_v"}
    for key in [key for key in state if "parametrizations" in key]:
        stem, number = key.split("parametrizations.weight.")
        state[stem + old[number]] = state.pop(key)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder).hidden_states(noise(4_000)), wanted)


def test_shards_give_the_same(own):
    folder = own("whisper", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert load_model(folder).frames(RATE) == 50


def test_nothing_of_a_checkpoint_is_run(own, tmp_path):
    folder = own("wav2vec2")
    wanted = load_model(folder).hidden_states(noise(4_000))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    change_json(
        folder / "config.json",
        auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
        _attn_implementation="someone/kernels",
        attn_implementation="someone/kernels",
        quantization_config={"quant_method": "gptq", "bits": 4},
        dtype="float16",
        torch_dtype="float16",
        output_hidden_states=False,
        _name_or_path="someone/evil",
    )
    change_json(folder / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "evil.Extractor"})
    assert torch.equal(load_model(folder).hidden_states(noise(4_000)), wanted)
    assert not (tmp_path / "executed").exists()


def test_loading_says_nothing(saved, preloaded):
    folders = [str(saved(name)[0]) for name in ("wavlm", "whisper")]
    code = (
        "import sys, torch\nfrom featurestore import load_model\n"
        "for x in sys.argv[1:]: load_model(x).hidden_states(torch.zeros(1, 4_000))"
    )
    run = preloaded.start(["-c", code, *folders], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.communicate() == ("", "")
    assert run.returncode == 0


HOSTILE = [
    *[
        ("wav2vec2", key, x)
        for key in ("hidden_size", "num_attention_heads")
        for x in (10**9, 0, "32", True, None)
    ],
    *[("wav2vec2", key, x) for key in ("conv_dim", "conv_stride") for x in ([10**9] * 3, [5], [1] * 1000, None)],
    ("wav2vec2", "num_hidden_layers", 10**6),
    ("wav2vec2", "num_attention_heads", 5),
    ("wav2vec2", "num_conv_pos_embedding_groups", 7),
    ("wav2vec2", "do_stable_layer_norm", ...),
    ("wav2vec2", "do_stable_layer_norm", "no"),
    ("wav2vec2", "feat_extract_norm", ["group"]),
    ("wav2vec2", "hidden_act", "someone/activation"),
    ("wav2vec2", "layer_norm_eps", float("nan")),
    ("wav2vec2", "deepnorm", True),
    ("hubert with batch norm", "feature_extractor_cqt", True),
    ("wavlm", "num_buckets", 10**9),
    ("wavlm", "max_bucket_distance", 1),
    ("data2vec", "num_conv_pos_embeddings", 1_000),
    ("whisper", "d_model", 10**9),
    ("whisper", "encoder_layers", None),
    ("whisper", "encoder_attention_heads", 5),
    ("whisper", "max_source_positions", 10**9),
    ("conformer", "conv_depthwise_kernel_size", 10**9),
    ("conformer", "conv_depthwise_kernel_size", 4),
    ("conformer", "position_embeddings_type", "sinusoidal"),
    ("conformer", "position_embeddings_type", ...),
    ("conformer, rotary", "rotary_embedding_base", 10**10),
    ("conformer, rotary", "num_attention_heads", 5),
    ("conformer, rotary", "num_attention_heads", 32),
    ("ast", "num_attention_heads", 5),
    ("w2v-bert", "feature_projection_input_dim", 10**9),
    ("w2v-bert", "left_max_position_embeddings", ...),
    ("w2v-bert", "layer_norm_eps", float("nan")),
    ("w2v-bert", "num_attention_heads", 5),
    ("unispeech-sat", "conv_dim", [10**9] * 3),
    ("ast", "max_length", 10**9),
    ("ast", "patch_size", [8, 8]),
    ("ast", "time_stride", 0),
    ("ast", "frequency_stride", ...),
    ("ast", "layer_norm_eps", float("nan")),
    ("whisper", "model_type", "bert"),
    ("whisper", "model_type", ["whisper"]),
]


@pytest.mark.parametrize(("name", "key", "value"), HOSTILE)
def test_an_impossible_config(own, name, key, value):
    folder = own(name)
    change_json(folder / "config.json", **{key: value})
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_model(folder)
    assert time.perf_counter() - began < 2
    assert key.split("_")[0] in str(caught.value) or "does not describe" in str(caught.value)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
@pytest.mark.parametrize("size", [1 << 16, 64])
def test_a_config_that_the_weights_contradict(own, name, size):
    folder = own(name)
    change_json(folder / "config.json", **{"d_model" if name == "whisper" else "hidden_size": size})
    with pytest.raises(CheckpointError, match="has shape"):
        load_model(folder)


def test_a_tensor_that_is_missing_or_unexpected(own):
    from safetensors.torch import load_file, save_file

    folder = own("wavlm")
    state = load_file(folder / "model.safetensors")
    less = {key: x for key, x in state.items() if key != "encoder.layers.1.attention.q_proj.bias"}
    save_file(less, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lack 1 tensors .* encoder\.layers\.1\.attention\.q_proj\.bias"):
        load_model(folder)
    save_file({**state, "encoder.surprise": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has not: encoder\.surprise"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("wav2vec2", {"sampling_rate": ...}, "sampling_rate"),
        ("wav2vec2", {"do_normalize": "yes"}, "do_normalize"),
        ("wav2vec2", {"feature_extractor_type": "WhisperFeatureExtractor"}, "not supported"),
        ("whisper", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "not supported"),
        ("whisper", {"chunk_length": 30}, "2 ?00|200"),
        ("whisper", {"feature_size": 80}, "20 and"),
        ("whisper", {"n_fft": 10**9}, "n_fft"),
        ("whisper", {"hop_length": 0}, "hop_length"),
        ("whisper", {"chunk_length": 10**9}, "chunk_length"),
        ("whisper", {"dither": 0.1}, "dither"),
        ("ast", {"mean": float("nan")}, "mean must be a number"),
        ("ast", {"std": float("nan")}, "std must be a number"),
        ("ast", {"std": 0.0}, "std must be a number"),
        ("ast", {"num_mel_bins": 10**9}, "num_mel_bins"),
        ("ast", {"max_length": 1024}, "20 bands and 1024 spectra are not the 20 and 120"),
        ("ast", {"sampling_rate": 30}, "leaves no band above 20 Hz"),
        ("ast", {"do_normalize": None}, "do_normalize"),
        ("ast", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "only ASTFeatureExtractor is"),
        ("w2v-bert", {"stride": 0}, "stride"),
        ("w2v-bert", {"num_mel_bins": 80}, "is not the feature_projection_input_dim 40"),
        ("w2v-bert", {"sampling_rate": float("nan")}, "sampling_rate"),
        ("conformer", {"sampling_rate": 0}, "sampling_rate"),
    ],
)
def test_impossible_preprocessing(own, name, changes, message):
    folder = own(name)
    change_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_preprocessing_is_not_guessed(own):
    folder = own("whisper")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2 with adapters", "whisper"])
def test_preprocessing_that_a_processor_saved(own, name):
    folder = own(name)
    wanted = load_model(folder)
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    found = load_model(folder)
    assert (found.sample_rate, found.do_normalize) == (wanted.sample_rate, wanted.do_normalize)
    assert torch.equal(found.hidden_states(noise(4_000)), wanted.hidden_states(noise(4_000)))
    extractor["sampling_rate"] = 0
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    with pytest.raises(CheckpointError, match=r"/processor_config\.json: sampling_rate"):
        load_model(folder)


def test_whisper_hears_a_window_followed_by_silence(saved):
    encoder = load_model(saved("whisper")[0])
    wave = noise(8_000)
    whole = encoder.hidden_states(torch.nn.functional.pad(wave, (0, 24_000)))
    assert whole.shape[2] == encoder.frames(32_000) == 100
    assert torch.equal(encoder.hidden_states(wave), whole[:, :, :25])
    assert [encoder.frames(n) for n in (0, 1, 320, 321, 80)] == [0, 1, 1, 2, 1]


def test_whisper_hears_no_more_than_it_was_made_for(saved):
    encoder = load_model(saved("whisper")[0])
    with pytest.raises(SettingError, match="hears 2 s at most"):
        FeatureExtractor(model=encoder, segment_duration=2.5)
    with pytest.raises(SettingError, match="hears 2 s at most"):
        list(encoder.states(noise(32_001)))
    assert FeatureExtractor(model=encoder, segment_duration=2.0).spec().frame_rate == 50.0


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_a_store_of_one(saved, tmp_path, name, assert_states_close):
    import soundfile

    from featurestore import FeatureStore, build
    from featurestore.audio import decode
    from featurestore.windows import sliding_windows

    folder, network = saved(name)
    (tmp_path / "music").mkdir()
    for number in range(2):
        samples = np.random.default_rng(number).normal(0, 0.1, (44_100 * 2 + 777 * number, 2))
        soundfile.write(tmp_path / "music" / f"{number}.wav", samples, 44_100)
    report = build(
        tmp_path / "music",
        tmp_path / "store.zarr",
        model=folder,
        layers=[3, 1],
        segment_duration=1.0,
        batch_size=2,
        feature_level="all",
    )
    assert (report.processed, report.failed) == (2, 0)
    again = build(tmp_path / "music", tmp_path / "store.zarr", model=folder, layers=[3, 1], segment_duration=1.0)
    assert (again.processed, again.cached) == (0, 2)
    store = FeatureStore(tmp_path / "store.zarr")
    assert store.spec.layers == (1, 3)
    for number in range(2):
        blocks = decode(tmp_path / "music" / f"{number}.wav", RATE)
        windows = np.stack([x for _, x in sliding_windows(blocks, RATE, RATE // 2)])
        wanted = plain(network, name, torch.from_numpy(windows))[:, [1, 3]].numpy()
        assert_states_close(store.raw(str(number)), wanted)
        pooled = wanted.mean(axis=(0, 2))
        assert_states_close(store.aggregated(tracks=[str(number)]), pooled[None])
