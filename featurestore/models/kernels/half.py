"""MERT in half precision, for CUDA: weights of 16 bits, with what 16 bits would spoil kept in float32.

The network is that of models/mert.py, module for module; what is replaced are its dense layers and convolutions:
they take any input, compute in half and give half. What stays float32: the first convolution with its group norm
(quiet audio would lose its bits in half), all norms, and the residual stream, which outgrows half. On a CPU the
positional convolution stays as well, and half precision is used only after a comparison with float32.
"""

from __future__ import annotations

import copy
import platform
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.encoder import Encoder, check_float32
from featurestore.models.kernels.convolutions import conv1d
from featurestore.models.kernels.fidelity import check_close, fidelity, test_signal
from featurestore.models.mert import MertEncoder

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of the half precisions."""

_PRODUCT = (512, 768), (768, 768)
_TRIES = 5


def bf16_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The instructions of this processor for bfloat16 products, "amx_bf16" first; None if it has none.

    What is no x86 is asked of torch, which says "bf16".
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        try:
            flags = set(re.findall(r"\w+", cpuinfo.read_text()))
        except OSError:  # not Linux
            flags = {name for name, there in torch.cpu.get_capabilities().items() if there is True}
        return next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), None)
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16, as it is measured here and now.

    Having the products does not make them fast: Intel's processors whose AMX a virtual machine hides multiply in
    bfloat16 by `avx512_bf16`, at half the speed of float32.

    Returns
    -------
    float
        Least times of `_TRIES`, in turns, of a product of MERT's shape; 0 without `bf16_products`.
    """
    if bf16_products() is None:
        return 0.0
    spent: dict[torch.dtype, float] = {}
    pairs = [[torch.ones(size, dtype=dtype) for size in _PRODUCT] for dtype in (torch.float32, torch.bfloat16)]
    with torch.inference_mode():
        for _ in range(1 + _TRIES):
            for a, b in pairs:
                began = time.perf_counter()
                torch.mm(a, b)
                spent[a.dtype] = min(spent.get(a.dtype, 1e9), time.perf_counter() - began)
    return spent[torch.float32] / spent[torch.bfloat16]


def to_half(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """An encoder with weights in half precision.

    Parameters
    ----------
    encoder : Encoder
        In float32; is not changed.
    dtype : torch.dtype
        float16 or bfloat16.

    Returns
    -------
    Encoder
        A copy on the same device if it is a `MertEncoder`; any other encoder as it is, for autocast to deal with.

    Raises
    ------
    ModelError
        If the weights are not float32.
    SettingError
        If it is a network on a CPU whose hidden states of a test signal are far from those in float32
        (`fidelity.LEAST_COSINE`).
    """
    half = _replaced(encoder, dtype) if isinstance(encoder, MertEncoder) else encoder
    if isinstance(encoder, nn.Module) and _is_on_cpu(encoder):
        waves = test_signal(encoder.sample_rate, encoder.min_samples)
        found = fidelity(half, encoder, waves, autocast=dtype if half is encoder else None)
        check_close(found, f"{encoder.name} in {str(dtype).removeprefix('torch.')}", "precision fp32")
    return half


def _is_on_cpu(network: nn.Module) -> bool:
    return all(x.device.type == "cpu" for x in (*network.parameters(), *network.buffers()))


def _replaced(encoder: MertEncoder, dtype: torch.dtype) -> MertEncoder:
    """A copy with dense layers and convolutions in half."""
    check_float32(encoder, encoder.name)
    # Weights that stay are shared with the original.
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    network: Any = copy.deepcopy(encoder, shared)
    for conv in network.feature_extractor.conv_layers[1:]:
        conv.conv = _HalfConv(conv.conv, dtype)
    for conv in network.feature_extractor.conv_layers:
        if isinstance(conv.layer_norm, nn.LayerNorm):
            conv.layer_norm = _FloatNorm(conv.layer_norm)
    projection = network.feature_projection
    if projection.layer_norm is not None:
        projection.layer_norm = _FloatNorm(projection.layer_norm)
    projection.projection = _HalfDense([projection.projection], dtype)
    position = network.encoder.pos_conv_embed
    if not _is_on_cpu(position):
        position.conv = _HalfConv(position.conv, dtype)
    for layer in network.encoder.layers:
        layer.attention = _HalfAttention(layer.attention, dtype)
        feed_forward = layer.feed_forward
        feed_forward.intermediate_dense = _HalfDense([feed_forward.intermediate_dense], dtype)
        feed_forward.output_dense = _HalfDense([feed_forward.output_dense], dtype)
    copied: MertEncoder = network
    return copied


class _HalfDense(nn.Module):
    """Dense layers of one input side by side, in half."""

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([layer.weight.to(dtype) for layer in layers]))
        self.register_buffer("bias", torch.cat([layer.bias.to(dtype) for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return F.linear(x.to(weight.dtype), weight, self.get_buffer("bias"))


class _HalfConv(nn.Module):
    """A convolution in half."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.to(dtype))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.to(dtype))
        self._settings: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return conv1d(x.to(weight.dtype), weight, self.bias, **self._settings)  # type: ignore[arg-type]


class _FloatNorm(nn.LayerNorm):
    """A layer norm in float32 of an input in half."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class _HalfAttention(nn.Module):
    """Attention in half; queries, keys and values come from one product."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.qkv = _HalfDense([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = _HalfDense([attention.out_proj], dtype)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out
