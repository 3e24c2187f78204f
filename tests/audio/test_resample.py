"""Resampling block after block is torchaudio's resampling of the whole, for any rates and any blocks."""

import math
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from featurestore.audio import resample
from featurestore.audio.resample import resample_blocks
from featurestore.errors import SettingError


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def streamed(signal, cuts, orig, new):
    blocks = list(resample_blocks(np.split(signal, cuts), orig, new))
    assert all(block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


@st.composite
def rates(draw):
    """A pair of rates whose kernel torchaudio can hold."""
    orig, new = draw(st.integers(1, 450)), draw(st.integers(1, 450))
    factors = st.integers(-(-1_000 // min(orig, new)), 768_000 // max(orig, new))
    factor = draw(factors) if 1_000 * max(orig, new) <= 768_000 * min(orig, new) else 1
    return orig * factor, new * factor


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(data=st.data(), pair=rates(), n=st.integers(0, 4_000), seed=st.integers(0, 9))
def test_streamed_equals_torchaudio_on_the_whole(data, pair, n, seed):
    orig, new = pair
    if min(pair) < 1_000:
        with pytest.raises(SettingError):
            list(resample_blocks([noise(n)], orig, new))
        return
    signal = noise(n, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=8)))
    found = streamed(signal, cuts, orig, new)
    assert len(found) == -(-new * n // orig)
    if n:
        expected = torchaudio.functional.resample(torch.from_numpy(signal), orig, new).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("orig", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000])
@pytest.mark.parametrize("new", [24_000, 16_000])
def test_common_rates_equal_torchaudio_in_blocks_of_any_size(orig, new):
    signal = noise(orig * 2 + 17)
    expected = torchaudio.functional.resample(torch.from_numpy(signal), orig, new).numpy()
    for cuts in ([], [1], [orig, orig + 1], list(range(0, len(signal), 4_099))):
        np.testing.assert_allclose(streamed(signal, cuts, orig, new), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("orig", "new"), [(147, 80), (80, 147), (1, 24), (32, 1), (1303, 800), (7, 5), (1, 1000)])
def test_the_kernel_without_zeros_is_torchaudios_in_double_precision(orig, new):
    width = math.ceil(6 * orig / (0.99 * min(orig, new)))
    kernel = resample._sparse_kernel(orig, new, width)
    dense = np.zeros((new, kernel.span), np.float32)
    for phase, (first, weights) in enumerate(zip(kernel.firsts, kernel.weights, strict=True)):
        beyond = max(0, first + len(weights) - kernel.span)
        assert not weights[len(weights) - beyond :].any()
        dense[phase, first : first + len(weights) - beyond] = weights[: len(weights) - beyond]
    expected = torchaudio.transforms.Resample(orig, new, dtype=torch.float64)
    assert expected.width == width
    np.testing.assert_allclose(dense, expected.kernel[:, 0].numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("orig", "new"), [(39_090, 24_000), (24_000, 39_090)])
@pytest.mark.parametrize("cuts", [[], [5, 30_000, 30_001]])
def test_rates_of_large_kernels_equal_torchaudio_in_double_precision(orig, new, cuts):
    signal = noise(orig * 2 + 5)
    expected = torchaudio.functional.resample(torch.from_numpy(signal).double(), orig, new).numpy()
    np.testing.assert_allclose(streamed(signal, cuts, orig, new), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("orig", [44_101, 767_999, 1_009])
def test_rates_without_a_common_factor_keep_a_tone_in_little_memory(orig):
    """torchaudio's kernel of 44,101 to 24,000 Hz would take 8.5 GB."""
    t = np.arange(orig * 2) / orig
    signal = np.sin(2 * np.pi * 200 * t).astype(np.float32)
    resample._kernel.cache_clear()
    tracemalloc.start()
    found = streamed(signal, [orig // 3, orig], orig, 24_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 48_000
    inner = slice(2_000, -2_000)  # the filter rings at the ends, as torchaudio's does
    expected = np.sin(2 * np.pi * 200 * np.arange(48_000) / 24_000)
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)
    assert peak < 150e6


def test_an_equal_rate_changes_nothing():
    blocks = [noise(10), noise(3)]
    assert [x is y for x, y in zip(resample_blocks(blocks, 24_000, 24_000), blocks, strict=True)] == [True, True]


@pytest.mark.parametrize("rate", [0, -1, 999, 768_001, 24_000.0, "24000", None])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(SettingError, match="sample rate"):
        resample.check_rate(rate, "target_sr")


def test_kernels_are_kept_in_bounded_number():
    resample._kernel.cache_clear()
    for orig in range(1_000, 1_000 + 2 * resample._kernel.cache_parameters()["maxsize"]):
        resample._kernel(orig, 1)
    info = resample._kernel.cache_info()
    assert info.currsize == info.maxsize
    resample._kernel(orig, 1)
    assert resample._kernel.cache_info().hits == info.hits + 1


def test_products_are_those_of_one_thread():
    """The threads of BLAS, where several decode, wait for each other most of their time."""
    signal, ratios = noise(441_000), []
    with threadpool_limits(4):
        for _ in range(4):  # threads that are new, or that some other product has left, spin at first
            time.sleep(0.1)
            all_threads, this_thread = time.process_time(), time.thread_time()
            for _ in range(10):
                list(resample_blocks([signal], 44_100, 24_000))
            ratios.append((time.process_time() - all_threads) / (time.thread_time() - this_thread))
    assert min(ratios) < 1.2


def test_it_needs_no_torch(monkeypatch):
    resample._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(streamed(noise(44_100), [], 44_100, 24_000)) == 24_000
