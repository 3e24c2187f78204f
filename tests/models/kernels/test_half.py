"""Half precision is close to single, keeps in single what half would spoil, and leaves the original alone."""

import pytest
import torch

from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.kernels.convolutions import GroupedConv1d
from featurestore.models.kernels.half import _HalfConv, to_half
from featurestore.models.logmel import LogMelEncoder

VARIANTS = {
    "post-norm": {},
    "pre-norm": {"do_stable_layer_norm": True},
    "layer-norm convolutions": {"feat_extract_norm": "layer", "conv_bias": True},
    "no norm before the projection": {"feat_proj_layer_norm": False},
}


HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, tmp_path):
    return load_model(save_random_checkpoint(tmp_path, shape={**SHAPES["tiny"], **request.param}))


def noise(gain=0.1, windows=2):
    return gain * torch.randn(windows, 24_000, generator=torch.Generator().manual_seed(1))


def cosines(one, other):
    centre = other.mean(dim=(0, 2), keepdim=True)
    return torch.nn.functional.cosine_similarity(one - centre, other - centre, dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.9999), (torch.bfloat16, 0.995)])
def test_features_are_close(model, dtype, bound):
    half = to_half(model, dtype)
    wanted = model.hidden_states(noise())
    found = half.hidden_states(noise())
    assert found.dtype == torch.float32
    assert cosines(found, wanted).min() > bound
    assert not torch.equal(found, wanted)


@pytest.mark.slow
def test_quiet_audio_keeps_its_bits(tmp_path):
    model = load_model(save_random_checkpoint(tmp_path, shape="tiny", do_normalize=False))
    half = to_half(model, torch.float16)
    assert cosines(half.hidden_states(noise(1e-6)), model.hidden_states(noise(1e-6))).min() > 0.9999
    assert torch.isfinite(half.hidden_states(torch.zeros(1, 24_000))).all()


@pytest.mark.slow
def test_a_residual_stream_that_outgrows_half_is_kept(tmp_path):
    shape = {**SHAPES["tiny"], "do_stable_layer_norm": True, "num_hidden_layers": 6}
    model = load_model(save_random_checkpoint(tmp_path, shape=shape))
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.feed_forward.output_dense.weight.mul_(6e5)
    (*_, state, _) = to_half(model, torch.float16).states(noise())
    assert state.abs().max() > 65_504
    assert torch.isfinite(state).all()


@pytest.mark.slow
def test_weights_take_half_the_memory_and_the_original_is_left_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half = to_half(model, torch.float16)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    large = {name: value.dtype for name, value in half.state_dict().items() if value.numel() > 2_000}
    assert set(large.values()) == {torch.float16}
    assert half.encoder.layer_norm.weight.data_ptr() == model.encoder.layer_norm.weight.data_ptr()


@pytest.mark.slow
def test_windows_of_a_batch_do_not_influence_each_other(model):
    half = to_half(model, torch.float16)
    together = half.hidden_states(noise(windows=3))
    alone = torch.cat([half.hidden_states(window[None]) for window in noise(windows=3)])
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=0)


@pytest.mark.slow
def test_other_encoders_are_left_to_autocast():
    for mine in (object(), LogMelEncoder()):
        assert to_half(mine, torch.float16) is mine


WRONG_ON_AMX = [(channels, kernel) for channels in (2, 3, 4, 8, 12) for kernel in (16, 31, 128)]
"""Channels a group and kernels of grouped convolutions that oneDNN 3.12 gets wrong in bf16 where there is AMX."""


def grouped(channels, kernel, groups=4):
    torch.manual_seed(0)
    conv = GroupedConv1d(channels * groups, channels * groups, kernel, padding=kernel // 2, groups=groups)
    return conv, torch.randn(2, channels * groups, 150, requires_grad=True)


def gradients(conv, x, dtype):
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        out = conv(x)
    return out, *torch.autograd.grad((out.float() * torch.arange(out.shape[-1])).sum(), [x, *conv.parameters()])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("channels", "kernel"), WRONG_ON_AMX)
def test_a_grouped_convolution_is_that_of_float32_to_the_last_bit(channels, kernel, dtype, grouped_convolutions):
    conv, x = grouped(channels, kernel)
    with grouped_convolutions() as seen:
        found = gradients(conv, x, dtype)
    assert seen == [{torch.float32}] * 2
    for one, other in zip(found, gradients(conv, x, None), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_half_weights_that_come_back_from_a_card_are_calculated_with_in_float32(grouped_convolutions):
    conv, x = grouped(12, 16)
    with grouped_convolutions() as seen:
        found = _HalfConv(conv, torch.bfloat16)(x.detach())
    assert seen == [{torch.float32}]
    assert cosines(found, conv(x).detach()).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_the_watch_sees_what_would_be_wrong(dtype, grouped_convolutions):
    conv, x = grouped(12, 16)
    with grouped_convolutions() as seen, torch.autocast("cpu", dtype=dtype):
        torch.nn.functional.conv1d(x, conv.weight, conv.bias, padding=8, groups=4).sum().backward()
    assert all(dtype in types for types in seen)
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [1, 2, 12, 16])
def test_no_grouped_convolution_of_mert_is_in_half(channels, dtype, tmp_path, grouped_convolutions):
    shape = {**SHAPES["tiny"], "num_conv_pos_embedding_groups": 4, "hidden_size": 4 * channels}
    network = load_model(save_random_checkpoint(tmp_path, shape=shape))
    assert_no_half(network, dtype, grouped_convolutions)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_no_grouped_convolution_of_mini_is_in_half(dtype, grouped_convolutions):
    assert_no_half(load_model("mini"), dtype, grouped_convolutions)


def assert_no_half(network, dtype, grouped_convolutions):
    """Neither with weights in half nor under autocast, and what comes out is float32's up to rounding."""
    wave = noise()
    wanted = network.hidden_states(wave)
    with grouped_convolutions() as seen:
        found = to_half(network, dtype).hidden_states(wave)
        with torch.autocast("cpu", dtype=dtype):
            autocast = network.hidden_states(wave).float()
    assert seen
    assert all(types == {torch.float32} for types in seen)
    for states in (found, autocast):
        assert cosines(states, wanted).mean() > 0.998
