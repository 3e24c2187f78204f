"""One setting for the arithmetic of the model."""

import json

import numpy as np
import pytest
import torch

from benchmarks.music import write_pieces
from featurestore import FeatureExtractor, FeatureStore, load_audio
from featurestore.encode.device import resolve_precision
from featurestore.errors import ExtractionError, SettingError, SpecMismatchError
from featurestore.models.kernels import products
from featurestore.models.kernels.products import bf16_products
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter


def with_products(name, monkeypatch, *, gain=2.0):
    monkeypatch.setattr("featurestore.encode.device.bf16_products", lambda: name)
    monkeypatch.setattr("featurestore.encode.device.bf16_gain", lambda: gain)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [("avx2 avx512_bf16 amx_tile amx_bf16", "amx_bf16"), ("avx512_bf16 fma", "avx512_bf16"), ("avx512f", None)],
)
def test_a_processor_names_its_products(tmp_path, monkeypatch, flags, wanted):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert bf16_products(tmp_path / "cpuinfo") == wanted


@pytest.mark.parametrize(
    ("products", "gain", "precision"),
    [("avx512_bf16", 2.3, "bf16"), ("avx512_bf16", 0.5, "fp32"), ("amx_bf16", 6.0, "bf16"), (None, 0.0, "fp32")],
)
def test_auto_takes_bf16_where_it_is_fast(monkeypatch, products, gain, precision):
    with_products(products, monkeypatch, gain=gain)
    assert resolve_precision("auto", mixed_precision=True, device=CPU) == precision
    assert resolve_precision("auto", mixed_precision=False, device=CPU) == "fp32"
    assert resolve_precision("auto", mixed_precision=True, device=CUDA) == "fp16"
    assert resolve_precision(None, mixed_precision=True, device=CPU) == "fp32"


def test_bf16_where_fp32_is_faster_is_taken_with_a_warning(monkeypatch, caplog):
    with_products("avx512_bf16", monkeypatch, gain=0.5)
    assert resolve_precision("bf16", mixed_precision=True, device=CPU) == "bf16"
    assert "multiplies in bf16 at 0.5 times the speed of fp32: `precision` fp32 is faster" in caplog.text
    caplog.clear()
    with_products("avx512_bf16", monkeypatch)
    assert resolve_precision("bf16", mixed_precision=True, device=CPU) == "bf16"
    assert not caplog.text


def test_the_gain_is_that_of_the_faster_product(monkeypatch):
    monkeypatch.setattr(products, "bf16_products", lambda: "avx512_bf16")
    seconds = {torch.float32: 0.010, torch.bfloat16: 0.004}
    clock = [0.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(products.torch, "mm", lambda a, b: clock.append(clock.pop() + seconds[a.dtype]))
    assert products.bf16_gain.__wrapped__() == pytest.approx(2.5)
    monkeypatch.setattr(products, "bf16_products", lambda: None)
    assert products.bf16_gain.__wrapped__() == 0


def test_a_processor_without_products_is_refused_bf16_with_the_way_out(monkeypatch):
    with_products(None, monkeypatch)
    with pytest.raises(SettingError, match=r"needs a processor with bf16 products .* use fp32, or auto"):
        resolve_precision("bf16", mixed_precision=True, device=CPU)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "mini"])
def test_bf16_on_a_cpu_is_near_float32_and_the_spec_says_how_near(request, tmp_path, monkeypatch, model):
    with_products("avx512_bf16", monkeypatch)  # where there is none torch emulates them, slowly
    model = request.getfixturevalue("tiny") if model == "tiny" else model
    exact, coarse = (FeatureExtractor(model=model, layers=[1, 3], precision=name) for name in ("fp32", "bf16"))
    spec = coarse.spec()
    assert spec.precision == "bf16"
    assert len(spec.precision_cosines) == len(spec.precision_errors) == 2
    assert min(spec.precision_cosines) > 0.99
    assert 0 < max(spec.precision_errors) < 0.1
    assert exact.spec().precision_cosines is None
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    pieces = [
        load_audio(path, coarse.model.sample_rate)[: 12 * coarse.model.sample_rate]
        for path in write_pieces(tmp_path)[:4]
    ]
    wanted, found = (
        np.concatenate([batch.segments for piece in pieces for batch in x.encode([piece], raw=False)])
        for x in (exact, coarse)
    )
    for layer in range(2):
        a, b = ((x[:, layer] - wanted[:, layer].mean(axis=0)).ravel() for x in (wanted, found))
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.998
    StoreWriter(tmp_path / "s.zarr", spec=exact.spec())
    with pytest.raises(SpecMismatchError, match="precision"):
        StoreWriter(tmp_path / "s.zarr", spec=spec)


CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_features_in_bf16_that_are_not_finite_say_what_to_try(tiny, monkeypatch):
    with_products("avx512_bf16", monkeypatch)
    encoder = FeatureExtractor(model=tiny, precision="bf16")
    with pytest.raises(ExtractionError, match=r"not finite: try `precision='fp32'`"):
        list(encoder.encode([np.full(encoder.model.sample_rate, np.inf, np.float32)], raw=False))


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
        ("fp8", True, CPU, "one of fp32, fp16, bf16, auto, not 'fp8'"),
        ("int8", True, CPU, "one of fp32, fp16, bf16, auto, not 'int8'"),
        ("fp16", True, CPU, "fp16 is for cuda"),
        ("fp16", False, CUDA, "`mixed_precision=False` turns off"),
        ("bf16", False, CUDA, "`mixed_precision=False` turns off"),
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
