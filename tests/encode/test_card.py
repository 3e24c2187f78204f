"""A card that cannot be used is named with its cause; one that fails ends the build; float32 on it is float32."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import CPU, Overlapping, Toy, encoder, expected, windows

from featurestore import doctor
from featurestore.encode import card, resolve_device
from featurestore.encode.batch_size import Window
from featurestore.encode.card import exact_float32, is_lost, no_cards_because, try_out
from featurestore.encode.memory import is_full_for_library, is_out_of_memory
from featurestore.encode.transfer import Transfer
from featurestore.encode.window_encoder import WindowEncoder
from featurestore.errors import DeviceError, DeviceLostError, SettingError
from featurestore.models import load_model
from featurestore.models.kernels.fidelity import Fidelity
from featurestore.models.kernels.half import to_half

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version"
)


@pytest.fixture
def no_card(monkeypatch):
    """A machine on which NVML counts a card, and CUDA finds none, for a reason."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def because(reason):
        if reason == "cpu":
            monkeypatch.setattr(torch.version, "cuda", None)
        elif reason == "hidden":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        else:

            def fail():
                raise RuntimeError(reason)

            monkeypatch.setattr(torch.cuda, "init", fail)

    return because


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("cpu", "is built for CPUs alone: install a build for CUDA"),
        ("hidden", "CUDA_VISIBLE_DEVICES=''): unset it"),
        (OLD_DRIVER, "too old (found version 11040). torch"),
        (OLD_DRIVER, "is built for CUDA 13.0: update the driver, or install a torch for an older CUDA"),
        ("Found no NVIDIA driver on your system.\nmore", "Found no NVIDIA driver on your system."),
    ],
)
def test_why_there_is_no_card(no_card, reason, message):
    no_card(reason)
    assert message in no_cards_because()
    with pytest.raises(DeviceError, match=re.escape(message)):
        resolve_device("cuda")
    (found,) = (check for check in doctor.devices() if check.name == "cuda")
    assert (found.ok, message in found.detail) == (None, True)


@pytest.fixture
def cards(monkeypatch):
    """Two cards, of which one cannot be used."""

    def properties(name):
        if str(name) == "cuda:1":
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")
        return SimpleNamespace(name="Testa T1", major=7, minor=5, total_memory=16e9)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 15 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_doctor_tells_of_cards(cards):
    one, other = (check for check in doctor.devices() if check.name.startswith("cuda"))
    assert (one.ok, other.ok) == (True, False)
    assert one.detail == ("Testa T1, 3 of 15 GiB free, capability 7.5, CUDA 13.0 of torch, 12.4 of the driver")
    assert other.detail == "cannot be used: CUDA error: all CUDA-capable devices are busy or unavailable"


def test_a_card_that_torch_has_no_kernels_for(cards):
    class Unsupported(Toy):
        def states(self, wave, last=None):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    with pytest.raises(DeviceError, match=r"no kernels for .*Testa T1, of capability 7.5; .*sm_80, sm_90"):
        try_out(Unsupported(), None, CPU, None)


@pytest.mark.slow
def test_half_precision_is_compared_with_float32_at_the_start(tiny, caplog):
    model = load_model(tiny)
    with caplog.at_level("INFO", "featurestore"):
        found = try_out(model, to_half(model, torch.bfloat16), CPU, torch.bfloat16)
    assert 0.99 < min(found.cosines) < 1
    assert re.search(r"in bfloat16 on cpu: centred cosines to float32 from 0\.99\d+", caplog.text)
    other, random = load_model(tiny), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=random))
    with pytest.raises(SettingError, match=r"in bfloat16 on cpu is far from float32.*use precision fp32"):
        try_out(model, to_half(other, torch.bfloat16), CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("message", "library"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ...", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("CUDA error: out of memory", False),
    ],
)
def test_what_libraries_say_of_full_memory(message, library):
    assert is_out_of_memory(RuntimeError(message))
    assert is_full_for_library(RuntimeError(message)) == library
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(("failures", "sizes"), [(1, [4, 4, 4]), (2, [4, 4, 2, 2, 2, 2])])
def test_a_library_is_asked_once_more_before_the_batch_is_halved(failures, sizes):
    left, asked = [failures], []

    class Crowded(Toy):
        def states(self, wave, last=None):
            asked.append(len(wave))
            if left[0]:
                left[0] -= 1
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return super().states(wave, last)

    track = windows(8)
    found = list(encoder(Crowded(), batch_size=4, layers=[3]).encode(track, raw=True))
    assert asked == sizes
    np.testing.assert_array_equal(np.concatenate([batch.raw for batch in found]), expected(track, [3]))


def illegal(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


@pytest.fixture
def lost(monkeypatch):
    """A card, the CPU in truth, with which all has failed once something has."""
    monkeypatch.setattr(card, "is_lost", lambda _: True)


class Failing(Toy):
    """Fails with an error that no card survives."""

    def states(self, wave, last=None):
        illegal()


class LateFailure(Overlapping):
    """Fails when results are waited for, as a card does."""

    def mark(self):
        return illegal


@pytest.mark.parametrize(
    ("model", "transfer"), [(Failing(), None), (Failing(), Overlapping(9)), (Toy(), LateFailure(9))]
)
def test_a_card_that_fails_ends_all_tracks(lost, model, transfer):
    stream = [Window(number // 3, start, samples) for number, (start, samples) in enumerate(windows(9))]
    with pytest.raises(DeviceLostError, match=r"has failed.*illegal memory access"):
        list(encoder(model, transfer=transfer).encode_tracks(stream, raw=False))


def test_what_fails_when_it_is_waited_for_fails_its_track_and_not_the_card():
    with pytest.raises(RuntimeError, match="illegal"):
        list(encoder(Toy(), transfer=LateFailure(9)).encode(windows(3), raw=False))


@pytest.mark.parametrize(
    ("message", "gone"), [(None, False), ("illegal memory access", True), ("out of memory", False)]
)
def test_a_card_is_lost_when_nothing_works_any_more(monkeypatch, message, gone):
    def synchronize(_):
        if message:
            raise RuntimeError(f"CUDA error: {message}")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert is_lost(torch.device("cuda:0")) == gone
    assert not is_lost(CPU)


def float32_settings():
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "mixed"
    sums = products.allow_fp16_reduced_precision_reduction, products.allow_bf16_reduced_precision_reduction
    return products.fp32_precision, convolutions.fp32_precision, older, sums


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="of torch 2.9")
@pytest.mark.parametrize("older", ["highest", "high", "medium"])
@pytest.mark.parametrize("products", ["none", "ieee", "tf32", None])
def test_float32_is_float32_whatever_is_set_and_that_is_set_again(older, products):
    before = float32_settings()
    try:
        torch.set_float32_matmul_precision(older)
        if products:
            torch.backends.cuda.matmul.fp32_precision = products
        was = float32_settings()
        with exact_float32():
            assert float32_settings()[:2] == ("ieee", "ieee")
            assert float32_settings()[2:] == ("highest", (False, False))
        assert float32_settings() == was
    finally:
        torch.set_float32_matmul_precision(before[2])
        torch.backends.cuda.matmul.fp32_precision = before[0]


def test_the_encoder_is_the_half_one_where_there_is_one(monkeypatch, tiny):
    """So that weights in float32 which it does not need leave the card."""
    tried = []
    real = torch.nn.Module.to
    monkeypatch.setattr("featurestore.encode.window_encoder.resolve_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("featurestore.encode.window_encoder.default_batch_size", lambda _: 16)
    near = Fidelity(cosines=(0.1, 0.2, 0.3, 0.4), errors=(1.0, 2.0, 3.0, 4.0))
    monkeypatch.setattr("featurestore.encode.window_encoder.try_out", lambda *x: (tried.append(x), near)[1])
    monkeypatch.setattr("featurestore.encode.batching.transfer_for", lambda _: Transfer(CPU))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: real(self))
    found = WindowEncoder(model=tiny, device="cuda", segment_duration=2.0, layers=[1, 3])
    ((exact, half, device, dtype),) = tried
    assert found.model is half
    assert exact is not half
    assert (str(device), dtype, found.spec().precision) == ("cuda:0", torch.float16, "fp16")
    assert (found.spec().precision_cosines, found.spec().precision_errors) == ((0.2, 0.4), (2.0, 4.0))
