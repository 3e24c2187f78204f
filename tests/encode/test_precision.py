"""One setting for the arithmetic of the model."""

import json

import numpy as np
import pytest
import torch

from featurestore import FeatureExtractor, FeatureStore
from featurestore.encode.device import resolve_precision
from featurestore.errors import SettingError, SpecMismatchError
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "mixed", "device", "wanted"),
    [
        (None, True, CPU, "fp32"),
        (None, True, CUDA, "fp16"),
        (None, False, CUDA, "fp32"),
        ("fp32", True, CUDA, "fp32"),
        ("fp16", True, CUDA, "fp16"),
    ],
)
def test_one_name_says_it(name, mixed, device, wanted):
    assert resolve_precision(name, mixed_precision=mixed, device=device) == wanted


@pytest.mark.parametrize(
    ("name", "mixed", "device", "message"),
    [
        ("fp8", True, CPU, "one of fp32, fp16, bf16, not 'fp8'"),
        ("int8", True, CPU, "one of fp32, fp16, bf16, not 'int8'"),
        ("fp16", True, CPU, "fp16 is for cuda"),
        ("fp16", False, CUDA, "`mixed_precision=False` turns off"),
        ("bf16", False, CUDA, "`mixed_precision=False` turns off"),
        ("bf16", True, CPU, "bf16 is for cuda"),
    ],
)
def test_what_cannot_be_is_refused(name, mixed, device, message):
    with pytest.raises(SettingError, match=message):
        resolve_precision(name, mixed_precision=mixed, device=device)


def test_a_store_of_int8_that_an_earlier_release_made_is_read_and_not_mixed(tiny, tmp_path):
    values = {**FeatureExtractor(model=tiny, layers=[1, 3]).spec().to_dict(), "precision": "int8"}
    measured = {"int8_cosines": [0.999, 0.998], "int8_errors": [0.01, 0.02]}
    spec = FeatureSpec.from_dict({**values, **measured})
    assert spec.fingerprint == FeatureSpec.from_dict(values).fingerprint
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with StoreWriter(tmp_path / "s.zarr", spec=spec) as writer:
        writer.put("a", {"aggregated": np.ones((2, spec.dim), np.float32)})
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.spec == spec
    assert store.aggregated(layer=3).to_numpy().shape == (1, spec.dim)
    with pytest.raises(SpecMismatchError, match="precision"):
        StoreWriter(tmp_path / "s.zarr", spec=FeatureExtractor(model=tiny, layers=[1, 3]).spec())
