"""Int8 on the CPU: exact sums, errors within their bounds, windows that do not influence each other, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ModelError, SettingError
from featurestore.models import check_encoder, int8, load_model, save_random_checkpoint
from featurestore.models.convolutions import Room
from featurestore.models.engine import CpuEngine
from featurestore.models.fidelity import fidelity, probe
from featurestore.models.int8 import Int8Engine, Int8Linear, quantised
from featurestore.models.random_checkpoint import SHAPES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_random_checkpoint(tmp_path_factory.mktemp("tiny"), shape="tiny"))


@pytest.fixture(scope="module")
def engine(model):
    return Int8Engine(model)


def test_this_machine_has_exact_products():
    assert int8.is_available()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    inputs=st.sampled_from([1, 7, 32, 100]),
    outputs=st.sampled_from([1, 5, 48]),
    after_gelu=st.booleans(),
    loud=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_a_dense_layer_errs_by_no_more_than_its_steps(rows, inputs, outputs, after_gelu, loud, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    x = torch.randn(rows, inputs, generator=generator) * loud
    if after_gelu:
        x = torch.nn.functional.gelu(x)
    found = Int8Linear(weight, bias, after_gelu=after_gelu)(x, Room()).double()
    x, weight, bias = x.double(), weight.double(), bias.double()
    # Half a step of the activations, a whole one of the weights: their rounding may be shifted to keep sums.
    step = (x.amax(dim=1) + 0.17) / 127 if after_gelu else x.abs().amax(dim=1) / 63
    weight_step = weight.abs().amax(dim=1) / 127
    half = 0.51 * step[:, None]
    bound = half * weight.abs().sum(dim=1) + weight_step * (x.abs() + half).sum(dim=1, keepdim=True)
    wanted = x @ weight.T + bias
    assert ((found - wanted).abs() <= bound + 1e-5 * (1 + wanted.abs())).all()


def test_it_is_an_encoder(engine):
    check_encoder(engine)


@pytest.mark.parametrize("clip", [24_000, 400, 13_337])
def test_windows_do_not_depend_on_their_batch_by_a_single_bit(engine, clip):
    waves = torch.randn(5, clip, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 5)[:, None]
    together = engine.hidden_states(waves)
    for number in range(5):
        assert torch.equal(together[number], engine.hidden_states(waves[number : number + 1])[0])
    assert torch.equal(together[1:3], engine.hidden_states(waves[1:3]))


@pytest.mark.parametrize(
    "change", [{}, {"do_stable_layer_norm": True}, {"feat_extract_norm": "layer"}, {"conv_bias": True}]
)
def test_every_shape_of_the_family_is_near_float32(tmp_path, change):
    plain = load_model(save_random_checkpoint(tmp_path, shape={**SHAPES["tiny"], **change}))
    found = fidelity(Int8Engine(plain), plain, probe(plain.sample_rate, plain.min_samples))
    assert len(found.cosines) == len(found.errors) == plain.layers + 1
    assert min(found.cosines) >= 0.99
    assert max(found.cosines) < 0.999999  # it is int8 indeed


@pytest.mark.parametrize("name", ["base_v1", "large_v1"])
def test_golden_networks_are_near_float32_on_other_audio(golden, name):
    plain = load_model(golden / name)
    time = torch.arange(12_000) / 24_000
    waves = torch.stack([torch.sin(2 * math.pi * 55 * 2**octave * time * (1 + time)) for octave in range(8)])
    assert min(fidelity(Int8Engine(plain), plain, waves).cosines) >= 0.99


def test_the_measure_sees_what_it_is_to_see(model):
    waves = probe(model.sample_rate, model.min_samples)
    assert waves.shape == (8, 12_000)
    assert waves.abs().amax(dim=1).tolist() == pytest.approx([0.5 ** (n / 2) for n in range(8)])
    same = fidelity(model, model, waves)
    assert same.cosines == pytest.approx([1.0] * 4)
    assert same.errors == (0.0,) * 4

    class Shifted:
        def states(self, wave, last=None):
            return (state + 0.03 * state.std() for state in model.states(wave))

    shifted = fidelity(Shifted(), model, waves)
    assert all(0.9 < cosine < 0.9999 for cosine in shifted.cosines)


def test_what_loses_too_much_is_refused_by_layer_and_value(model, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_COSINE", 0.9999999)
    with pytest.raises(ModelError, match=r"layer 0 with float32 is 0\.9\d+ .* use precision fp32"):
        quantised(model)


def test_only_the_layers_that_are_wanted_are_judged(model, monkeypatch):
    cosines = quantised(model)[1].cosines
    best, worst = int(np.argmax(cosines)), int(np.argmin(cosines))
    monkeypatch.setattr(int8, "LEAST_COSINE", (cosines[best] + cosines[worst]) / 2)
    assert len(quantised(model, [best])[1].cosines) == best + 1
    with pytest.raises(ModelError, match=f"layer {worst} "):
        quantised(model, [worst])


def test_what_pooling_keeps_is_measured_too(model):
    waves = probe(24_000, 400)

    class Moved:
        """Each window moves as a whole: little to a frame, much to the mean of a window."""

        def states(self, wave, last=None):
            for state in model.states(wave, last):
                means = state.mean(dim=1, keepdim=True)
                yield state + (means - means.mean(dim=0)).flip(0)

    for found, wanted, cosine in zip(
        Moved().states(waves), model.states(waves), fidelity(Moved(), model, waves).cosines, strict=True
    ):
        pooled, mean = wanted.mean(dim=1), wanted.mean(dim=(0, 1))
        direct = torch.nn.functional.cosine_similarity(
            (found.mean(dim=1) - mean).flatten(), (pooled - mean).flatten(), dim=0
        )
        assert cosine == pytest.approx(float(direct), abs=1e-4)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    plain = load_model(save_random_checkpoint(tmp_path, shape="tiny"))
    plain.encoder.layers[1].attention.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layer 2 .* nan"):
        quantised(plain)


def test_other_families_are_refused(model):
    with pytest.raises(SettingError, match="int8 is for MERT and HuBERT networks"):
        quantised(CpuEngine(model))
