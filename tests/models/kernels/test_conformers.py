"""Conformers arranged for CPUs give the numbers of the plain network."""

import copy
import logging

import pytest
import torch

from featurestore.encode import WindowEncoder
from featurestore.errors import ModelError, SettingError
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.conformer import Convolution
from featurestore.models.kernels import conformers, engine
from featurestore.models.kernels.conformers import arrange_conformer
from featurestore.models.kernels.engine import bf16_for_cpu, deviation, optimize_for_cpu

FAMILIES = ["mert2-tiny", "muq-tiny", "musicfm-tiny"]


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tmp_path_factory):
    """A network of each family in which biases and norms say something as well."""
    model = load_model(save_random_checkpoint(tmp_path_factory.mktemp("models") / "model", shape=request.param))
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module")
def mert2(tmp_path_factory):
    return load_model(save_random_checkpoint(tmp_path_factory.mktemp("mert2") / "model", shape="mert2-tiny"))


@pytest.fixture(params=["AVX512", "AVX2"])
def capability(request, monkeypatch):
    """Both kinds of products, on any processor."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def largest(found, wanted):
    """Largest difference of two states, relative to the largest value of the wanted one."""
    assert (found.shape, found.dtype) == (wanted.shape, torch.float32)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.slow
@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("windows", [1, 3])
def test_float32_gives_the_same_states_for_any_length(plain, windows):
    fast = arrange_conformer(plain)
    for samples in (plain.min_samples, plain.min_samples + 1, 6_001, 24_000 + 959, 71_999):
        wave = torch.randn(windows, samples, generator=torch.Generator().manual_seed(samples)) * 0.1
        for found, wanted in zip(fast.states(wave), plain.states(wave), strict=True):
            assert largest(found, wanted) < 1e-5


@pytest.mark.parametrize("sound", [0.0, 0.7])
def test_silence_and_offsets_are_finite_and_the_same(plain, sound):
    wave = torch.full((2, 24_000), sound)
    assert deviation(arrange_conformer(plain), plain) < 1e-5
    assert largest(arrange_conformer(plain).hidden_states(wave), plain.hidden_states(wave)) < 1e-5


def test_a_window_does_not_depend_on_its_batch(plain):
    fast = arrange_conformer(plain)
    wave = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([fast.hidden_states(window[None]) for window in wave])
    assert largest(fast.hidden_states(wave), alone) < 1e-5


def test_long_windows_are_the_same_in_pieces(mert2, monkeypatch):
    wave = torch.randn(1, 60_000, generator=torch.Generator().manual_seed(2))
    wanted = mert2.hidden_states(wave)
    monkeypatch.setattr("featurestore.models.conformer._ROWS", 7)
    monkeypatch.setattr("featurestore.models.mert2._ROWS", 5)
    assert largest(arrange_conformer(mert2).hidden_states(wave), wanted) < 1e-5


def test_bfloat16_is_near_and_calculates_what_it_says(plain):
    fast, found = bf16_for_cpu(plain)
    assert fast is not plain
    assert fast.name == plain.name
    assert min(found.cosines) > 0.99
    assert 1e-5 < max(found.errors) < 0.05
    for block in fast.network.layers:
        assert block.ffn1.w_1(torch.randn(1, 5, plain.dim)).dtype == torch.bfloat16
        depthwise = block.conv_module.inner[0]
        assert depthwise.weight.dtype == torch.float32
        # Never in half: wrong with AMX.
        assert depthwise(torch.randn(1, plain.dim, 9).bfloat16()).dtype == torch.float32


@pytest.mark.usefixtures("capability")
def test_bfloat16_by_either_product(plain):
    wave = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(3)) * 0.1
    found, wanted = arrange_conformer(plain, torch.bfloat16).hidden_states(wave), plain.hidden_states(wave)
    assert largest(found, wanted) < 0.05


@pytest.mark.usefixtures("capability")
def test_products_in_bf16_have_inner_lengths_that_are_right_with_amx(plain, inner_lengths, are_right):
    wave = torch.randn(2, 24_000 + 960 * 2, generator=torch.Generator().manual_seed(4)) * 0.1
    fast, wanted = arrange_conformer(plain, torch.bfloat16), plain.hidden_states(wave)
    assert wanted.shape[2] % 32
    with inner_lengths() as seen:
        found = fast.hidden_states(wave)
    assert "attention" in seen
    assert are_right(seen)
    assert largest(found, wanted) < 0.05
    with inner_lengths() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        plain.hidden_states(wave)
    assert not are_right(seen)  # of the bands and spectra, though not of attention


def test_the_model_stays_itself_and_shares_its_weights(plain):
    model = copy.deepcopy(plain)
    fast = arrange_conformer(model)
    arrange_conformer(model, torch.bfloat16)
    assert any(isinstance(module, Convolution) for module in model.modules())
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), plain.parameters(), strict=True))
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in fast.parameters()} == owned


def test_it_is_used_where_it_agrees(plain, caplog):
    fast = optimize_for_cpu(plain)
    assert fast is not plain
    assert not any(isinstance(module, Convolution) for module in fast.modules())
    assert caplog.text == ""


def test_one_that_differs_or_fails_is_not_used(mert2, monkeypatch, caplog):
    monkeypatch.setattr(conformers._Convolution, "forward", lambda _, x: 3 * x.flip(1))
    with caplog.at_level(logging.WARNING, logger="featurestore"):
        assert optimize_for_cpu(mert2) is mert2
    assert "differs from the plain forward pass" in caplog.text

    def gone(*_):
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(engine, "arrange_conformer", gone)
    with caplog.at_level(logging.WARNING, logger="featurestore"):
        assert optimize_for_cpu(mert2) is mert2
    assert "fails (no such operation)" in caplog.text


@pytest.mark.parametrize("seconds", [30.0, "full"])
def test_weights_leave_memory_before_long_windows_alone(mert2, monkeypatch, seconds):
    left = []
    monkeypatch.setattr(engine, "page_out", left.append)
    WindowEncoder(model=mert2, segment_duration=seconds)
    assert len(left) == (mert2.layers + 1 if seconds == "full" else 0)
    assert all(model is mert2 for model in left)


def test_bfloat16_that_is_wrong_is_refused(mert2, monkeypatch):
    monkeypatch.setattr(conformers._Convolution, "forward", lambda _, x: 3 * x.flip(1))
    with pytest.raises(SettingError, match="far from float32"):
        bf16_for_cpu(mert2)


def test_weights_in_half_are_refused(mert2):
    with pytest.raises(ModelError, match="give the model in float32"):
        arrange_conformer(copy.deepcopy(mert2).bfloat16())


@pytest.mark.slow
def test_windows_are_dealt_to_workers_of_one_core(mert2, two_threads):
    wave = torch.randn(200_000, generator=torch.Generator().manual_seed(4)).numpy()
    wanted = mert2.hidden_states(torch.from_numpy(wave[:48_000])[None]).mean(dim=2)[0]
    encoder = WindowEncoder(model=mert2, segment_duration=2.0, overlap=0.5, batch_size=2)
    batches = list(encoder.encode([wave], raw=False))
    assert sum(len(batch.starts) for batch in batches) == 8
    assert encoder._encoder._workers == 2
    assert largest(torch.from_numpy(batches[0].segments[0]), wanted) < 1e-5
