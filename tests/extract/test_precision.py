"""One setting for the arithmetic of the model, and what int8 leaves in the spec."""

import dataclasses

import numpy as np
import pytest
import torch

from featurestore.errors import SettingError
from featurestore.extract import FeatureExtractor
from featurestore.extract.device import resolve_precision
from featurestore.spec import FeatureSpec

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "mixed", "device", "wanted"),
    [
        (None, True, CPU, "fp32"),
        (None, True, CUDA, "fp16"),
        (None, False, CUDA, "fp32"),
        ("fp32", True, CUDA, "fp32"),
        ("fp16", True, CUDA, "fp16"),
        ("int8", True, CPU, "int8"),
        ("int8", False, CPU, "int8"),
    ],
)
def test_one_name_says_it(name, mixed, device, wanted):
    assert resolve_precision(name, mixed_precision=mixed, device=device) == wanted


@pytest.mark.parametrize(
    ("name", "mixed", "device", "message"),
    [
        ("fp8", True, CPU, "fp32, fp16, bf16, int8"),
        ("fp16", True, CPU, "fp16 is for cuda"),
        ("int8", True, CUDA, "int8 is for cpu"),
        ("fp16", False, CUDA, "turned off"),
        ("bf16", False, CUDA, "turned off"),
        ("bf16", True, CPU, "bf16 is for cuda"),
    ],
)
def test_what_cannot_be_is_refused(name, mixed, device, message):
    with pytest.raises(SettingError, match=message):
        resolve_precision(name, mixed_precision=mixed, device=device)


def test_int8_is_in_the_spec_with_what_it_loses(tiny):
    exact, fast = (FeatureExtractor(model=tiny, layers=[1, 3], precision=name) for name in (None, "int8"))
    spec = fast.spec()
    assert spec.precision == "int8"
    assert len(spec.int8_cosines) == len(spec.int8_errors) == 2
    assert all(0.99 <= cosine < 1 for cosine in spec.int8_cosines)
    assert all(0 < error < 0.2 for error in spec.int8_errors)
    assert set(spec.differences(exact.spec())) == {"precision"}
    assert FeatureSpec.from_json(spec.to_json()) == FeatureSpec.from_toml(spec.to_toml()) == spec


def test_measurements_do_not_identify(tiny):
    spec = FeatureExtractor(model=tiny, precision="int8").spec()
    other = dataclasses.replace(spec, int8_cosines=(0.995,) * 4, int8_errors=None)
    assert other.fingerprint == spec.fingerprint
    assert other.differences(spec) == {}
    assert "int8_cosines" not in FeatureExtractor(model=tiny).spec().to_dict()


def test_features_are_near_those_of_fp32_in_any_batches(tiny):
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000 * 3).astype(np.float32)

    def features(**settings):
        extractor = FeatureExtractor(model=tiny, segment_duration=0.5, **settings)
        return np.concatenate([batch.segments for batch in extractor.encode([samples], raw=False)])

    exact, fast = features(), features(precision="int8")
    assert 1e-6 < np.abs(exact - fast).max() / np.abs(exact).max() < 0.1
    for batch_size in (1, 3):
        np.testing.assert_array_equal(features(precision="int8", batch_size=batch_size), fast)
