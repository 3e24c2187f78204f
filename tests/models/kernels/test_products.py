"""Products in half precision on a CPU: right by float32, and none that oneDNN gets wrong where there is AMX."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from featurestore.encode.card import arithmetic
from featurestore.models.kernels.products import attention, autocast_on_cpu, product_dtype

BF16 = torch.bfloat16


def values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attended(**options):
    return F.scaled_dot_product_attention(*(values(2, 3, 37, 20, seed=i) for i in range(3)), **options)


def heads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.MultiheadAttention(40, 2, batch_first=True).eval()
    return module(*3 * [values(2, 37, 40)])[0]


PRODUCTS = {
    "linear": lambda: F.linear(values(2, 5, 40), values(7, 40, seed=1), values(7, seed=2)),
    "no bias": lambda: F.linear(values(5, 40), values(7, 40, seed=1)),
    "matmul": lambda: values(2, 3, 5, 37) @ values(2, 3, 37, 9, seed=1),
    "a vector": lambda: values(5, 37) @ values(37, seed=1),
    "bmm": lambda: torch.bmm(values(3, 5, 37), values(3, 37, 9, seed=1)),
    "baddbmm": lambda: torch.baddbmm(values(3, 5, 9), values(3, 5, 37), values(3, 37, 9, seed=1), beta=2, alpha=3),
    "einsum": lambda: torch.einsum("bhqd,bhkd->bhqk", values(2, 3, 5, 37), values(2, 3, 6, 37, seed=1)),
    "convolution": lambda: F.conv1d(values(2, 5, 50), values(6, 5, 3, seed=1), values(6, seed=2), stride=2),
    "of bands": lambda: F.conv2d(values(2, 1, 20, 20), values(6, 1, 3, 3, seed=1), padding=1),
    "grouped": lambda: F.conv1d(values(2, 64, 50), values(64, 32, 16, seed=1), groups=2),
    "attention": attended,
    "causal": lambda: attended(is_causal=True),
    "scaled": lambda: attended(scale=0.5),
    "masked": lambda: attended(attn_mask=values(2, 1, 37, 37, seed=4)),
    "hidden keys": lambda: attended(attn_mask=(torch.arange(37) < 20)[None]),
    "heads": heads,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_that_of_float32_by_lengths_that_are_right(name, mode, inner_lengths, grouped_convolutions):
    product = PRODUCTS[name]
    with mode():
        wanted = product()
        with inner_lengths() as seen, grouped_convolutions() as groups, autocast_on_cpu(BF16):
            found = product()
    assert not [length for lengths in seen.values() for length in lengths if length % 32]
    assert all(types == {torch.float32} for types in groups)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("name", sorted(set(PRODUCTS) - {"a vector", "causal", "einsum"}))
def test_the_watch_sees_what_would_be_wrong(name, inner_lengths, grouped_convolutions):
    with torch.no_grad(), inner_lengths() as seen, grouped_convolutions() as groups, torch.autocast("cpu", BF16):
        PRODUCTS[name]()
    assert groups or [length for lengths in seen.values() for length in lengths if length % 32]


def test_what_is_right_is_left_in_half(inner_lengths):
    with torch.no_grad(), inner_lengths() as seen, autocast_on_cpu(BF16):
        found = F.linear(values(5, 64), values(7, 64))
        attended = attention(*3 * [values(2, 3, 64, 32).to(BF16)])
    assert seen == {"mm": {64}, "attention": {32, 64}}
    assert found.dtype == attended.dtype == BF16


def test_nan_of_a_window_stays_there():
    queries = values(4, 2, 37, 20).to(BF16)
    queries[1] = torch.nan
    wave = values(4, 37, 50)
    wave[1] = torch.nan
    with torch.inference_mode(), autocast_on_cpu(BF16):
        found = [attention(queries, queries, queries), F.linear(wave, values(9, 50)), torch.bmm(wave, wave.mT)]
    for result in found:
        assert [bool(window.isfinite().all()) for window in result] == [True, False, True, True]


@pytest.mark.parametrize(("inner", "dtype"), [((32, 768), BF16), ((32, 48), torch.float32)])
def test_layers_of_widths_that_would_be_wrong_are_in_float32(inner, dtype):
    assert product_dtype(BF16, *inner) == dtype
    assert product_dtype(torch.float16, *inner) == torch.float16


def test_half_precision_of_the_cpu_is_guarded(inner_lengths):
    with torch.no_grad(), inner_lengths() as seen, arithmetic(torch.device("cpu"), BF16):
        PRODUCTS["linear"]()
    assert seen == {"addmm": {64}}
    assert isinstance(arithmetic(torch.device("mps"), None), contextlib.nullcontext)
