"""Half precision is close to single, keeps in single what half would spoil, and leaves the original alone."""

import pytest
import torch

from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.kernels.half import halved

VARIANTS = {
    "post-norm": {},
    "pre-norm": {"do_stable_layer_norm": True},
    "layer-norm convolutions": {"feat_extract_norm": "layer", "conv_bias": True},
    "no norm before the projection": {"feat_proj_layer_norm": False},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, tmp_path):
    return load_model(save_random_checkpoint(tmp_path, shape={**SHAPES["tiny"], **request.param}))


def noise(gain=0.1, windows=2):
    return gain * torch.randn(windows, 24_000, generator=torch.Generator().manual_seed(1))


def cosines(one, other):
    centre = other.mean(dim=(0, 2), keepdim=True)
    return torch.nn.functional.cosine_similarity(one - centre, other - centre, dim=-1)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.9999), (torch.bfloat16, 0.995)])
def test_features_are_close(model, dtype, bound):
    half = halved(model, dtype)
    wanted = model.hidden_states(noise())
    found = half.hidden_states(noise())
    assert found.dtype == torch.float32
    assert cosines(found, wanted).min() > bound
    assert not torch.equal(found, wanted)


def test_quiet_audio_keeps_its_bits(tmp_path):
    model = load_model(save_random_checkpoint(tmp_path, shape="tiny", do_normalize=False))
    half = halved(model, torch.float16)
    assert cosines(half.hidden_states(noise(1e-6)), model.hidden_states(noise(1e-6))).min() > 0.9999
    assert torch.isfinite(half.hidden_states(torch.zeros(1, 24_000))).all()


def test_a_residual_stream_that_outgrows_half_is_kept(tmp_path):
    model = load_model(save_random_checkpoint(tmp_path, shape={**SHAPES["tiny"], "do_stable_layer_norm": True}))
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.feed_forward.output_dense.bias.fill_(40_000)
    (*_, state, _) = halved(model, torch.float16).states(noise())
    assert state.abs().max() > 65_504
    assert torch.isfinite(state).all()


def test_weights_take_half_the_memory_and_the_original_is_left_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half = halved(model, torch.float16)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    large = {value.dtype for value in half.state_dict().values() if value.numel() > 2_000}
    assert large == {torch.float16}
    assert half.encoder.layer_norm.weight.data_ptr() == model.encoder.layer_norm.weight.data_ptr()


def test_windows_of_a_batch_do_not_influence_each_other(model):
    half = halved(model, torch.float16)
    together = half.hidden_states(noise(windows=3))
    alone = torch.cat([half.hidden_states(window[None]) for window in noise(windows=3)])
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=0)


def test_other_encoders_are_left_to_autocast():
    mine = object()
    assert halved(mine, torch.float16) is mine
