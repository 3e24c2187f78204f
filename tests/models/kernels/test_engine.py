"""The engine for CPUs gives the numbers of the plain forward pass, or is not used."""

import copy
import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ModelError, SettingError
from featurestore.models import MertEncoder, load_model
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.kernels import convolutions, engine
from featurestore.models.kernels.engine import CpuEngine, optimize_for_cpu
from featurestore.models.kernels.half import to_half

CLIPS = ["music_0p7s", "min_400", "two_720", "silence_1s"]
SHAPE = {
    **SHAPES["tiny"],
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32, 24, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def network(*, seed=0, do_normalize=False, **values):
    """A plain encoder with weights that say something, biases and norms included."""
    config = MertConfig.from_dict({**SHAPE, **values}, source="test")
    torch.manual_seed(seed)
    encoder = MertEncoder(config, sample_rate=24_000, do_normalize=do_normalize)
    for parameter in encoder.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def engine_of(encoder):
    """An engine on a copy: the plain encoder that it is compared with shares no memory with it."""
    return CpuEngine(copy.deepcopy(encoder))


def assert_exact(found, plain, wave):
    """As near to the truth as the plain pass is, which loses bits itself where norms amplify rounding."""
    truth = torch.stack(list(exact_states(plain, wave)), dim=1)
    error, plain_error = ((x - truth).abs().max() for x in (found, plain.hidden_states(wave)))
    assert error <= max(2 * plain_error, 1e-5 * truth.abs().max())


def exact_states(plain, wave):
    """The plain forward pass in double precision."""
    encoder = copy.deepcopy(plain).double()
    wave, _ = plain.prepared(wave, None)
    x = encoder.feature_extractor(wave.double())
    x = encoder.feature_projection.projection(encoder.feature_projection.layer_norm(x))
    x = encoder.encoder.layer_norm(x + encoder.encoder.pos_conv_embed(x))
    yield x
    for layer in encoder.encoder.layers:
        x = layer(x)
        yield x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_v1", "large_v1"])
@pytest.mark.parametrize("clip", CLIPS)
def test_golden_states(golden, name, clip, assert_states_close):
    with np.load(golden / name / "expected.npz") as arrays:
        wave = torch.from_numpy(arrays[f"{clip}__audio"].astype(np.float32))[None]
        wanted = torch.from_numpy(arrays[f"{clip}__hidden"]).transpose(0, 1)
    fast = optimize_for_cpu(load_model(golden / name))
    assert isinstance(fast, CpuEngine)
    assert_states_close(fast.hidden_states(wave), wanted)


VARIANTS = list(itertools.product([False, True], ["group", "layer"], [False, True]))


@pytest.mark.slow
@pytest.mark.parametrize(("pre_norm", "norm", "bias"), VARIANTS)
def test_every_variant(pre_norm, norm, bias, assert_states_close):
    plain = network(
        do_stable_layer_norm=pre_norm,
        feat_extract_norm=norm,
        conv_bias=bias,
        feat_proj_layer_norm=bias,
        num_conv_pos_embeddings=16 if bias else 15,
        do_normalize=bias,
    )
    fast = engine_of(plain)
    for samples in (plain.min_samples, plain.min_samples + 1, 4_001, 30_000):
        wave = torch.randn(3, samples)
        assert_states_close(fast.hidden_states(wave), plain.hidden_states(wave))


@pytest.mark.slow
@settings(max_examples=40)
@given(
    convs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4),
    taps=st.integers(1, 40),
    extra=st.integers(8, 700),
    windows=st.integers(1, 3),
    chunk=st.integers(1, 9),
    piece=st.integers(1, 40),
    norm=st.sampled_from(["group", "layer"]),
)
def test_any_kernels_lengths_and_pieces(convs, taps, extra, windows, chunk, piece, norm):
    plain = network(
        conv_dim=[8] * len(convs),
        conv_kernel=[kernel for kernel, _ in convs],
        conv_stride=[stride for _, stride in convs],
        num_feat_extract_layers=len(convs),
        num_conv_pos_embeddings=taps,
        num_hidden_layers=1,
        feat_extract_norm=norm,
    )
    wave = torch.randn(windows, plain.min_samples + extra)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "CHUNK", chunk)
        patch.setattr(convolutions, "PIECE", piece)
        found = engine_of(plain).hidden_states(wave)
    assert_exact(found, plain, wave)


@pytest.mark.slow
@pytest.mark.parametrize("do_normalize", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("sound", ["silence", "offset", "offset and hum", "quiet", "click", "loud"])
def test_sounds_that_lose_bits(do_normalize, norm, sound):
    noise = torch.randn(2, 24_001)
    wave = {
        "silence": torch.zeros_like(noise),
        "offset": torch.full_like(noise, 0.7),
        "offset and hum": 0.9 + 1e-3 * torch.sin(torch.arange(24_001) * 0.02).expand(2, -1),
        "quiet": 1e-4 * noise,
        "click": torch.nn.functional.one_hot(torch.tensor([5, 12_000]), 24_001).float(),
        "loud": 100 * noise,
    }[sound]
    plain = network(do_normalize=do_normalize, feat_extract_norm=norm)
    assert_exact(engine_of(plain).hidden_states(wave), plain, wave)


@pytest.fixture(scope="module")
def plain():
    return network()


@pytest.fixture(scope="module")
def fast(plain):
    return engine_of(plain)


@pytest.mark.slow
def test_a_window_does_not_depend_on_its_batch(fast, assert_states_close):
    noise = torch.randn(1, 9_000)
    wave = torch.cat([noise, 0.01 * noise, torch.zeros_like(noise), noise.flip(1)])
    alone = torch.cat([fast.hidden_states(window[None]) for window in wave])
    assert_states_close(fast.hidden_states(wave), alone)


@pytest.mark.slow
def test_states_come_one_by_one_and_stop_early(fast):
    wave = torch.randn(2, 3_000)
    states = fast.hidden_states(wave).unbind(1)
    for last in range(fast.layers + 1):
        kept = list(fast.states(wave, last=last))
        assert len(kept) == last + 1
        assert all(torch.equal(state, wanted) for state, wanted in zip(kept, states, strict=False))


def test_nothing_beyond_the_last_state_is_computed(plain):
    fast = engine_of(plain)
    fast._blocks[2:] = [lambda *_: pytest.fail("computed in vain")]
    assert len(list(fast.states(torch.randn(1, 3_000), last=2))) == 3


def test_it_is_described_like_its_model(plain, fast):
    for name in (
        "name",
        "revision",
        "weights_sha256",
        "sample_rate",
        "layers",
        "dim",
        "do_normalize",
        "min_samples",
    ):
        assert getattr(fast, name) == getattr(plain, name)
    assert fast.frames(9_000) == plain.frames(9_000)
    assert fast.to(torch.device("cpu")) is fast
    assert isinstance(engine_of(plain).to(torch.device("meta")), MertEncoder)


def test_wrong_arguments_are_refused_as_by_the_model(fast):
    with pytest.raises(SettingError, match="states 0 to 3"):
        list(fast.states(torch.zeros(1, 400), last=4))
    with pytest.raises(SettingError, match="at least"):
        list(fast.states(torch.zeros(1, fast.min_samples - 1)))


def test_the_model_stays_itself(plain):
    model = copy.deepcopy(plain)
    CpuEngine(model)
    wave = torch.randn(1, 2_000)
    assert torch.equal(model.hidden_states(wave), plain.hidden_states(wave))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), plain.parameters(), strict=True))


def test_dense_weights_are_shared_with_the_model(plain):
    model = copy.deepcopy(plain)
    block = CpuEngine(model)._blocks[0]
    assert block._query.data_ptr() == model.encoder.layers[0].attention.q_proj.weight.data_ptr()


def test_there_is_no_gradient(fast):
    assert not next(fast.states(torch.zeros(1, 400))).requires_grad


@pytest.mark.slow
def test_an_engine_that_differs_is_not_used(plain, monkeypatch, caplog):
    monkeypatch.setattr(engine, "_out_bias", lambda out, value: out.bias)
    with caplog.at_level(logging.WARNING, logger="featurestore"):
        assert optimize_for_cpu(plain) is plain
    assert "plain one is used" in caplog.text


@pytest.mark.slow
def test_weights_that_are_not_finite_are_left_to_the_plain_pass(plain, caplog):
    model = copy.deepcopy(plain)
    model.encoder.layers[1].feed_forward.output_dense.bias[3] = float("nan")
    assert optimize_for_cpu(model) is model
    assert "differs" in caplog.text


def test_an_engine_that_fails_is_not_used(plain, monkeypatch, caplog):
    def gone(*_):
        raise NotImplementedError("no such operation\nin this build")

    monkeypatch.setattr(engine, "gelu_", gone)
    with caplog.at_level(logging.WARNING, logger="featurestore"):
        assert optimize_for_cpu(plain) is plain
    assert "fails (no such operation); the plain one is used" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_type_are_refused(plain, dtype, caplog):
    model = copy.deepcopy(plain).to(dtype)
    uses = [
        optimize_for_cpu,
        CpuEngine,
        lambda model: to_half(model, torch.float16),
        lambda model: model.hidden_states(torch.zeros(1, 400)),
    ]
    for use in uses:
        with pytest.raises(ModelError, match=f"are {dtype}: give the model in float32"):
            use(model)
    assert caplog.text == ""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_callers_default_type_changes_nothing(golden, dtype):
    wave = torch.randn(1, 3_000)
    wanted = optimize_for_cpu(load_model(golden / "base_v1")).hidden_states(wave)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fast = optimize_for_cpu(load_model(golden / "base_v1"))
        assert isinstance(fast, CpuEngine)
        assert torch.equal(fast.hidden_states(wave), wanted)
    finally:
        torch.set_default_dtype(before)


def test_other_encoders_are_left_alone():
    other = object()
    assert optimize_for_cpu(other) is other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "in_half"),
    [
        ({"hidden_size": 64, "conv_dim": [32, 32, 32]}, {"mm", "addmm", "attention"}),  # 16 features a head
        ({"hidden_size": 96, "num_attention_heads": 2, "conv_dim": [32, 24, 32]}, {"mm", "addmm", "attention"}),
        ({"hidden_size": 48, "conv_dim": [32, 32, 32]}, {"mm"}),
        ({"intermediate_size": 80, "hidden_size": 64, "conv_dim": [32, 24, 16]}, set()),
    ],
)
def test_products_in_bf16_have_inner_lengths_that_are_right_with_amx(values, in_half, inner_lengths):
    plain = network(**values)
    wave = torch.randn(2, 1_234)
    assert plain.frames(wave.shape[1]) % 32
    with inner_lengths() as inner:
        found = CpuEngine(plain, torch.bfloat16).hidden_states(wave)
    assert set(inner) == in_half
    assert not [length for lengths in inner.values() for length in lengths if length % 32]
    wanted = plain.hidden_states(wave)
    assert (found - wanted).abs().max() < (0.1 if in_half else 1e-5) * wanted.abs().max()
